"""A library moves from SQLite to PostgreSQL: the same rows, the same answers, nothing computed again."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
import sqlalchemy as sa
from cheap_stages import DIM, cheap_stages, run_lane
from click.testing import CliRunner
from lab import Lab

from mirror_realm_assets.catalog import moving, sources, status, workers
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.cli.main import cli
from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.liveness import HomeLock, identity
from mirror_realm_assets.resources.library import close_services, open_services
from mirror_realm_assets.search.query import search


@pytest.fixture
def filled(lab: Lab) -> Lab:
    """Pictures with features, two that are refused, one of them with a name that is no UTF-8, and a sidecar."""
    for number in range(6):
        lab.picture(f"{number}.png", number)
    (lab.folder / "bad.jpg").write_bytes(b"nothing")
    (lab.folder / "0.png.xmp").write_text("no XMP")
    with open(os.fsencode(lab.folder) + b"/\xff\xfe.png", "wb") as file:  # noqa: PTH123 - raw bytes
        file.write(b"x")
    work(lab)
    return lab


def work(lab: Lab) -> int:
    stages = cheap_stages(lab.settings)
    formed = lab.form(stages)
    for batch in formed:
        run_lane(lab.services, stages, batch.key)
        run_lane(lab.services, stages, batch.key, "enhance")
    return len(formed)


def answers(lab: Lab) -> list[tuple[float, str, list[bytes]]]:
    recipe = cheap_stages(lab.settings)[1].recipe(lab.source.policy)
    assert recipe is not None
    query = np.arange(DIM, dtype=np.float32)
    hits = search(lab.catalog, lab.services.store, query, recipe=recipe.digest, model="toy")
    return [(hit.score, hit.media, list(hit.paths)) for hit in hits]


def counts(lab: Lab) -> object:
    rules = [stage.rule for stage in cheap_stages(lab.settings)]
    with lab.catalog.read() as conn:
        return status.of_source(conn, lab.source, rules)


@pytest.fixture
def target(postgres_url: str) -> Iterator[Catalog]:
    """An empty database."""
    made = Catalog(postgres_url)
    with made.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(sa.text("DROP SCHEMA public CASCADE"))
        conn.execute(sa.text("CREATE SCHEMA public"))
    yield made
    made.close()


def on_postgres(lab: Lab, target: Catalog) -> Lab:
    """The same home, with the other catalog."""
    close_services(lab.settings)
    url = target.url.render_as_string(hide_password=False)
    lab.settings = lab.settings.model_copy(update={"configured_catalog_url": url})
    lab.services = open_services(lab.settings)
    return lab


def test_a_moved_library_gives_the_same_answers_and_computes_nothing_again(filled: Lab, target: Catalog) -> None:
    before, told, identity = answers(filled), counts(filled), filled.catalog.uuid()
    assert len(before) == 6
    progress: list[tuple[str, int, int]] = []
    rows = moving.move(filled.catalog, target, lambda *said: progress.append(said))
    assert rows["features"] >= 18
    assert ("features", rows["features"], rows["features"]) in progress
    lab = on_postgres(filled, target)
    assert target.uuid() == identity
    assert (answers(lab), counts(lab)) == (before, told)
    assert work(lab) == 0
    # Numbers go on where they were.
    lab.picture("new.png", 99)
    assert work(lab) == 1
    assert len(answers(lab)) == 7


def test_a_database_that_holds_a_library_is_not_touched(filled: Lab, target: Catalog) -> None:
    target.migrate()
    with target.write() as conn:
        sources.add(conn, "mine", b"/somewhere", {})
    with pytest.raises(SetupError) as caught:
        moving.move(filled.catalog, target)
    assert caught.value.code == "already_exists"
    with target.read() as conn:
        assert [source.name for source in sources.all_sources(conn)] == ["mine"]


def test_nothing_is_kept_of_a_move_that_fails(filled: Lab, target: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = moving._copy

    def damages(old: sa.Connection, new: sa.Connection, table: sa.Table, tell: moving.Progress) -> int:
        copied = copy(old, new, table, tell)
        if table is t.features:
            new.execute(table.update().values(seconds=1.5))
        return copied

    monkeypatch.setattr(moving, "_copy", damages)
    with pytest.raises(SetupError, match="features"):
        moving.move(filled.catalog, target)
    with target.read() as conn:
        assert sources.all_sources(conn) == []
    monkeypatch.undo()
    assert moving.move(filled.catalog, target)["sources"] == 1


def test_the_command(filled: Lab, target: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRROR_REALM_HOME", str(filled.home))
    run = CliRunner()
    refused = run.invoke(cli, ["migrate"])
    assert refused.exit_code == 1
    assert "is the catalog that is configured" in refused.stderr
    monkeypatch.setenv("MIRROR_REALM_CATALOG_URL", target.url.render_as_string(hide_password=False))
    with HomeLock(filled.home / "up.lock"):
        busy = run.invoke(cli, ["migrate"])
    assert busy.exit_code == 1
    assert "already supervising" in busy.stderr
    with filled.catalog.write() as conn:
        at_work = workers.register(conn, "ingest", identity())
    busy = run.invoke(cli, ["migrate"])
    assert busy.exit_code == 1
    assert f"ingest {os.getpid()}" in busy.stderr
    with filled.catalog.write() as conn:
        workers.end(conn, at_work)
    done = run.invoke(cli, ["migrate", "--json"])
    assert done.exit_code == 0, done.output
    assert '"contents": 8' in done.stdout
    missing = run.invoke(cli, ["migrate", "--from", str(filled.home / "none.sqlite")])
    assert missing.exit_code == 1
    assert "There is no catalog at" in missing.stderr
