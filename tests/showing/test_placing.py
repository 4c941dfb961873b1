"""Where a page may be written: never within a source or the store, never over what is not ours."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab import Lab

from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.showing.placing import put, require_place

MARK = b"<made by us>"


def place(lab: Lab, target: Path) -> Path:
    return require_place(lab.settings, lab.catalog, target, mark=MARK)


def refused(lab: Lab, target: Path) -> str:
    with pytest.raises(SetupError) as caught:
        place(lab, target)
    assert caught.value.remedy
    return caught.value.code


def test_a_page_is_written_and_replaced_by_the_next(lab: Lab, tmp_path: Path) -> None:
    target = place(lab, tmp_path / "found.html")
    put(target, MARK + b"1")
    put(place(lab, target), MARK + b"2")
    assert target.read_bytes() == MARK + b"2"
    assert target.stat().st_mode & 0o077 == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.html", "home", "photos"]


def test_nothing_is_written_within_a_source_however_it_is_spelled(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (lab.folder / "deep").mkdir()
    (tmp_path / "link").symlink_to(lab.folder / "deep")
    monkeypatch.chdir(lab.folder / "deep")
    for target in (
        lab.folder / "found.html",
        lab.folder / "deep" / "found.html",
        lab.folder / "deep" / ".." / "found.html",
        tmp_path / "link" / "found.html",
        Path("found.html"),
        Path("../../photos/found.html"),
    ):
        assert refused(lab, target) == "invalid_argument"
    assert [path.name for path in lab.folder.rglob("*")] == ["deep"]


def test_an_original_and_any_other_foreign_file_stay(lab: Lab, tmp_path: Path) -> None:
    picture = lab.picture("a.png")
    before = picture.read_bytes()
    assert refused(lab, picture) == "invalid_argument"
    (tmp_path / "letter.html").write_text("<p>mine</p>")
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "to-original.html").symlink_to(picture)
    (tmp_path / "to-nowhere.html").symlink_to(tmp_path / "nowhere")
    for name in ("letter.html", "folder.html", "to-original.html", "to-nowhere.html"):
        assert refused(lab, tmp_path / name) == "already_exists"
    assert picture.read_bytes() == before
    assert (tmp_path / "letter.html").read_text() == "<p>mine</p>"


def test_the_store_is_no_place_and_a_folder_of_the_home_is_one(lab: Lab) -> None:
    assert refused(lab, lab.home / "store" / "found.html") == "invalid_argument"
    assert refused(lab, lab.home / "dagster" / "found.html") == "invalid_argument"
    (lab.home / "tour").mkdir()
    assert place(lab, lab.home / "tour" / "found.html").parent.name == "tour"


def test_a_folder_that_is_not_there_is_not_made(lab: Lab, tmp_path: Path) -> None:
    assert refused(lab, tmp_path / "nowhere" / "found.html") == "not_found"
    assert not (tmp_path / "nowhere").exists()


def test_a_place_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"found\.html cannot be written"):
        put(tmp_path / "nowhere" / "found.html", b"page")
