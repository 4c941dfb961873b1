"""Words of files, for full-text search."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "texts",
        sa.Column("location_id", number, autoincrement=False, nullable=False),
        sa.Column("words", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["location_id"], ["locations.id"], name=op.f("fk_texts_location_id")),
        sa.PrimaryKeyConstraint("location_id", name=op.f("pk_texts")),
    )
    op.add_column("locations", sa.Column("text_pending", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.execute("UPDATE locations SET text_pending = true WHERE state IN ('present', 'missing', 'unreadable')")
    pending = sa.text("text_pending = true")
    op.create_index("ix_locations_text", "locations", ["id"], sqlite_where=pending, postgresql_where=pending)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("CREATE INDEX ix_texts_words ON texts USING gin (array_to_tsvector(string_to_array(words, ' ')))")
        return
    # Words come cut and folded, so nothing is left to its tokenizer but blanks.
    op.execute(
        "CREATE VIRTUAL TABLE texts_fts USING fts5("
        "words, content='texts', content_rowid='location_id', tokenize='unicode61 remove_diacritics 0')"
    )
    gone = "INSERT INTO texts_fts (texts_fts, rowid, words) VALUES ('delete', old.location_id, old.words);"
    come = "INSERT INTO texts_fts (rowid, words) VALUES (new.location_id, new.words);"
    op.execute(f"CREATE TRIGGER texts_come AFTER INSERT ON texts BEGIN {come} END")
    op.execute(f"CREATE TRIGGER texts_gone AFTER DELETE ON texts BEGIN {gone} END")
    op.execute(f"CREATE TRIGGER texts_changed AFTER UPDATE ON texts BEGIN {gone} {come} END")


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TABLE texts_fts")
    op.drop_table("texts")
    op.drop_index("ix_locations_text", "locations")
    with op.batch_alter_table("locations") as batch:
        batch.drop_column("text_pending")
