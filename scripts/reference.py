"""Writes the tables of the reference from the code: settings, options of a source, errors, database tables, models.

What belongs here: reading the code's own declarations and printing them as Markdown. What does not: prose; it stands in
the pages of `docs/reference/`, around blocks that begin and end with a comment. `--check` writes nothing and exits with
1 when a page is out of date, and that is what a test calls.
"""

from __future__ import annotations

import argparse
import re
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import sqlalchemy as sa
from pydantic import AliasChoices
from pydantic.fields import FieldInfo

from mirror_realm_assets.catalog import tables
from mirror_realm_assets.catalog.policy import SourcePolicy
from mirror_realm_assets.errors import HTTP_STATUS, REASONS, RETRY, ErrorClass, Reason
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.weights.registry import MODELS, RELEASED, Model, ModelSpec, ReleasedModel

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference"
PAGES = ("settings.md", "sources.md", "errors.md", "schema.md", "models.md")
_BLOCK = re.compile(
    r"(<!-- begin (?P<name>[a-z-]+), written by scripts/reference\.py -->\n).*?(<!-- end -->)", re.DOTALL
)
_KIB = 1024
_MEBIBYTES = 1024**2

# What the code's own descriptions leave unsaid; a setting that has neither is an error here.
_SETTINGS = {
    "xdg_data_home": "Where data of programs is kept; the default home is the folder `mirror-realm` in it.",
    "configured_home": "The home: catalog, store, models, logs and Dagster's home.",
    "configured_dagster_home": "Dagster's home: its `dagster.yaml`, runs and events.",
    "env": "`local` needs nothing; `production` wants PostgreSQL for catalog and Dagster, and a bucket for the store.",
    "configured_catalog_url": "The catalog's database: `sqlite:////PATH` or `postgresql+psycopg2://USER@HOST/NAME`.",
    "configured_store_url": "The store: a folder, `file:///FOLDER`, or `s3://BUCKET/PREFIX`.",
    "device": "What models run on; `auto` takes a GPU when torch can use one.",
    "precision": "Number format of models; `auto` is fp16 on a GPU, bf16 on a CPU that has it natively, else fp32.",
    "max_file_bytes": "Larger files are refused: `too_many_bytes`.",
    "max_pixels": "Pictures with more pixels are refused: `too_many_pixels`.",
    "max_frames": "Animations with more frames are refused: `too_many_frames`.",
    "decode_seconds": "Longer decoding is ended: `decoder_timeout`.",
    "decode_memory_bytes": "Memory of the decoder's process: `decoder_memory`.",
    "batch_items": "Files in one batch at most.",
    "batch_bytes": "Bytes in one batch at most; a larger file is a batch of its own.",
    "lease_seconds": "A worker that gives no sign of life for so long loses what it holds.",
    "heartbeat_seconds": "Between two signs of life of a worker.",
    "port": "Port of the UI.",
}
_DEFAULTS = {
    "xdg_data_home": "`~/.local/share`",
    "configured_home": "`$XDG_DATA_HOME/mirror-realm`",
    "configured_dagster_home": "`dagster` in the home",
    "configured_catalog_url": "`catalog.sqlite` in the home",
    "configured_store_url": "`store` in the home",
}
_NOT_YET = "Accepted and kept; nothing acts on it yet."
_OPTIONS = {
    "enhance": "Whether its pictures are enhanced.",
    "enhance_model": "The enhancement model, a name from `mirror-realm models list`.",
    "enhance_engine": "Whose hands the model is in: our own engine, or the package `realesrgan`, unchanged.",
    "enhance_denoise_strength": "0 keeps noise, 1 takes it away; only of `realesr-general-x4v3`.",
    "enhance_faces": "Whether faces are restored by GFPGAN; its weights have to be fetched or added first.",
    "enhance_faces_model": "Which one: `gfpgan-v1.3` or `gfpgan-v1.4`.",
    "enhance_faces_weight": "From 0 (the face as it was) to 1 (as the network sees it).",
    "enhance_faces_min_size": "Longer side of the smallest face that is restored, in pixels of the original.",
    "enhance_outscale": "How many times wider and higher the result is.",
    "enhance_max_pixels": "Larger pictures are not enhanced: `not_wanted`, with that reason.",
    "enhance_format": "Format of the result.",
    "enhance_quality": "Of JPEG and WebP, 1 to 100; by default 95 and 90.",
    "archive": "A folder, or `s3://bucket/prefix`, to which originals and enhanced pictures are copied; empty: none. "
    "[How that works](../how-to/archive.md).",
    "archive_template": "How files are called there.",
    "archive_what": "`originals`, `enhanced` or `both`.",
    "originals": "`reference` leaves originals where they are; `copy` keeps their bytes in the store as well.",
    "embedder": "The model whose vectors are searched, a name from the same list.",
    "faces": _NOT_YET,
    "watch": "Native events on top of polling: `auto` unless the folder is on a network file system, `native` always, "
    "`poll` never.",
    "ignore": "A shell pattern of names to leave out; may stand several times. With a slash it is matched against the "
    "whole path below the folder.",
    "budget_device_seconds_day": _NOT_YET,
    "budget_bytes_day": _NOT_YET,
    "budget_read_mb_s": "Reading new files waits so that it takes no more megabytes (10^6 bytes) a second; a batch "
    "holds fewer files then.",
    "quiet_hours": "`23:00-06:30`: from the first time of day to the second, in the machine's time zone, the source is "
    "neither polled nor worked on; what runs is finished.",
}
_TABLES = {
    "catalog_info": "One row: which catalog this is. A store remembers it: two catalogs cannot share one store.",
    "projects": "One row `default`.",
    "users": "One row `default`.",
    "sources": "Watched folders with their policy, state, next batch number and the back-off of their index.",
    "locations": "Every path of a source. A file that could not be read has no other row, and its reason stands here.",
    "texts": "The words of each place: its path, what its sidecars say, what the camera wrote; for `files --text`.",
    "sidecars": "XMP, Google Takeout and AAE files, with what they say. Whose they are follows from names alone.",
    "media": "What a person calls a photo. A changed file is a new version of the same media; a move keeps it.",
    "media_versions": "Which content a media had, and when.",
    "contents": "One row for each digest of bytes: size, type, EXIF, perceptual hash.",
    "parts": "The pictures of a content; part 0 is the still picture. Pixels have a digest of their own.",
    "features": "What one recipe made of one picture. `pending`, `running`, `blocked` and `not_wanted` are never "
    "stored: they are the difference between what is wanted and what is here.",
    "batches": "Immutable batches: the Dagster partitions of `media_batch`.",
    "batch_lanes": "The attempt and back-off of a batch in one lane; the attempt is part of the run key.",
    "batch_runs": "The Dagster runs that worked on a batch.",
    "batch_items": "One wanted feature of one file of a batch: state, lease, crashes, outcome.",
    "journal": "The watcher's durable inbox: drained and deleted in the transaction that applies it.",
    "leases": "Who may do what right now. The token grows with every change of owner; an old one is refused.",
    "workers": "Processes that do work, with their heartbeats.",
    "index_manifests": "Published indexes: segments, model, recall.",
    "index_members": "Which vectors the published manifest contains; one with `deleted_at` is a tombstone.",
    "index_inbox": "Pictures an index has to look at: they came to have a vector, or to be shown, since it was built.",
    "intents": "Objects that are about to be written: named before the first byte, never collected.",
    "objects": "Every object of the store that some row names; garbage is what is in neither this table nor `intents`.",
    "activity": "The audit trail: who changed what, and when; only ever appended to, by months on PostgreSQL.",
}


