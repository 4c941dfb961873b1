"""The tables of the catalog, the same on SQLite and PostgreSQL.

What belongs here: columns, keys and indexes, each table with the rule it serves. What does not: queries.
All times are aware UTC; sizes are bytes; digests are lower-case sha256 hex.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeDecorator


class Utc(TypeDecorator[datetime]):
    """Aware UTC on both databases; SQLite stores it naive, which sorts the same."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """To the database: UTC, without zone on SQLite."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("naive time given to the catalog")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """From the database: aware UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


BigInt = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite counts up only INTEGER primary keys
Json = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")

# Named constraints, because Alembic can only change what has a name.
metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _id() -> sa.Column[int]:
    return sa.Column("id", BigInt, primary_key=True, autoincrement=True)


def _ref(name: str, target: str, *, null: bool = False, index: bool = True) -> sa.Column[int]:
    return sa.Column(name, BigInt, sa.ForeignKey(f"{target}.id"), nullable=null, index=index)


def _time(name: str, *, null: bool = True) -> sa.Column[Any]:
    return sa.Column(name, Utc, nullable=null)


def _one_of(column: str, *values: str) -> sa.CheckConstraint:
    quoted = ", ".join(f"'{value}'" for value in values)
    return sa.CheckConstraint(f"{column} IN ({quoted})", name=column)


# One row: which catalog this is. A store remembers it, so that two catalogs cannot share one store.
catalog_info = sa.Table("catalog_info", metadata, _id(), sa.Column("uuid", sa.String(36), nullable=False))

projects = sa.Table(
    "projects",
    metadata,
    _id(),
    sa.Column("uuid", sa.String(36), nullable=False, unique=True),
    sa.Column("name", sa.String(100), nullable=False, unique=True),
    _time("created_at", null=False),
)

users = sa.Table(
    "users",
    metadata,
    _id(),
    sa.Column("uuid", sa.String(36), nullable=False, unique=True),
    sa.Column("name", sa.String(100), nullable=False, unique=True),
    _time("created_at", null=False),
)

sources = sa.Table(
    "sources",
    metadata,
    _id(),
    sa.Column("uuid", sa.String(36), nullable=False, unique=True),
    sa.Column("name", sa.String(40), nullable=False, unique=True),
    _ref("project_id", "projects"),
    _ref("owner_id", "users"),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("root", sa.LargeBinary, nullable=False),  # raw bytes: a path need not be UTF-8
    sa.Column("root_display", sa.Text, nullable=False),
    sa.Column("root_identity", Json),  # device, inode and mount of the root, to know it again
    sa.Column("policy", Json, nullable=False),
    sa.Column("state", sa.String(20), nullable=False),
    sa.Column("state_reason", sa.Text),
    sa.Column("scan_generation", BigInt, nullable=False, default=0),
    _time("scanned_at"),
    sa.Column("held_deletions", BigInt, nullable=False, default=0),  # too many at once: a person has to confirm them
    sa.Column("deletions_confirmed", sa.Boolean, nullable=False, default=False),
    sa.Column("next_seq", BigInt, nullable=False, default=1),  # next batch number, taken in the forming transaction
    sa.Column("swept_recipes", Json),  # the recipes its known media were last compared with
    sa.Column("index_attempts", sa.Integer, nullable=False, default=0),  # failed index runs in a row
    _time("index_next_at"),
    sa.Column("index_error", sa.Text),
    _time("created_at", null=False),
    _time("updated_at", null=False),
    _one_of("state", "active", "paused", "removed"),
)

