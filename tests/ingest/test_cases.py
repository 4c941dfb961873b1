"""Cases of ingest that users of such systems suffer from, each through real scans, batches and reads.

Cases with a module of their own: A1 (`test_absence`), A2 (`test_moves`).
"""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
import sqlalchemy as sa
from cheap_stages import cheap_stages, run_lane
from lab import Lab
from PIL import Image

from mirror_realm_assets.catalog import batches, sources, status
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.ingest import folder_watch
from mirror_realm_assets.ingest.batching import form_batches
from mirror_realm_assets.ingest.folder_watch import FolderWatch


class Library:
    """A lab, and what its ledger says."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.stages = cheap_stages(lab.settings)

    def work(self, name: str = "demo") -> int:
        """What the daemon does until nothing is left; returns how many files were in batches."""
        lab = self.lab
        with lab.catalog.read() as conn:
            source = sources.get(conn, name)
        FolderWatch(lab.catalog, lab.settings, source).scan()
        formed = form_batches(lab.catalog, lab.settings, self.stages, "test", now_or_never=True)
        for key in formed.keys:
            run_lane(lab.services, self.stages, key)
        with lab.catalog.read() as conn:
            found = [batches.get(conn, key) for key in formed.keys]
        return sum(batch.items for batch in found if batch is not None)

    def places(self, name: str = "demo") -> dict[str, tuple[int, str]]:
        """Media and state by path."""
        l, s = t.locations.c, t.sources.c  # noqa: E741
        query = sa.select(l.path, l.media_id, l.state).join(t.sources, s.id == l.source_id).where(s.name == name)
        with self.lab.catalog.read() as conn:
            return {os.fsdecode(row[0]): (row[1], row[2]) for row in conn.execute(query)}

    def embedded(self) -> list[tuple[str, int]]:
        """Every recorded embedding, with how often it was tried."""
        f = t.features.c
        query = sa.select(f.image_digest, f.attempts).where(f.feature == "embeddings").order_by(f.id)
        with self.lab.catalog.read() as conn:
            return [(row[0], row[1]) for row in conn.execute(query)]

    def counts(self, name: str = "demo") -> dict[str, int]:
        """How many embeddings of a source have which status."""
        with self.lab.catalog.read() as conn:
            found = status.of_source(conn, sources.get(conn, name), [stage.rule for stage in self.stages])
        return {key: count for key, count in found.features["embeddings"].items() if count}


@pytest.fixture
def library(lab: Lab) -> Library:
    return Library(lab)


NAMES = [("photo.png", "PHOTO.png"), (unicodedata.normalize("NFC", "été.png"), unicodedata.normalize("NFD", "été.png"))]


@pytest.mark.parametrize("network", [False, True])
@pytest.mark.parametrize(("before", "after"), NAMES)
def test_case_a3_a_rename_of_case_or_normalisation_alone_gives_one_asset(
    library: Library, monkeypatch: pytest.MonkeyPatch, before: str, after: str, *, network: bool
) -> None:
    if network:
        monkeypatch.setattr(folder_watch, "on_network", lambda _path: True)
    path = library.lab.picture(before)
    library.work()
    (known,) = library.places().values()
    embedded = library.embedded()
    path.rename(path.with_name(after))
    assert library.work() == int(network)  # there it is read once, to know it again
    assert library.places()[after] == known
    assert {state for name, (_media, state) in library.places().items() if name != after} <= {"missing"}
    assert library.embedded() == embedded


def test_case_a4_a_file_that_is_written_slowly_is_never_taken_in_half(library: Library) -> None:
    settings = library.lab.settings.model_copy(update={"quiet_seconds": 2.0})
    folder = FolderWatch(library.lab.catalog, settings, library.lab.source)
    whole = library.lab.picture("a.png").read_bytes()
    slow = library.lab.folder / "b.png"
    for at in range(1, 6):
        slow.write_bytes(whole[: len(whole) * at // 5])
        os.utime(slow, ns=(1, 1))  # a copy that keeps old times
        folder.scan(lambda at=at: float(at))  # type: ignore[misc]
    folder.scan(lambda: 100.0)
    formed = form_batches(library.lab.catalog, settings, library.stages, "test", now_or_never=True)
    for key in formed.keys:
        run_lane(library.lab.services, library.stages, key)
    assert {path: state for path, (_media, state) in library.places().items()} == {
        "a.png": "present",
        "b.png": "present",
    }
    media = {media for media, _state in library.places().values()}
    assert len(media) == 1  # the same bytes: no truncated version, no twin


def test_case_a6_nothing_in_a_source_is_ever_changed(library: Library) -> None:
    for n in range(3):
        library.lab.picture(f"{n}.png", n)
    (library.lab.folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    (library.lab.folder / "sub").mkdir()

    def state() -> dict[str, tuple[int, ...]]:
        found = {}
        for path in [library.lab.folder, *library.lab.folder.rglob("*")]:
            seen = path.lstat()
            times = (seen.st_mtime_ns, seen.st_ctime_ns)
            found[str(path)] = (seen.st_mode, seen.st_ino, seen.st_size, seen.st_nlink, *times)
        return found

    before = state()
    library.work()
    library.work()
    assert state() == before
    assert library.counts() == {"ok": 3}


def test_case_a10_a_change_of_metadata_alone_costs_no_model_call(library: Library) -> None:
    path = library.lab.folder / "a.jpg"
    Image.open(library.lab.picture("source.png")).save(path, quality=90)
    (library.lab.folder / "source.png").unlink()
    library.work()
    before, embedded = library.places(), library.embedded()
    exif = Image.Exif()
    exif[0x010E] = "A rating and a title"
    segment = exif.tobytes()
    jpeg = path.read_bytes()
    app1 = b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment
    path.write_bytes(jpeg[:2] + app1 + jpeg[2:])
    assert library.work() == 1
    assert library.places() == before
    assert library.embedded() == embedded
    assert library.counts() == {"ok": 1}


def test_case_a13_of_the_same_bytes_in_two_sources_removing_one_leaves_the_other_whole(
    library: Library, tmp_path: Path
) -> None:
    data = library.lab.picture("a.png").read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    (other / "b.png").write_bytes(data)
    with library.lab.catalog.write() as conn:
        sources.add(conn, "other", os.fsencode(other), {"enhance": False})
    library.work()
    library.work("other")
    mine, theirs = library.places()["a.png"], library.places("other")["b.png"]
    assert mine[0] != theirs[0]
    assert len(library.embedded()) == 1  # the same picture by the same recipe is embedded once
    with library.lab.catalog.write() as conn:
        sources.set_state(conn, "demo", "removed")
    assert library.places("other") == {"b.png": theirs}
    assert library.counts("other") == {"ok": 1}
    assert library.work("other") == 0
