"""The audit trail: what is recorded of changes, on both databases, and its months on PostgreSQL."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from mirror_realm_assets.catalog import activity, sources
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog, now


def add_row(conn: sa.Connection, at: datetime, number: int) -> None:
    row = {"at": at, "uuid": f"{number:036d}", "action": "source_added", "actor": "anna@desk", "detail": {}}
    conn.execute(t.activity.insert().values(**row))


def in_default(conn: sa.Connection) -> int:
    return conn.execute(sa.text("SELECT count(*) FROM activity_default")).scalar_one()


def test_each_change_of_a_source_is_recorded_with_what_changed_and_who_did_it(catalog: Catalog) -> None:
    steps = (
        lambda conn: sources.add(conn, "photos", "/照片".encode(), {"enhance": False}),
        lambda conn: sources.set_policy(conn, "photos", {"enhance": True, "ignore": ["*.tmp"]}),
        lambda conn: sources.set_policy(conn, "photos", {"enhance": True}),  # nothing new: nothing is recorded
        lambda conn: sources.set_state(conn, "photos", "paused", "by hand"),
        lambda conn: sources.set_state(conn, "photos", "active", by="batch forming"),
        lambda conn: sources.set_root(conn, "photos", b"/new"),
        lambda conn: sources.confirm_deletions(conn, "photos"),
        lambda conn: sources.set_state(conn, "photos", "removed"),
    )
    for step in steps:
        with catalog.write() as conn:
            step(conn)
    with catalog.read() as conn:
        found = activity.entries(conn, "photos")
        assert activity.entries(conn, "others") == []
        assert activity.entries(conn, limit=2) == found[:2]
    told = [(each.action, each.detail) for each in reversed(found)]
    assert told == [
        ("source_added", {"folder": "/照片", "options": {"enhance": False}}),
        ("source_changed", {"options": {"enhance": [False, True], "ignore": [[], ["*.tmp"]]}}),
        ("source_paused", {"reason": "by hand"}),
        ("source_resumed", {}),
        ("source_moved", {"folder": ["/照片", "/new"]}),
        ("deletions_confirmed", {"held": 0}),
        ("source_removed", {}),
    ]
    assert {each.actor for each in found} == {activity.person(), "batch forming"}


def test_a_change_that_did_not_happen_is_not_recorded(catalog: Catalog) -> None:
    class Undone(Exception):
        pass

    with pytest.raises(Undone), catalog.write() as conn:
        sources.add(conn, "photos", b"/photos", {})
        raise Undone
    with catalog.read() as conn:
        assert activity.entries(conn) == []


def test_what_is_older_than_is_kept_goes_by_whole_months(catalog: Catalog) -> None:
    limit = datetime(2026, 3, 10, tzinfo=UTC)
    times = [datetime(2025, 12, 31, tzinfo=UTC), datetime(2026, 2, 28, 23, 59, 59, tzinfo=UTC), limit.replace(day=1)]
    with catalog.write() as conn:
        for number, at in enumerate(times):
            add_row(conn, at, number)
        assert activity.forget_before(conn, limit) == 2
        assert [each.at for each in activity.entries(conn)] == [limit.replace(day=1)]
        assert activity.forget_before(conn, limit) == 0


def test_months_are_there_ahead_of_time(own_postgres: Catalog) -> None:
    with own_postgres.write() as conn:
        at = now(conn)
        names = activity.partitions(conn)
        assert names[0] == f"activity_{at:%Y_%m}" and len(names) == activity.MONTHS_AHEAD + 1
        activity.note(conn, "source_added", "photos")
        where = conn.execute(sa.text("SELECT tableoid::regclass::text FROM activity")).scalar_one()
        assert where == names[0]
        for days in (28, 56, 84):
            add_row(conn, at + timedelta(days=days), days)
        assert in_default(conn) == 0
        assert activity.ensure_months(conn) == []


def test_a_row_whose_month_nobody_made_is_kept_and_gets_it_later(own_postgres: Catalog) -> None:
    with own_postgres.write() as conn:
        for number, at in enumerate((datetime(2031, 5, 31, 23, 59, tzinfo=UTC), datetime(2031, 6, 1, tzinfo=UTC))):
            add_row(conn, at, number)
        before = activity.entries(conn)
        assert in_default(conn) == 2
        assert activity.ensure_months(conn) == ["activity_2031_05", "activity_2031_06"]
        assert in_default(conn) == 0 and activity.entries(conn) == before
        by_month = conn.execute(sa.text("SELECT count(*) FROM activity_2031_05")).scalar_one()
        assert by_month == 1
        keys = sa.inspect(conn).get_pk_constraint("activity_2031_05")["constrained_columns"]
        assert keys == ["at", "uuid"]
        assert activity.forget_before(conn, datetime(2031, 6, 15, tzinfo=UTC)) == 1  # its table goes as a whole
        assert "activity_2031_05" not in activity.partitions(conn)


def test_two_who_make_the_months_at_once_make_them_once(own_postgres: Catalog) -> None:
    with own_postgres.write() as conn:
        for name in activity.partitions(conn):
            conn.execute(sa.text(f"DROP TABLE {name}"))
    made: list[list[str]] = []

    def make() -> None:
        with own_postgres.write() as conn:
            made.append(activity.ensure_months(conn))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(len(each) for each in made) == [0, 0, 0, activity.MONTHS_AHEAD + 1]
