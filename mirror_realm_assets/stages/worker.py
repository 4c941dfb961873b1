"""The worker: this process as the ledger knows it, with a heartbeat while it works."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from mirror_realm_assets.catalog import workers
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.liveness import identity


class Worker:
    """A context in which this process is registered and gives signs of life.

    Args:
        catalog: the ledger.
        kind: `run` or `ingest`.
        run_id: the Dagster run it works for, if any.
        beat_seconds: between two signs of life.
        lease_seconds: how long a sign of life keeps its leases.
    """

    def __init__(
        self, catalog: Catalog, kind: str, run_id: str | None, *, beat_seconds: float, lease_seconds: float
    ) -> None:
        self._catalog = catalog
        self._kind = kind
        self._run_id = run_id
        self._beat_seconds = beat_seconds
        self._lease_seconds = lease_seconds
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.id = ""
        self.doing: str | None = None
        self.beat_error: Exception | None = None

    def __enter__(self) -> Self:
        with self._catalog.write() as conn:
            self.id = workers.register(conn, self._kind, identity(), self._run_id)
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()
        with self._catalog.write() as conn:
            workers.end(conn, self.id)

    def _beat(self) -> None:
        while not self._stop.wait(self._beat_seconds):
            try:
                with self._catalog.write() as conn:
                    workers.beat(conn, self.id, self._lease_seconds, self.doing)
                self.beat_error = None
            except Exception as error:
                # A missed beat costs at most the lease, which the worker checks before it writes anything.
                self.beat_error = error
