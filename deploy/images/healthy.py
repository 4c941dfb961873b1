"""Whether the program that a container was started with is well: for Docker's HEALTHCHECK, exit status 0 or 1.

What belongs here: what each program is asked, as the probes in `deploy/base` ask it. What does not: what a cluster does
about it. Only the standard library is imported: it runs every minute beside the program.
"""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

_SECONDS = 25.0


def question(command: Sequence[str]) -> list[str] | str | None:
    """A program to run or a page to read; None for a program that is well as long as it runs."""
    words = [Path(word).name for word in command]
    if "dagster-webserver" in words:
        return f"http://127.0.0.1:{_port(command, '3000')}/server_info"
    if "dagster-daemon" in words:
        return ["dagster-daemon", "liveness-check"]
    if "grpc" in words:
        return ["dagster", "api", "grpc-health-check", "--port", _port(command, "4000")]
    return None


def well(asked: list[str] | str | None) -> bool:
    """Whether the answer is a good one."""
    if isinstance(asked, str):
        try:
            with urllib.request.urlopen(asked, timeout=_SECONDS):  # noqa: S310 - of this container, over http
                return True
        except OSError:
            return False
    # The command is one of those above.
    return asked is None or not subprocess.run(asked, check=False, timeout=_SECONDS).returncode  # noqa: S603


def _port(command: Sequence[str], default: str) -> str:
    given = [value for option, value in pairwise(command) if option in ("--port", "-p")]
    return given[-1] if given else default


if __name__ == "__main__":
    first = Path("/proc/1/cmdline").read_text(encoding="utf-8").rstrip("\0").split("\0")
    sys.exit(0 if well(question(first)) else 1)
