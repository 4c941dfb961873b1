"""Building and publishing: nothing pending is lost or doubled, and the old manifest stands until the new one."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from search.picture_library import RECIPE, Library

from mirror_realm_assets.catalog import inbox, index, intents, lacking
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog, now
from mirror_realm_assets.errors import Failed, LeaseLost
from mirror_realm_assets.search import rounds

STEPS = [
    "lease held",
    "ledger read",
    "vectors read",
    "segment announced",
    "segment written",
    "ready to publish",
    "about to commit",
    "published",
]


# Where a kill finds something different in the store or the ledger.
KILLS = ["segment announced", "segment written", "about to commit", "published"]


class Killed(BaseException):
    """As sudden as an interrupt."""


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path)


def _embed(library: Library, count: int) -> None:
    library.embed([library.add() for _ in range(count)])


def _manifest(library: Library) -> index.Manifest | None:
    with library.catalog.read() as conn:
        return index.manifest(conn, library.sources["photos"].id, RECIPE)


def _pending(library: Library) -> int:
    with library.catalog.read() as conn:
        return lacking.count_pending(conn, library.sources["photos"].id, RECIPE)


def _check(library: Library) -> None:
    """Members, segments, objects and intents agree, and a search finds what brute force finds."""
    manifest = _manifest(library)
    entries = manifest.segments if manifest else ()
    with library.catalog.read() as conn:
        live = [member for entry in entries for member in index.members_of(conn, entry.sha256)]
        objects = set(conn.execute(sa.select(t.objects.c.key).where(t.objects.c.kind == "segment")).scalars())
        rows = conn.execute(sa.select(sa.func.count()).select_from(t.index_members)).scalar_one()
    assert len({(member.image_digest, member.part) for member in live}) == len(live) <= rows
    assert len(live) == (manifest.vectors if manifest else 0)
    assert objects == {entry.key for entry in entries}
    assert all(library.store.exists(entry.key) for entry in entries)
    library.agrees(library.vector(), k=1000)


def _open_intents(library: Library) -> int:
    with library.catalog.read() as conn:
        return int(conn.execute(sa.select(sa.func.count()).select_from(t.intents)).scalar_one())


def test_nothing_pending_publishes_nothing(library: Library) -> None:
    _embed(library, 3)
    first = library.build()
    assert (first.published, first.added, first.vectors, first.version) == (True, 3, 3, 1)
    steps: list[str] = []
    second = library.build(step=steps.append)
    assert (second.published, second.added, second.vectors, second.version) == (False, 0, 3, 1)
    assert steps == ["lease held", "ledger read"]


def test_the_buffer_is_rewritten_until_it_is_full_and_sealed_segments_stay(library: Library) -> None:
    shapes = []
    sealed: set[str] = set()
    for count in (3, 4, 6, 1, 20, 2):
        _embed(library, count)
        library.build()
        manifest = _manifest(library)
        assert manifest is not None
        shapes.append([entry.count for entry in manifest.segments])
        assert [entry.sealed for entry in manifest.segments] == [entry.count == 8 for entry in manifest.segments]
        now_sealed = {entry.sha256 for entry in manifest.segments if entry.sealed}
        assert sealed <= now_sealed
        sealed = now_sealed
        _check(library)
    assert shapes == [[3], [7], [8, 5], [8, 6], [8, 8, 8, 8, 2], [8, 8, 8, 8, 4]]


def test_recall_is_measured_and_one_for_exact_segments(library: Library) -> None:
    _embed(library, 30)
    assert library.build().recall_at_10 == 1.0
    _embed(library, 3)
    assert library.build().recall_at_10 == 1.0


def test_the_recall_of_an_index_that_finds_the_wrong_vectors_is_low(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = rounds.segments.measure_recall
    monkeypatch.setattr(rounds.segments, "measure_recall", lambda segment, vectors: real(segment, vectors[::-1].copy()))
    _embed(library, 100)
    recall = library.build(segment_vectors=1000).recall_at_10
    assert recall is not None
    assert recall < 0.5


def test_dead_vectors_leave_the_buffer_at_once_and_are_tombstones_in_sealed_segments(library: Library) -> None:
    _embed(library, 12)
    library.build()
    for one in (library.media[0], library.media[11]):
        library.set_state(one, "deleted")
    report = library.build()
    manifest = _manifest(library)
    assert manifest is not None
    assert [entry.count for entry in manifest.segments] == [8, 3]
    assert (report.removed, report.tombstones, report.vectors) == (2, 1, 10)
    with library.catalog.read() as conn:
        dead = conn.execute(sa.select(t.index_members).where(t.index_members.c.deleted_at.is_not(None))).mappings()
        assert [row["image_digest"] for row in dead] == [library.media[0].images[0]]
    _check(library)


def test_an_index_whose_media_are_all_gone_is_empty(library: Library) -> None:
    _embed(library, 3)
    library.build()
    for one in library.media:
        library.set_state(one, "deleted")
    report = library.build()
    assert (report.published, report.vectors, report.segments, report.recall_at_10) == (True, 0, 0, None)
    assert not library.build().published
    _embed(library, 2)
    assert library.build().vectors == 2
    _check(library)


@pytest.mark.parametrize("at", STEPS[1:])
def test_vectors_that_land_during_a_build_are_pending_after_it_and_found_meanwhile(library: Library, at: str) -> None:
    _embed(library, 5)

    def step(name: str) -> None:
        # SQLite has one writer: inside the publishing transaction nobody else can write.
        if name == at and name != "about to commit":
            _embed(library, 2)
            library.agrees(library.vector(), k=1000)

    library.build(step=step)
    _check(library)
    landed = sum(one != "about to commit" for one in [at]) * 2
    assert _pending(library) + (_manifest(library) or pytest.fail("no manifest")).vectors == 5 + landed
    library.build()
    assert _pending(library) == 0
    _check(library)


def test_media_deleted_during_a_build_are_buried_by_the_next_and_not_found_meanwhile(library: Library) -> None:
    _embed(library, 5)
    report = library.build(
        step=lambda name: library.set_state(library.media[0], "deleted") if name == "ready to publish" else None
    )
    assert (report.vectors, report.tombstones) == (5, 0)
    library.agrees(library.vector())
    assert library.build().vectors == 4
    _check(library)


@pytest.mark.parametrize("at", STEPS)
def test_an_error_at_any_step_leaves_the_old_manifest_and_no_intent(library: Library, at: str) -> None:
    _embed(library, 6)
    library.build()
    _embed(library, 5)
    library.set_state(library.media[0], "deleted")
    before = _manifest(library)

    def step(name: str) -> None:
        if name == at:
            raise Killed

    with pytest.raises(Killed):
        library.build(step=step)
    assert (_manifest(library) == before) == (at != "published")
    assert _open_intents(library) == 0
    _check(library)
    library.build(worker_id="next")
    assert _pending(library) == 0
    _check(library)


KILL = """
import os, sys
from pathlib import Path
from mirror_realm_assets.catalog import sources
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.search.build import build_index
from mirror_realm_assets.store.opening import open_store
import faiss, pyarrow.parquet
home, recipe, steps = Path(sys.argv[1]), sys.argv[2], sys.argv[3].split(",")
for n, at in enumerate(steps):
    if pid := os.fork():
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9, at
        continue
    catalog = Catalog(f"sqlite:///{home / at / 'catalog.sqlite'}")
    with catalog.read() as conn:
        source = sources.get(conn, "photos")
    store = open_store(str(home / at / "store"), catalog.uuid())
    def step(name):
        if name == at:
            os.kill(os.getpid(), 9)
    build_index(catalog, store, source, recipe, "toy", worker_id="dead", lease_seconds=60, segment_vectors=8, step=step)
    os._exit(1)
