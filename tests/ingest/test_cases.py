"""Cases of ingest that users of such systems suffer from, each through real scans, batches and reads.

Cases with a module of their own: A1 (`test_absence`), A2 (`test_moves`).
"""

from __future__ import annotations

import io
import os
import threading
import time
import unicodedata
from concurrent.futures import wait
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import sqlalchemy as sa
from cheap_stages import cheap_stages, run_lane
from lab import Lab
from PIL import Image

from mirror_realm_assets.catalog import batches, sources, status
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.errors import Refused
from mirror_realm_assets.ingest import folder_watch
from mirror_realm_assets.ingest.batching import form_batches
from mirror_realm_assets.ingest.decoded import Decoded
from mirror_realm_assets.ingest.decoder import Decoder
from mirror_realm_assets.ingest.decoders import Decoders, decoder
from mirror_realm_assets.ingest.folder_watch import FolderWatch
from mirror_realm_assets.ingest.pace import Pace
from mirror_realm_assets.ingest.watch import watch


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

    def refused(self) -> list[str]:
        """Why files were refused."""
        f = t.features.c
        with self.lab.catalog.read() as conn:
            return list(
                conn.execute(sa.select(f.code).where(f.feature == "raw_media", f.status == "refused")).scalars()
            )

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


def test_case_a14_a_sample_of_every_folder_goes_first_and_the_newest_of_it_before_all(lab: Lab) -> None:
    now = 1_700_000_000
    folders = [f"{year}/{month:02}" for year in range(2000, 2010) for month in range(1, 7)]
    newest: list[str] = []
    for n, folder in enumerate(folders):
        (lab.folder / folder).mkdir(parents=True)
        for number in range(25):
            path = lab.folder / folder / f"{number}.png"
            path.write_bytes(b"x")
            os.utime(path, (now + n * 100 + (number * 7) % 25,) * 2)
        newest.append(f"{folder}/{max(range(25), key=lambda number: number * 7 % 25)}.png")
    lab.settings = lab.settings.model_copy(update={"quiet_seconds": 2.0, "batch_items": 100})
    with lab.catalog.read() as conn:
        watched = FolderWatch(lab.catalog, lab.settings, sources.get(conn, "demo"))
    ticks = iter(range(0, 10**9, 1))
    watched.scan(lambda: next(ticks) / 100)
    watched.scan(lambda: 10**6 + next(ticks) / 100)
    formed = form_batches(lab.catalog, lab.settings, cheap_stages(lab.settings), "test")
    b, i, l = t.batches.c, t.batch_items.c, t.locations.c  # noqa: E741
    query = (
        sa.select(b.key, l.path)
        .join(t.batch_items, i.batch_id == b.id)
        .join(t.locations, l.id == i.location_id)
        .where(i.feature == "raw_media")
        .order_by(b.seq, i.n)
    )
    with lab.catalog.read() as conn:
        rows = [(row[0], os.fsdecode(row[1])) for row in conn.execute(query)]
    first = [path for key, path in rows if key == formed.keys[0]]
    assert first == newest[::-1][: len(first)]  # the newest pictures of the newest folders
    assert len(first) == 32
    assert {path.rpartition("/")[0] for _key, path in rows[:200]} == set(folders)
    assert len(rows) == len({path for _key, path in rows}) == 60 * 25


def test_case_a14_a_large_tree_is_not_walked_before_its_first_files_are_taken(lab: Lab) -> None:
    for number in range(300):
        (lab.folder / f"{number:03}").mkdir()
        (lab.folder / f"{number:03}" / "a.png").write_bytes(b"x")
    lab.settings = lab.settings.model_copy(update={"quiet_seconds": 2.0})
    with lab.catalog.read() as conn:
        watched = FolderWatch(lab.catalog, lab.settings, sources.get(conn, "demo"))
    seconds = [0.0]

    class SlowDisk:
        """A network drive where each folder takes a second to list."""

        stat, lstat = staticmethod(os.stat), staticmethod(os.lstat)
        listed = 0
        taken_at: ClassVar[list[tuple[int, int]]] = []

        def scandir(self, path: bytes):
            seconds[0] += 1.0
            self.listed += 1
            with lab.catalog.read() as conn:
                count = conn.execute(sa.select(sa.func.count()).select_from(t.journal)).scalar_one()
            self.taken_at.append((self.listed, count))
            return os.scandir(path)

    watched = FolderWatch(lab.catalog, lab.settings, watched.source, disk=SlowDisk())
    watched.scan(lambda: seconds[0])
    first = next((listed, count) for listed, count in SlowDisk.taken_at if count)
    assert first[0] < 80, "a minute of sampling and what rests meanwhile"
    assert first[1] > 50