# A file that cannot be read, or has no digest yet, lives here with its reason.
locations = sa.Table(
    "locations",
    metadata,
    _id(),
    _ref("source_id", "sources", index=False),
    sa.Column("path", sa.LargeBinary, nullable=False),  # relative to the root, raw bytes
    sa.Column("display", sa.Text, nullable=False),
    sa.Column("size", BigInt, nullable=False),
    sa.Column("mtime_ns", BigInt, nullable=False),
    sa.Column("inode", BigInt),
    sa.Column("device", BigInt),
    sa.Column("generation", BigInt, nullable=False, default=0),
    sa.Column("state", sa.String(20), nullable=False),
    sa.Column("code", sa.String(40)),
    sa.Column("reason", sa.Text),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    _time("next_attempt_at"),
    _ref("media_id", "media", null=True),
    sa.Column("stem_key", BigInt),  # of its name without suffix in its folder: members of a stack have the same
    # The stat at which the bytes were last identified; differing from `size, mtime_ns` means that there is work.
    sa.Column("identified_size", BigInt),
    sa.Column("identified_mtime_ns", BigInt),
    _time("first_seen_at", null=False),
    _time("changed_at", null=False),  # when its size or mtime was last seen to differ
    _time("last_seen_at", null=False),
    _time("deleted_at"),
    sa.Column("text_pending", sa.Boolean, nullable=False, default=False, server_default=sa.false()),
    sa.UniqueConstraint("source_id", "path"),
    sa.Index(
        "ix_locations_text",
        "id",
        sqlite_where=sa.text("text_pending = true"),
        postgresql_where=sa.text("text_pending = true"),
    ),
    sa.Index("ix_locations_state", "source_id", "state"),
    sa.Index("ix_locations_inode", "source_id", "inode"),  # a moved file is known again by it
    sa.Index("ix_locations_stem", "source_id", "stem_key"),
    _one_of("state", "present", "missing", "deleted", "ignored", "unreadable"),
)

# Words by which a place is found, cut by `words`. Their index is the database's own (`texts_fts`, `ix_texts_words`).
texts = sa.Table(
    "texts",
    metadata,
    sa.Column("location_id", BigInt, sa.ForeignKey("locations.id"), primary_key=True, autoincrement=False),
    sa.Column("words", sa.Text, nullable=False),
)

# Whose they are is nowhere written: it follows from names (`companions`), whatever came first or was moved.
sidecars = sa.Table(
    "sidecars",
    metadata,
    _id(),
    _ref("source_id", "sources", index=False),
    sa.Column("path", sa.LargeBinary, nullable=False),  # relative to the root, raw bytes
    sa.Column("folder", sa.LargeBinary, nullable=False),  # the prefix of its folder
    sa.Column("about_key", BigInt, nullable=False),  # what it is about is looked up by this
    sa.Column("kind", sa.String(10), nullable=False),
    sa.Column("size", BigInt, nullable=False),
    sa.Column("mtime_ns", BigInt, nullable=False),
    sa.Column("state", sa.String(10), nullable=False),
    sa.Column("code", sa.String(40)),
    sa.Column("reason", sa.Text),
    sa.Column("facts", Json),  # what it says; of one that waits, what it said before
    _time("next_attempt_at"),
    _time("first_seen_at", null=False),
    _time("read_at"),
    sa.UniqueConstraint("source_id", "path"),
    sa.Index("ix_sidecars_folder", "source_id", "folder"),
    sa.Index("ix_sidecars_about", "source_id", "about_key"),
    sa.Index(
        "ix_sidecars_waiting",
        "source_id",
        sqlite_where=sa.text("state = 'waiting'"),
        postgresql_where=sa.text("state = 'waiting'"),
    ),
    _one_of("kind", "xmp", "takeout", "aae"),
    _one_of("state", "waiting", "read", "refused"),
)

# What people, tags, ownership and erasure hang on. A changed file is a new version of the same media; a move keeps it.
media = sa.Table(
    "media",
    metadata,
    _id(),
    sa.Column("uuid", sa.String(36), nullable=False, unique=True),
    _ref("project_id", "projects", index=False),
    _ref("source_id", "sources", index=False),
    _ref("owner_id", "users", index=False),
    _ref("content_id", "contents"),  # of the current version
    _time("created_at", null=False),
    sa.UniqueConstraint("source_id", "content_id"),  # the same bytes in one source are one media
)

