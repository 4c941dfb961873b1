"""How the tour speaks: live bars on a terminal, plain lines at a sensible rate elsewhere.

What belongs here: printing. What does not: what is said. On a pipe, in a log or in CI no control codes appear.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mirror_realm_assets.cli.output import safe

# Without a terminal: a line when something has changed, but not every second; and a sign of life.
_LINE_SECONDS = 3.0
_ALIVE_SECONDS = 30.0


class Waiting(Protocol):
    """Something that takes a while."""

    def at(self, words: str, done: int | None = None, total: int | None = None) -> None:
        """Say how far it is."""
        ...


class Teller:
    """Prints the tour.

    Args:
        console: where to; by default standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        # Names from disk are never looked through for emoji codes or numbers to colour.
        self._console = console or Console(highlight=False, soft_wrap=True, emoji=False)
        self._live = self._console.is_terminal and not self._console.is_dumb_terminal

    def say(self, text: str = "") -> None:
        """One line; `text` may use markup, so what comes from elsewhere goes through `safe`."""
        self._console.print(text)

    def stage(self, number: int, title: str) -> None:
        """The heading of a stage."""
        self.say()
        self.say(f"[bold cyan]{number}.[/] [bold]{safe(title)}[/]")

    def fact(self, text: str) -> None:
        """Something that is so."""
        self.say(f"   {safe(text)}")

    def look(self, url: str, what: str) -> None:
        """Something to look at."""
        self.say(f"   [green]look[/]  [bold]{safe(url)}[/]  {safe(what)}")

    def trouble(self, text: str, remedy: str = "") -> None:
        """Something that is slow or broken, and what to do about it."""
        self.say(f"   [bold yellow]![/] {safe(text)}")
        if remedy:
            self.say(f"     [yellow]{safe(remedy)}[/]")

    @contextmanager
    def waiting(self, title: str) -> Iterator[Waiting]:
        """For the time that something takes."""
        if not self._live:
            yield _Lines(self, title)
            return
        columns = (
            TextColumn("  "),
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[words]}", markup=False),
            TimeElapsedColumn(),
        )
        # Four pictures a second: ten would take a tenth of a core from the work that is shown.
        with Progress(*columns, console=self._console, transient=True, refresh_per_second=4) as progress:
            yield _Bar(progress, title)


class _Bar:
    def __init__(self, progress: Progress, title: str) -> None:
        self._progress = progress
        self._task = progress.add_task(safe(title), total=None, words="")

    def at(self, words: str, done: int | None = None, total: int | None = None) -> None:
        self._progress.update(self._task, words=_counted(words, done, total), completed=done, total=total)


class _Lines:
    """A line when more is done, but not every second, and a sign of life: what is left changes all the time."""

    def __init__(self, teller: Teller, title: str) -> None:
        self._teller = teller
        self._title = title
        self._last: int | str | None = None
        self._began = self._told_at = time.monotonic()  # a wait that is over at once leaves no line

    def at(self, words: str, done: int | None = None, total: int | None = None) -> None:
        news = words if done is None else done
        at = time.monotonic()
        if at - self._told_at < (_LINE_SECONDS if news != self._last else _ALIVE_SECONDS):
            return
        self._told_at, self._last = at, news
        text = _counted(words, done, total)
        self._teller.fact(f"... {self._title}, {at - self._began:.0f} s" + (f": {text}" if text else ""))


def _counted(words: str, done: int | None, total: int | None) -> str:
    count = "" if done is None or total is None else f"{done} of {total}"
    return ", ".join(part for part in (count, words) if part)
