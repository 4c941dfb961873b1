"""The documentation is true: links lead somewhere, commands and variables exist, the sixth stage runs."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import click
import pytest
import yaml

from mirror_realm_assets.cli.main import cli
from mirror_realm_assets.settings import Settings

REPOSITORY = Path(__file__).resolve().parent.parent
DOCS = REPOSITORY / "docs"
FIGURES = DOCS / "figures"
PAGES = [REPOSITORY / "README.md", REPOSITORY / "README.zh-CN.md", *sorted(DOCS.rglob("*.md"))]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_VARIABLE = re.compile(r"\b(?:MIRROR_REALM_[A-Z_]+|DAGSTER_HOME|XDG_DATA_HOME)\b")
_WORD = re.compile(r"[a-z][a-z-]*")


def _name(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


each_page = pytest.mark.parametrize("page", PAGES, ids=_name)


@each_page
def test_links_within_the_documentation_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(_CODE.sub("", _FENCE.sub("", page.read_text(encoding="utf-8")))):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / unquote(path)).resolve() if path else page
        if FIGURES in linked.parents and not FIGURES.exists():
            continue  # pictures are made by a run, after the text
        assert linked.exists(), f"{_name(page)} links to {target}"
        assert not anchor or anchor in _anchors(linked), f"{_name(page)} links to {target}"


def test_every_page_is_reached_from_the_index() -> None:
    index = DOCS / "README.md"
    linked = {(DOCS / target.partition("#")[0]).resolve() for target in _LINK.findall(index.read_text("utf-8"))}
    assert {page for page in PAGES if DOCS in page.parents and page != index} <= linked


@each_page
def test_commands_and_their_options_exist(page: Path) -> None:
    for line in _code_lines(page.read_text(encoding="utf-8")):
        for words in _calls(line):
            command, rest = _resolve(words)
            known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
            given = {found[1] for word in rest if (found := re.match(r"\[?(--?[a-zA-Z][\w-]*)", word))}
            assert given <= known | {"--help", "-h"}, f"{_name(page)}: {line}"


def test_the_reference_names_every_command_with_all_its_options() -> None:
    text = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    described = {section.partition("`")[0].strip(): section for section in text.split("### `mirror-realm ")[1:]}
    for path, command in _commands(cli):
        section = next((body for head, body in described.items() if f"{head} ".startswith(f"{path} ")), None)
        assert section is not None, f"cli.md does not describe mirror-realm {path}"
        for option in (parameter for parameter in command.params if isinstance(parameter, click.Option)):
            assert any(name in section for name in option.opts), f"mirror-realm {path}: {option.opts}"


@each_page
def test_environment_variables_exist(page: Path) -> None:
    known = _variables()
    assert set(_VARIABLE.findall(page.read_text(encoding="utf-8"))) <= known


def test_the_sixth_stage_runs(tmp_path: Path) -> None:
    namespace: dict[str, Any] = {}
    page = (DOCS / "how-to" / "add-a-stage.md").read_text(encoding="utf-8")
    (block,) = [body for language, body in _FENCE.findall(page) if language == "python"]
    exec(compile(block, "add-a-stage.md", "exec"), namespace)  # noqa: S102 - it is our own page

    home = Settings.at(tmp_path / "home", quiet_seconds=0)
    with _library(home, tmp_path / "photos") as (services, batch):
        _materialize(namespace["assets"], home.home, batch)
        row = _only_file(services, namespace["stages"](home))
    assert row.features["brightness"]["status"] == "ok"
    assert row.features["brightness"]["output"] == {"mean": pytest.approx(120.0, abs=1.0)}


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def _code_lines(text: str) -> Iterator[str]:
    for _language, body in _FENCE.findall(text):
        yield from body.splitlines()
    for line in _FENCE.sub("", text).splitlines():
        yield from _CODE.findall(line)


def _calls(line: str) -> Iterator[list[str]]:
    """The words after each `mirror-realm` that stands as a program; another one may follow after a pipe or `;`."""
    for piece in re.split(r"[|;&>#]", line):
        words = shlex.split(piece.rstrip("\\").replace("'", " ").replace('"', " "))
        if {"kubectl", "helm"} & set(words):  # of which a namespace is called like the program, too
            words = words[words.index("--") + 1 :] if "--" in words else []
        programs = [n for n, word in enumerate(words) if word == "mirror-realm" or word.endswith("/mirror-realm")]
        if programs and programs[0] + 1 < len(words):
            yield words[programs[0] + 1 :]


def _resolve(words: list[str]) -> tuple[click.Command, list[str]]:
    command: click.Command = cli
    rest = words
    while isinstance(command, click.Group) and rest and _WORD.fullmatch(rest[0]):
        assert rest[0] in command.commands, f"there is no command mirror-realm {' '.join(words)}"
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def _commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, f"{prefix}{name} ")
        elif not command.hidden:
            yield f"{prefix}{name}", command


def _variables() -> set[str]:
    prefix = str(Settings.model_config.get("env_prefix", ""))
    found = set()
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        names = getattr(alias, "choices", [alias]) if alias else [f"{prefix}{name}".upper()]
        found.update(str(each) for each in names)
    # Those that only the instance's configuration of a cluster reads.
    deployed = yaml.safe_load((REPOSITORY / "deploy" / "base" / "settings.yaml").read_text(encoding="utf-8"))
    return found | set(deployed["data"])


class _library:  # noqa: N801 - a context manager
    """A home with one source, one grey picture in it, and its batch."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder = settings, folder

    def __enter__(self) -> tuple[Any, str]:
        from PIL import Image

        from mirror_realm_assets import installation
        from mirror_realm_assets.catalog import batches, sources
        from mirror_realm_assets.catalog.engine import Catalog
        from mirror_realm_assets.ingest.watch import FolderWatch
        from mirror_realm_assets.resources.library import open_services

        self.folder.mkdir()
        Image.new("RGB", (64, 48), (120, 120, 120)).save(self.folder / "grey.png")
        installation.install(self.settings)
        catalog = Catalog(self.settings.catalog_url)
        catalog.migrate()
        catalog.close()
        services = open_services(self.settings)
        with services.catalog.write() as conn:
            source = sources.add(conn, "demo", os.fsencode(self.folder), {})
        FolderWatch(services.catalog, self.settings, source).scan()
        with services.catalog.write() as conn:
            from mirror_realm_assets.catalog import files

            files.drain_journal(conn)
            waiting = files.waiting(conn, source.id, 10)
            items = [batches.NewItem(location_id=each.location_id, size=each.size) for each in waiting]
            batch = batches.form(conn, source, items, ["raw_media", "brightness"])
        return services, batch.key

    def __exit__(self, *_error: object) -> None:
        from mirror_realm_assets.resources.library import close_services

        close_services(self.settings)


def _materialize(assets: list[Any], home: Path, batch: str) -> None:
    import dagster as dg

    from mirror_realm_assets.resources.library import LibraryResource

    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("media_batch", [batch])
        library = LibraryResource(home=str(home))
        assert dg.materialize(assets, partition_key=batch, instance=instance, resources={"library": library}).success


def _only_file(services: Any, stages: Any) -> Any:
    from mirror_realm_assets.catalog import listing, sources

    with services.catalog.read() as conn:
        source = sources.get(conn, "demo")
        (row,) = listing.of_source(conn, source, [stage.rule for stage in stages], services.limits())
    return row
