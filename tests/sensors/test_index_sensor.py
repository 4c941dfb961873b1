"""The index sensor: what no published index contains gets a run, and runs that fail make no storm."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
from cheap_stages import cheap_stages, run_lane
from lab import Lab
from runs import add_run

from mirror_realm_assets.catalog import inbox, lacking, sources
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import now
from mirror_realm_assets.ingest.watch import FolderWatch
from mirror_realm_assets.jobs import index_job
from mirror_realm_assets.resources.library import LibraryResource, close_services
from mirror_realm_assets.search.update import update_index
from mirror_realm_assets.sensors.index import index_sensor


class Shelf:
    """A lab whose embeddings are indexed by a sensor that a test ticks."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.instance = dg.DagsterInstance.ephemeral()
        self.stages = cheap_stages(lab.settings)
        self.sensor = index_sensor(index_job(lab.settings), cheap_stages)
        self.library = LibraryResource(home=str(lab.home))
        self.cursor: str | None = None

    def tick(self) -> dg.SensorResult | dg.SkipReason:
        context = dg.build_sensor_context(
            instance=self.instance, resources={"library": self.library}, cursor=self.cursor
        )
        found = self.sensor(context)
        assert isinstance(found, dg.SensorResult | dg.SkipReason)
        self.cursor = context.cursor
        return found

    def next_look(self) -> float:
        return float(json.loads(self.cursor or "{}")["tick"])

    def requests(self) -> Sequence[dg.RunRequest]:
        found = self.tick()
        return found.run_requests or [] if isinstance(found, dg.SensorResult) else []

    def embed(self, *names: str) -> None:
        for name in names:
            self.lab.picture(name, sum(name.encode()))
        for batch in self.lab.form(self.stages):
            run_lane(self.lab.services, self.stages, batch.key)

    def run(self, status: dg.DagsterRunStatus) -> dg.DagsterRun:
        return add_run(self.instance, "index_job", status, {"dagster/partition": "demo"})

    def build(self) -> None:
        update_index(self.lab.services, self.stages, "demo")

    @property
    def recipe(self) -> str:
        found = self.stages[1].recipe(self.lab.source.policy)
        assert found is not None
        return found.digest

    def wait(self) -> float:
        """Seconds of back-off that are left."""
        with self.lab.catalog.read() as conn:
            due = sources.get(conn, "demo").index_next_at
            return (due - now(conn)).total_seconds() if due else 0.0

    def end_back_off(self) -> None:
        with self.lab.catalog.write() as conn:
            conn.execute(t.sources.update().values(index_next_at=now(conn)))


@pytest.fixture
def shelf(lab: Lab) -> Iterator[Shelf]:
    made = Shelf(lab)
    yield made
    close_services(made.library.settings)


def test_an_embedding_that_no_index_contains_is_asked_for_without_a_run_key(shelf: Shelf) -> None:
    shelf.embed("a.png")
    found = shelf.tick()
    assert isinstance(found, dg.SensorResult)
    (request,) = found.run_requests or []
    assert request.partition_key == "demo"
    assert request.run_key is None
    assert request.tags["mirror-realm/source"] == "demo"
    assert request.tags["mirror-realm/lane"] == "index"
    assert request.tags["dagster/max_runtime"] == "3600"
    (added,) = found.dynamic_partitions_requests or []
    assert list(added.partition_keys) == ["demo"]


def test_nothing_is_asked_for_while_everything_is_indexed(shelf: Shelf) -> None:
    assert shelf.requests() == []
    shelf.embed("a.png")
    shelf.build()
    found = shelf.tick()
    assert isinstance(found, dg.SkipReason)
    assert found.skip_message == "No index run is due."
    shelf.embed("b.png")  # an embedding that landed after the build began is no different from any other
    assert len(shelf.requests()) == 1


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTED])
def test_a_source_with_an_active_run_waits_and_loses_nothing(shelf: Shelf, status: dg.DagsterRunStatus) -> None:
    shelf.embed("a.png")
    run = shelf.run(status)
    assert shelf.requests() == []
    assert shelf.wait() == 0.0  # a tick that asks for nothing counts no failure
    shelf.instance.delete_run(run.run_id)
    assert len(shelf.requests()) == 1


def test_requests_that_do_not_publish_are_spaced_out_more_and_more_and_success_ends_that(shelf: Shelf) -> None:
    shelf.embed("a.png")
    for attempt in range(4):
        assert len(shelf.requests()) == 1
        assert shelf.wait() == pytest.approx(10 * 2**attempt, abs=3)
        found = shelf.tick()
        assert isinstance(found, dg.SkipReason)
        assert f"after {attempt + 1} tries" in (found.skip_message or "")
        shelf.end_back_off()
    shelf.build()
    assert shelf.lab.source.index_attempts == 0
    shelf.embed("b.png")
    assert len(shelf.requests()) == 1
    assert shelf.wait() == pytest.approx(10, abs=3)