def environment_names() -> dict[str, str]:
    """The environment variable of every setting, by field name."""
    prefix = str(Settings.model_config.get("env_prefix", ""))
    found = {}
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        first = alias.choices[0] if isinstance(alias, AliasChoices) else alias
        found[name] = str(first) if first else f"{prefix}{name}".upper()
    return found


def settings_block() -> str:
    """Every setting with its variable, values, default and meaning."""
    rows = []
    for name, variable in environment_names().items():
        field = Settings.model_fields[name]
        meaning = _SETTINGS.get(name) or field.description
        if not meaning:
            raise SystemExit(f"The setting {name} has no description: give it one in settings.py.")
        default = _DEFAULTS.get(name) or f"`{_plain(field.default)}`"
        rows.append((f"`{variable}`", _values(field), default, meaning))
    return _table(("variable", "values", "default", "meaning"), rows)


def options_block() -> str:
    """Every option of a source with its values, default and meaning."""
    rows = []
    for name, field in SourcePolicy.model_fields.items():
        if name not in _OPTIONS:
            raise SystemExit(f"The option {name} has no description: give it one in scripts/reference.py.")
        default = "none" if field.default in (None, ()) else f"`{_plain(field.default)}`"
        rows.append((f"`{field.alias or name}`", _values(field), default, _OPTIONS[name]))
    return _table(("option", "values", "default", "meaning"), rows)


