"""How often a command that goes on may look: counting a million files takes most of a minute of a core.

What belongs here: that arithmetic. What does not: looking, and waiting.
"""

from __future__ import annotations


def rest(took: float, *, share: float, at_least: float) -> float:
    """Seconds to wait after a look, so that looking takes no more than a share of the time.

    Args:
        took: seconds that the look took.
        share: of the time, above 0 and at most 1.
        at_least: what is waited after a quick look.
    """
    return max(at_least, took / share - took)
