"""One round of a build: from recorded embeddings to the next published manifest.

What belongs here: which vectors go into which segment, and the order of the steps. What does not: how often it is done
(`build`), SQL (`catalog.index`, `catalog.lacking`), the form of a segment (`segments`).

The layout is a log-structured merge tree of two levels: sealed segments that are never touched, and one write buffer
that is written anew, without its dead, together with what is pending, until it is full and becomes sealed. A round
reads the ledger, writes segments under intents, and publishes in one transaction under the lease: killed anywhere
before that, the old manifest stands and everything is still pending.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mirror_realm_assets.catalog import features, inbox, index, intents, lacking, leases, sources
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.features import FeatureKey
from mirror_realm_assets.catalog.inbox import Note
from mirror_realm_assets.catalog.index import Manifest, ManifestDraft, Member, SegmentEntry
from mirror_realm_assets.catalog.lacking import PendingVector
from mirror_realm_assets.catalog.leases import Lease
from mirror_realm_assets.catalog.sources import Source
from mirror_realm_assets.errors import Failed, LeaseLost
from mirror_realm_assets.search import segments
from mirror_realm_assets.search.reading import UNREADABLE, Readable, read_vectors
from mirror_realm_assets.search.segments import SegmentCache
from mirror_realm_assets.store.interface import Store
from mirror_realm_assets.store.shards import ShardCache
from mirror_realm_assets.store.writing import Writer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

_SHARD_CACHE_BYTES = 64 * 1024**2

Step = Callable[[str], None]


@dataclass(frozen=True)
class Round:
    """What a round did.

    Attributes:
        manifest: as published now, None when there is none.
        added: vectors that were taken in.
        removed: members whose picture is shown nowhere any more.
        published: whether anything was written.
        again: whether there is more to do than one round takes.
        damaged: whether vectors of the write buffer were lost: only a full look finds them again.
        errors: one for each shard that could not be read. Its vectors stay pending; those of a damaged one are
            forgotten, so that they are made again.
    """

    manifest: Manifest | None
    added: int = 0
    removed: int = 0
    published: bool = False
    again: bool = False
    damaged: bool = False
    errors: tuple[Failed, ...] = ()


@dataclass(frozen=True)
class _Ledger:
    """What one round goes by, read in one transaction; `carried` are the live members of the write buffer.

    `complete`: everything that is pending among what was looked at is in `pending`.
    """

    base: Manifest | None
    pending: list[PendingVector]
    notes: list[Note]
    stale: list[Member]
    buffer: SegmentEntry | None
    carried: list[Member]
    complete: bool


@dataclass
class _Draft:
    """What a round has made so far."""

    dropped: tuple[SegmentEntry, ...]
    stale: tuple[Member, ...]
    dim: int = 0
    entries: list[SegmentEntry] = field(default_factory=list)
    members: list[Member] = field(default_factory=list)
    intent_ids: list[int] = field(default_factory=list)
    notes: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Builder:
    """What all rounds of a build have in common.

    Attributes:
        catalog: the ledger.
        store: where shards lie and segments go.
        source: whose index.
        recipe: digest of the recipe of the embeddings.
        model: name of the model.
        lease: the right to publish.
        lease_seconds: how long a renewal lasts.
        run_id: the run that does it.
        step: called with a step's name between any two steps.
        segment_vectors: size at which the write buffer is sealed.
    """

    catalog: Catalog
    store: Store
    source: Source
    recipe: str
    model: str
    lease: Lease
    lease_seconds: float
    run_id: str | None
    step: Step
    segment_vectors: int

    def round(self, limit: int, *, full: bool = True, rebuild: bool = False) -> Round:
        """Read the ledger, write segments, publish; or find that there is nothing to do.

        Args:
            limit: how many pending vectors are taken in.
            full: look at all embeddings and members, not only at what the inbox names.
            rebuild: leave no old segment in place; a full look.

        Raises:
            LeaseLost: another builder took over; nothing was published.
            Failed: with `rebuild`, when a shard cannot be read; otherwise what the store or the catalog could not do.
        """
        self.step("lease held")
        ledger = self._read_ledger(full, rebuild, limit)
        self.step("ledger read")
        found = self._read_pending(ledger)
        if found.errors and rebuild:
            raise found.errors[0]  # what the damaged shards hold may still be found in the segments as they are
        if found.damaged:
            self._forget(found.damaged)
        notes = _done(ledger, found)
        if not found.rows and not ledger.stale and not (rebuild and ledger.base):
            if notes:
                with self.catalog.write() as conn:
                    inbox.forget(conn, notes)
            again = bool(notes or found.damaged) and not ledger.complete
            return Round(ledger.base, again=again, errors=found.errors)
        dropped = _dropped(ledger, rebuild, bool(found.rows))
        carried, old = self._read_buffer(ledger) if dropped and not rebuild else ([], None)
        self.step("vectors read")
        subjects = [(member.image_digest, member.part) for member in carried]
        subjects += [(row.image_digest, row.part) for row in found.rows]
        draft = _Draft(dropped, tuple(ledger.stale), notes=notes)
        try:
            self._write(draft, ledger.base, subjects, _joined(old, found.vectors))
            published = self._publish(draft, ledger.base)
        except BaseException as error:
            self._give_up(draft.intent_ids, error)
            raise
        self.step("published")
        damaged = bool(dropped) and not rebuild and len(carried) < len(ledger.carried)
        again = damaged or (bool(found.rows or found.damaged) and not ledger.complete)
        return Round(published, len(found.rows), len(ledger.stale), True, again, damaged, found.errors)

    def _read_ledger(self, full: bool, rebuild: bool, limit: int) -> _Ledger:
        with self.catalog.read() as conn:
            base = index.manifest(conn, self.source.id, self.recipe)
            if full or rebuild or base is None:
                # Before what they are about: else one that is noted in between would count as looked at.
                notes = inbox.notes(conn, self.source.id, self.recipe)
                pending = lacking.pending(conn, self.source.id, self.recipe, limit, indexed=rebuild)
                stale = lacking.stale_members(conn, self.source.id, self.recipe)
                complete = len(pending) < limit
                if not complete:  # of all others it is not known whether they are pending
                    subjects = {(row.image_digest, row.part) for row in pending}
                    notes = [note for note in notes if (note.image_digest, note.part) in subjects]
            else:
                notes, pending = lacking.noted(conn, self.source.id, self.recipe, limit)
                stale = []
                complete = len(notes) < limit
            buffer = next((entry for entry in base.segments if not entry.sealed), None) if base else None
            dead = set(stale)
            members = index.members_of(conn, buffer.sha256) if buffer else []
        carried = [member for member in members if member not in dead]
        return _Ledger(base, pending, notes, stale, buffer, carried, complete)

    def _read_pending(self, ledger: _Ledger) -> Readable:
        dim = ledger.base.dim if ledger.base else None
        cache = ShardCache(_SHARD_CACHE_BYTES)
        return read_vectors(self.store, ledger.pending, recipe=self.recipe, dim=dim, cache=cache)

    def _forget(self, damaged: Sequence[PendingVector]) -> None:
        """Forget embeddings whose bytes are lost: they are missing then, and the next sweep has them made again."""
        with self.catalog.write() as conn:
            leases.check(conn, self.lease)
            for row in damaged:
                features.forget(conn, FeatureKey(row.image_digest, row.part, inbox.FEATURE, self.recipe))
            sources.sweep_again(conn)

    def _read_buffer(self, ledger: _Ledger) -> tuple[list[Member], Vectors | None]:
        """The live vectors of the write buffer; none when it is damaged: then its members are pending again."""
        import numpy as np

        if not ledger.base or not ledger.buffer or not ledger.carried:
            return [], None
        uuid, dim = self.source.uuid, ledger.base.dim
        once = SegmentCache(0)
        try:
            segment = segments.load_segment(
                self.store, ledger.buffer, source=uuid, recipe=self.recipe, dim=dim, cache=once
            )
        except Failed as error:
            if error.code not in UNREADABLE:
                raise
            return [], None
        return ledger.carried, segment.vectors(np.array([member.position for member in ledger.carried]))

    def _write(
        self,
        draft: _Draft,
        base: Manifest | None,
        subjects: Sequence[tuple[str, int]],
        vectors: Vectors | None,
    ) -> None:
        """Write all vectors as new segments, noting in the draft what was announced and written."""
        if vectors is None:
            return
        writer = Writer(self.store, _Intents(self.catalog, self.lease.owner))
        draft.dim = vectors.shape[1]
        for n, start in enumerate(range(0, len(subjects), self.segment_vectors)):
            with self.catalog.write() as conn:
                if not leases.renew(conn, self.lease, self.lease_seconds):
                    raise LeaseLost(f"The lease {self.lease.name} was lost to another worker.")
            piece = vectors[start : start + self.segment_vectors]
            data, entry = self._segment(piece, f"{base.version + 1 if base else 1}.{n}")
            with writer.writing([entry.key]) as writing:
                draft.intent_ids.extend(writing.intent_ids)
                self.step("segment announced")
                writing.put(entry.key, data)
                self.step("segment written")
            draft.entries.append(entry)
            owners = subjects[start : start + len(piece)]
            draft.members.extend(Member(*whose, entry.sha256, place) for place, whose in enumerate(owners))

    def _segment(self, vectors: Vectors, serial: str) -> tuple[bytes, SegmentEntry]:
        """A segment's bytes and entry, after reading it back from these bytes and measuring what it finds."""
        count, dim = vectors.shape
        label = segments.Label(self.source.uuid, self.recipe, segments.FLAT, dim, count)
        data = segments.encode_segment(vectors, label, serial=serial)
        recall = segments.measure_recall(segments.decode_segment(data, label), vectors)
        return data, segments.entry_of(data, label, sealed=count == self.segment_vectors, recall_at_10=recall)

    def _publish(self, draft: _Draft, base: Manifest | None) -> Manifest:
        kept = [entry for entry in base.segments if entry not in draft.dropped] if base else []
        entries = (*kept, *draft.entries)
        manifest = ManifestDraft(
            source_id=self.source.id,
            recipe=self.recipe,
            model=self.model,
            dim=base.dim if base else draft.dim,
            base_version=base.version if base else 0,
            segments=entries,
            recall_at_10=_recall(entries),
            run_id=self.run_id,
            tombstones=draft.stale,
        )
        self.step("ready to publish")
        with self.catalog.write() as conn:
            published = index.publish(
                conn, self.lease, manifest, draft.members, draft.dropped, draft.intent_ids, draft.notes
            )
            # A file may have come back since they were read: its note was looked at while they were still alive.
            lacking.note_shown(conn, self.source.id, self.recipe, draft.stale)
            self.step("about to commit")
        return published

    def _give_up(self, intent_ids: Sequence[int], error: BaseException) -> None:
        """End what was announced; when even that fails, what went wrong first is what matters."""
        try:
            with self.catalog.write() as conn:
                intents.end(conn, intent_ids)
        except Exception as second:
            error.add_note(f"The intents {list(intent_ids)} stay open: {second}")


