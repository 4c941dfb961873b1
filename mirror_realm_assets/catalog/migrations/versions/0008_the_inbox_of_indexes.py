"""What an index has to look at, so that searches and builds need not look at all embeddings."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_PENDING = """
INSERT INTO index_inbox (source_id, recipe, image_digest, part)
SELECT DISTINCT m.source_id, f.recipe, f.image_digest, f.part
FROM features f
JOIN parts p ON p.image_digest = f.image_digest AND p.part = f.part
JOIN media m ON m.content_id = p.content_id
WHERE f.feature = 'embeddings' AND f.status = 'ok' AND NOT EXISTS (
    SELECT 1 FROM index_members i
    WHERE i.source_id = m.source_id AND i.recipe = f.recipe AND i.image_digest = f.image_digest AND i.part = f.part
      AND i.deleted_at IS NULL
)
"""


def upgrade() -> None:
    op.create_table(
        "index_inbox",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("source_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("recipe", sa.String(length=64), nullable=False),
        sa.Column("image_digest", sa.String(length=64), nullable=False),
        sa.Column("part", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["source_id"], ["sources.id"], name=op.f("fk_index_inbox_source_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_index_inbox")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_index_inbox_source", "index_inbox", ["source_id", "recipe", "id"])
    op.execute(_PENDING)  # pictures without a place now are among them: a build drops what is not pending


def downgrade() -> None:
    op.drop_table("index_inbox")
