"""A moved file is the same file: renames of files and folders keep everything, without a batch (case A2)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import sqlalchemy as sa
from cheap_stages import cheap_stages, run_lane
from lab import Lab

from mirror_realm_assets.catalog import known
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.ingest import folder_watch
from mirror_realm_assets.ingest.batching import form_batches
from mirror_realm_assets.ingest.folder_watch import FolderWatch
from mirror_realm_assets.ingest.relocation import relocate


class Library:
    """A lab whose files have been read, and what its ledger says of them."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.stages = cheap_stages(lab.settings)

    def work(self) -> int:
        """Scan, form, run; returns how many files were in batches."""
        formed = self.lab.form(self.stages)
        for batch in formed:
            run_lane(self.lab.services, self.stages, batch.key)
        return sum(batch.items for batch in formed)

    def media(self) -> dict[str, tuple[int, int, str]]:
        """Location, media and state of every path."""
        l = t.locations.c  # noqa: E741
        with self.lab.catalog.read() as conn:
            rows = conn.execute(sa.select(l.path, l.id, l.media_id, l.state))
            return {os.fsdecode(row[0]): tuple(row[1:]) for row in rows}


@pytest.fixture
def library(lab: Lab) -> Library:
    made = Library(lab)
    (lab.folder / "sub").mkdir()
    for n, name in enumerate(("a.png", "sub/b.png", "sub/c.png")):
        lab.picture(name, n)
    assert made.work() == 3
    return made


def test_case_a2_a_renamed_file_keeps_its_media_and_nothing_is_read(library: Library) -> None:
    before = library.media()
    (library.lab.folder / "a.png").rename(library.lab.folder / "renamed.png")
    assert library.work() == 0
    assert library.media() == {"renamed.png": before["a.png"], **{p: before[p] for p in ("sub/b.png", "sub/c.png")}}


def test_case_a2_a_renamed_folder_keeps_the_media_of_all_its_files(library: Library) -> None:
    before = library.media()
    (library.lab.folder / "sub").rename(library.lab.folder / "0-before-a")
    assert library.work() == 0
    after = library.media()
    assert after["0-before-a/b.png"] == before["sub/b.png"]
    assert after["0-before-a/c.png"] == before["sub/c.png"]
    assert set(after) == {"a.png", "0-before-a/b.png", "0-before-a/c.png"}


def test_a_name_that_is_used_again_is_another_file(library: Library) -> None:
    before = library.media()
    (library.lab.folder / "a.png").rename(library.lab.folder / "z.png")
    library.lab.picture("a.png", 9)
    assert library.work() == 1
    after = library.media()
    assert after["z.png"][1] == before["a.png"][1]
    assert after["a.png"][1] != before["a.png"][1]


def test_a_second_link_to_a_file_is_no_move(library: Library) -> None:
    (library.lab.folder / "link.png").hardlink_to(library.lab.folder / "a.png")
    assert library.work() == 1
    after = library.media()
    assert after["a.png"][2] == after["link.png"][2] == "present"
    assert after["a.png"][1] == after["link.png"][1]


def test_an_edited_file_under_a_new_name_is_read(library: Library) -> None:
    (library.lab.folder / "a.png").rename(library.lab.folder / "renamed.png")
    with (library.lab.folder / "renamed.png").open("ab") as file:
        file.write(b"more")
    assert library.work() == 1


def test_a_file_that_came_back_under_another_name_after_it_was_missed(library: Library) -> None:
    before = library.media()
    away = library.lab.folder.parent / "away.png"
    (library.lab.folder / "a.png").rename(away)
    library.lab.scan()
    assert library.work() == 0
    assert library.media()["a.png"][2] == "missing"
    away.rename(library.lab.folder / "back.png")
    assert library.work() == 0
    assert library.media()["back.png"] == before["a.png"]


def test_on_a_network_drive_inodes_prove_nothing(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_watch, "on_network", lambda _path: True)
    before = library.media()
    (library.lab.folder / "a.png").rename(library.lab.folder / "renamed.png")
    assert library.work() == 1
    after = library.media()
    assert after["renamed.png"][1] == before["a.png"][1]  # by its bytes
    assert after["a.png"][2] == "missing"


def test_a_writer_that_renames_into_place_is_a_move_for_the_watcher_too(library: Library) -> None:
    before = library.media()
    (library.lab.folder / "a.png").rename(library.lab.folder / "renamed.png")
    folder = FolderWatch(library.lab.catalog, library.lab.settings, library.lab.source)
    assert folder.take(b"renamed.png")
    assert not folder.take(b"renamed.png")
    assert form_batches(library.lab.catalog, library.lab.settings, library.stages, "t", now_or_never=True).keys == []
    assert library.media()["renamed.png"] == before["a.png"]
    assert "a.png" not in library.media()


def test_two_moves_of_one_file_before_either_is_applied(library: Library) -> None:
    before = library.media()
    folder = FolderWatch(library.lab.catalog, library.lab.settings, library.lab.source)
    (library.lab.folder / "a.png").rename(library.lab.folder / "b.png")
    folder.scan()
    (library.lab.folder / "b.png").rename(library.lab.folder / "c.png")
    folder.scan()
    assert library.work() == 0
    after = library.media()
    present = {path: found for path, found in after.items() if found[2] == "present"}
    assert set(present) == {"c.png", "sub/b.png", "sub/c.png"}
    assert present["c.png"][1] == before["a.png"][1]


def test_ten_thousand_rows_are_read_in_order(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "_PAGE", 2)
    paths = [row[0] for row in known.in_order(library.lab.catalog, library.lab.source.id)]
    assert paths == [b"a.png", b"sub/b.png", b"sub/c.png"]


@pytest.mark.parametrize("how", ["renamed", "copied"])
def test_a_moved_root_keeps_everything(library: Library, tmp_path: Path, how: str) -> None:
    before = library.media()
    moved = tmp_path / "elsewhere"
    if how == "renamed":
        shutil.move(library.lab.folder, moved)
    else:  # to another drive, with times kept: every file has another inode
        shutil.copytree(library.lab.folder, moved)
        shutil.rmtree(library.lab.folder)
    relocate(library.lab.catalog, library.lab.source, os.fsencode(moved))
    library.lab.folder = moved
    attempts = sa.select(sa.func.sum(t.features.c.attempts), sa.func.count())
    with library.lab.catalog.read() as conn:
        computed = conn.execute(attempts).one()
    library.work()
    library.work()
    assert library.media() == before
    with library.lab.catalog.read() as conn:
        assert conn.execute(attempts).one() == computed


def test_another_folder_is_not_taken_for_the_one_that_was_moved(library: Library, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "x.png").write_bytes(b"x")
    for folder in (other, tmp_path / "nowhere"):
        with pytest.raises(SetupError):
            relocate(library.lab.catalog, library.lab.source, os.fsencode(folder))
    assert library.work() == 0
