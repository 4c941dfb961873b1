"""What must hold of a home when all is settled, whoever was killed before: files, records, items, leases, store, runs.

What belongs here: reading the ledger, the store and Dagster, and judging them. What does not: killing and waiting
(`crash_home`).
"""

from __future__ import annotations

import contextlib
import hashlib
import pprint
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import sqlalchemy as sa
from changing_folder import ChangingFolder
from counted_stages import COMPUTED, counted_stages
from running_home import RunningHome

from mirror_realm_assets.catalog import intents, sources
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog, now
from mirror_realm_assets.catalog.items import RAW
from mirror_realm_assets.fault_points import VARIABLE
from mirror_realm_assets.sensors.lanes import IN_PROGRESS
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.store.gc import collect
from mirror_realm_assets.store.opening import open_store


@dataclass
class Killed:
    """What was killed: pids, and how often by victim and point (`any moment` for one by the clock)."""

    pids: set[int] = field(default_factory=set)
    by: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return self.by.total()


class CheckedHome(RunningHome):
    """A home with toy stages that count what they compute, and with a folder that changes.

    Args:
        base: an empty folder.
        seed: of the folder's changes.
        killed: where kills are counted.
    """

    def __init__(self, base: Path, seed: int, killed: Killed) -> None:
        self.faults = base / "faults"
        self.faults.mkdir(parents=True)
        waits = {"MIRROR_REALM_QUIET_SECONDS": "0.3", "MIRROR_REALM_WATCH_SECONDS": "0.3"}
        super().__init__(base, base / "no-weights", **waits, **{VARIABLE: str(self.faults)})
        config = self.home / "dagster" / "dagster.yaml"
        # A run whose launch was cut off is given up after three minutes; here after some seconds.
        quick = "\n  poll_interval_seconds: 3\n  start_timeout_seconds: 25 "
        config.write_text(config.read_text().replace("\n  poll_interval_seconds: 10 ", quick))
        self.changing = ChangingFolder(self.folder, seed)
        self.killed = killed
        self.settings = Settings.at(self.home)
        self.stages = counted_stages(self.settings)
        self.catalog = Catalog(self.settings.catalog_url)
        self.instance = dg.DagsterInstance.from_config(str(self.home / "dagster"))

    def close(self) -> None:
        super().close()
        self.instance.dispose()
        self.catalog.close()

    @staticmethod
    def known(conn: sa.Connection) -> dict[bytes, str]:
        """What the ledger says lies in the folder."""
        place = t.locations.c
        rows = conn.execute(
            sa.select(place.path, t.contents.c.digest, place.identified_size == place.size, place.code)
            .outerjoin(t.media, t.media.c.id == place.media_id)
            .outerjoin(t.contents, t.contents.c.id == t.media.c.content_id)
            .where(place.state.in_(("present", "unreadable")))
        )
        return {bytes(row[0]): row[1] if row[2] and row[1] else f"unknown {row[3]}" for row in rows}

    def embedded_here(self) -> set[tuple[str, int]]:
        """Pictures of files that are present and have an embedding; one that was set aside has none."""
        part, feature = t.parts.c, t.features.c
        with self.catalog.read() as conn:
            rows = conn.execute(
                sa.select(part.image_digest, part.part)
                .join(t.media, t.media.c.content_id == part.content_id)
                .join(t.locations, t.locations.c.media_id == t.media.c.id)
                .join(t.features, feature.image_digest == part.image_digest)
                .where(t.locations.c.state == "present", feature.feature == "embeddings", feature.status == "ok")
            )
            return {(row[0], row[1]) for row in rows}

    # --- the oracle ---

    def check(self) -> str:
        """Everything that must hold when all is settled; returns words about it."""
        there = self.changing.digests()
        with self.catalog.read() as conn:
            assert self.known(conn) == there
            self._check_features(conn, set(there.values()))
            self._check_items(conn)
            self._check_leases(conn)
        self._check_computed_once()
        objects = self._check_store()
        self._check_runs()
        missing = self.embedded_here() - self.indexed()
        assert not missing, f"{missing} are not indexed"
        return f"{len(there)} files, {objects} objects"

    def _check_features(self, conn: sa.Connection, digests: set[str]) -> None:
        source = sources.get(conn, "demo")
        recipes = {stage.feature: recipe.digest for stage in self.stages if (recipe := stage.recipe(source.policy))}
        f = t.features.c
        recorded = list(conn.execute(sa.select(t.features)).mappings())
        ok = {(r["image_digest"], r["part"], r["feature"], r["recipe"]) for r in recorded if r["status"] == "ok"}
        for digest in digests:
            assert (digest, 0, "raw_media", recipes["raw_media"]) in ok, self._story(conn, digest)
            pictures = conn.execute(
                sa.select(t.parts.c.image_digest, t.parts.c.part)
                .join(t.contents, t.contents.c.id == t.parts.c.content_id)
                .where(t.contents.c.digest == digest)
            ).all()
            assert len(pictures) == 1, self._story(conn, digest)
            for feature in ("embeddings", "enhanced_images"):
                assert (*pictures[0], feature, recipes[feature]) in ok, self._story(conn, digest)
        here = set(
            conn.execute(
                sa.select(t.parts.c.image_digest)
                .join(t.contents, t.contents.c.id == t.parts.c.content_id)
                .where(t.contents.c.digest.in_(digests))
            ).scalars()
        )
        again = [dict(row) for row in recorded if row["attempts"] != 1 or row["status"] != "ok"]
        # A picture that was set aside after two kills and then left the folder has nothing to be tried again.
        again = [row for row in again if row["code"] != "crashed_worker" or row["image_digest"] in here]
        assert not again, again
        doubles = conn.execute(
            sa.select(f.image_digest).group_by(f.image_digest, f.part, f.feature, f.recipe).having(sa.func.count() > 1)
        ).all()
        assert not doubles

    @staticmethod
    def _story(conn: sa.Connection, digest: str) -> str:
        """What the ledger knows of a content, for a failing test."""
        queries = (
            sa.select(t.features).where(t.features.c.image_digest == digest),
            sa.select(t.locations)
            .join(t.media, t.media.c.id == t.locations.c.media_id)
            .join(t.contents, t.contents.c.id == t.media.c.content_id)
            .where(t.contents.c.digest == digest),
            sa.select(t.batch_items)
            .join(t.locations, t.locations.c.id == t.batch_items.c.location_id)
            .join(t.media, t.media.c.id == t.locations.c.media_id)
            .join(t.contents, t.contents.c.id == t.media.c.content_id)
            .where(t.contents.c.digest == digest),
        )
        found = [[dict(row) for row in conn.execute(query).mappings()] for query in queries]
        return f"{digest}\n{pprint.pformat(found, width=200)}"

    @staticmethod
    def _check_items(conn: sa.Connection) -> None:
        rows = conn.execute(sa.select(t.batch_items.c.id).where(t.batch_items.c.state != "settled")).all()
        assert not rows, f"{len(rows)} items are open"
        held = conn.execute(sa.select(t.batch_items.c.id).where(t.batch_items.c.worker_id.is_not(None))).all()
        assert not held, f"{len(held)} items are held"

    @staticmethod
    def _check_leases(conn: sa.Connection) -> None:
        held = conn.execute(
            sa.select(t.leases.c.name, t.leases.c.owner).where(
                t.leases.c.owner.is_not(None), t.leases.c.until > now(conn)
            )
        ).all()
        known = {row["id"]: row for row in conn.execute(sa.select(t.workers)).mappings()}
        for name, owner in held:
            assert owner in known, f"{name} is held by {owner}, whom nobody knows"
            row = known[owner]
            assert row["ended_at"] is None, f"{name} is held by one that has ended"
            assert psutil.pid_exists(row["pid"]), f"{name} is held by a dead {row['kind']}"

    def _check_computed_once(self) -> None:
        """One record has one computation, but for those whose process was killed."""
        found: dict[tuple[str, ...], list[str]] = {}
        for line in (self.home / COMPUTED).read_text().splitlines():
            pid, started, feature, digest, part, recipe, status = line.split()
            if status == "ok" and int(pid) not in self.killed.pids:
                found.setdefault((feature, digest, part, recipe), []).append(f"{pid} {started}")
        # Two copies in one batch may both be read before either is recorded: what was found is recorded once.
        twice = {key: who for key, who in found.items() if len(set(who) if key[0] == RAW else who) > 1}
        assert not twice, twice

    def _check_store(self) -> int:
        """What is stored is what the ledger names, whole; what killed writers left is collected."""
        with self.catalog.read() as conn:
            named = {row["key"]: row for row in conn.execute(sa.select(t.objects)).mappings()}
            announced = set(conn.execute(sa.select(t.intents.c.key)).scalars())
        root = self.home / "store"
        found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
        objects = {name for name in found if "/" in name and not name.startswith(("tmp/", "trash/"))}
        assert objects >= set(named), f"{set(named) - objects} are named and not there"
        # Only a write buffer of the index that the next one replaced lies there unnamed, until it is collected.
        unnamed = {name for name in objects - set(named) - announced if not name.startswith("segments/")}
        assert not unnamed, f"{unnamed} are there and not named"
        for key, row in named.items():
            data = (root / key).read_bytes()
            assert (hashlib.sha256(data).hexdigest(), len(data)) == (row["sha256"], row["bytes"]), key
        assert all(name.endswith(".part") for name in found if name.startswith("tmp/"))
        store = open_store(self.settings.store_url, self.catalog.uuid())
        none = timedelta(0)
        intents.retire(self.catalog, none)
        time.sleep(0.01)
        collect(store, _Named(self.catalog), lease=_NoLease(), min_age=none, unfinished_age=none, trash_age=none)
        left = {entry.key for entry in store.list()}
        assert left == set(named), left ^ set(named)
        assert not list((root / "tmp").iterdir())
        return len(left)

    def runs_left(self) -> list[tuple[str, str]]:
        """Runs that have not ended; one that was created and not even queued is given three minutes."""
        begun = datetime.now(UTC) - timedelta(minutes=3, seconds=30)
        return [
            (record.dagster_run.job_name, record.dagster_run.status.value)
            for record in self.instance.get_run_records(dg.RunsFilter(statuses=IN_PROGRESS))
            if record.dagster_run.status is not dg.DagsterRunStatus.NOT_STARTED
            or record.create_timestamp.astimezone(UTC) < begun
        ]

    def _check_runs(self) -> None:
        left = self.runs_left()
        assert not left, left
        storage = self.instance.event_log_storage
        for key in storage.get_concurrency_keys():
            info = storage.get_concurrency_info(key)
            assert not info.claimed_slots, f"a slot of {key} is taken"
            assert not info.pending_steps, f"a step waits for {key}"


class _Named:
    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def named(self, keys: Any) -> set[str]:
        return intents.named_keys(self._catalog, keys)


class _NoLease(contextlib.AbstractContextManager["_NoLease"]):
    def renew(self) -> None:
        """Nobody else collects here."""

    def __exit__(self, *_: object) -> None:
        """Nothing was taken."""
