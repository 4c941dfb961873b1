"""Named points at which a test may end the process, as `kill -9` does.

What belongs here: the one function that work passes through between two steps. What does not: any decision of the
work. It is an aid for tests: the variable `MIRROR_REALM_FAULT` names a folder, and a file in it that is called like a
point holds how often that point is passed until the process dies there. The file is taken away by the process that
dies, so that its successor passes, and processes that run already can be told. Without the variable a point costs one
look into the environment.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

VARIABLE = "MIRROR_REALM_FAULT"

_passed: Counter[tuple[str, int]] = Counter()


def point(name: str) -> None:
    """Pass the point `name` (`<area>.<moment>`), or die there."""
    folder = os.environ.get(VARIABLE)
    if folder:
        _look(Path(folder, name))


def points_of(area: str) -> Callable[[str], None]:
    """A step hook whose steps are the points of an area."""

    def step(name: str) -> None:
        point(f"{area}.{name}")

    return step


def _look(armed: Path) -> None:
    try:
        with armed.open(encoding="ascii") as file:
            # A file that replaced another one counts anew.
            who, wanted = (str(armed), os.fstat(file.fileno()).st_ino), int(file.read() or "1")
        _passed[who] += 1
        if _passed[who] < wanted:
            return
        armed.rename(armed.with_name(f"{armed.name}.{os.getpid()}"))  # of several that pass, one takes it
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
