"""What a running stage may ask for: its batch and policy, writing to the store, and whether to go on.

What belongs here: the stage's view of the engine. What does not: recording (`engine`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from mirror_realm_assets.catalog import batches as batch_rows
from mirror_realm_assets.catalog import features, intents
from mirror_realm_assets.catalog.batches import Batch
from mirror_realm_assets.catalog.items import Work
from mirror_realm_assets.catalog.leases import Lease
from mirror_realm_assets.catalog.policy import SourcePolicy
from mirror_realm_assets.catalog.sources import Source
from mirror_realm_assets.errors import Failed
from mirror_realm_assets.stages.services import CatalogIntents, Services
from mirror_realm_assets.stages.stage import Stage
from mirror_realm_assets.store.interface import StoredObject
from mirror_realm_assets.store.writing import Writer

# The longest that one picture waits for the search lane: a queue that never moves must not starve enhancement.
_YIELD_SECONDS = 60.0


class Stopped(Exception):
    """The stage must end now; what it has not yielded stays pending."""


@dataclass
class StageContext:
    """The surroundings of one run of one stage over one batch."""

    services: Services
    stage: Stage
    stages: tuple[Stage, ...]
    batch: Batch
    source: Source
    policy: SourcePolicy
    lease: Lease
    run_id: str | None
    deadline: float | None = None  # on the monotonic clock: the end of the slice
    stop: Callable[[], str | None] = lambda: None  # a reason to stop, asked between items
    stopped: str | None = None
    used: dict[str, str | int] = field(default_factory=dict)  # told with the run: model, device, precision, ...

    @property
    def writer(self) -> Writer:
        """Writes to the store under intents of this worker."""
        return Writer(self.services.store, CatalogIntents(self.services.catalog, self.lease))

    def reason_to_stop(self) -> str | None:
        """Why no further item should be begun, or None."""
        if self.stopped is None:
            if self.deadline is not None and time.monotonic() >= self.deadline:
                self.stopped = "slice over"
            else:
                self.stopped = self.stop()
        return self.stopped

    def checkpoint(self) -> None:
        """Called within long work on one item (between tiles).

        Gives way to the search lane and notices a cancellation.

        Raises:
            Stopped: the work on this item must end and is done again later.
        """
        if self.stage.lane == "enhance":
            self.give_way()
        reason = self.stop()
        if reason:
            self.stopped = reason
            raise Stopped(reason)

    def give_way(self) -> None:
        """Wait while the search lane has something to do: two inferences at once on few cores slow both down.

        On a cluster each has a device of its own, and waiting would keep it from the others; there a slice's end does.
        """
        if self.services.settings.on_cluster:
            return
        end = time.monotonic() + _YIELD_SECONDS
        while time.monotonic() < end and self._search_waits() and not self.stop():
            time.sleep(0.3)

    def _search_waits(self) -> bool:
        names = [stage.feature for stage in self.stages if stage.lane == "search"]
        with self.services.catalog.read() as conn:
            waiting = batch_rows.pending(conn, "search", names)
        return any(batch.not_before is None for batch in waiting)

    def read_proxies(self, works: list[Work]) -> dict[int, bytes]:
        """The proxies (JPEG bytes, upright, sRGB) of some work, by item id, verified.

        Raises:
            Failed: `store_corrupt` or `store_failed` when one cannot be read.
        """
        outputs = self._raw_outputs(works)
        return {
            work.item_id: self.services.store.read(output["key"], output["sha256"])
            for work in works
            if (output := outputs.get(work.item_id))
        }

    def read_proxy(self, work: Work) -> bytes:
        """The proxy of one piece of work.

        Raises:
            Failed: when there is none, or it cannot be read.
        """
        found = self.read_proxies([work])
        if work.item_id not in found:
            raise Failed("store_failed", "The picture has no proxy; it is made again by raw_media.")
        return found[work.item_id]

    def _raw_outputs(self, works: list[Work]) -> dict[int, Mapping[str, Any]]:
        recipe = next(stage for stage in self.stages if stage.feature == "raw_media").recipe(self.policy)
        if recipe is None:
            return {}
        subjects = [(work.subject.digest, 0) for work in works if work.subject.digest]
        with self.services.catalog.read() as conn:
            outputs = features.outputs(conn, "raw_media", recipe.digest, subjects)
        found: dict[int, Mapping[str, Any]] = {}
        for work in works:
            output = outputs.get((work.subject.digest, 0))
            if output:
                found[work.item_id] = output["proxies"][str(work.subject.part)]
        return found

    def publish_once(self, key: str, data: bytes) -> tuple[StoredObject, list[int]]:
        """As `publish`, unless the object is there, whole, and named by a row already: then that one is returned.

        For keys that several files share, as copies of a picture with other metadata share a proxy. Another release of
        an encoder may write other bytes for the same picture, under which the first file would not find its own. The
        stages that follow read it soon.
        """
        with self.writer.writing([key]) as written:
            kept = self._kept(key)
            return kept or written.put(key, data, soon_read=True), list(written.intent_ids)

    def _kept(self, key: str) -> StoredObject | None:
        with self.services.catalog.read() as conn:
            recorded = intents.recorded(conn, key)
        if recorded is None:
            return None
        sha256, size = recorded
        try:
            self.services.store.read(key, sha256)
        except Failed:
            return None  # lost or damaged: it is written anew
        return StoredObject(key, sha256, size)

    def publish(self, key: str, data: bytes) -> tuple[StoredObject, list[int]]:
        """Write one object; returns it with the ids of its intents, which the engine ends when it records.

        Raises:
            Failed: `disk_full` or `store_failed`.
            LeaseLost: another worker has the batch.
        """
        with self.writer.writing([key]) as written:
            return written.put(key, data), list(written.intent_ids)

    def publish_file(self, key: str, file: BinaryIO) -> tuple[StoredObject, list[int]]:
        """As `publish`, of what an open file holds from its position on: it is never whole in memory."""
        with self.writer.writing([key]) as written:
            return written.put_file(key, file), list(written.intent_ids)
