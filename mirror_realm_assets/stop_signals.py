"""How a long-running program of ours is asked to stop.

What belongs here: the handlers of the stop signals and what they remember. What does not: how anything is stopped.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from queue import Empty, SimpleQueue
from types import FrameType

# `timeout` and some init systems send a signal twice at once; a person's second Ctrl-C takes longer.
_SAME_SIGNAL_SECONDS = 0.5


class Stop:
    """What the signal handlers were told.

    Attributes:
        asked_at: when the first signal came (monotonic seconds), or `None`.
        at_once: whether a second Ctrl-C came.
        may_interrupt: set while code runs that does not look at us: a second Ctrl-C then raises `KeyboardInterrupt`.
    """

    def __init__(self) -> None:
        self.asked_at: float | None = None
        self.at_once = False
        self.may_interrupt = False
        # Of all queues and events, only this may be used by a handler that interrupts a wait on the same object.
        self._wake: SimpleQueue[None] = SimpleQueue()

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """The handler."""
        now = time.monotonic()
        if self.asked_at is None:
            self.asked_at = now
        elif number == signal.SIGINT and now - self.asked_at > _SAME_SIGNAL_SECONDS:
            self.at_once = True
            if self.may_interrupt:
                raise KeyboardInterrupt
        self._wake.put(None)

    def wait(self, seconds: float) -> None:
        """Waits for a signal, at most `seconds`."""
        with contextlib.suppress(Empty):
            self._wake.get(timeout=seconds)


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """Sets our handlers for SIGINT, SIGTERM and SIGHUP, and the former ones at the end; main thread only.

    They are set even if the signals are ignored now: a script's `mirror-realm up &` starts us with SIGINT ignored. An
    ignored SIGHUP is kept: that is `nohup`, by which somebody asks us to outlive the terminal.
    """
    stop = Stop()
    wanted = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        wanted.append(signal.SIGHUP)
    before = {number: signal.signal(number, stop.on_signal) for number in wanted}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