media_versions = sa.Table(
    "media_versions",
    metadata,
    _id(),
    _ref("media_id", "media"),
    _ref("content_id", "contents"),
    _time("seen_from", null=False),
    _time("seen_to"),
)

contents = sa.Table(
    "contents",
    metadata,
    _id(),
    sa.Column("digest", sa.String(64), nullable=False, unique=True),
    sa.Column("size", BigInt, nullable=False),
    sa.Column("mime", sa.String(60)),
    sa.Column("custody", sa.String(10), nullable=False),
    sa.Column("stored_key", sa.Text),
    sa.Column("exif", Json),
    sa.Column("taken_at", sa.String(40)),
    sa.Column("phash", sa.String(16), index=True),
    _time("created_at", null=False),
    _one_of("custody", "stored", "referenced"),
)

parts = sa.Table(
    "parts",
    metadata,
    _id(),
    _ref("content_id", "contents", index=False),
    sa.Column("part", sa.Integer, nullable=False),  # 0 is the still picture
    sa.Column("kind", sa.String(10), nullable=False),
    sa.Column("image_digest", sa.String(64), nullable=False, index=True),
    sa.Column("width", sa.Integer, nullable=False),  # upright
    sa.Column("height", sa.Integer, nullable=False),
    sa.Column("time_s", sa.Float),
    sa.Column("page", sa.Integer),
    sa.UniqueConstraint("content_id", "part"),
    _one_of("kind", "still", "frame", "page", "animation"),
)