@dataclass(frozen=True)
class _Intents:
    """`store.writing.Intents` by the ledger."""

    catalog: Catalog
    worker_id: str

    def begin(self, keys: Sequence[str]) -> list[int]:
        with self.catalog.write() as conn:
            return intents.begin(conn, keys, self.worker_id)

    def end(self, ids: Sequence[int]) -> None:
        with self.catalog.write() as conn:
            intents.end(conn, ids)


def _dropped(ledger: _Ledger, rebuild: bool, adding: bool) -> tuple[SegmentEntry, ...]:
    """The segments that the new manifest does without."""
    if rebuild and ledger.base:
        return ledger.base.segments
    dying = ledger.buffer is not None and any(member.segment == ledger.buffer.sha256 for member in ledger.stale)
    return (ledger.buffer,) if ledger.buffer and (adding or dying) else ()


def _done(ledger: _Ledger, found: Readable) -> list[int]:
    """The notes that this round does justice to: their picture is taken in, or was not pending at all."""
    taken = {(row.image_digest, row.part) for row in found.rows}
    left = {(row.image_digest, row.part) for row in ledger.pending} - taken
    return [note.id for note in ledger.notes if (note.image_digest, note.part) not in left]


def _joined(old: Vectors | None, new: Vectors | None) -> Vectors | None:
    import numpy as np

    pieces = [piece for piece in (old, new) if piece is not None]
    return np.concatenate(pieces) if pieces else None


def _recall(entries: Sequence[SegmentEntry]) -> float | None:
    total = sum(entry.count for entry in entries)
    return sum(entry.recall_at_10 * entry.count for entry in entries) / total if total else None
