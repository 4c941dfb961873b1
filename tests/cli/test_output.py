"""Printing: JSON stands alone and whole, and nothing from disk reaches a terminal as anything but text."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mirror_realm_assets.cli.output import emit, human_bytes, human_seconds, paths_json, safe, say, show

once_a_test = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)


@once_a_test
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_text_is_printed_as_it_is_or_escaped_and_never_obeyed(capsys: pytest.CaptureFixture[str], text: str) -> None:
    show(f"<{safe(text)}>")
    say(f"[bold]{safe(text)}[/bold]!")
    out, err = capsys.readouterr()
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    assert out == f"<{escaped}>\n"
    assert err == f"{escaped}!\n"
    assert all(c.isprintable() or c == "\n" for c in out + err)


@once_a_test
@given(st.lists(st.text("[]\\\\/a# \n", max_size=8), min_size=2, max_size=2))
def test_two_texts_never_make_a_tag_together(capsys: pytest.CaptureFixture[str], texts: list[str]) -> None:
    say(f"{safe(texts[0])} is in {safe(texts[1])}.[bold]![/bold]")
    first, second = (text.replace("\n", "\\n") for text in texts)
    assert capsys.readouterr().err == f"{first} is in {second}.!\n"


@once_a_test
@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=20), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_json_is_one_line_that_reads_back_and_holds_no_control_character(
    capsys: pytest.CaptureFixture[str], value: object
) -> None:
    emit(value)
    out = capsys.readouterr().out
    assert out.endswith("\n")
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in out[:-1])
    if "\\ud" not in ascii(value):
        assert json.loads(out) == value


@given(st.lists(st.binary(min_size=1, max_size=12), max_size=4))
def test_paths_lose_nothing(paths: list[bytes]) -> None:
    found = json.loads(json.dumps(paths_json(paths)))
    for shown, path in zip(found["paths"], paths, strict=True):
        shown.encode()  # no half surrogates
        if path.decode(errors="ignore").encode() == path:
            assert shown == path.decode()
    odd = [path for path in paths if path.decode(errors="ignore").encode() != path]
    assert ("paths_b64" in found) is bool(odd)
    if odd:
        assert [base64.b64decode(text) for text in found["paths_b64"]] == paths


def test_bytes_that_are_no_utf8_are_escapes_in_paths() -> None:
    assert paths_json([b"a\xff.jpg"])["paths"] == ["a\\udcff.jpg"]


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_500_000, "1.5 MB"), (2e12, "2.0 TB")]
)
def test_sizes_are_read_by_people(size: float, words: str) -> None:
    assert human_bytes(size) == words


@pytest.mark.parametrize(("seconds", "words"), [(0, "0 s"), (89, "89 s"), (600, "10 min"), (7200, "2.0 h")])
def test_durations_are_read_by_people(seconds: float, words: str) -> None:
    assert human_seconds(seconds) == words