# What was computed. `pending`, `running`, `stale`, `blocked` and `not_wanted` are never stored: they are the difference
# between what is wanted and what is here.
features = sa.Table(
    "features",
    metadata,
    _id(),
    # The image digest of the part; for `raw_media`, which reads bytes to find it, the digest of the bytes.
    sa.Column("image_digest", sa.String(64), nullable=False),
    sa.Column("part", sa.Integer, nullable=False),
    sa.Column("feature", sa.String(60), nullable=False),
    sa.Column("recipe", sa.String(64), nullable=False),
    sa.Column("status", sa.String(10), nullable=False),
    sa.Column("code", sa.String(40)),
    sa.Column("reason", sa.Text),
    sa.Column("limits", Json),  # the limits a refusal was made under: raising one makes it pending again
    sa.Column("retryable", sa.Boolean, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("crashes", sa.Integer, nullable=False, default=0),
    _time("next_attempt_at"),
    sa.Column("output", Json),
    sa.Column("code_version", sa.String(40), nullable=False),
    sa.Column("model_digest", sa.String(64)),
    sa.Column("seconds", sa.Float),
    sa.Column("verified", sa.Boolean, nullable=False),
    sa.Column("run_id", sa.String(40)),
    _time("created_at", null=False),
    _time("updated_at", null=False),
    sa.UniqueConstraint("image_digest", "part", "feature", "recipe"),
    sa.Index("ix_features_recipe", "feature", "recipe", "status"),
    _one_of("status", "ok", "empty", "failed", "refused"),
)

batches = sa.Table(
    "batches",
    metadata,
    _id(),
    sa.Column("key", sa.String(63), nullable=False, unique=True),
    _ref("source_id", "sources", index=False),
    sa.Column("seq", BigInt, nullable=False),
    sa.Column("kind", sa.String(12), nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("request", Json),  # overrides of the source's policy for this batch alone
    sa.Column("requested_by", sa.String(100), nullable=False),
    _ref("user_id", "users", null=True, index=False),
    _time("deadline"),
    _time("cancel_requested_at"),
    sa.Column("items", sa.Integer, nullable=False),
    sa.Column("bytes", BigInt, nullable=False),
    sa.Column("estimate_seconds", sa.Float, nullable=False),
    _time("created_at", null=False),
    _time("finished_at"),  # when its last item was settled; written down some time after that
    _time("retired_at"),  # its partition key was pruned; the row stays for `file` and history
    sa.UniqueConstraint("source_id", "seq"),
    sa.Index(
        "ix_batches_finished",
        "finished_at",
        sqlite_where=sa.text("retired_at IS NULL"),
        postgresql_where=sa.text("retired_at IS NULL"),
    ),
    _one_of("kind", "ingest", "retry", "recompute", "request", "workflow"),
)

# One row a lane: the attempt is part of the run key, so that a run which ended with work left can be asked for again.
batch_lanes = sa.Table(
    "batch_lanes",
    metadata,
    _id(),
    _ref("batch_id", "batches", index=False),
    sa.Column("lane", sa.String(10), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False, default=0),
    sa.Column("failures", sa.Integer, nullable=False, default=0),  # failed runs in a row, for the back-off
    _time("not_before"),
    sa.UniqueConstraint("batch_id", "lane"),
)

batch_runs = sa.Table(
    "batch_runs",
    metadata,
    _id(),
    _ref("batch_id", "batches"),
    sa.Column("lane", sa.String(10), nullable=False),
    sa.Column("run_id", sa.String(40), nullable=False, index=True),
    _time("started_at", null=False),
    _time("ended_at"),
    sa.UniqueConstraint("batch_id", "run_id"),
)

# One wanted feature of one file. `settled_at` is written in the transaction that records the feature; it is an index
# over the features, so that "what is pending" costs nothing when nothing is.
batch_items = sa.Table(
    "batch_items",
    metadata,
    _id(),
    _ref("batch_id", "batches", index=False),
    sa.Column("n", sa.Integer, nullable=False),
    sa.Column("feature", sa.String(60), nullable=False),
    _ref("location_id", "locations", null=True),
    _ref("media_id", "media", null=True),
    sa.Column("part", sa.Integer),  # None: every part
    sa.Column("state", sa.String(10), nullable=False, default="waiting"),
    sa.Column("worker_id", sa.String(36)),
    _time("lease_until"),
    sa.Column("attempt", sa.Integer, nullable=False, default=0),
    sa.Column("crashes", sa.Integer, nullable=False, default=0),
    sa.Column("priority", sa.Integer, nullable=False, default=0),
    _time("deadline"),
    _time("not_before"),
    _time("cancel_requested_at"),
    sa.Column("progress", sa.Float),
    _time("settled_at"),
    sa.Column("outcome", sa.String(12)),
    sa.Column("code", sa.String(40)),
    sa.UniqueConstraint("batch_id", "n", "feature"),
    sa.Index(
        "ix_batch_items_open",
        "feature",
        "batch_id",
        sqlite_where=sa.text("settled_at IS NULL"),
        postgresql_where=sa.text("settled_at IS NULL"),
    ),
    _one_of("state", "waiting", "running", "settled"),
)

# The watcher's durable inbox: drained and deleted in the transaction that applies it.
journal = sa.Table(
    "journal",
    metadata,
    _id(),
    _ref("source_id", "sources"),
    sa.Column("kind", sa.String(10), nullable=False),
    sa.Column("path", sa.LargeBinary, nullable=False),
    sa.Column("size", BigInt),
    sa.Column("mtime_ns", BigInt),
    sa.Column("inode", BigInt),
    sa.Column("device", BigInt),
    sa.Column("code", sa.String(40)),
    sa.Column("moved_from", sa.LargeBinary),  # the path it was known by, of a moved file
    sa.Column("generation", BigInt, nullable=False),
    _time("observed_at", null=False),
    _one_of("kind", "seen", "moved", "replaced", "kept", "missing", "deleted", "ignored", "unreadable"),
)

# `token` grows with every change of owner: a writer that kept an old one is refused (fencing).
leases = sa.Table(
    "leases",
    metadata,
    sa.Column("name", sa.String(120), primary_key=True),
    sa.Column("owner", sa.String(36)),
    sa.Column("token", BigInt, nullable=False),
    _time("until"),
)

workers = sa.Table(
    "workers",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("kind", sa.String(12), nullable=False),
    sa.Column("run_id", sa.String(40), index=True),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("boot_id", sa.String(40), nullable=False),
    sa.Column("pid", BigInt, nullable=False),
    sa.Column("started", BigInt, nullable=False),
    sa.Column("doing", sa.Text),
    _time("started_at", null=False),
    _time("heartbeat_at", null=False),
    _time("ended_at"),
)

index_manifests = sa.Table(
    "index_manifests",
    metadata,
    _id(),
    _ref("source_id", "sources", index=False),
    sa.Column("recipe", sa.String(64), nullable=False),  # of the embeddings: two models never share an index
    sa.Column("model", sa.String(100), nullable=False),
    sa.Column("version", BigInt, nullable=False),
    sa.Column("token", BigInt, nullable=False),
    sa.Column("dim", sa.Integer, nullable=False),
    sa.Column("vectors", BigInt, nullable=False),
    sa.Column("segments", Json, nullable=False),
    sa.Column("recall_at_10", sa.Float),
    sa.Column("run_id", sa.String(40)),
    _time("published_at", null=False),
    sa.UniqueConstraint("source_id", "recipe", "version"),
)

# Which vectors the published manifest contains; written in its transaction. Pending = ok embeddings not in here.
index_members = sa.Table(
    "index_members",
    metadata,
    _id(),
    _ref("source_id", "sources", index=False),
    sa.Column("recipe", sa.String(64), nullable=False),
    sa.Column("image_digest", sa.String(64), nullable=False),
    sa.Column("part", sa.Integer, nullable=False),
    sa.Column("segment", sa.String(64), nullable=False),
    sa.Column("position", BigInt, nullable=False),
    _time("deleted_at"),  # a tombstone
    sa.UniqueConstraint("source_id", "recipe", "image_digest", "part"),
    sa.Index("ix_index_members_segment", "segment", "position"),
)

# Where an index has to look for what is pending; see `inbox`.
index_inbox = sa.Table(
    "index_inbox",
    metadata,
    _id(),
    _ref("source_id", "sources", index=False),
    sa.Column("recipe", sa.String(64), nullable=False),
    sa.Column("image_digest", sa.String(64), nullable=False),
    sa.Column("part", sa.Integer, nullable=False),
    sa.Index("ix_index_inbox_source", "source_id", "recipe", "id"),
    sqlite_autoincrement=True,  # the id of a row that is gone must not come back while somebody still holds it
)

# Named before a byte is written, ended with the row that names the object: what lies between is never collected.
intents = sa.Table(
    "intents",
    metadata,
    _id(),
    sa.Column("key", sa.Text, nullable=False, index=True),
    sa.Column("worker_id", sa.String(36)),
    _time("created_at", null=False),
)

# Every object of the store that some row names (features, segments, kept originals): garbage is what is in neither this
# table nor `intents`. The row is written in the transaction that names the object.
objects = sa.Table(
    "objects",
    metadata,
    sa.Column("key", sa.String(400), primary_key=True),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("bytes", BigInt, nullable=False),
    _time("created_at", null=False),
)

# The audit trail, only ever appended to: by months on PostgreSQL (`activity.ensure_months`), plain on SQLite. Its key
# holds the time because a partitioned table's key has to.
activity = sa.Table(
    "activity",
    metadata,
    sa.Column("at", Utc, primary_key=True),
    sa.Column("uuid", sa.String(36), primary_key=True),
    sa.Column("action", sa.String(40), nullable=False),
    sa.Column("source", sa.String(100)),
    sa.Column("actor", sa.String(200), nullable=False),
    sa.Column("detail", Json, nullable=False),
    sa.Index("ix_activity_source", "source", "at"),
    postgresql_partition_by="RANGE (at)",
)
