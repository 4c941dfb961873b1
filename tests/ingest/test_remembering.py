"""A watcher that goes on looks at every file and compares only folders that are not as they were."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lab import Lab

from mirror_realm_assets.catalog import files, known, sources, tables
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.files import Sighting
from mirror_realm_assets.ingest import folder_watch
from mirror_realm_assets.ingest.folder_watch import FolderWatch
from mirror_realm_assets.settings import Settings


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was read of the ledger: `all`, or the prefix of a folder."""
    told: list[str] = []
    in_order, in_folder = known.in_order, known.in_folder

    def whole(*arguments: object) -> object:
        told.append("all")
        return in_order(*arguments)  # type: ignore[arg-type]

    def one(conn: object, source_id: int, prefix: bytes) -> object:
        told.append(prefix.decode())
        return in_folder(conn, source_id, prefix)  # type: ignore[arg-type]

    monkeypatch.setattr(folder_watch.known, "in_order", whole)
    monkeypatch.setattr(folder_watch.known, "in_folder", one)
    yield told


@pytest.fixture
def watcher(lab: Lab) -> FolderWatch:
    """Three folders with a file each, known and remembered."""
    for folder in ("", "a/", "a/b/"):
        (lab.folder / folder).mkdir(exist_ok=True)
        (lab.folder / folder / "1.png").write_text(folder)
    made = FolderWatch(lab.catalog, lab.settings, lab.source)
    made.scan()
    apply(lab)
    made.scan()
    return made


def apply(lab: Lab) -> None:
    with lab.catalog.write() as conn:
        files.drain_journal(conn)


def test_nothing_is_compared_when_nothing_changed(watcher: FolderWatch, compared: list[str]) -> None:
    assert watcher.scan().files == 3
    assert compared == []


def test_only_the_folder_of_a_changed_file_is_compared_and_those_above(
    watcher: FolderWatch, lab: Lab, compared: list[str]
) -> None:
    (lab.folder / "a" / "b" / "1.png").write_text("longer than it was")
    assert watcher.scan().taken == 1
    assert compared == ["a/b/"]
    (lab.folder / "a" / "b" / "2.png").write_text("new")  # changes the folder's own time, which is seen one above
    compared.clear()
    assert watcher.scan().taken == 1
    assert compared == ["a/", "a/b/"]
    compared.clear()
    watcher.scan()
    assert compared == ["a/b/"]  # what was journalled is not applied yet
    apply(lab)
    compared.clear()
    watcher.scan()  # compared once more, and found to agree
    watcher.scan()
    assert compared == ["a/b/"]


def test_a_folder_that_is_gone_takes_its_files_along(watcher: FolderWatch, lab: Lab) -> None:
    (lab.folder / "a" / "b" / "1.png").unlink()
    (lab.folder / "a" / "b").rmdir()
    assert watcher.scan().missing == 1
    apply(lab)
    assert watcher.scan().deleted == 1


def test_everything_is_compared_when_another_one_wrote_about_the_source(
    watcher: FolderWatch, lab: Lab, compared: list[str]
) -> None:
    (lab.folder / "2.png").write_text("new")
    FolderWatch(lab.catalog, lab.settings, lab.source).scan()
    compared.clear()
    watcher.scan()
    assert compared == ["all"]


def test_everything_is_compared_once_an_hour(
    watcher: FolderWatch, compared: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_watch, "_COMPARE_SECONDS", 0.0)
    watcher.scan()
    assert compared == ["all"]


def test_everything_is_compared_after_a_partial_walk(watcher: FolderWatch, lab: Lab, compared: list[str]) -> None:
    class Broken:
        stat = staticmethod(os.stat)
        lstat = staticmethod(os.lstat)

        @staticmethod
        def scandir(path: bytes) -> object:
            if path.endswith(b"/b/"):
                raise OSError(5, "Input/output error")
            return os.scandir(path)

    disk, watcher._disk = watcher._disk, Broken()
    assert watcher.scan().errors == ["Input/output error"]
    watcher._disk = disk
    compared.clear()
    watcher.scan()
    assert compared == ["all"]


_NAMES = st.sampled_from(["1.png", "2.png", "a/1.png", "a/2.png", "a/b/1.png", "c/d/1.png", ".hidden", "a/x.tmp"])
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), _NAMES, st.integers(1, 3)),
        st.tuples(st.just("remove"), _NAMES, st.just(0)),
        st.tuples(st.just("rename"), _NAMES, st.just(0)),
        st.tuples(st.just("apply"), st.just(""), st.just(0)),
    ),
    max_size=12,
)


