"""Several pictures on their way at once: order, errors, stopping, and what is left behind (nothing)."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import sqlalchemy as sa
from cheap_stages import embeddings, run_lane
from lab import Lab
from PIL import Image

from mirror_realm_assets.catalog import sources
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.items import Work
from mirror_realm_assets.enhance import batches, codec, overlap, stage
from mirror_realm_assets.enhance.networks import Network
from mirror_realm_assets.enhance.stage import enhanced_images_stage
from mirror_realm_assets.enhance.upscale import Upscaler
from mirror_realm_assets.errors import Failed, LeaseLost
from mirror_realm_assets.ingest.stage import raw_media_stage
from mirror_realm_assets.stages.context import StageContext, Stopped
from mirror_realm_assets.stages.engine import run_stage
from mirror_realm_assets.stages.report import StageReport
from mirror_realm_assets.stages.stage import Result, Stage
from mirror_realm_assets.store.local import LocalStore

Picture = npt.NDArray[np.uint8]
OPTIONS = {"enhance.model": "realesr-animevideov3", "enhance.outscale": 4}


@pytest.fixture(params=["on a CPU", "as on a GPU"])
def overlapping(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Overlapping steps, without and with several pictures in a pass and a pass ahead."""
    monkeypatch.setattr(stage, "OVERLAPPING", {"cpu"})
    if request.param == "as on a GPU":
        monkeypatch.setitem(batches.MOST, "cpu", 4)
        monkeypatch.setitem(batches.AHEAD, "cpu", 1)
    return str(request.param)


@pytest.fixture
def enlarged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A plain enlargement in the network's place; gives how many pictures were in each pass."""
    seen: list[int] = []

    def begin(self: Network, descriptor: object, pictures: Sequence[Picture]) -> Callable[[], tuple[bool, Picture]]:
        assert threading.current_thread() is threading.main_thread()
        if any((picture == 7).all() for picture in pictures):
            raise RuntimeError("no kernel")
        seen.append(len(pictures))
        return lambda: (True, np.stack(pictures).repeat(4, axis=1).repeat(4, axis=2))

    monkeypatch.setattr(Network, "_begin", begin)
    return seen


@pytest.fixture
def stages(lab: Lab, models_dir: Path) -> tuple[Stage, ...]:
    lab.settings.models_dir.rmdir()
    lab.settings.models_dir.symlink_to(models_dir)
    with lab.catalog.write() as conn:
        sources.set_policy(conn, "demo", OPTIONS)
    return (raw_media_stage(lab.settings), embeddings(), enhanced_images_stage("fp32", models_dir))


def save(lab: Lab, count: int, size: tuple[int, int] = (16, 12)) -> list[str]:
    names = [f"{number:02d}.png" for number in range(count)]
    for number, name in enumerate(names):
        lab.picture(name, number, size)
    return names


def ready(lab: Lab, stages: tuple[Stage, ...]) -> str:
    """The key of the one batch, read and waiting for enhancement."""
    (batch,) = lab.form(stages)
    run_lane(lab.services, stages, batch.key)
    return batch.key


@dataclass
class Ran:
    """A run of the stage: what it took, and its results as they came."""

    given: list[str] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    report: StageReport | None = None

    @property
    def came(self) -> list[str]:
        return [name(one.work) for one in self.results]

    def of(self, which: str) -> Result:
        return next(one for one in self.results if name(one.work) == which)


def name(work: Work) -> str:
    return (work.subject.path or b"").decode()


def enhance(lab: Lab, stages: tuple[Stage, ...], key: str) -> Ran:
    """No thread or file of ours is left after it."""
    ran = Ran()
    real = stages[2].run

    def noted(works: Iterable[Work]) -> Iterator[Work]:
        for work in works:
            ran.given.append(name(work))
            yield work

    def run(works: Iterable[Work], context: StageContext) -> Iterator[Result]:
        with closing(real(noted(works), context)) as produced:  # type: ignore[type-var] # a generator
            for result in produced:
                ran.results.append(result)
                yield result

    watched = replace(stages[2], run=run)
    try:
        ran.report = run_stage(watched, key, lab.services, (*stages[:2], watched))
    finally:
        threads = [thread.name for thread in threading.enumerate()]
        assert [one for one in threads if one.startswith(("encode", "publish", "read-ahead"))] == []
        assert list(lab.services.scratch().iterdir()) == []
    return ran