def test_a_source_is_left_alone_in_its_quiet_hours(lab: Lab) -> None:
    lab.picture("a.png")
    stages = cheap_stages(lab.settings)
    with lab.catalog.write() as conn:
        sources.set_policy(conn, "demo", {"quiet_hours": "00:00-23:59"})
        source = sources.get(conn, "demo")
    FolderWatch(lab.catalog, lab.settings, source).scan()
    assert not form_batches(lab.catalog, lab.settings, stages, "test").keys
    said: list[str] = []
    stop = threading.Event()
    watcher = threading.Thread(target=watch, args=(lab.catalog, lab.settings, "w", stop, said.append))
    lab.picture("b.png", 1)
    watcher.start()
    time.sleep(0.5)
    stop.set()
    watcher.join(10)
    assert not said
    (key,) = form_batches(lab.catalog, lab.settings, stages, "test", now_or_never=True).keys  # a person asked
    with lab.catalog.read() as conn:
        assert batches.pending(conn, "search", ["raw_media"]) == []
        assert [batch.key for batch in batches.pending(conn, "search", ["raw_media"], active_only=False)] == [key]
    with lab.catalog.write() as conn:
        sources.set_policy(conn, "demo", {"quiet_hours": None})
        assert [batch.key for batch in batches.pending(conn, "search", ["raw_media"])] == [key]


def test_new_files_are_read_no_faster_than_the_source_allows(library: Library) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    for number in range(3):
        Image.fromarray(np.roll(noise, number)).save(library.lab.folder / f"{number}.png")
    size = sum(path.stat().st_size for path in library.lab.folder.iterdir())
    assert size > 1_000_000
    with library.lab.catalog.write() as conn:
        sources.set_policy(conn, "demo", {"budget.read_mb_s": 1.0})
    began = time.monotonic()
    assert library.work() == 3
    assert time.monotonic() - began >= size / 1e6 - 0.1


def test_the_pace_of_reading_saves_nothing_up() -> None:
    at = [0.0]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        at[0] += seconds

    pace = Pace(2.0, lambda: at[0], sleep)
    pace(2_000_000)
    at[0] += 100
    pace(4_000_000)
    pace(1_000_000)
    assert slept == [1.0, 2.0, 0.5]


def test_case_c1_files_that_take_long_do_not_hold_up_the_others(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder that hangs costs its own file a minute, and the batch two seconds."""
    for number in range(6):
        library.lab.picture(f"{number}.png", number)
    real = Decoder.proxy
    hung, done_at = threading.Event(), []

    def proxy(self: Decoder, fd: int, *, long_side: int) -> Decoded:
        if not hung.is_set():
            hung.set()
            time.sleep(6)
            raise Refused("decoder_timeout", "Decoding took longer than 6 s.")
        found = real(self, fd, long_side=long_side)
        done_at.append(time.monotonic())
        return found

    monkeypatch.setattr(Decoder, "proxy", proxy)
    began = time.monotonic()
    assert library.work() == 6
    assert 6 <= time.monotonic() - began < 12
    assert max(done_at) - began < 5
    assert library.counts() == {"ok": 5}
    assert library.refused() == ["decoder_timeout"]


def test_case_c1_a_stop_does_not_wait_for_a_decoder_that_hangs(lab: Lab) -> None:
    """The bomb takes its decoder longer than anybody wants to wait for it when the run is told to end."""
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    content = bomb.getvalue()
    fd = os.memfd_create("bomb")
    try:
        os.write(fd, content)
        began = time.monotonic()
        with Decoders(lab.services) as decoders:
            future = decoders.begin(fd, long_side=1440)
            wait([future], timeout=0.6)
            assert not future.done()
        assert time.monotonic() - began < 5
        with pytest.raises(Refused):
            future.result()
        os.ftruncate(fd, 0)
        os.pwrite(fd, lab.picture("a.png").read_bytes(), 0)
        assert decoder(lab.services).proxy(fd, long_side=64).parts
    finally:
        os.close(fd)


def test_what_was_refused_before_a_format_was_supported_is_read_then(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = library.lab.picture("a.png")
    with monkeypatch.context() as before:
        before.setattr("mirror_realm_assets.settings.FORMATS", 1)
        before.setattr(Decoder, "proxy", lambda *_, **__: (_ for _ in ()).throw(Refused("unsupported", "Not yet.")))
        assert library.work() == 1
    assert library.refused() == ["unsupported"]
    assert library.work() == 1
    assert library.refused() == []
    assert library.counts() == {"ok": 1}
    assert library.places()[path.name][1] == "present"