def classes_block() -> str:
    """Every error class with its retries."""
    return _table(
        ("class", "attempts in all", "seconds before the next attempt"),
        [
            (f"`{each.value}`", str(RETRY[each].max_attempts), ", ".join(f"{d:g}" for d in RETRY[each].delays) or "-")
            for each in ErrorClass
        ],
    )


def refusals_block() -> str:
    """The reasons for which the file itself is at fault."""
    return _reasons(reason for reason in REASONS.values() if reason.refusal)


def failures_block() -> str:
    """The reasons that are ours or the environment's."""
    return _reasons(reason for reason in REASONS.values() if not reason.refusal)


def business_block() -> str:
    """Business codes and their HTTP status."""
    return _table(("code", "HTTP status"), [(f"`{code.value}`", str(status)) for code, status in HTTP_STATUS.items()])


def schema_block() -> str:
    """Every table with its columns."""
    pieces = []
    for table in tables.metadata.tables.values():
        if table.name not in _TABLES:
            raise SystemExit(f"The table {table.name} has no description: give it one in scripts/reference.py.")
        allowed = _allowed(table)
        rows = [(f"`{c.name}`", _kind(c.type), _facts(c, allowed.get(c.name, ()))) for c in table.columns]
        pieces.append(f"### {table.name}\n\n{_TABLES[table.name]}\n\n{_table(('column', 'type', ''), rows)}")
    return "\n".join(pieces)


def models_block() -> str:
    """Every model with its use, form, licence and source."""
    header = ("name", "purpose", "for what", "scale", "architecture", "licence", "source", "digest known", "tried here")
    rows = []
    for model in (*MODELS.values(), *RELEASED.values()):
        source, known = _source(model)
        scale, tried = str(model.scale or ""), "yes" if model.tried else "no"
        what = f"{model.what_for} (needed)" if isinstance(model, ModelSpec) and model.needed else model.what_for
        row = (f"`{model.name}`", f"`{model.purpose}`", what, scale, model.architecture, model.licence)
        rows.append((*row, source, known, tried))
    return _table(header, rows)


def digests_block() -> str:
    """The pinned digests of published files with who states them."""
    rows = []
    for model in RELEASED.values():
        sources = "; ".join("`{}` {}".format(*source.split(" ", 1)) for source in model.digest_sources)
        rows.append((f"`{model.name}`", f"`{model.source_sha256}`" if model.source_sha256 else "unknown", sources))
    return _table(("name", "sha256 of the published file", "stated by"), rows)


def _source(model: Model) -> tuple[str, str]:
    """Where a model's weights come from, and whether their digest is known."""
    if isinstance(model, ReleasedModel):
        return f"[{model.url.rsplit('/', 1)[1]}]({model.url})", "of the published file" if model.source_sha256 else "no"
    return f"`{getattr(model, 'package', '')}`", "yes"


