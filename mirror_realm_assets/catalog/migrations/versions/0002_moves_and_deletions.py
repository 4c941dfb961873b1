"""Moved and deleted files: what a person has to confirm, and when a file was deleted."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_KINDS = ("seen", "moved", "replaced", "kept", "missing", "deleted", "ignored", "unreadable")


def upgrade() -> None:
    count = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    with op.batch_alter_table("sources") as table:
        table.add_column(sa.Column("held_deletions", count, nullable=False, server_default="0"))
        table.add_column(sa.Column("deletions_confirmed", sa.Boolean(), nullable=False, server_default=sa.false()))
    with op.batch_alter_table("locations") as table:
        table.add_column(sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True))
        table.create_index("ix_locations_inode", ["source_id", "inode"])
    with op.batch_alter_table("journal") as table:
        table.add_column(sa.Column("moved_from", sa.LargeBinary(), nullable=True))
        table.drop_constraint(op.f("ck_journal_kind"), type_="check")
        quoted = ", ".join(f"'{kind}'" for kind in _KINDS)
        table.create_check_constraint(op.f("ck_journal_kind"), f"kind IN ({quoted})")