def test_the_back_off_ends_at_a_quarter_of_an_hour(shelf: Shelf) -> None:
    shelf.embed("a.png")
    with shelf.lab.catalog.write() as conn:
        conn.execute(t.sources.update().values(index_attempts=40))
    shelf.requests()
    assert shelf.wait() == pytest.approx(900, abs=3)


def test_the_cursor_only_spaces_out_the_look_for_what_is_gone(shelf: Shelf) -> None:
    shelf.embed("a.png", "b.png")
    shelf.build()
    shelf.cursor = None
    assert shelf.requests() == []
    next_look = shelf.next_look()
    assert next_look == pytest.approx(time.time() + 300, abs=5)
    with shelf.lab.catalog.write() as conn:
        conn.execute(t.locations.update().where(t.locations.c.path == b"a.png").values(state="deleted"))
        assert lacking.count_stale(conn, shelf.lab.source.id, shelf.recipe) == 1
    assert shelf.requests() == []  # looked a moment ago
    assert shelf.next_look() == next_look
    shelf.cursor = str(time.time() - 1)
    (request,) = shelf.requests()
    assert request.run_config["ops"] == {"faiss_index": {"config": {"full_look": True}}}
    shelf.embed("c.png")  # what is new never waits for that look
    shelf.end_back_off()
    (request,) = shelf.requests()
    assert request.run_config["ops"] == {"faiss_index": {"config": {"full_look": False}}}


def test_a_source_too_large_for_a_tick_is_looked_at_by_a_run_once_a_day(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mirror_realm_assets.sensors.index._LOOKED_AT_IN_A_TICK", 1)
    monkeypatch.setattr(lacking, "count_pending", lambda *_: pytest.fail("the tick looked"))
    shelf.embed("a.png", "b.png")
    shelf.build()
    shelf.cursor = None
    (request,) = shelf.requests()
    assert request.run_config["ops"] == {"faiss_index": {"config": {"full_look": True}}}
    shelf.build()
    for _tick in range(2):
        shelf.cursor = json.dumps({**json.loads(shelf.cursor or ""), "tick": 0})
        assert shelf.requests() == []  # a run looked a moment ago
    shelf.embed("c.png")  # what is new waits for no look
    (request,) = shelf.requests()
    assert request.run_config["ops"] == {"faiss_index": {"config": {"full_look": False}}}
    shelf.build()
    tomorrow = time.time() + 24 * 3600 + 1
    monkeypatch.setattr("mirror_realm_assets.sensors.index.time.time", lambda: tomorrow)
    (request,) = shelf.requests()
    assert request.run_config["ops"] == {"faiss_index": {"config": {"full_look": True}}}


def test_notes_for_nothing_are_cleared_by_the_next_tick(shelf: Shelf) -> None:
    shelf.embed("a.png")
    shelf.build()
    shelf.cursor = str(time.time() + 300)
    with shelf.lab.catalog.write() as conn:
        inbox.shown(conn, conn.execute(sa.select(t.media.c.id)).scalars())
        assert len(inbox.notes(conn, shelf.lab.source.id, shelf.recipe)) == 1
    assert shelf.requests() == []
    with shelf.lab.catalog.read() as conn:
        assert inbox.notes(conn, shelf.lab.source.id, shelf.recipe) == []


def test_each_source_is_asked_for_and_waits_by_itself(shelf: Shelf, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with shelf.lab.catalog.write() as conn:
        sources.add(conn, "other", bytes(other), {})
    shelf.embed("a.png")
    assert [request.partition_key for request in shelf.requests()] == ["demo"]
    shelf.build()
    (other / "same.png").write_bytes((shelf.lab.folder / "a.png").read_bytes())
    with shelf.lab.catalog.read() as conn:
        FolderWatch(shelf.lab.catalog, shelf.lab.settings, sources.get(conn, "other")).scan()
    shelf.embed()  # nothing is read or embedded anew, and yet the other index lacks the picture
    assert [request.partition_key for request in shelf.requests()] == ["other"]


def test_while_much_is_to_come_an_index_is_published_now_and_then(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each round starts a process, which a library that is being filled would pay for every few seconds."""
    monkeypatch.setattr("mirror_realm_assets.sensors.index._BACKLOG_ITEMS", 3)
    shelf.embed("a.png")
    shelf.build()
    shelf.embed("b.png")
    for name in ("c.png", "d.png"):
        shelf.lab.picture(name, sum(name.encode()))
    formed = shelf.lab.form(shelf.stages)  # two files, four items: not done yet
    found = shelf.tick()
    assert isinstance(found, dg.SkipReason) and "still to come" in (found.skip_message or "")
    with shelf.lab.catalog.write() as conn:  # three minutes later
        conn.execute(t.index_manifests.update().values(published_at=now(conn) - timedelta(seconds=181)))
    assert len(shelf.requests()) == 1
    with shelf.lab.catalog.write() as conn:
        conn.execute(t.index_manifests.update().values(published_at=now(conn)))
    shelf.end_back_off()
    for batch in formed:  # nothing is to come any more: at once
        run_lane(shelf.lab.services, shelf.stages, batch.key)
    assert len(shelf.requests()) == 1
