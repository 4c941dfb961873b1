"""Reading no faster than is allowed.

What belongs here: the one clock that a reader waits by. What does not: how fast that is (a source's option).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Pace:
    """Makes its callers wait until what they have read since it began is no more than the rate allows.

    Time in which nothing was read is not saved up: a drive that was left alone for an hour is not read at full speed
    then. Threads may share one.

    Args:
        mb_s: megabytes (10^6 bytes) a second.
        clock: monotonic seconds.
        sleep: waits for seconds.
    """

    def __init__(
        self,
        mb_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._bytes_per_second = mb_s * 1e6
        self._clock = clock
        self._sleep = sleep
        self._free_at = clock()
        self._lock = threading.Lock()

    def __call__(self, count: int) -> None:
        """Say that `count` bytes were read; returns when more may be."""
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now) + count / self._bytes_per_second
            wait = self._free_at - now
        self._sleep(wait)
