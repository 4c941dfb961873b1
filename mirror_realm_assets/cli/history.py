"""The command history: who changed what, and when."""

from __future__ import annotations

from typing import Any

import click

from mirror_realm_assets.cli.library import opened
from mirror_realm_assets.cli.output import emit, json_option, safe, say, show


@click.command()
@click.option("--source", help="Of one source, a removed one too.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many, the newest first.")
@json_option
def history(source: str | None, limit: int, as_json: bool) -> None:
    """Who changed what, and when: sources, their options, retries, purges. The newest first."""
    from mirror_realm_assets.catalog import activity

    with opened() as (_settings, services), services.catalog.read() as conn:
        found = activity.entries(conn, source, limit)
    for each in found:
        detail = dict(each.detail)
        if as_json:
            row = {"at": each.at, "action": each.action, "source": each.source, "actor": each.actor, "detail": detail}
            emit(row)
        else:
            words = ", ".join(f"{key}: {_told(value)}" for key, value in detail.items())
            where = f" {each.source}" if each.source else ""
            text = f"{each.at:%Y-%m-%d %H:%M:%S}Z {each.action}{where} by {each.actor}"
            show(safe(f"{text} ({words})" if words else text))
    if not found and not as_json:
        say("Nothing has been changed yet.")


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_told(each)}" for key, each in value.items()) or "none"
    if isinstance(value, list):
        return " -> ".join(_told(each) for each in value)
    return "none" if value is None else str(value)


COMMANDS: list[Any] = [history]
