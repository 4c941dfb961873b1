"""What `status` shows: one reading of the ledger, as JSON, as a screen, as a line.

What belongs here: gathering what the screen needs and laying it out. What does not: the command with its loop (`look`)
and counting (`catalog.status`, `catalog.progress`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mirror_realm_assets.cli.output import human_bytes, human_seconds, safe
from mirror_realm_assets.errors import REASONS, MirrorRealmError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from mirror_realm_assets.catalog.progress import Failure, Running
    from mirror_realm_assets.catalog.sources import Source
    from mirror_realm_assets.catalog.status import SourceStatus
    from mirror_realm_assets.settings import Settings
    from mirror_realm_assets.stages.services import Services

_ALWAYS = ("ok", "pending", "failed", "refused")
_COLUMNS = ("ok", "pending", "running", "failed", "refused", "empty", "not_wanted")
_COLOURS = {"ok": "green", "pending": "cyan", "running": "cyan", "failed": "red", "refused": "yellow"}
_LANES = {"search": "search", "enhance": "enhancement", "archive": "archive"}


@dataclass(frozen=True)
class Reading:
    """What was so at one moment.

    Attributes:
        sources: counts by name.
        lanes: features of each lane, in dependency order.
        rates: pictures a second by feature, over the last minutes.
        running: what workers have in hand.
        failures: the newest failure of each source that has one.
        index_errors: why the last index run of a source failed.
        unscanned: sources that were never scanned whole.
        held: deletions of a source that wait for a person.
        free_bytes: on the store's disk, if that can be told.
        low_space_bytes: below it, enhancement rests.
        supervised: whether `mirror-realm up` runs on this home.
    """

    sources: dict[str, SourceStatus]
    lanes: dict[str, list[str]]
    rates: dict[str, float | None]
    running: list[Running]
    failures: dict[str, Failure]
    index_errors: dict[str, str]
    unscanned: set[str]
    held: dict[str, int]
    free_bytes: int | None
    low_space_bytes: int
    supervised: bool

    def as_json(self) -> dict[str, Any]:
        """The form of `status --json`."""
        return {
            "sources": {
                name: counts.as_json()
                | {
                    "lanes": {lane: self._lane_json(counts, lane) for lane in self.lanes},
                    "last_failure": asdict(self.failures[name]) if name in self.failures else None,
                    "index_error": self.index_errors.get(name),
                }
                for name, counts in self.sources.items()
            },
            "running": [asdict(each) for each in self.running],
            "free_bytes": self.free_bytes,
            "up": self.supervised,
        }

    def _lane_json(self, counts: SourceStatus, lane: str) -> dict[str, Any]:
        left = self.seconds_left(counts, lane)
        return {
            "pictures_per_second": self.rates.get(self.lanes[lane][-1]),
            "seconds_left": round(left, 1) if left is not None else None,
        }

    def waiting(self, counts: SourceStatus, lane: str) -> int:
        """Pictures that the slowest step of a lane has before it."""
        return max(counts.features[f]["pending"] + counts.features[f]["running"] for f in self.lanes[lane])

    def seconds_left(self, counts: SourceStatus, lane: str) -> float | None:
        """Until a source has nothing pending in a lane, or None when that cannot be told."""
        from mirror_realm_assets.catalog.progress import seconds_left

        return seconds_left(counts.features, self.lanes[lane], self.rates)


def read(settings: Settings, services: Services, only: str | None) -> Reading:
    """What is so now, of one source or of all.

    Raises:
        SetupError: `not_found`.
    """
    from mirror_realm_assets.catalog import progress, sources, status
    from mirror_realm_assets.pipeline import standard_stages
    from mirror_realm_assets.stages.stage import LANES, lane_features

    stages = standard_stages(settings)
    rules = [stage.rule for stage in stages]
    with services.catalog.read() as conn:
        chosen = [sources.get(conn, only)] if only else sources.all_sources(conn)
        failures = {source.name: progress.last_failure(conn, source, rules) for source in chosen}
        return Reading(
            sources={each.name: status.of_source(conn, each, rules, services.limits()) for each in chosen},
            lanes={lane: features for lane in LANES if (features := lane_features(stages, lane))},
            rates=progress.speeds(conn),
            running=[each for each in progress.running(conn) if only in (None, each.source)],
            failures={name: failure for name, failure in failures.items() if failure is not None},
            index_errors={source.name: str(source.index_error) for source in chosen if _index_failed(source)},
            unscanned={source.name for source in chosen if source.scanned_at is None},
            held={source.name: source.held_deletions for source in chosen if source.held_deletions},
            free_bytes=services.store.free_bytes(),
            low_space_bytes=settings.low_space_bytes,
            supervised=_is_supervised(settings),
        )


def _index_failed(source: Source) -> bool:
    """An index run that was asked for is no failure; one that has been asked for twice has gone wrong before."""
    from mirror_realm_assets.catalog.sources import NOT_PUBLISHED

    asked_for = source.index_error == NOT_PUBLISHED and source.index_attempts <= 1
    return source.index_error is not None and not asked_for


def _is_supervised(settings: Settings) -> bool:
    from mirror_realm_assets import liveness

    try:
        return liveness.held(settings.home / "up.lock") is not None
    except MirrorRealmError:  # held by a program that is just starting
        return True


def screen(found: Reading) -> RenderableType:
    """One screen for all sources."""
    from rich.console import Group
    from rich.text import Text

    if not found.sources:
        return Text("There are no sources yet: mirror-realm sources add NAME --folder PATH")
    shown = [column for column in _COLUMNS if column in _ALWAYS or _total(found, column)]
    tables = [_table(name, counts, shown) for name, counts in found.sources.items()]
    return Group(*tables, *[Text.from_markup(line, emoji=False) for line in _lines(found)])


def _table(name: str, counts: SourceStatus, shown: Sequence[str]) -> Table:
    """The counts of one source, in 80 columns too."""
    from rich import box
    from rich.table import Table

    formed = f"{counts.batches} batch{'' if counts.batches == 1 else 'es'}"
    title = f"[bold]{safe(name)}[/]  {counts.files} files, {human_bytes(counts.bytes)}, {formed}"
    table = Table(title=title, title_justify="left", title_style="none", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("feature", no_wrap=True, min_width=15)
    for column in shown:
        table.add_column(column.replace("_", " "), justify="right", no_wrap=True, min_width=7)
    for feature, values in counts.features.items():
        table.add_row(feature, *[_cell(column, values[column]) for column in shown])
    return table


def _total(found: Reading, column: str) -> int:
    return sum(values[column] for counts in found.sources.values() for values in counts.features.values())


def _cell(column: str, count: int) -> str:
    colour = _COLOURS.get(column) if count else None
    return f"[{colour}]{count}[/]" if colour else str(count or "-")


def _lines(found: Reading) -> Iterator[str]:
    for name, counts in found.sources.items():
        yield from (f"{safe(name)}: {line}" for line in _of_source(found, name, counts))
    yield from _at_work(found)
    if found.free_bytes is not None:
        low = found.free_bytes < found.low_space_bytes
        rests = f" - below the mark of {human_bytes(found.low_space_bytes)}, enhancement rests" if low else ""
        yield f"[{'red' if low else 'none'}]disk: {human_bytes(found.free_bytes)} free{rests}[/]"


def _of_source(found: Reading, name: str, counts: SourceStatus) -> Iterator[str]:
    if counts.state != "active":
        yield (
            f"[yellow]{counts.state}: {safe(counts.state_reason or 'no reason recorded')}[/] "
            f"(mirror-realm sources resume {safe(name)})"
        )
    index = counts.index
    segments = f"{index['segments']} segment{'' if index['segments'] == 1 else 's'}"
    words = f"index: {index['vectors']} vectors in {segments}, model {safe(index['model'] or '-')}"
    dead = f", {index['tombstones']} deleted" if index["tombstones"] else ""
    recall = f", recall {index['recall_at_10']:.2f}" if index["recall_at_10"] is not None else ""
    yield words + dead + recall
    if name in found.unscanned:
        yield "not scanned yet"
    if name in found.held:
        yield (
            f"[yellow]{found.held[name]} files are not there, too many to be deleted by themselves:[/] if they are "
            f"really gone, mirror-realm sources confirm-deletions {safe(name)}"
        )
    odd = [f"{n} {state}" for state, n in counts.locations.items() if state != "present"]
    if odd:
        yield f"places: {counts.locations.get('present', 0)} present, {', '.join(odd)}"
    for lane in found.lanes:
        waiting = found.waiting(counts, lane)
        if waiting:
            yield _lane(found, counts, lane, waiting)
    if name in found.failures:
        failure = found.failures[name]
        of = f" of {safe(failure.path)}" if failure.path else ""
        why = safe(failure.reason or REASONS[failure.code].remedy)
        yield (
            f"[red]last failure: {failure.feature}{of}: {failure.code}[/], {why} "
            f"(all: mirror-realm files --source {safe(name)} --status failed)"
        )
    if name in found.index_errors:
        yield f"[red]the index could not be brought up to date:[/] {safe(found.index_errors[name])}"


def _lane(found: Reading, counts: SourceStatus, lane: str, waiting: int) -> str:
    rate = found.rates.get(found.lanes[lane][-1])
    left = found.seconds_left(counts, lane)
    speed = f"{_rate(rate)} over the last minutes" if rate else "speed unknown, nothing was done lately"
    until = f", about {human_seconds(left)} left" if left is not None else ""
    return f"{_LANES[lane]} lane: {waiting} to do, {speed}{until}"


def _rate(rate: float) -> str:
    return f"{rate:.1f} pictures a second" if rate >= 1 else f"{rate * 60:.1f} pictures a minute"


def _at_work(found: Reading) -> Iterator[str]:
    for each in found.running:
        process = f", process {each.pid}" if each.pid else ""
        run = f", run {each.run_id}" if each.run_id else ""
        yield f"[cyan]now:[/] {each.feature} of {safe(each.batch)} ({each.items} in hand{process}{run})"
    pending = any(found.waiting(counts, lane) for counts in found.sources.values() for lane in found.lanes)
    if pending and not found.running and not found.supervised:
        yield "[yellow]Nothing works on it just now:[/] mirror-realm up does by itself, mirror-realm ingest NAME once."


def line_of(name: str, counts: SourceStatus) -> str:
    """One line for a log: what became of a source's files, without what is nought."""
    features = "; ".join(f"{feature} {_counts(values)}" for feature, values in counts.features.items())
    paused = f" - {counts.state}: {safe(counts.state_reason or 'no reason recorded')}"
    state = paused if counts.state != "active" else ""
    return f"{safe(name)}: {counts.files} files; {features}; index {counts.index['vectors']}{state}"


def _counts(values: Mapping[str, int]) -> str:
    told = [f"{values[column]} {column.replace('_', ' ')}" for column in _COLUMNS if values[column]]
    return ", ".join(told) or "nothing"
