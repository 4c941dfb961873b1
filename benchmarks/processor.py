"""Which of our programs spends how much processor time, sampled while they run.

What belongs here: telling programs apart by their command, and adding up what Linux says of them. What does not: what
they do in that time.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
# The first that is in a command names its program.
_WORDS = {
    "benchmarks": "this process",
    "spawn_main": "runs",
    "resource_tracker": "runs",
    "dagster-webserver": "webserver",
    "dagster_webserver": "webserver",
    "dagster._daemon": "daemon",
    "dagster-daemon": "daemon",
    "code-server": "code server",
    "api grpc": "code server",
    "postgres": "PostgreSQL",
    "moto": "bucket",
    " watch": "watcher",
    " up ": "up",
    "decode": "decoders",
}


class Processor:
    """Seconds of processor time by program, of this process and those it started, since it was made.

    `sample` often, as processes end.
    """

    def __init__(self) -> None:
        self._first = dict(_now())
        self._last: dict[tuple[int, str], float] = {}

    def sample(self) -> None:
        """Look at all processes."""
        self._last.update(_now())

    def seconds(self) -> dict[str, float]:
        """By program; what a process did after the last look at it is missing."""
        found: dict[str, float] = defaultdict(float)
        for (pid, role), seconds in self._last.items():
            found[role] += seconds - self._first.get((pid, role), 0.0)
        return {role: round(seconds, 1) for role, seconds in sorted(found.items(), key=lambda one: -one[1])}


def _now() -> dict[tuple[int, str], float]:
    found = {}
    parents: dict[int, int] = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if not command:
            continue  # it has ended, and nobody has asked how: what it was told by stands
        role = next((role for word, role in _WORDS.items() if word in command), "other")
        parents[int(process.name)] = int(fields[1])
        found[int(process.name), role] = (int(fields[11]) + int(fields[12])) / _TICKS
    return {key: seconds for key, seconds in found.items() if _is_ours(key[0], parents)}


def _is_ours(pid: int, parents: dict[int, int]) -> bool:
    while pid > 1 and pid != os.getpid():
        pid = parents.get(pid, 0)
    return pid == os.getpid()