"""


def test_a_kill_loses_nothing(tmp_path: Path) -> None:
    libraries = {}
    for at in KILLS:
        library = libraries[at] = Library(tmp_path / at)
        _embed(library, 6)
        library.build()
        _embed(library, 5)
    before = {at: _manifest(library) for at, library in libraries.items()}
    # One process that forks for each step: importing faiss each time would take longer than the test.
    done = subprocess.run(
        [sys.executable, "-c", KILL, str(tmp_path), RECIPE, ",".join(KILLS)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    for at, library in libraries.items():
        assert (_manifest(library) == before[at]) == (at != "published"), done.stderr
        _check(library)
        _expire(library.catalog)
        library.build(worker_id="next")
        assert _pending(library) == 0
        _check(library)
        intents.retire(library.catalog, timedelta(0))
        assert _open_intents(library) == 0


def _expire(catalog: Catalog) -> None:
    with catalog.write() as conn:
        conn.execute(t.leases.update().values(until=now(conn) - timedelta(seconds=1)))


def test_a_second_builder_steps_back_while_the_first_is_alive(library: Library) -> None:
    _embed(library, 2)
    refused: list[LeaseLost] = []

    def step(name: str) -> None:
        if name == "vectors read":
            with pytest.raises(LeaseLost) as caught:
                library.build(worker_id="second")
            refused.append(caught.value)

    assert library.build(step=step).published
    assert len(refused) == 1


@pytest.mark.parametrize("at", ["vectors read", "segment written", "ready to publish"])
def test_a_builder_that_was_overtaken_changes_nothing(library: Library, at: str) -> None:
    _embed(library, 6)
    library.build()
    _embed(library, 5)
    published = []

    def step(name: str) -> None:
        if name == at and not published:
            _expire(library.catalog)
            published.append(library.build(worker_id="second"))
            library.embed([library.add()])

    with pytest.raises(LeaseLost):
        library.build(worker_id="first", step=step)
    manifest = _manifest(library)
    assert manifest is not None
    assert (manifest.version, manifest.vectors) == (2, 11)
    assert manifest.token == 3  # the third change of owner
    assert _open_intents(library) == 0
    _check(library)


def test_the_same_owner_cannot_publish_twice_from_one_base(library: Library) -> None:
    # A lease can be taken again by who holds it; the version is what tells two builds of one worker apart.
    _embed(library, 3)
    inner = []

    def step(name: str) -> None:
        if name == "ready to publish" and not inner:
            inner.append(True)
            with library.catalog.write() as conn:
                lease = conn.execute(sa.select(t.leases)).mappings().one()
            library.build()
            with library.catalog.write() as conn:
                values = {"owner": lease["owner"], "token": lease["token"], "until": lease["until"]}
                conn.execute(t.leases.update().values(**values))

    with pytest.raises(LeaseLost):
        library.build(step=step)
    _check(library)


def test_a_damaged_buffer_is_made_again_from_the_shards(library: Library) -> None:
    _embed(library, 5)
    library.build()
    manifest = _manifest(library)
    assert manifest is not None
    (library.store.root.path / manifest.segments[0].key).write_bytes(b"damaged")  # type: ignore[attr-defined]
    _embed(library, 1)
    report = library.build()
    assert report.vectors == 6
    _check(library)


def test_what_a_damaged_shard_held_is_made_again_and_holds_nothing_up(library: Library) -> None:
    lost = [library.add() for _ in range(3)]
    bad = library.embed(lost)
    _embed(library, 5)
    (library.store.root.path / (bad or "")).write_bytes(b"damaged")  # type: ignore[attr-defined]
    with pytest.raises(Failed) as caught:
        library.build(round_vectors=2)
    assert caught.value.code == "store_corrupt"
    manifest = _manifest(library)
    assert manifest is not None
    assert manifest.vectors == 5
    with library.catalog.read() as conn:
        assert conn.execute(sa.select(sa.func.count()).select_from(t.features)).scalar() == 5
        assert conn.execute(sa.select(t.sources.c.swept_recipes)).scalar() == {}, "so that they are looked for"
    for one in lost:
        del library.vectors[RECIPE, one.images[0], 0]
    assert library.build().vectors == 5
    library.embed(lost)
    assert library.build().vectors == 8
    _check(library)


def test_a_file_that_comes_back_while_it_is_buried_is_indexed_again(library: Library) -> None:
    _embed(library, 3)
    library.build()
    back = library.media[0]
    library.set_state(back, "deleted")

    def step(name: str) -> None:
        if name == "ledger read":
            library.set_state(back, "present")
            with library.catalog.write() as conn:  # as the sensor does: just now it is still a member
                lacks, idle = lacking.has_noted(conn, library.sources["photos"].id, RECIPE)
                assert not lacks
                inbox.forget(conn, [note.id for note in idle])

    assert library.build(step=step).removed == 1
    assert library.build(full=False).added == 1
    _check(library)


def test_a_rebuild_leaves_no_old_segment_and_keeps_every_vector(library: Library) -> None:
    _embed(library, 20)
    library.build()
    library.set_state(library.media[0], "deleted")
    library.build()
    old = _manifest(library)
    report = library.build(rebuild=True)
    new = _manifest(library)
    assert old is not None
    assert new is not None
    assert not {entry.key for entry in old.segments} & {entry.key for entry in new.segments}
    assert (report.vectors, report.tombstones) == (19, 0)
    _check(library)


def test_a_rebuild_refuses_to_lose_what_only_the_old_segments_hold(library: Library) -> None:
    _embed(library, 3)
    bad = library.embed([library.add()])
    library.build()
    before = _manifest(library)
    (library.store.root.path / (bad or "")).write_bytes(b"damaged")  # type: ignore[attr-defined]
    with pytest.raises(Failed):
        library.build(rebuild=True)
    assert _manifest(library) == before


def test_a_long_backlog_is_published_in_rounds(library: Library) -> None:
    _embed(library, 25)
    progress: list[int] = []
    report = library.build(round_vectors=10, on_progress=progress.append)
    assert progress == [10, 20, 25]
    assert (report.version, report.added, report.vectors) == (3, 25, 25)
    _check(library)


def test_only_the_latest_versions_are_kept(library: Library) -> None:
    for _ in range(23):
        _embed(library, 1)
        library.build()
    with library.catalog.read() as conn:
        versions = list(conn.execute(sa.select(t.index_manifests.c.version).order_by(sa.text("1"))).scalars())
    assert versions == list(range(4, 24))
