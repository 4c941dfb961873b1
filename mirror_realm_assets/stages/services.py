"""What stages work with: settings, catalog, store, and models that are loaded once a process.

What belongs here: holding things and letting them go. What does not: building any particular model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from mirror_realm_assets.catalog import intents, leases
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.leases import Lease
from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.store.interface import Store


class _Closable(Protocol):
    def close(self) -> None: ...


T = TypeVar("T", bound=_Closable)

MODEL = "model/"
"""How keys of models begin: a step that ends lets them go."""


def _no_client() -> Any:
    raise SetupError("invalid_argument", "There is no access to buckets here.")


class Services:
    """The surroundings of a stage.

    Args:
        settings: of this process.
        catalog: the ledger.
        store: the store.
        bucket_client: makes a boto3 client of S3, for what lies in buckets beside the store.
        bucket_sending: what every request says that makes an object there (`ServerSideEncryption`, ...).
    """

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        store: Store,
        *,
        bucket_client: Callable[[], Any] = _no_client,
        bucket_sending: Mapping[str, str] | None = None,
    ) -> None:
        self.settings = settings
        self.catalog = catalog
        self.store = store
        self.bucket_client = bucket_client
        self.bucket_sending = dict(bucket_sending or {})
        self._held: dict[str, _Closable] = {}

    def held(self, key: str, make: Callable[[], T]) -> T:
        """The thing called `key`, made at the first call and kept until it is let go: models at the end of a step."""
        if key not in self._held:
            self._held[key] = make()
        return cast(T, self._held[key])

    def let_go(self, prefix: str = "") -> None:
        """Close what is held under keys that start with `prefix`, so that its memory returns."""
        for key in [key for key in self._held if key.startswith(prefix)]:
            self._held.pop(key).close()

    def scratch(self) -> Path:
        """A folder of this machine for files without name, which go with their process."""
        folder = self.settings.home / "scratch"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def limits(self) -> dict[str, float]:
        """Today's limits of one file, by the names under which refusals record them."""
        return self.settings.limits()

    def close(self) -> None:
        """Let go of everything."""
        self.let_go()
        self.catalog.close()


class CatalogIntents:
    """The catalog's side of a store write under a lease: see `store.writing`."""

    def __init__(self, catalog: Catalog, lease: Lease) -> None:
        self._catalog = catalog
        self._lease = lease

    def begin(self, keys: Any) -> list[int]:
        """Announce keys, in a transaction of their own.

        Raises:
            LeaseLost: a successor may have written these keys already, and its bytes must not be replaced.
        """
        with self._catalog.write() as conn:
            leases.check(conn, self._lease)
            return intents.begin(conn, list(keys), self._lease.owner)

    def end(self, ids: Any) -> None:
        """Give intents up, in a transaction of their own."""
        with self._catalog.write() as conn:
            intents.end(conn, ids)
