"""Our own programs as people start them, for measurements of the whole way.

What belongs here: starting a command, finding a free port, waiting for a server. What does not: what is measured.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time

_READY_SECONDS = 180


def run(env: dict[str, str], *words: str) -> None:
    """`mirror-realm WORDS`, to its end."""
    command = [sys.executable, "-m", "mirror_realm_assets.cli", *words]
    subprocess.run(command, env=env, check=True, capture_output=True)  # noqa: S603 - our own program


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_port(port: int) -> None:
    """Until somebody listens there."""
    end = time.monotonic() + _READY_SECONDS
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise TimeoutError("the web server did not start")
