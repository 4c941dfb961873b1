"""A library with toy enhancements, exported into a folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from cheap_stages import cheap_stages, run_lane
from lab import Lab

from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.export.exporting import export
from mirror_realm_assets.export.manifest import MANIFEST
from mirror_realm_assets.export.order import Order, Outcome
from mirror_realm_assets.stages.lanes import pending_of


def work(lab: Lab) -> None:
    """Read and enhance whatever is pending."""
    stages = cheap_stages(lab.settings)
    lab.form(stages)
    for lane in ("search", "enhance"):
        with lab.catalog.read() as conn:
            found = pending_of(conn, stages, lane)  # type: ignore[arg-type]
        for batch in found:
            run_lane(lab.services, stages, batch.key, lane)


def run(lab: Lab, folder: Path, **order: Any) -> Outcome:
    rule = next(stage.rule for stage in cheap_stages(lab.settings) if stage.feature == "enhanced_images")
    return export(lab.services, rule, Order(folder, **order))


def counts(outcome: Outcome) -> dict[str, int]:
    names = ("written", "linked", "unchanged", "removed", "kept", "failures")
    return {name: count for name in names if (count := getattr(outcome, name))}


def put(outcome: Outcome) -> int:
    """Files put in place; whether they are clones depends on the disk of the tests."""
    return outcome.written + outcome.linked


def there(folder: Path) -> set[str]:
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    return found - {MANIFEST}


def manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """The manifest's lines by name; each has to be true."""
    head, *lines = (folder / MANIFEST).read_text(encoding="utf-8").splitlines()
    assert json.loads(head)["layout"] == 1
    return {line["name"]: line for line in map(json.loads, lines)}


def stats(folder: Path) -> dict[str, tuple[int, int]]:
    return {name: ((folder / name).stat().st_ino, (folder / name).stat().st_mtime_ns) for name in there(folder)}


def delete(lab: Lab, name: str) -> None:
    """The original is gone, and the ledger has taken note of it."""
    (lab.folder / name).unlink()
    with lab.catalog.write() as conn:
        conn.execute(t.locations.update().where(t.locations.c.path == os.fsencode(name)).values(state="deleted"))
