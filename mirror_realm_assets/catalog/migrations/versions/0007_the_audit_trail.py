"""The audit trail: a table that is only appended to, by months on PostgreSQL."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "activity",
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("uuid", sa.String(length=36), nullable=False),
        sa.Column("action", sa.String(length=40), nullable=False),
        sa.Column("source", sa.String(length=100)),
        sa.Column("actor", sa.String(length=200), nullable=False),
        sa.Column("detail", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.PrimaryKeyConstraint("at", "uuid", name=op.f("pk_activity")),
        postgresql_partition_by="RANGE (at)",
    )
    op.create_index("ix_activity_source", "activity", ["source", "at"])
    if op.get_bind().dialect.name == "postgresql":
        # The months are created by `activity.ensure_months`, after each migration and every night.
        op.execute("CREATE TABLE activity_default PARTITION OF activity DEFAULT")


def downgrade() -> None:
    op.drop_table("activity")
