"""What became of every file of a folder, and what that cost, after a real scan, real batches and real reads."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from lab import Lab

from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.batches import Batch
from mirror_realm_assets.errors import REASONS
from mirror_realm_assets.ingest.sandbox import Child
from mirror_realm_assets.ingest.stage import raw_media_stage
from mirror_realm_assets.stages.engine import run_stage
from mirror_realm_assets.stages.stage import Stage


class Fate(NamedTuple):
    """The end of one file: `ok`, `refused`, `failed`, `ignored` or, where nobody came to it, `pending`."""

    end: str
    code: str | None = None


OK = Fate("ok")


def refused(code: str) -> Fate:
    return Fate("refused", code)


def ingest(lab: Lab) -> dict[str, Fate]:
    """Scan, form batches, read them, and tell the fate of every path that the ledger knows."""
    return read(lab, form(lab))


def form(lab: Lab) -> list[Batch]:
    """Scan and form batches; nothing is read yet."""
    return lab.form((raw_media_stage(lab.settings),))


def read(lab: Lab, formed: Sequence[Batch]) -> dict[str, Fate]:
    """Read what the batches hold, each to its end, and tell the fate of every path."""
    stage = raw_media_stage(lab.settings)
    for batch in formed:
        report = run_stage(stage, batch.key, lab.services, (stage,))
        assert report.stopped is None
        assert report.done == batch.items
    return fates(lab, stage)


def fates(lab: Lab, stage: Stage) -> dict[str, Fate]:
    recipe = stage.recipe(lab.source.policy)
    assert recipe is not None
    l, f = t.locations.c, t.features.c  # noqa: E741
    query = (
        sa.select(l.path, l.state, l.code, f.status, f.code)
        .outerjoin(t.media, t.media.c.id == l.media_id)
        .outerjoin(t.contents, t.contents.c.id == t.media.c.content_id)
        .outerjoin(
            t.features,
            sa.and_(f.image_digest == t.contents.c.digest, f.feature == "raw_media", f.recipe == recipe.digest),
        )
    )
    with lab.catalog.read() as conn:
        return {os.fsdecode(row[0]): _fate(*row[1:]) for row in conn.execute(query)}


def _fate(state: str, place_code: str | None, status: str | None, code: str | None) -> Fate:
    if state == "ignored":
        return Fate("ignored", place_code)
    if place_code is not None:
        return Fate("refused" if REASONS[place_code].refusal else "failed", place_code)
    return Fate(status or "pending", code)


@dataclass
class Cost:
    """What an ingest took.

    Attributes:
        seconds: of each question to a sandboxed child, with its start where there was none.
        peaks: the child's largest resident memory during each question, in bytes; one that died took no more than its
            limit.
        children: process ids.
        own_growth: by how many bytes this process grew at its largest.
    """

    seconds: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    children: set[int] = field(default_factory=set)
    own_growth: int = 0


@contextlib.contextmanager
def ingest_cost() -> Iterator[Cost]:
    """Measure what happens meanwhile."""
    cost, ask = Cost(), Child.ask

    def asking(child: Child, *arguments: Any, **options: Any) -> Any:
        if child.pid is not None:
            _reset_peak(child.pid)
        began = time.monotonic()
        try:
            return ask(child, *arguments, **options)
        finally:
            cost.seconds.append(time.monotonic() - began)
            if child.pid is not None:
                cost.children.add(child.pid)
                cost.peaks.append(_resident(child.pid, "VmHWM"))

    me = os.getpid()
    _reset_peak(me)
    before = _resident(me, "VmRSS")
    Child.ask = asking  # type: ignore[method-assign, assignment]
    try:
        yield cost
    finally:
        Child.ask = ask  # type: ignore[method-assign]
        cost.own_growth = _resident(me, "VmHWM") - before


def _reset_peak(pid: int) -> None:
    """Begin to measure the largest resident memory of a process anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _resident(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
