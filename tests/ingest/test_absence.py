"""What proves that a file is gone, and what does not: shares that vanish, list empty or partly, or fail (case A1)."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
from ingest.faulty_disk import ERRORS, FaultyDisk

from mirror_realm_assets.catalog import files, known, sources
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.sources import Source
from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.ingest import one_scan
from mirror_realm_assets.ingest.folder_watch import FolderWatch
from mirror_realm_assets.ingest.one_scan import Scanned
from mirror_realm_assets.settings import Settings


@dataclass
class Share:
    """A folder that is watched through a disk that can fail; a file rests at once."""

    folder: Path
    catalog: Catalog
    settings: Settings
    disk: FaultyDisk
    lasting: bool = False
    watcher: FolderWatch | None = None

    @property
    def source(self) -> Source:
        with self.catalog.read() as conn:
            return sources.get(conn, "demo")

    def put(self, *names: str) -> None:
        for name in names:
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)

    def path(self, name: str = "") -> bytes:
        return os.fsencode(self.folder / name)

    def scan(self, times: int = 1) -> Scanned:
        """Scans by one watcher that remembers, or each by one that begins anew; each is applied to the ledger."""
        for _time in range(times):
            if self.watcher is None or not self.lasting:
                self.watcher = FolderWatch(self.catalog, self.settings, self.source, self.disk)
            try:
                found = self.watcher.scan()
            finally:
                self.apply()
        return found

    def apply(self) -> None:
        with self.catalog.write() as conn:
            files.drain_journal(conn)

    def states(self) -> dict[str, str]:
        return {os.fsdecode(row[0]): row[3] for row in known.in_order(self.catalog, self.source.id)}

    def truth(self) -> set[str]:
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture
def new_share(tmp_path: Path, migrated_sqlite: Path) -> Iterator[Callable[[str], Share]]:
    made: list[Share] = []

    def new(name: str) -> Share:
        home, folder = tmp_path / f"home-{name}", tmp_path / f"photos-{name}"
        home.mkdir()
        folder.mkdir()
        shutil.copy(migrated_sqlite, home / "catalog.sqlite")
        settings = Settings.at(home, quiet_seconds=0.0)
        catalog = Catalog(settings.catalog_url)
        with catalog.write() as conn:
            sources.add(conn, "demo", os.fsencode(folder), {})
        made.append(Share(folder, catalog, settings, FaultyDisk()))
        return made[-1]

    yield new
    for share in made:
        share.catalog.close()


@pytest.fixture(params=[False, True], ids=["anew", "lasting"])
def share(new_share: Callable[[str], Share], request: pytest.FixtureRequest) -> Share:
    """Six files in three folders, known."""
    made = new_share("one")
    made.lasting = request.param
    made.put("a.png", "b.png", "sub/c.png", "sub/d.png", "other/e.png", "other/f.png")
    made.scan(2)
    return made


def test_a_file_that_is_gone_is_missing_after_one_complete_scan_and_deleted_after_two(share: Share) -> None:
    (share.folder / "a.png").unlink()
    assert (share.scan().missing, share.states()["a.png"]) == (1, "missing")
    found = share.scan()
    assert (found.missing, found.deleted, share.states()["a.png"]) == (0, 1, "deleted")
    assert share.scan().changes == "nothing new"
    with share.catalog.read() as conn:
        at = conn.execute(sa.select(t.locations.c.deleted_at).where(t.locations.c.path == b"a.png")).scalar_one()
    assert at is not None


def test_a_deleted_file_that_returns_is_present_again(share: Share) -> None:
    before = (share.folder / "a.png").stat()
    (share.folder / "a.png").rename(share.folder.parent / "away.png")
    share.scan(2)
    (share.folder.parent / "away.png").rename(share.folder / "a.png")
    assert (share.folder / "a.png").stat().st_mtime_ns == before.st_mtime_ns
    assert share.scan().taken == 1
    assert share.states()["a.png"] == "present"


def test_two_looks_of_one_scan_are_no_two_scans(share: Share) -> None:
    """Counted by generations: however often it is applied, one scan deletes nothing."""
    (share.folder / "a.png").unlink()
    folder = FolderWatch(share.catalog, share.settings, share.source, share.disk)
    assert [folder.scan().missing for _scan in range(3)] == [1, 0, 0]  # not applied in between
    share.apply()
    assert share.states()["a.png"] == "missing"


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("place", ["sub", "sub/c.png"])
def test_an_error_anywhere_makes_the_scan_partial_and_nothing_gone(share: Share, error: int, place: str) -> None:
    (share.folder / "a.png").unlink()
    share.disk.failing[share.path(place)] = error
    for _scan in range(3):
        found = share.scan()
        assert (found.missing, found.deleted) == (0, 0)
        assert os.strerror(error) in found.errors
    assert set(share.states().values()) == {"present"}
    share.disk.heal()
    share.scan(2)
    assert share.states()["a.png"] == "deleted"
    assert share.states()["sub/c.png"] == "present"


@pytest.mark.parametrize("fault", ["empty", "half"])
@pytest.mark.parametrize("place", ["", "sub"])
def test_a_listing_that_leaves_files_out_is_found_out(share: Share, fault: str, place: str) -> None:
    getattr(share.disk, fault).add(share.path(place).rstrip(b"/"))
    for _scan in range(3):
        found = share.scan()
        assert (found.missing, found.deleted) == (0, 0)
        assert "did not list" in found.trouble
    assert set(share.states().values()) == {"present"}


def test_a_root_on_another_device_proves_nothing(share: Share) -> None:
    share.disk.device = 7
    for name in ("a.png", "b.png", "sub/c.png", "sub/d.png"):
        (share.folder / name).unlink()
    for _scan in range(3):
        # Of the known files that are looked at two thirds are gone, so it is not known again.
        assert (found := share.scan()).missing == 0
        assert "not the folder that it was" in found.trouble
    assert set(share.states().values()) == {"present"}
    with share.catalog.write() as conn:  # a person says that it is
        sources.confirm_deletions(conn, "demo")
    share.scan(2)
    assert sorted(name for name, state in share.states().items() if state == "present") == [
        "other/e.png",
        "other/f.png",
    ]
    assert not share.source.deletions_confirmed


def test_a_root_whose_device_has_another_number_is_known_again_by_its_files(share: Share) -> None:
    identity = share.source.root_identity
    assert identity is not None
    if "mount" not in identity:
        pytest.skip("this system has no mount table")
    share.disk.device = 7
    assert share.scan().trouble == ""
    assert share.source.root_identity == identity | {"device": identity["device"] + 7}
    (share.folder / "a.png").unlink()
    share.scan(2)
    assert share.states()["a.png"] == "deleted"


def test_a_mount_point_without_its_mount_proves_nothing(share: Share) -> None:
    share.folder.rename(share.folder.parent / "away")
    share.folder.mkdir()
    for _scan in range(3):
        assert "not the folder that it was" in share.scan().trouble
    share.put("written-into-the-mount-point.png")
    share.scan(3)
    assert set(share.states().values()) == {"present"}
    shutil.rmtree(share.folder)
    (share.folder.parent / "away").rename(share.folder)
    found = share.scan(2)
    assert (found.trouble, found.taken) == ("", 0)


def test_a_root_that_is_not_there_is_said(share: Share) -> None:
    share.disk.gone.add(share.path().rstrip(b"/"))
    with pytest.raises(SetupError) as caught:
        share.scan()
    assert caught.value.code == "folder_missing"
    assert set(share.states().values()) == {"present"}


def test_a_folder_that_is_emptied_altogether_is_taken_for_a_share_that_lists_empty(share: Share) -> None:
    shutil.rmtree(share.folder / "sub")
    shutil.rmtree(share.folder / "other")
    for name in ("a.png", "b.png"):
        (share.folder / name).unlink()
    for _scan in range(3):
        assert share.scan().missing == 0
    assert set(share.states().values()) == {"present"}


def test_many_deletions_at_once_wait_for_a_person(share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_scan, "_CAP_FILES", 2)
    for name in ("a.png", "sub/c.png", "other/e.png"):
        (share.folder / name).unlink()
    assert share.scan().missing == 3
    for _scan in range(2):
        found = share.scan()
        assert (found.deleted, found.held) == (0, 3)
        assert "confirm-deletions" in found.trouble
    assert share.source.held_deletions == 3
    with share.catalog.write() as conn:
        assert sources.confirm_deletions(conn, "demo") == 3
    assert share.scan().deleted == 3
    assert (share.source.held_deletions, share.source.deletions_confirmed) == (0, False)
    for name in ("b.png", "sub/d.png", "other/f.png"):
        (share.folder / name).unlink()
    share.put("new.png")
    assert share.scan(3).held == 3  # the confirmation was for those alone


def test_what_a_person_confirmed_is_still_looked_at(share: Share) -> None:
    """A confirmation takes away the cap, and nothing else."""
    with share.catalog.write() as conn:
        sources.confirm_deletions(conn, "demo")
    share.disk.failing[share.path("sub")] = errno.EIO
    (share.folder / "a.png").unlink()
    share.scan(3)
    assert set(share.states().values()) == {"present"}


def test_held_deletions_are_forgotten_when_the_files_return(share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_scan, "_CAP_FILES", 0)
    (share.folder / "a.png").unlink()
    share.scan(2)
    assert share.source.held_deletions == 1
    share.put("a.png")
    share.scan(2)
    assert share.source.held_deletions == 0
    assert share.states()["a.png"] == "present"


# --- Everything at once, at random. ---

_VARIANTS = 100


def test_case_a1_no_fault_ever_deletes_a_file_that_is_there(new_share: Callable[[str], Share]) -> None:
    seed = int(os.environ.get("MIRROR_REALM_TEST_SEED") or random.SystemRandom().randrange(2**32))
    print(f"MIRROR_REALM_TEST_SEED={seed}")
    for variant in range(_VARIANTS):
        rng = random.Random(f"{seed}/{variant}")  # noqa: S311
        share = new_share(str(variant))
        share.disk.rng = rng
        share.lasting = rng.random() < 0.5
        share.put(*(f"{rng.choice(['', 'a/', 'a/b/', 'c/', 'd/'])}{n}.png" for n in range(25)))
        share.scan(2)
        for step in range(6):
            _really_change(share, rng, step)
            fault = _break(share, rng)
            try:
                share.scan()
            except SetupError as error:
                assert error.code == "folder_missing"
            wrong = {name for name, state in share.states().items() if state == "deleted"} & share.truth()
            assert not wrong, f"seed {seed}, variant {variant}, step {step}, {fault}: {wrong}"
            if rng.random() < 0.5:
                share.disk.heal()
        share.disk.heal()
        if share.scan(3).trouble:
            with share.catalog.write() as conn:
                sources.confirm_deletions(conn, "demo")
            assert share.scan(2).trouble == ""
        states, truth = share.states(), share.truth()
        assert {name for name, state in states.items() if state == "present"} == truth, f"seed {seed}/{variant}"
        assert {state for name, state in states.items() if name not in truth} <= {"deleted"}, f"seed {seed}/{variant}"


def _really_change(share: Share, rng: random.Random, step: int) -> None:
    there = sorted(share.truth())
    for name in rng.sample(there, rng.choice([0, 0, 1, 2])):
        (share.folder / name).unlink()
    if rng.random() < 0.5:
        share.put(f"new/{step}.png")
    if rng.random() < 0.3 and (left := sorted(share.truth())):
        name = rng.choice(left)
        (share.folder / name).rename(share.folder / f"moved-{step}.png")


def _break(share: Share, rng: random.Random) -> str:
    folders = ["", "a", "a/b", "c", "d", "new"]
    place = share.path(rng.choice(folders)).rstrip(b"/")
    fault = rng.choice(["none", "error", "error", "error of a file", "empty", "half", "device", "gone"])
    if fault == "error":
        share.disk.failing[place] = rng.choice(ERRORS)
    elif fault == "error of a file":
        share.disk.failing[share.path(rng.choice(sorted(share.truth())))] = rng.choice(ERRORS)
    elif fault == "empty":
        share.disk.empty.add(place)
    elif fault == "half":
        share.disk.half.add(place)
    elif fault == "device":
        share.disk.device = rng.randrange(1, 1000)
    elif fault == "gone":
        share.disk.gone.add(share.path().rstrip(b"/"))
    return fault
