"""prune: by hand what the pruner does every minute, and what is left to see of a retired batch."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa
from cli_home import Home, run, run_json
from lab import Lab

from mirror_realm_assets.catalog import batches
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import now
from mirror_realm_assets.cli.library import dagster_instance


@pytest.fixture
def home(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Home:
    """With more than two keys it is pruned down to one."""
    monkeypatch.setenv("MIRROR_REALM_HOME", str(lab.home))
    monkeypatch.setenv("MIRROR_REALM_PRUNE_ABOVE", "2")
    monkeypatch.setenv("MIRROR_REALM_PRUNE_TO", "1")
    return Home(lab)


def finished_batches(home: Home, names: list[str]) -> list[str]:
    """A batch for each picture, finished two hours ago, with a run and its key."""
    for n, name in enumerate(names):
        home.lab.picture(name, n)
        home.read()
    with home.lab.catalog.write() as conn:
        done = {"state": "settled", "outcome": "ok", "settled_at": now(conn) - timedelta(hours=2)}
        conn.execute(t.batch_items.update().values(**done))
        found = conn.execute(sa.select(t.batches.c.id, t.batches.c.key).order_by(t.batches.c.id)).all()
        for batch_id, key in found:
            batches.note_run(conn, batch_id, "search", f"run-of-{key}")
    keys = [key for _id, key in found]
    with dagster_instance(home.lab.settings) as instance:
        instance.add_dynamic_partitions("media_batch", keys)
    return keys


def live(home: Home) -> list[str]:
    with dagster_instance(home.lab.settings) as instance:
        return list(instance.get_dynamic_partitions("media_batch"))


def test_a_retired_batch_leaves_the_keys_and_is_still_shown_with_its_runs_and_times(home: Home) -> None:
    keys = finished_batches(home, ["a.png", "b.png", "c.png"])
    picture = str(home.lab.folder / "a.png")
    before = run_json("file", picture)["batches"]

    planned = run_json("prune", "--dry-run")
    assert (planned["live"], planned["retired_keys"], planned["deleted"]) == (3, keys[:2], 0)
    assert live(home) == keys

    done = run_json("prune")
    assert done == planned | {"dry_run": False, "deleted": 2}
    assert live(home) == keys[2:]

    (batch,) = run_json("file", picture)["batches"]
    assert batch.pop("retired_at") is not None
    assert [batch | {"retired_at": None}] == before
    assert [run["run_id"] for run in batch["runs"]] == [f"run-of-{keys[0]}"]
    words = run("file", picture).stdout
    assert f"batch {keys[0]} (ingest, " in words
    assert ", retired): " in words
    assert f"/runs/run-of-{keys[0]}" in words


def test_with_few_keys_it_says_from_when_on_it_prunes(home: Home) -> None:
    keys = finished_batches(home, ["a.png", "b.png"])
    result = run("prune")
    assert result.exit_code == 0
    assert "2 keys were live; 0 batches were retired, 0 keys deleted." in result.stdout
    assert "Keys are retired from 3 on, down to 1." in result.stderr
    assert live(home) == keys


def test_unfinished_batches_are_named_as_the_reason(home: Home) -> None:
    keys = finished_batches(home, ["a.png", "b.png", "c.png"])
    with home.lab.catalog.write() as conn:
        conn.execute(t.batch_items.update().values(settled_at=None, state="waiting", outcome=None))
    result = run("prune")
    assert "2 more should go, but their batches are unfinished, fresh, or being run." in result.stderr
    assert live(home) == keys
