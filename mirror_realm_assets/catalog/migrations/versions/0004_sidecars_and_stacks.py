"""Sidecars, and the key by which the members of a stack find each other."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from mirror_realm_assets.catalog.companions import stem_key

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_ROWS = 5000


def upgrade() -> None:
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    json = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
    op.create_table(
        "sidecars",
        sa.Column("id", number, autoincrement=True, nullable=False),
        sa.Column("source_id", number, nullable=False),
        sa.Column("path", sa.LargeBinary(), nullable=False),
        sa.Column("folder", sa.LargeBinary(), nullable=False),
        sa.Column("about_key", number, nullable=False),
        sa.Column("kind", sa.String(length=10), nullable=False),
        sa.Column("size", number, nullable=False),
        sa.Column("mtime_ns", number, nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("code", sa.String(length=40), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("facts", json, nullable=True),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("first_seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("read_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("kind IN ('xmp', 'takeout', 'aae')", name=op.f("ck_sidecars_kind")),
        sa.CheckConstraint("state IN ('waiting', 'read', 'refused')", name=op.f("ck_sidecars_state")),
        sa.ForeignKeyConstraint(["source_id"], ["sources.id"], name=op.f("fk_sidecars_source_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sidecars")),
        sa.UniqueConstraint("source_id", "path", name=op.f("uq_sidecars_source_id_path")),
    )
    op.create_index("ix_sidecars_folder", "sidecars", ["source_id", "folder"])
    op.create_index("ix_sidecars_about", "sidecars", ["source_id", "about_key"])
    waiting = sa.text("state = 'waiting'")
    op.create_index("ix_sidecars_waiting", "sidecars", ["source_id"], sqlite_where=waiting, postgresql_where=waiting)
    op.add_column("locations", sa.Column("stem_key", number, nullable=True))
    _fill_stem_keys(op.get_bind())
    op.create_index("ix_locations_stem", "locations", ["source_id", "stem_key"])


def _fill_stem_keys(conn: sa.Connection) -> None:
    locations = sa.table("locations", sa.column("id"), sa.column("path"), sa.column("stem_key"))
    change = locations.update().where(locations.c.id == sa.bindparam("location")).values(stem_key=sa.bindparam("key"))
    page = sa.select(locations.c.id, locations.c.path).order_by(locations.c.id).limit(_ROWS)
    last = 0
    while rows := conn.execute(page.where(locations.c.id > last)).all():
        last = rows[-1][0]
        conn.execute(change, [{"location": row[0], "key": stem_key(bytes(row[1]))} for row in rows])
