"""The index follows the ledger whatever lands while it is built, and comes back by itself after failures.

Sensor, queue, index job, store and search are the real ones; only the vectors are made up and recorded by the test.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest
import sqlalchemy as sa
from running_home import RunningHome

from mirror_realm_assets.catalog import features, sources
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import now
from mirror_realm_assets.catalog.features import FeatureKey, Finding
from mirror_realm_assets.catalog.wants import Recipe
from mirror_realm_assets.ingest.batching import recipes_of
from mirror_realm_assets.pipeline import standard_stages
from mirror_realm_assets.resources.library import close_services, open_services
from mirror_realm_assets.search.query import search
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.store.interface import StoredObject
from mirror_realm_assets.store.keys import shard_key
from mirror_realm_assets.store.shards import ShardRow, encode_shard

DIM = 32
QUIET_SECONDS = 60.0
FAULT_SECONDS = 30.0
MAX_FAILED_RUNS = 5
LANDING_SECONDS = 8.0

Vector = npt.NDArray[np.float32]


@dataclass
class Pictures:
    """A group of pictures whose vectors lie in one shard, not recorded yet."""

    rows: list[ShardRow]
    shard: StoredObject


@dataclass
class Landing:
    """Records embeddings in a home as the embedding stage does, and looks for them."""

    home: RunningHome
    landed: dict[str, Vector] = field(default_factory=dict)
    during_runs: int = 0

    def __post_init__(self) -> None:
        self.settings = Settings.at(self.home.home)
        self.services = open_services(self.settings)
        self.random = random.Random(7)  # noqa: S311 - moments and sizes, no secrets
        self.vectors = np.random.default_rng(7)
        stages = standard_stages(self.settings)
        with self.services.catalog.write() as conn:
            self.source = sources.get(conn, "demo")
            # Nothing is to be read anew: these pictures have no files.
            sources.set_swept(conn, self.source.id, recipes_of(self.settings, stages, self.source))
        recipe = next(stage for stage in stages if stage.feature == "embeddings").recipe(self.source.policy)
        assert recipe is not None
        self.recipe: Recipe = recipe

    def close(self) -> None:
        close_services(self.settings)

    def prepare(self, count: int) -> Pictures:
        """Write a shard."""
        rows = []
        for _ in range(count):
            vector = self.vectors.standard_normal(DIM).astype(np.float32)
            rows.append(ShardRow(_digest(str(uuid.uuid4())), 0, vector / np.linalg.norm(vector)))
        data = encode_shard(rows, model=self.source.policy.embedder, recipe=self.recipe.digest)
        return Pictures(rows, self.services.store.put(shard_key(hashlib.sha256(data).hexdigest()), data))

    def record(self, pictures: Pictures) -> None:
        """Record the rows of a shard in one transaction, and find every one of them at once."""
        with self.services.catalog.write() as conn:
            for n, row in enumerate(pictures.rows):
                self._record_one(conn, row, pictures.shard, n)
        self.during_runs += self._index_run_at_work()
        for row in pictures.rows:
            self.landed[row.image_digest] = row.vector
            self.must_find(row.image_digest)

    def _record_one(self, conn: sa.Connection, row: ShardRow, shard: StoredObject, n: int) -> None:
        at = now(conn)
        digest = _digest(f"bytes of {row.image_digest}")
        content = _insert(conn, t.contents, digest=digest, size=1, custody="referenced", created_at=at)
        picture = {"kind": "still", "image_digest": row.image_digest, "width": 8, "height": 8}
        _insert(conn, t.parts, content_id=content, part=0, **picture)
        source = self.source
        owner = {"project_id": source.project_id, "source_id": source.id, "owner_id": source.owner_id}
        media = _insert(conn, t.media, uuid=str(uuid.uuid4()), content_id=content, created_at=at, **owner)
        seen = {"first_seen_at": at, "changed_at": at, "last_seen_at": at}
        stat = {"size": 1, "mtime_ns": 1, "identified_size": 1, "identified_mtime_ns": 1}
        name = row.image_digest
        place = {"source_id": source.id, "path": name.encode(), "display": name, "state": "present"}
        _insert(conn, t.locations, media_id=media, **place, **stat, **seen)
        output = {"shard": shard.key, "sha256": shard.sha256, "row": n, "dim": DIM}
        key = FeatureKey(row.image_digest, 0, "embeddings", self.recipe.digest)
        features.write(conn, key, self.recipe, Finding("ok", output))

    def must_find(self, picture: str) -> None:
        """The picture is the first hit for its own vector."""
        hits = search(
            self.services.catalog,
            self.services.store,
            self.landed[picture],
            recipe=self.recipe.digest,
            model=self.source.policy.embedder,
            source_ids=[self.source.id],
            k=1,
        )
        assert [os.fsdecode(hit.paths[0]) for hit in hits] == [picture]

    def land(self, count: int, seconds: float) -> None:
        """Record `count` pictures in random groups at random moments, over about so many seconds."""
        left = count
        while left:
            size = min(left, self.random.choice((1, 1, 2, 3, 5, 8, 13)))
            self.record(self.prepare(size))
            left -= size
            if left:
                time.sleep(self.random.uniform(0, 2) * seconds * size / count)

    def wait_quiet(self, seconds: float) -> float:
        """Wait until everything recorded is indexed; returns how long it took."""
        began = time.monotonic()
        wanted = {(picture, 0) for picture in self.landed}
        while self.home.indexed() != wanted:
            waited = time.monotonic() - began
            assert waited < seconds, f"{len(wanted - self.home.indexed())} are not indexed\n{self.home.logs()}"
            time.sleep(0.2)
        assert self.home.embedded() == wanted
        return time.monotonic() - began

    def _index_run_at_work(self) -> bool:
        workers = t.workers.c
        query = sa.select(workers.id).where(workers.kind == "run", workers.ended_at.is_(None))
        with self.services.catalog.read() as conn:
            return conn.execute(query).first() is not None

    def index_runs(self) -> list[str]:
        return [status for job, status, _key in self.home.wait_runs_ended(60) if job == "index_job"]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _insert(conn: sa.Connection, table: sa.Table, **values: object) -> int:
    key = conn.execute(table.insert().values(**values)).inserted_primary_key
    assert key is not None
    return int(key[0])


@pytest.fixture
def landing(new_home: Callable[..., RunningHome]) -> Iterator[Landing]:
    """A home whose daemon runs, without watcher and webserver."""
    home = new_home("enhance=false")
    opened = Landing(home)
    home.start_daemon("mirror_realm_assets.definitions")
    yield opened
    opened.close()


@pytest.mark.long
def test_what_lands_while_indexes_are_built_is_found_at_once_and_indexed(
    landing: Landing, tell: Callable[[str], None]
) -> None:
    waits = []
    for _round in range(3):
        landing.land(15, 4.0)
        waits.append(landing.wait_quiet(QUIET_SECONDS))
    tell(f"3 rounds of 15: indexed {', '.join(f'{wait:.0f}' for wait in waits)} s after the last one landed")


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_twenty_rounds_and_a_time_of_failing_runs_leave_the_index_equal_to_the_ledger(
    landing: Landing, tell: Callable[[str], None]
) -> None:
    waits = []
    for _round in range(20):
        landing.land(100, LANDING_SECONDS)
        waits.append(landing.wait_quiet(QUIET_SECONDS))
    runs = landing.index_runs()
    assert set(runs) == {"SUCCESS"}
    assert landing.during_runs, "nothing landed while an index was built"
    tell(
        f"20 rounds of 100: {len(runs)} index runs, {landing.during_runs} groups landed during one; "
        f"indexed at most {max(waits):.0f} s after the last one landed"
    )

    groups = [landing.prepare(10) for _ in range(5)]
    drafts = landing.home.home / "store" / "tmp"
    away = drafts.with_name("tmp-away")
    drafts.rename(away)
    drafts.write_text("in the way")  # nothing can be written into the store
    for group in groups:
        landing.record(group)
        time.sleep(FAULT_SECONDS / len(groups))
    assert len(landing.home.indexed()) == 20 * 100
    drafts.unlink()
    away.rename(drafts)
    took = landing.wait_quiet(90)
    landing.land(20, 2.0)
    again = landing.wait_quiet(QUIET_SECONDS)
    runs = landing.index_runs()
    failed = runs.count("FAILURE")
    assert 1 <= failed <= MAX_FAILED_RUNS, runs
    assert set(runs) == {"SUCCESS", "FAILURE"}
    tell(
        f"index runs failing for {FAULT_SECONDS:.0f} s: {failed} failed runs; indexed {took:.0f} s after the end of "
        f"that, what came then {again:.0f} s after it landed"
    )
