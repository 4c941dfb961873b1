"""What PostgreSQL knows of the sizes of our tables, kept up while they grow fast.

What belongs here: asking for statistics when they are far behind. What does not: queries, and the size of the database.

A query is planned by statistics that the server's autovacuum gathers once a minute at best. A library that is filled
has 100,000 new rows in that time: a plan for an empty table then takes minutes instead of a second (an index round
over 100,000 pictures was seen to). SQLite plans without.
"""

from __future__ import annotations

import sqlalchemy as sa

from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog

_CHANGED_ROWS = 1000
_CHANGED_SHARE = 0.2  # of a table; autovacuum's own is a tenth, so it mostly comes first where a table is large

_BEHIND = sa.text(
    "SELECT relname FROM pg_stat_user_tables WHERE schemaname = current_schema() AND relname = ANY(:ours) "
    "AND n_mod_since_analyze > :rows + :share * n_live_tup ORDER BY relname"
)


def refresh(catalog: Catalog) -> list[str]:
    """Have statistics gathered of tables that have changed much since the last time.

    Costs a query of a millisecond when nothing has, and a tenth of a second for each table otherwise.

    Returns:
        Names of the tables; none on SQLite.
    """
    if catalog.is_sqlite:
        return []
    ours = sorted(table.name for table in t.metadata.sorted_tables if table.name != "activity")
    with catalog.read() as conn:
        rows = conn.execute(_BEHIND, {"ours": ours, "rows": _CHANGED_ROWS, "share": _CHANGED_SHARE})
        behind = [str(name) for name in rows.scalars()]
    for name in behind:
        with catalog.write() as conn:
            conn.exec_driver_sql(f"ANALYZE {name}")  # one of our own names
    return behind
