"""When a batch is finished, and which batches may lose their partition key."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa
from library import EMBED, RAW, Library, seen

from mirror_realm_assets.catalog import batches, leases, listing, retirement
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.batches import Batch
from mirror_realm_assets.catalog.engine import now

LANES = ("search", "enhance")
SEARCH = (RAW, EMBED)


@pytest.fixture
def formed(library: Library) -> list[Batch]:
    """Three batches of one file."""
    source = library.source()
    library.sight(source, seen(b"a", "one"))
    return [library.form(source, b"a", of=SEARCH) for _ in range(3)]


def finish(library: Library, batch: Batch, *features: str, ago: float = 7200) -> datetime:
    """Settle the items of these features, or all."""
    c = t.batch_items.c
    with library.catalog.write() as conn:
        at = now(conn) - timedelta(seconds=ago)
        mine = (c.batch_id == batch.id, c.feature.in_(features or SEARCH))
        conn.execute(t.batch_items.update().where(*mine).values(state="settled", outcome="ok", settled_at=at))
    return at


def note(library: Library, limit: int = 100) -> int:
    with library.catalog.write() as conn:
        return retirement.note_finished(conn, limit)


def retirable(library: Library, ago: float = 3600) -> list[str]:
    with library.catalog.read() as conn:
        return retirement.retirable(conn, now(conn) - timedelta(seconds=ago), LANES)


def retire(library: Library, *chosen: Batch) -> list[str]:
    with library.catalog.write() as conn:
        return retirement.retire(conn, [batch.key for batch in chosen], LANES)


def finished_at(library: Library) -> list[datetime | None]:
    with library.catalog.read() as conn:
        return list(conn.execute(sa.select(t.batches.c.finished_at).order_by(t.batches.c.id)).scalars())


def test_a_batch_is_finished_when_its_last_item_was_settled(library: Library, formed: list[Batch]) -> None:
    finish(library, formed[0], RAW, ago=9000)
    assert note(library) == 0
    last = finish(library, formed[0], EMBED, ago=5000)
    assert note(library) == 1
    assert finished_at(library) == [last, None, None]


def test_the_end_of_a_batch_is_written_down_once_and_some_at_a_time(library: Library, formed: list[Batch]) -> None:
    for batch in formed:
        finish(library, batch)
    assert [note(library, 2) for _ in range(3)] == [2, 1, 0]
    assert None not in finished_at(library)


def test_the_batch_that_ended_first_goes_first_whenever_it_was_formed(library: Library, formed: list[Batch]) -> None:
    for batch, ago in zip(formed, (5000, 9000, 7000), strict=True):
        finish(library, batch, ago=ago)
    note(library)
    assert retirable(library) == [formed[n].key for n in (1, 2, 0)]
    assert retirable(library, ago=6000) == [formed[n].key for n in (1, 2)]


def test_a_batch_that_a_worker_holds_may_not_go(library: Library, formed: list[Batch]) -> None:
    for batch in formed:
        finish(library, batch)
    note(library)
    with library.catalog.write() as conn:
        lease = leases.acquire(conn, batches.lease_name(formed[0].key, "enhance"), "worker", 60)
        assert lease is not None
        assert leases.acquire(conn, batches.lease_name(formed[1].key, "search"), "dead", -1) is not None
    assert retirable(library) == [formed[1].key, formed[2].key]
    assert retire(library, *formed[:2]) == [formed[1].key]
    with library.catalog.write() as conn:
        leases.release(conn, lease)
    assert retirable(library) == [formed[0].key, formed[2].key]


def test_a_batch_is_retired_once_and_only_when_it_is_finished(library: Library, formed: list[Batch]) -> None:
    finish(library, formed[0])
    finish(library, formed[1], RAW)
    note(library)
    assert retire(library, *formed) == [formed[0].key]
    assert retire(library, *formed) == []
    with library.catalog.read() as conn:
        keys = [*(batch.key for batch in formed), "by.hand"]
        assert retirement.retired_among(conn, keys) == {formed[0].key}


def test_a_retired_batch_is_pending_nowhere_whatever_happens_to_its_items(
    library: Library, formed: list[Batch]
) -> None:
    finish(library, formed[0])
    note(library)
    retire(library, formed[0])
    with library.catalog.write() as conn:
        mine = t.batch_items.c.batch_id == formed[0].id
        conn.execute(t.batch_items.update().where(mine).values(state="waiting", settled_at=None))
        assert formed[0].key not in [found.key for found in batches.pending(conn, "search", SEARCH)]


def test_the_history_of_a_file_names_its_retired_batch_with_runs_and_times(
    library: Library, formed: list[Batch]
) -> None:
    settled_at = finish(library, formed[0])
    with library.catalog.write() as conn:
        batches.note_run(conn, formed[0].id, "search", "run-1")
    note(library)
    retire(library, formed[0])
    with library.catalog.read() as conn:
        place = conn.execute(sa.select(t.locations.c.id)).scalar_one()
        first, second, _third = listing.history(conn, None, [place])["batches"]
    assert (first["key"], [run["run_id"] for run in first["runs"]]) == (formed[0].key, ["run-1"])
    assert {item["settled_at"] for item in first["items"]} == {settled_at}
    assert first["retired_at"] is not None
    assert second["retired_at"] is None
