"""Refusals of files whose format was not supported are marked with what was, so that they are read again."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Pictures alone were read until now."""
    op.execute(
        """UPDATE features SET limits = '{"formats": 1}'
        WHERE feature = 'raw_media' AND status = 'refused' AND code = 'unsupported' AND limits IS NULL"""
    )


def downgrade() -> None:
    """A later limit harms no earlier release."""