BLOCKS: dict[str, Callable[[], str]] = {
    "settings": settings_block,
    "options": options_block,
    "classes": classes_block,
    "refusals": refusals_block,
    "failures": failures_block,
    "business": business_block,
    "schema": schema_block,
    "models": models_block,
    "digests": digests_block,
}


def updated(page: str) -> str:
    """A page's text with all its blocks written anew."""
    return _BLOCK.sub(lambda found: f"{found[1]}\n{BLOCKS[found['name']]()}\n{found[3]}", page)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages, or with `--check` say which are out of date."""
    parser = argparse.ArgumentParser(description="Write the tables of docs/reference from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when a page is out of date")
    check = parser.parse_args(arguments).check
    outdated = []
    for name in PAGES:
        path = REFERENCE / name
        before = path.read_text(encoding="utf-8")
        after = updated(before)
        if after == before:
            continue
        outdated.append(name)
        if not check:
            path.write_text(after, encoding="utf-8")
    if outdated:
        words = "out of date, run scripts/reference.py" if check else "written"
        print(f"docs/reference: {', '.join(outdated)} {words}")
    return 1 if check and outdated else 0


def _reasons(reasons: Iterable[Reason]) -> str:
    rows = []
    for reason in reasons:
        again = f"{reason.retry.max_attempts} attempts" if reason.retry.retryable else "no"
        rows.append((f"`{reason.code}`", f"`{reason.error_class}`", f"`{reason.business}`", again, reason.remedy))
    if all(row[3] == "no" for row in rows):
        return _table(("code", "class", "business code", "remedy"), [(*row[:3], row[4]) for row in rows])
    return _table(("code", "class", "business code", "tried again by itself", "remedy"), rows)


def _values(field: FieldInfo) -> str:
    return _bounded(_type_words(field.annotation), field.metadata)


def _type_words(kind: Any) -> str:
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(each for each in get_args(kind) if each is not type(None))
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    words = {bool: "`true`, `false`", int: "whole number", float: "number", str: "text", Path: "folder"}
    return words.get(kind, "text")


def _bounded(words: str, limits: Sequence[Any]) -> str:
    signs = {"gt": "above", "ge": "from", "lt": "below", "le": "up to"}
    found = [
        f"{word} {getattr(limit, sign)}" for limit in limits for sign, word in signs.items() if hasattr(limit, sign)
    ]
    return f"{words} {' '.join(found)}" if found else words


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value >= _MEBIBYTES and value % _MEBIBYTES == 0:
        mib = value // _MEBIBYTES
        return f"{value}` = `{mib // _KIB} GiB" if mib % _KIB == 0 else f"{value}` = `{mib} MiB"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _kind(kind: sa.types.TypeEngine[Any]) -> str:
    if isinstance(kind, tables.Utc):
        return "time (UTC)"
    words: tuple[tuple[type[Any], str], ...] = (
        (sa.JSON, "JSON"),
        (sa.Boolean, "true or false"),
        (sa.Integer, "whole number"),
        (sa.Float, "number"),
        (sa.LargeBinary, "bytes"),
        (sa.String, "text"),
    )
    return next(word for each, word in words if isinstance(kind, each))


def _allowed(table: sa.Table) -> dict[str, tuple[str, ...]]:
    """The words that a column may hold, from the table's checks."""
    found = {}
    for constraint in table.constraints:
        if isinstance(constraint, sa.CheckConstraint):
            column, _in, words = str(constraint.sqltext).partition(" IN ")
            found[column] = tuple(re.findall(r"'([^']*)'", words))
    return found


def _facts(column: sa.Column[Any], allowed: Sequence[str]) -> str:
    facts = []
    if column.primary_key:
        facts.append("primary key")
    facts.extend(f"`{key.target_fullname}`" for key in column.foreign_keys)
    if allowed:
        facts.append(", ".join(f"`{word}`" for word in allowed))
    if column.unique:
        facts.append("unique")
    if column.nullable:
        facts.append("may be empty")
    return "; ".join(facts)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
