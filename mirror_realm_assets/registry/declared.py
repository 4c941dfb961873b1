"""A file that declares sources, read with the line of everything that is wrong in it.

What belongs here: from text to declarations. What does not: comparing them with the registry (`changes`).

The text is composed into nodes by PyYAML's safe loader, which knows where each of them stands; nothing in it can make
an object of any other kind than text, numbers, lists and mappings.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import ValidationError

from mirror_realm_assets.catalog.policy import SourcePolicy, check_source_name, option_names
from mirror_realm_assets.errors import SetupError

State = Literal["active", "inactive"]
_MAX_BYTES = 4 * 1024 * 1024
_FIELDS = ("folder", "state", "options")


@dataclass(frozen=True)
class Declared:
    """A source as the file wants it.

    Attributes:
        name: of the source.
        folder: absolute.
        state: `active`, or `inactive`: nothing new of it is begun.
        options: those that are named; the others have their defaults.
        line: where it begins, from 1.
    """

    name: str
    folder: Path
    state: State
    options: Mapping[str, Any]
    line: int


class DeclarationError(SetupError):
    """A file that is refused.

    Attributes:
        faults: each as `LINE: what is wrong`, by line.
    """

    def __init__(self, file: Path, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        super().__init__(
            "invalid_argument", f"{file}:{faults[0]}{more}.", remedy="Correct the file; nothing was changed."
        )


@dataclass(frozen=True)
class _Wrong:
    line: int
    what: str


def read(file: Path) -> list[Declared]:
    """The sources that a file declares, in its order.

    Args:
        file: YAML: `sources:` with a mapping of names to `folder`, `state`, `options`. A relative folder is beside
            the file, `~` is the home of who runs this.

    Raises:
        DeclarationError: with every fault and its line.
        SetupError: `not_found`.
    """
    try:
        with file.open("rb") as opened:
            data = opened.read(_MAX_BYTES + 1)
    except OSError as error:
        raise SetupError("not_found", f"{file} cannot be read: {error.strerror}.") from error
    if len(data) > _MAX_BYTES:
        raise SetupError("invalid_argument", f"{file} has more than {_MAX_BYTES} bytes: it is no list of sources.")
    wrong: list[_Wrong] = []
    try:
        node = yaml.compose(data, Loader=yaml.SafeLoader)
        found = _sources(node, file.absolute().parent, wrong)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        found, wrong = [], [_Wrong(line, f"this is no YAML: {error.problem}")]
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        found, wrong = [], [_Wrong(1, f"this is no YAML: {str(error).splitlines()[0]}")]
    if wrong:
        raise DeclarationError(file, [f"{one.line}: {one.what}" for one in sorted(wrong, key=lambda one: one.line)])
    return found


def _sources(node: yaml.Node | None, beside: Path, wrong: list[_Wrong]) -> list[Declared]:
    if node is None:
        wrong.append(_Wrong(1, "the file is empty: it needs `sources:`"))
        return []
    top = _mapping(node, "the file", ("sources",), wrong)
    if "sources" not in top:
        wrong.append(_Wrong(_line(node), "`sources` is missing"))
        return []
    found = []
    for name, key, value in _pairs(top["sources"], "`sources`", wrong):
        try:
            check_source_name(name)
        except SetupError as error:
            wrong.append(_Wrong(_line(key), f"{error.message} {error.remedy}"))
        if (source := _source(name, key, value, beside, wrong)) is not None:
            found.append(source)
    return found


def _source(name: str, key: yaml.Node, node: yaml.Node, beside: Path, wrong: list[_Wrong]) -> Declared | None:
    fields = _mapping(node, f"source {name}", _FIELDS, wrong)
    before = len(wrong)
    folder = _plain(fields.get("folder"))
    if not isinstance(folder, str) or not folder or "\0" in folder:
        wrong.append(_Wrong(_line(fields.get("folder", key)), f"source {name} needs a `folder`: a path"))
        folder = "."
    state: Any = _plain(fields["state"]) if "state" in fields else "active"
    if state not in get_args(State):
        wrong.append(_Wrong(_line(fields["state"]), f"`state` is one of {', '.join(get_args(State))}, not {state!r}"))
    options: dict[str, Any] = {}
    if "options" in fields:
        lines = {}
        for option, at, value in _pairs(fields["options"], "`options`", wrong):
            options[option], lines[option] = _plain(value), _line(at)
        wrong += _wrong_options(options, lines)
    if len(wrong) > before:
        return None
    return Declared(name, beside / Path(folder).expanduser(), state, options, _line(key))


def _wrong_options(options: Mapping[str, Any], lines: Mapping[str, int]) -> Iterator[_Wrong]:
    try:
        SourcePolicy.model_validate(options)
    except ValidationError as error:
        for one in error.errors():
            name = str(one["loc"][0])
            if one["type"] == "extra_forbidden":
                yield _Wrong(lines[name], f"there is no option `{name}`{_near(name, sorted(option_names()))}")
            else:
                yield _Wrong(lines[name], f"option `{name}`: {one['msg']}")


def _mapping(node: yaml.Node, what: str, known: tuple[str, ...], wrong: list[_Wrong]) -> dict[str, yaml.Node]:
    """The values of a mapping by their names, of which each is known."""
    found = {}
    for name, key, value in _pairs(node, what, wrong):
        if name in known:
            found[name] = value
        else:
            wrong.append(_Wrong(_line(key), f"{what} has no field `{name}`{_near(name, known)}"))
    return found


def _pairs(node: yaml.Node, what: str, wrong: list[_Wrong]) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """Names, their nodes and values; one that stands twice is a fault, since YAML silently keeps the last."""
    if not isinstance(node, yaml.MappingNode):
        wrong.append(_Wrong(_line(node), f"{what} is a mapping of names to values"))
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            wrong.append(_Wrong(_line(key), f"a name in {what} is a word"))
        elif key.value in seen:
            wrong.append(_Wrong(_line(key), f"`{key.value}` stands in {what} in line {seen[key.value]} already"))
        else:
            seen[key.value] = _line(key)
            yield key.value, key, value


def _plain(node: yaml.Node | None) -> Any:
    """The value of a node, by the safe rules."""
    if node is None:
        return None
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    except yaml.YAMLError:
        return None
    finally:
        loader.dispose()


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _near(name: str, known: tuple[str, ...] | list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean `{near[0]}`?" if near else f"; there are {', '.join(known)}"
