"""When a batch was finished, so that the partition keys of the oldest can be retired."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("batches", sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True))
    live = sa.text("retired_at IS NULL")
    op.create_index("ix_batches_finished", "batches", ["finished_at"], sqlite_where=live, postgresql_where=live)