@dataclass
class Folder:
    """A folder with a catalog of its own."""

    folder: Path
    catalog: Catalog
    settings: Settings

    def watch(self) -> FolderWatch:
        with self.catalog.read() as conn:
            return FolderWatch(self.catalog, self.settings, sources.get(conn, "demo"))

    def apply(self) -> None:
        with self.catalog.write() as conn:
            files.drain_journal(conn)


@pytest.fixture
def new_folder(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Callable[[], Folder]]:
    made: list[Folder] = []

    def new() -> Folder:
        home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("photos")
        shutil.copy(migrated_sqlite, home / "catalog.sqlite")
        chosen = Settings.at(home, quiet_seconds=0.0)
        made.append(Folder(folder, Catalog(chosen.catalog_url), chosen))
        with made[-1].catalog.write() as conn:
            sources.add(conn, "demo", os.fsencode(folder), {})
        return made[-1]

    yield new
    for one in made:
        one.catalog.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_STEPS)
def test_a_watcher_that_remembers_ends_where_one_that_compares_all_does(
    new_folder: Callable[[], Folder], steps: list[tuple[str, str, int]]
) -> None:
    made = new_folder()
    watcher = made.watch()
    for number, (what, name, size) in enumerate(steps):
        path = made.folder / name
        if what == "write":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{number:02}" * size)
        elif what == "remove":
            path.unlink(missing_ok=True)
        elif what == "rename" and path.exists():
            path.rename(path.with_name(f"renamed-{number}.png"))
        elif what == "apply":
            made.apply()
        watcher.scan()
    for _scan in range(4):
        made.apply()
        watcher.scan()
    there = {str(path.relative_to(made.folder)) for path in made.folder.rglob("[!.]*.png")}
    states = {os.fsdecode(row[0]): row[3] for row in known.in_order(made.catalog, watcher.source.id)}
    present = {name for name, state in states.items() if state == "present"}
    assert present == there or not there  # a folder that lists nothing at all proves nothing
    found = made.watch().scan()
    assert (found.taken, found.missing, found.deleted) == (0, 0, 0)


def _was_away_when_it_was_read(lab: Lab, path: bytes) -> None:
    l = tables.locations.c  # noqa: E741
    with lab.catalog.write() as conn:
        location = conn.execute(sa.select(l.id).where(l.path == path)).scalar_one()
        files.location_failed(conn, location, "file_gone", "It is not there.", None)


def _state(lab: Lab, path: bytes) -> tuple[str, str | None]:
    l = tables.locations.c  # noqa: E741
    with lab.catalog.read() as conn:
        row = conn.execute(sa.select(l.state, l.code).where(l.path == path)).one()
    return row.state, row.code


@pytest.mark.parametrize("remembers", [True, False])
def test_a_file_that_was_away_only_while_it_was_read_is_taken_again(
    watcher: FolderWatch, lab: Lab, remembers: bool
) -> None:
    _was_away_when_it_was_read(lab, b"a/b/1.png")
    assert _state(lab, b"a/b/1.png") == ("unreadable", "file_gone")
    scanned = (watcher if remembers else FolderWatch(lab.catalog, lab.settings, lab.source)).scan()
    assert not scanned.errors
    apply(lab)
    assert _state(lab, b"a/b/1.png") == ("present", None)
    assert _state(lab, b"a/1.png") == ("present", None)


def test_a_file_that_is_still_away_after_it_was_read_is_missing(watcher: FolderWatch, lab: Lab) -> None:
    (lab.folder / "a" / "b" / "1.png").unlink()
    _was_away_when_it_was_read(lab, b"a/b/1.png")
    assert watcher.scan().missing == 1
    apply(lab)
    assert _state(lab, b"a/b/1.png")[0] == "missing"


def test_what_another_one_journalled_is_compared_again_when_it_is_applied(watcher: FolderWatch, lab: Lab) -> None:
    size, mtime_ns = (lab.folder / "a" / "1.png").stat()[6], (lab.folder / "a" / "1.png").stat().st_mtime_ns
    with lab.catalog.write() as conn:
        generation = sources.begin_scan(conn, lab.source.id)
        stale = Sighting("seen", b"a/1.png", size + 1, mtime_ns - 10**9, 1, 1)
        files.write_journal(conn, lab.source.id, generation, [stale, Sighting("missing", b"a/b/1.png")])
    watcher.scan()  # the ledger does not know of it yet
    apply(lab)
    assert _state(lab, b"a/b/1.png")[0] == "missing"
    assert not watcher.scan().errors
    apply(lab)
    assert _state(lab, b"a/b/1.png") == ("present", None)
    with lab.catalog.read() as conn:
        row = known.at(conn, lab.source.id, b"a/1.png")
    assert row is not None
    assert (row.size, row.mtime_ns) == (size, mtime_ns)
