"""What a materialization of a stage shows: words, pictures, counts, rates, reasons, the recipe.

What belongs here: turning a report into metadata. What does not: pictures (`glance`), tables of reasons (`reasons`).
Numbers stand under keys of their own, because the UI draws those over the partitions; JSON it does not draw.
"""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from mirror_realm_assets.assets import links
from mirror_realm_assets.assets.glance import glance, preview
from mirror_realm_assets.assets.reasons import plain, refusals_table
from mirror_realm_assets.catalog.wants import Recipe
from mirror_realm_assets.stages.report import StageReport

_DIGEST_SHOWN = 12  # of 64 digits: enough to tell recipes and models apart by eye
_STATUSES = ("ok", "empty", "refused", "failed")
_DONE_BEFORE = (
    "What is recorded is not done twice. To have it done anew, change the recipe (`mirror-realm sources set`), or put "
    "failures back (`mirror-realm retry`)."
)

Metadata = dict[str, dg.MetadataValue]


def metadata_of(report: StageReport, outcomes: Mapping[str, int] | None = None) -> Metadata:
    """What a materialization shows: no path and no name of a file is in it.

    Args:
        report: of the run.
        outcomes: items of the batch's feature by outcome, after the run.
    """
    counts = _counts(report, outcomes or {})
    found: Metadata = {"summary": dg.MetadataValue.text(summary(report, counts))}
    for name, value in (("glance", glance(report.pictures)), ("preview", preview(report.pictures))):
        if value:
            found[name] = dg.MetadataValue.md(value)
    if report.refused:
        found["refused"] = refusals_table(report.refused.items())
    if report.skipped or report.stopped:
        found["stopped"] = dg.MetadataValue.text(plain(report.skipped or report.stopped or ""))
    found |= _numbers(report, counts) | _models(report)
    linked = links.of_batch(report.batch)
    if linked is not None:
        found["links"] = linked
    # Last, because the UI shows JSON with every line of it.
    found["counts"] = dg.MetadataValue.json(counts)
    if report.recipes:
        found["recipes"] = dg.MetadataValue.json({digest: _told(recipe) for digest, recipe in report.recipes.items()})
    return found


def summary(report: StageReport, counts: Mapping[str, int]) -> str:
    """One or two sentences: what this run did, what was done before, what is left and why."""
    if report.skipped:
        return f"{plain(report.skipped)} Nothing was done here."
    told = [f"{counts[status]} {status}" for status in _STATUSES if counts[status]]
    before = counts["already_done"]
    if not told and before and not counts["open"]:
        return f"Nothing was left to do: {_of(before, counts['items'])} done before. {_DONE_BEFORE}"
    sentences = [f"{', '.join(told)}." if told else "Nothing was done."]
    if before:
        sentences.append(f"{before} needed nothing more: done before, or the same picture as another file.")
    if counts["not_wanted"]:
        sentences.append(f"{counts['not_wanted']} not wanted by the source's options.")
    if counts["blocked"]:
        sentences.append(f"{counts['blocked']} cannot be done, because what they need was refused or failed.")
    if counts["open"]:
        sentences.append(f"{counts['open']} still open; they are asked for again by themselves.")
    if report.stopped:
        sentences.append(f"It ended early: {plain(report.stopped).rstrip('.')}.")
    return " ".join(sentences)


def _of(count: int, items: int) -> str:
    if count == items:
        return "its one file was" if items == 1 else f"all {items} files were"
    return f"{count} of {items} files were"


def _counts(report: StageReport, outcomes: Mapping[str, int]) -> dict[str, int]:
    counts = {status: report.counts.get(status, 0) for status in _STATUSES}
    not_wanted, blocked = outcomes.get("not_wanted", 0), outcomes.get("blocked", 0)
    before = report.items - report.done - report.open_items - not_wanted - blocked
    return {
        **counts,
        "items": report.items,
        "already_done": 0 if report.skipped else max(before, 0),
        "not_wanted": not_wanted,
        "blocked": blocked,
        "open": report.open_items,
    }


def _numbers(report: StageReport, counts: Mapping[str, int]) -> Metadata:
    seconds = max(report.seconds, 0.001)
    found: Metadata = {
        "files": dg.MetadataValue.int(report.items),
        "files_ok": dg.MetadataValue.int(counts["ok"]),
        "files_refused": dg.MetadataValue.int(counts["refused"]),
        "files_failed": dg.MetadataValue.int(counts["failed"]),
        "seconds": dg.MetadataValue.float(round(report.seconds, 2)),
    }
    if report.done:  # a rate of nothing would draw as a fall to 0
        found["pictures_per_second"] = dg.MetadataValue.float(_rounded(report.done / seconds))
        found["seconds_per_picture"] = dg.MetadataValue.float(_rounded(report.seconds / report.done))
        found["megapixels"] = dg.MetadataValue.float(_rounded(report.pixels / 1e6))
        found["bytes"] = dg.MetadataValue.int(report.size)
        found["bytes_written"] = dg.MetadataValue.int(sum(report.stored.values()))
    return found


def _rounded(value: float) -> float:
    """Three digits that say something, whether it is 0.00412 or 412."""
    return float(f"{value:.3g}") if value < 1000 else float(round(value))


def _models(report: StageReport) -> Metadata:
    """The models and recipes that were run, short for the eye; `recipes` has them in full."""
    found: Metadata = {}
    models = sorted({recipe.model_digest for recipe in report.recipes.values() if recipe.model_digest})
    if models:
        names = {recipe.model_digest: str(recipe.params.get("model", "")) for recipe in report.recipes.values()}
        told = ", ".join(f"{names[digest]} {digest[:_DIGEST_SHOWN]}".strip() for digest in models)
        found["model"] = dg.MetadataValue.text(told)
    for name, value in report.used.items():
        if name != "model":
            found[name] = dg.MetadataValue.int(value) if isinstance(value, int) else dg.MetadataValue.text(value)
    if report.recipes:
        found["recipe"] = dg.MetadataValue.text(", ".join(digest[:_DIGEST_SHOWN] for digest in report.recipes))
    return found


def _told(recipe: Recipe) -> dict[str, Any]:
    return {
        "code_version": recipe.code_version,
        "model": recipe.model_digest,
        "params": dict(recipe.params),
        "inputs": dict(recipe.inputs),
    }
