"""A file that declares sources: read whole, or refused with the line of everything that is wrong."""

from __future__ import annotations

import contextlib
import string
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.registry.declared import DeclarationError, Declared, read


def file(folder: Path, text: str | bytes) -> Path:
    made = folder / "sources.yaml"
    made.write_bytes(text if isinstance(text, bytes) else text.encode())
    return made


def refused(folder: Path, text: str | bytes) -> list[str]:
    """The faults, by line."""
    with pytest.raises(DeclarationError) as caught:
        read(file(folder, text))
    assert caught.value.code == "invalid_argument"
    return list(caught.value.faults)


def test_sources_are_read_with_their_options_in_the_order_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    found = read(
        file(
            tmp_path,
            "# photos of ours\n"
            "sources:\n"
            "  scans:\n"
            "    folder: pictures/scans\n"
            "    state: inactive\n"
            "  family:\n"
            "    folder: ~/家\n"
            "    options:\n"
            "      enhance.model: realesrgan-x4plus-anime\n"
            "      ignore: ['*.tmp', raw/*]\n",
        )
    )
    assert found == [
        Declared("scans", tmp_path / "pictures" / "scans", "inactive", {}, 3),
        Declared(
            "family",
            tmp_path / "home" / "家",
            "active",
            {"enhance.model": "realesrgan-x4plus-anime", "ignore": ["*.tmp", "raw/*"]},
            6,
        ),
    ]


def test_every_fault_is_told_with_its_line_and_the_nearest_name(tmp_path: Path) -> None:
    told = refused(
        tmp_path,
        "sources:\n"
        "  Family:\n"
        "    folder: /a\n"
        "  one:\n"
        "    foldr: /b\n"
        "    options:\n"
        "      enhance.modle: x\n"
        "      enhance.outscale: 99\n"
        "  two:\n"
        "    folder: /c\n"
        "    state: asleep\n"
        "  two:\n"
        "    folder: /d\n",
    )
    assert [line.split(":")[0] for line in told] == ["2", "4", "5", "7", "8", "11", "12"]
    assert "did you mean `folder`?" in told[2]
    assert "did you mean `enhance.model`?" in told[3]
    assert "less than or equal to 8" in told[4]
    assert "active, inactive" in told[5]
    assert "in line 9 already" in told[6]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", "1", "empty"),
        ("[]", "1", "a mapping"),
        ("others: {}", "1", "no field `others`"),
        ("sources: [a, b]", "1", "a mapping"),
        ("sources:\n  a: 5", "2", "a mapping"),
        ("sources:\n  a: {folder: [x]}", "2", "needs a `folder`"),
        ("sources:\n  a: {folder: !!python/object/apply:os.system [true]}", "2", "needs a `folder`"),
        ("sources:\n\ta: b", "2", "no YAML"),
        ("sources: {a: *nothing}", "1", "no YAML"),
        (b"sources: \xff\xfe", "1", "no YAML"),
    ],
)
def test_what_is_no_list_of_sources_is_refused(tmp_path: Path, text: str | bytes, line: str, words: str) -> None:
    told = refused(tmp_path, text)
    assert any(one.startswith(f"{line}: ") and words in one for one in told), told


def test_a_file_that_is_not_there_or_far_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="cannot be read"):
        read(tmp_path / "nothing.yaml")
    assert read(file(tmp_path, "sources: {}")) == []
    with pytest.raises(SetupError, match="no list of sources"):
        read(file(tmp_path, b"#" * (5 << 20)))


@given(st.text(alphabet=string.printable + "家", max_size=200))
def test_no_text_does_anything_but_being_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    made = file(tmp_path_factory.getbasetemp(), text)
    with contextlib.suppress(DeclarationError):
        read(made)


_NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
_OPTIONS = st.fixed_dictionaries(
    {}, optional={"enhance": st.booleans(), "enhance.outscale": st.floats(0.5, 8), "ignore": st.lists(_NAMES)}
)


@given(st.dictionaries(_NAMES, _OPTIONS, max_size=5))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, wanted: dict[str, dict[str, object]]
) -> None:
    entries = {name: {"folder": f"/photos/{name}", "options": options} for name, options in wanted.items()}
    found = read(file(tmp_path_factory.getbasetemp(), yaml.safe_dump({"sources": entries})))
    assert {one.name: dict(one.options) for one in found} == wanted
    assert all(one.folder == Path("/photos") / one.name for one in found)