def in_tiles(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    """Large pictures are cut, as if little memory were free."""
    monkeypatch.setattr(Upscaler, "_tile_pixels", lambda self: tile * tile // 2)
    monkeypatch.setattr("mirror_realm_assets.enhance.upscale.largest_tile", lambda *_size, **_limits: tile)


def outcomes(lab: Lab) -> dict[str, tuple[str, str | None]]:
    f, p, m, place = t.features.c, t.parts.c, t.media.c, t.locations.c
    query = (
        sa.select(place.display, f.status, f.code)
        .join(t.media, m.id == place.media_id)
        .join(t.parts, p.content_id == m.content_id)
        .join(t.features, sa.and_(f.image_digest == p.image_digest, f.part == p.part))
        .where(f.feature == "enhanced_images")
    )
    with lab.catalog.read() as conn:
        return {name: (status, code) for name, status, code in conn.execute(query)}


def open_intents(lab: Lab) -> int:
    with lab.catalog.read() as conn:
        return int(conn.execute(sa.select(sa.func.count()).select_from(t.intents)).scalar_one())


def test_results_come_in_the_order_of_the_work_and_are_what_they_are_one_by_one(
    lab: Lab, stages: tuple[Stage, ...], overlapping: str, enlarged: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(lab, 9)
    lab.picture("wide.png", 50, (24, 8))
    key = ready(lab, stages)
    real = codec.encode_rows
    calls = itertools.count()

    def late(rows: Any, *rest: Any) -> None:
        time.sleep(0.05 if next(calls) % 2 == 0 else 0)  # every other one is overtaken
        real(rows, *rest)

    monkeypatch.setattr(codec, "encode_rows", late)
    ran = enhance(lab, stages, key)
    assert ran.came == ran.given and len(ran.came) == 10
    assert set(outcomes(lab).values()) == {("ok", None)} and open_intents(lab) == 0
    assert sum(enlarged) == 10 and max(enlarged) == (1 if overlapping == "on a CPU" else 4)
    for one in ran.results:
        (_kind, stored) = one.objects[0]
        with lab.services.store.local_path(stored.key, stored.sha256) as path:
            found = np.asarray(Image.open(path))
        original = np.asarray(Image.open(lab.folder / name(one.work)))
        assert np.array_equal(found, original.repeat(4, axis=0).repeat(4, axis=1))
        assert len(one.pictures) == 2
    assert sum(one.finding.seconds or 0 for one in ran.results) <= ran.report.seconds  # type: ignore[union-attr]


def test_each_error_is_of_its_own_picture(
    lab: Lab, stages: tuple[Stage, ...], overlapping: str, enlarged: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(lab, 5)
    Image.fromarray(np.full((12, 16, 3), 7, np.uint8)).save(lab.folder / "02.png")
    Image.fromarray(np.full((12, 16, 3), 9, np.uint8)).save(lab.folder / "03.png")
    frames = [Image.fromarray(np.full((12, 16, 3), level, np.uint8)) for level in (50, 90)]
    frames[0].save(lab.folder / "01.webp", save_all=True, append_images=frames[1:])
    real = codec.encode_rows

    def encode(rows: Any, size: Any, style: Any, target: Any, folder: Any) -> None:
        whole = np.concatenate(list(rows))
        if (whole == 9).all():
            raise Failed("disk_full", "The disk is full.")
        real([whole], size, style, target, folder)

    key = ready(lab, stages)
    monkeypatch.setattr(codec, "encode_rows", encode)
    ran = enhance(lab, stages, key)
    assert ran.came == ran.given
    assert outcomes(lab) == {
        "00.png": ("ok", None),
        "01.png": ("ok", None),
        "01.webp": ("refused", "unsupported"),
        "02.png": ("failed", "model_failed"),
        "03.png": ("failed", "disk_full"),
        "04.png": ("ok", None),
    }
    assert open_intents(lab) == 0


def test_what_cannot_be_stored_fails_and_leaves_no_intent(
    lab: Lab, stages: tuple[Stage, ...], overlapping: str, enlarged: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(lab, 3)
    key = ready(lab, stages)
    count = iter(range(10))
    real = LocalStore.put_file

    def put_file(self: LocalStore, key: str, source: Any) -> Any:
        if next(count) == 1:
            raise Failed("store_failed", "It is gone.")
        return real(self, key, source)

    monkeypatch.setattr(LocalStore, "put_file", put_file)
    ran = enhance(lab, stages, key)
    assert sorted(one.finding.code or "ok" for one in ran.results) == ["ok", "ok", "store_failed"]
    assert open_intents(lab) == 0


def test_a_cancelled_batch_records_what_was_computed_and_begins_no_more(
    lab: Lab, stages: tuple[Stage, ...], overlapping: str, enlarged: list[int]
) -> None:
    save(lab, 12)
    Image.fromarray(np.random.default_rng(3).integers(0, 255, (400, 300, 3), np.uint8)).save(lab.folder / "02.png")
    key = ready(lab, stages)
    with pytest.MonkeyPatch.context() as patch:
        in_tiles(patch, 200)

        def checkpoint(self: StageContext) -> None:
            self.stopped = "cancelled"
            raise Stopped("cancelled")

        patch.setattr(StageContext, "checkpoint", checkpoint)
        ran = enhance(lab, stages, key)
    assert ran.came == ran.given[: ran.given.index("02.png")]
    assert ran.report is not None and ran.report.stopped == "cancelled"
    assert set(outcomes(lab)) == set(ran.came) and open_intents(lab) == 0
    items = t.batch_items.c
    with lab.catalog.read() as conn:
        running = conn.execute(sa.select(items.id).where(items.state == "running")).all()
    assert running == []
    assert len(enhance(lab, stages, key).came) == 12 - len(ran.came)
    assert len(outcomes(lab)) == 12


def test_the_end_of_a_slice_ends_it_between_two_pictures(
    lab: Lab, stages: tuple[Stage, ...], overlapping: str, enlarged: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(lab, 12)
    key = ready(lab, stages)

    def reason(self: StageContext) -> str | None:
        self.stopped = "slice over" if enlarged else None
        return self.stopped

    monkeypatch.setattr(StageContext, "reason_to_stop", reason)
    ran = enhance(lab, stages, key)
    assert len(ran.came) == enlarged[0] and ran.came == ran.given[: enlarged[0]]
    assert ran.report is not None and ran.report.stopped == "slice over"
    assert set(outcomes(lab)) == set(ran.came)


def test_a_lost_lease_ends_everything_and_records_nothing(
    lab: Lab, stages: tuple[Stage, ...], overlapping: str, enlarged: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(lab, 6)
    key = ready(lab, stages)

    def begin(self: Any, keys: Any) -> list[int]:
        raise LeaseLost("Another worker has the batch.")

    monkeypatch.setattr("mirror_realm_assets.stages.context.CatalogIntents.begin", begin)
    ran = enhance(lab, stages, key)
    assert (
        ran.came == []
        and ran.report is not None
        and ran.report.stopped == "Another worker has the batch."
        and outcomes(lab) == {}
    )


def test_closed_in_the_middle_it_leaves_no_thread_file_or_intent(
    lab: Lab, stages: tuple[Stage, ...], overlapping: str, enlarged: list[int]
) -> None:
    save(lab, 9)
    key = ready(lab, stages)
    real = stages[2].run

    def run(works: Iterable[Work], context: StageContext) -> Iterator[Result]:
        produced = real(works, context)
        yield next(produced)
        produced.close()  # type: ignore[attr-defined] # a generator
        raise RuntimeError("enough")

    broken = replace(stages[2], run=run)
    with pytest.raises(RuntimeError, match="enough"):
        enhance(lab, (*stages[:2], broken), key)
    assert len(outcomes(lab)) == 1 and open_intents(lab) == 0


def test_little_may_wait_and_a_large_picture_passes_in_strips(
    lab: Lab, stages: tuple[Stage, ...], overlapping: str, enlarged: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(lab, 3)
    Image.fromarray(np.random.default_rng(3).integers(0, 255, (900, 100, 3), np.uint8)).save(lab.folder / "01.png")
    monkeypatch.setattr(overlap, "_WAITING", 200_000)
    in_tiles(monkeypatch, 300)
    held: list[int] = []
    real = overlap.Rows.put

    def put(self: overlap.Rows, rows: Picture) -> None:
        real(self, rows)
        held.append(self._room.held)

    monkeypatch.setattr(overlap.Rows, "put", put)
    ran = enhance(lab, stages, ready(lab, stages))
    assert [one.finding.status for one in ran.results] == ["ok"] * 3
    assert len(held) == 5 and max(held) * 3 == 16 * 900 * 100 * 3


def test_rows_that_nobody_takes_any_more_stop_who_makes_them() -> None:
    rows = overlap.Rows(overlap._Room(10))
    rows.put(np.zeros((2, 2, 3), np.uint8))  # alone it may be larger than the room
    taker = threading.Timer(0.05, rows.refuse)
    taker.start()
    with pytest.raises(overlap._GivenUp):
        rows.put(np.zeros((2, 2, 3), np.uint8))
    taker.join()


def test_rows_that_broke_off_are_given_up() -> None:
    rows = overlap.Rows(overlap._Room(100))
    rows.put(np.zeros((2, 2, 3), np.uint8))
    taken = iter(rows)
    assert next(taken).shape == (2, 2, 3)
    rows.end(broken=True)
    with pytest.raises(overlap._GivenUp):
        next(taken)
