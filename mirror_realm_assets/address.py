"""Where the UI of a home is: as the `mirror-realm up` that serves it has written down, or as the settings say.

What belongs here: that one note, and the page people open first. What does not: whether an address is free (`ports`).
"""

from __future__ import annotations

import json
from pathlib import Path

from mirror_realm_assets.installation import write_atomically
from mirror_realm_assets.liveness import held
from mirror_realm_assets.settings import Settings

_GROUPS = ("ingest", "understanding", "enhancement", "search", "archive")
LINEAGE = "/asset-groups?expanded=" + ",".join(f"global@global:{group}" for group in _GROUPS)
"""The lineage page with every group open. A group that the UI does not know stays closed; nothing else happens."""


def write(home: Path, host: str, port: int) -> None:
    """Note where the UI of `home` is going to be; only under the lock of the home."""
    write_atomically(home / "up.address.json", json.dumps({"host": host, "port": port}).encode())


def of(settings: Settings) -> tuple[str, int]:
    """Host and port of the UI of this home: of the running `up`, or those that the next one would take."""
    if held(settings.home / "up.lock"):
        try:
            noted = json.loads((settings.home / "up.address.json").read_bytes())
            return str(noted["host"]), int(noted["port"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # it has not come so far yet, or is of an older version
    return settings.host, settings.port


def url(settings: Settings) -> str:
    """The address of the UI as people open it."""
    host, port = of(settings)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
