"""Printing: JSON alone on stdout, words on stderr, and nothing from disk unescaped.

What belongs here: how things are shown. What does not: what is shown.
"""

from __future__ import annotations

import base64
import json
import re
import sys
import time
from collections.abc import Sequence
from typing import Any, Self

import click
from rich.console import Console
from rich.control import Control
from rich.segment import ControlType

# Without emoji codes: a file may be called `:smile:.jpg`.
_err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
_out = Console(highlight=False, soft_wrap=True, emoji=False)
# Markup for nothing. rich's own `escape` looks at one text alone: a `[` in one name and a `]` in the next made a tag,
# and a `\` at an end would be doubled or swallow the tag behind it.
_NOTHING = "[none][/none]"
# Control characters that JSON allows as they are, and that some terminals obey.
_CONTROL = re.compile("[\x7f-\x9f]")
_LOG_SECONDS = 10.0
_TERMINAL_SECONDS = 0.2


def say(text: str) -> None:
    """Tell a person something, on stderr; `text` may use rich markup, so what comes from disk goes through `safe`."""
    _err.print(text)


def show(renderable: Any) -> None:
    """Print a table or text on stdout."""
    _out.print(renderable)


def is_terminal() -> bool:
    """Whether stdout is looked at by a person."""
    return _out.is_terminal


def live_console() -> Console:
    """For a screen that is drawn over itself: its lines must not be longer than the terminal is wide."""
    return Console(highlight=False, emoji=False)


class Teller:
    """Tells on stderr how far something is: one line drawn over itself on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self._told_at = time.monotonic()
        self._drawn = False

    def __enter__(self) -> Self:
        return self

    def tell(self, text: str) -> None:
        """Say how far it is; most calls say nothing."""
        pause = _TERMINAL_SECONDS if _err.is_terminal else _LOG_SECONDS
        if time.monotonic() - self._told_at < pause:
            return
        self._told_at = time.monotonic()
        if _err.is_terminal:
            self._clear()
            _err.print(safe(text), end="\r")
            self._drawn = True
        else:
            say(safe(text))

    def __exit__(self, *_error: object) -> None:
        self._clear()

    def _clear(self) -> None:
        if self._drawn:
            _err.control(Control((ControlType.ERASE_IN_LINE, 2)))
            self._drawn = False


def safe(text: str) -> str:
    """`text` from a file or a person, harmless in a terminal: control characters and markup are text."""
    printable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f"[{_NOTHING}".join(_ended(piece) for piece in printable.split("["))


def _ended(text: str) -> str:
    slashes = len(text) - len(text.rstrip("\\"))
    return text + "\\" * slashes + _NOTHING if slashes else text


def emit(value: Any) -> None:
    """One JSON value on one line of stdout."""
    text = json.dumps(value, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace").decode()
    sys.stdout.write(_CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")


def paths_json(paths: Sequence[bytes]) -> dict[str, list[str]]:
    """Paths for JSON: readable, and lossless in base64 when a name is no UTF-8."""
    found = {
        "paths": [
            path.decode("utf-8", "surrogateescape").encode("utf-8", "backslashreplace").decode() for path in paths
        ]
    }
    if any(_not_utf8(path) for path in paths):
        found["paths_b64"] = [base64.b64encode(path).decode() for path in paths]
    return found


def _not_utf8(path: bytes) -> bool:
    try:
        path.decode()
    except UnicodeDecodeError:
        return True
    return False


def human_bytes(size: float) -> str:
    """A size as people read it."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def human_seconds(seconds: float) -> str:
    """A duration as people read it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON alone on stdout.")
