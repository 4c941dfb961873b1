"""A change of a source's embedder, as the ledger sees it: which older index answers until the new one is complete.

What belongs here: older indexes of a source, whether the wanted vectors have caught up with one, and retiring it. What
does not: which models can be loaded (`finding`), building the new index (`search`).

A change is complete when every picture that the source shows, and that the older index can find, is settled under the
wanted recipe: has its vector, has none to have, was refused, or failed at its last attempt. Pictures that are newer
than the change are in no older index and have no say.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from mirror_realm_assets.catalog import activity, inbox, index, intents, lacking, leases
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.sources import Source


@dataclass(frozen=True)
class OlderIndex:
    """A published index of a source under another recipe than the wanted one.

    Attributes:
        recipe: digest of the recipe of its embeddings.
        model: name of the model they were made by.
        model_digest: sha256 of the weights they were made by, None when no vector of it is recorded any more.
    """

    recipe: str
    model: str
    model_digest: str | None


def older_indexes(conn: sa.Connection, source_id: int, recipe: str) -> list[OlderIndex]:
    """The indexes of a source under other recipes than `recipe` that find anything, newest first."""
    m, f = t.index_manifests.c, t.features.c
    newest = (
        sa.select(m.recipe, sa.func.max(m.version).label("version"))
        .where(m.source_id == source_id, m.recipe != recipe)
        .group_by(m.recipe)
        .subquery()
    )
    digest = (
        sa.select(f.model_digest)
        .where(f.feature == lacking.FEATURE, f.recipe == m.recipe, f.status == "ok")
        .limit(1)
        .scalar_subquery()
    )
    rows = conn.execute(
        sa.select(m.recipe, m.model, digest)
        .join(newest, sa.and_(newest.c.recipe == m.recipe, newest.c.version == m.version))
        .where(m.source_id == source_id, m.vectors > 0)
        .order_by(m.published_at.desc(), m.id.desc())
    )
    return [OlderIndex(*row) for row in rows]


def is_waited_for(conn: sa.Connection, source_id: int, older: str, recipe: str) -> bool:
    """Whether a picture that the source shows has a vector in the index `older`, and nothing settled under `recipe`.

    Quick while there are such pictures. Once there are none it looks at every member, about 20 s a million, until
    the next build retires the older index.
    """
    member, f = t.index_members.c, t.features.c
    settled = (
        sa.select(sa.literal(1))
        .select_from(t.features)
        .where(
            f.feature == lacking.FEATURE,
            f.recipe == recipe,
            f.image_digest == member.image_digest,
            f.part == member.part,
            sa.or_(f.status != "failed", f.next_attempt_at.is_(None)),
        )
        .exists()
    )
    waiting = sa.select(member.id).where(
        member.source_id == source_id,
        member.recipe == older,
        member.deleted_at.is_(None),
        ~settled,
        lacking.shown([source_id], member.image_digest, member.part, ("present",)),
    )
    return conn.execute(waiting.limit(1)).first() is not None


def retire(conn: sa.Connection, source: Source, older: str) -> bool:
    """Forget an older index, in the caller's transaction: its manifests and members go, its segments are named no more.

    The vectors themselves stay recorded, so that a change back needs no model.

    Returns:
        False, and nothing is done, while a worker still builds it.
    """
    if leases.holder(conn, index.lease_name(source.name, older)):
        return False
    m, member = t.index_manifests.c, t.index_members.c
    mine = (m.source_id == source.id, m.recipe == older)
    keys = {entry["key"] for (entries,) in conn.execute(sa.select(m.segments).where(*mine)) for entry in entries}
    activity.note(conn, "index_retired", source.name, {"recipe": older}, by="index update")
    conn.execute(t.index_members.delete().where(member.source_id == source.id, member.recipe == older))
    conn.execute(t.index_manifests.delete().where(*mine))
    inbox.forget_index(conn, source.id, older)
    intents.forget_objects(conn, sorted(keys))
    return True
