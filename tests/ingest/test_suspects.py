"""Files that look changed and may not be: other inodes, shifted times, restored backups."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from cheap_stages import cheap_stages, run_lane
from lab import Lab

from mirror_realm_assets.ingest import one_scan
from mirror_realm_assets.ingest.folder_watch import FolderWatch

FILES = 8


class Library:
    """A lab with eight files that have been read."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.stages = cheap_stages(lab.settings)
        self.paths = [lab.picture(f"{n}.png", n) for n in range(FILES)]
        assert self.work() == FILES

    def work(self) -> int:
        """Scan, form, run; returns how many files were in batches."""
        formed = self.lab.form(self.stages)
        for batch in formed:
            run_lane(self.lab.services, self.stages, batch.key)
        return sum(batch.items for batch in formed)

    def restore(self) -> None:
        """The folder as a backup brings it back: the same bytes and times in other files."""
        saved = self.lab.folder.parent / "backup"
        shutil.copytree(self.lab.folder, saved)
        for path in self.paths:
            path.unlink()
        for path in self.paths:
            shutil.copy2(saved / path.name, path)
        # The first files of the new ones may have got the inodes of the old ones.
        shutil.rmtree(saved)

    def touch(self) -> None:
        """Every time is an hour later, as after a change of a camera card's time zone."""
        for path in self.paths:
            seen = path.stat()
            os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns + 3_600_000_000_000))


@pytest.fixture
def library(lab: Lab) -> Library:
    return Library(lab)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four files are many."""
    monkeypatch.setattr(one_scan, "_SUSPECT_FILES", 4)


def test_one_touched_file_is_read_again(library: Library, few: None) -> None:
    os.utime(library.paths[0], ns=(1, 1))
    assert library.work() == 1


def test_a_file_that_is_exchanged_at_equal_size_and_time_is_read(library: Library) -> None:
    path = library.paths[0]
    seen = path.stat()
    new = path.with_name("new.tmp")  # not taken by its name
    new.write_bytes(bytes(seen.st_size))
    os.utime(new, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    new.rename(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (seen.st_size, seen.st_mtime_ns)
    assert library.work() == 1
    assert library.work() == 0


def test_shifted_times_cost_a_sample_and_are_not_asked_again(library: Library, few: None) -> None:
    library.touch()
    folder = FolderWatch(library.lab.catalog, library.lab.settings, library.lab.source)
    found = folder.scan()
    assert found.unreliable == FILES
    assert "by a sample, the same bytes" in found.changes
    assert library.work() == 0
    assert FolderWatch(library.lab.catalog, library.lab.settings, library.lab.source).scan().changes == "nothing new"


def test_a_restored_backup_costs_a_sample(library: Library, few: None) -> None:
    library.restore()
    assert library.work() == 0
    assert library.work() == 0


def test_when_one_of_the_sample_has_other_bytes_all_are_read(library: Library, few: None) -> None:
    library.touch()
    for path in library.paths[: FILES - 3]:  # so many that a sample of four meets one
        content = bytearray(path.read_bytes())
        content[-1] ^= 255
        seen = path.stat()
        path.write_bytes(content)
        os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert library.work() == FILES


def test_files_that_grew_are_no_suspects(library: Library, few: None) -> None:
    library.touch()
    with library.paths[0].open("ab") as file:
        file.write(b"more")
    assert library.work() == 1


def test_a_suspect_has_to_rest(library: Library, tmp_path: Path) -> None:
    settings = library.lab.settings.model_copy(update={"quiet_seconds": 2.0})
    folder = FolderWatch(library.lab.catalog, settings, library.lab.source)
    os.utime(library.paths[0], ns=(1, 1))
    assert [folder.scan(lambda at=at: at).taken for at in (0.0, 1.0, 2.5)] == [0, 0, 1]  # type: ignore[misc]
