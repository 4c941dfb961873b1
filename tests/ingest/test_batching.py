"""Forming batches: the journal is drained once, waiting files are cut, what changed is computed again."""

from __future__ import annotations

import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from cheap_stages import cheap_stages, run_lane
from lab import Lab

from mirror_realm_assets.catalog import batches, files, leases, sources, status, workers
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.files import Sighting
from mirror_realm_assets.ingest import batching
from mirror_realm_assets.ingest.batching import Former, form_batches
from mirror_realm_assets.liveness import identity
from mirror_realm_assets.pipeline import standard_stages
from mirror_realm_assets.settings import Settings


class Inbox:
    """A catalog with a source and a journal that a test writes into; no file is behind it."""

    def __init__(self, catalog: Catalog, home: Path, **settings: Any) -> None:
        self.catalog = catalog
        self.settings = Settings.at(home, **({"batch_age_seconds": 0.0} | settings))
        self.stages = cheap_stages(self.settings)
        with catalog.write() as conn:
            self.source = sources.add(conn, "demo", b"/photos", {})

    def see(self, *names: str, size: int = 1000, source: sources.Source | None = None) -> None:
        sightings = [Sighting("seen", name.encode(), size, n) for n, name in enumerate(names)]
        with self.catalog.write() as conn:
            files.write_journal(conn, (source or self.source).id, 1, sightings)

    def form(self, owner: str = "me", **options: Any) -> batching.Formed:
        return form_batches(self.catalog, self.settings, self.stages, owner, **options)

    def sizes(self) -> list[int]:
        with self.catalog.read() as conn:
            return list(conn.execute(sa.select(t.batches.c["items"]).order_by(t.batches.c.id)).scalars())

    def settle(self) -> None:
        """Everything formed so far is done: its files are identified and its items settled."""
        with self.catalog.write() as conn:
            held = sa.select(t.batch_items.c.location_id)
            at = conn.execute(sa.select(t.sources.c.created_at)).scalars().first()
            conn.execute(t.batch_items.update().values(state="settled", outcome="failed", settled_at=at))
            refused = {"code": "unsupported", "state": "unreadable"}
            conn.execute(t.locations.update().where(t.locations.c.id.in_(held)).values(refused))


@pytest.fixture
def inbox(catalog: Catalog, tmp_path: Path) -> Inbox:
    return Inbox(catalog, tmp_path / "home")


@pytest.fixture
def local(tmp_path: Path, migrated_sqlite: Path) -> Inbox:
    """On SQLite alone, for what is no question of the database."""
    shutil.copy(migrated_sqlite, tmp_path / "catalog.sqlite")
    return Inbox(Catalog(f"sqlite:///{tmp_path / 'catalog.sqlite'}"), tmp_path / "home")


def test_the_first_batch_of_a_burst_is_small(inbox: Inbox) -> None:
    inbox.see(*[f"{n}.png" for n in range(100)])
    formed = inbox.form()
    assert formed.drained == 100
    assert len(formed.keys) == len(set(formed.keys)) == 2
    assert inbox.sizes() == [32, 68]


def test_the_newest_files_come_first(local: Inbox) -> None:
    local.see(*[f"{n}.png" for n in range(40)])  # the last has the latest mtime
    first = local.form().keys[0]
    with local.catalog.read() as conn:
        batch = batches.get(conn, first)
        assert batch is not None
        paths = conn.execute(
            sa.select(t.locations.c.display)
            .join(t.batch_items, t.batch_items.c.location_id == t.locations.c.id)
            .where(t.batch_items.c.batch_id == batch.id, t.batch_items.c.feature == "raw_media")
            .order_by(t.batch_items.c.n)
        ).scalars()
        assert list(paths) == [f"{n}.png" for n in range(39, 7, -1)]


def test_a_trickle_collects_while_a_batch_of_the_source_is_open(local: Inbox) -> None:
    local.see("a.png")
    assert len(local.form().keys) == 1
    for n in range(5):
        local.see(f"{n}.png")
        assert local.form().keys == []
    local.settle()
    local.see("last.png")
    assert len(local.form().keys) == 1
    assert local.sizes() == [1, 6]


def test_full_batches_are_cut_also_while_a_batch_is_open(tmp_path: Path, migrated_sqlite: Path) -> None:
    shutil.copy(migrated_sqlite, tmp_path / "catalog.sqlite")
    small = Inbox(Catalog(f"sqlite:///{tmp_path / 'catalog.sqlite'}"), tmp_path / "home", batch_items=10)
    small.see("a.png")
    small.form()
    small.see(*[f"{n}.png" for n in range(25)])
    small.form()
    assert small.sizes() == [1, 10, 10]


def test_files_wait_until_they_are_old_enough_unless_somebody_waits_for_them(
    tmp_path: Path, migrated_sqlite: Path
) -> None:
    shutil.copy(migrated_sqlite, tmp_path / "catalog.sqlite")
    patient = Inbox(Catalog(f"sqlite:///{tmp_path / 'catalog.sqlite'}"), tmp_path / "home", batch_age_seconds=60.0)
    patient.see("a.png")
    assert patient.form().keys == []
    assert len(patient.form(now_or_never=True).keys) == 1


def test_a_file_is_in_one_open_batch_only(local: Inbox) -> None:
    local.see("a.png")
    local.form(now_or_never=True)
    local.see("a.png", size=2000)  # it changed meanwhile
    assert local.form(now_or_never=True).keys == []
    assert local.sizes() == [1]


def test_the_journal_is_drained_once_by_many_formers_at_once(inbox: Inbox) -> None:
    names = [f"{n}.png" for n in range(200)]
    inbox.see(*names)
    found: list[batching.Formed] = []
    start = threading.Barrier(4)

    def former(owner: str) -> None:
        start.wait()
        found.append(inbox.form(owner, now_or_never=True))

    threads = [threading.Thread(target=former, args=(f"former {n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert sum(formed.drained for formed in found) == 200
    keys = [key for formed in found for key in formed.keys]
    assert len(keys) == len(set(keys))
    assert sum(inbox.sizes()) == 200
    with inbox.catalog.read() as conn:
        assert conn.execute(sa.select(sa.func.count()).select_from(t.journal)).scalar_one() == 0


def test_a_live_former_keeps_others_out_and_a_dead_one_does_not(local: Inbox) -> None:
    local.see("a.png")
    with local.catalog.write() as conn:
        lease = leases.acquire(conn, "former", "somebody", 60)
    assert lease is not None
    formed = local.form()
    assert (formed.leased, formed.keys, formed.drained) == (False, [], 0)
    with local.catalog.write() as conn:
        leases.renew(conn, lease, -1)
    assert len(local.form().keys) == 1


def test_a_former_whose_process_is_gone_keeps_nobody_out(local: Inbox) -> None:
    local.see("a.png")
    gone = replace(identity(), started=1)  # its pid is another's by now
    with local.catalog.write() as conn:
        dead = workers.register(conn, "form", gone)
        assert leases.acquire(conn, "former", dead, 60) is not None
    former = Former(local.catalog)
    assert len(former.form(local.settings, local.stages).keys) == 1
    former.close()
    with local.catalog.read() as conn:
        assert workers.open_workers(conn) == []


def test_a_former_that_dies_between_two_sources_leaves_whole_batches_and_the_rest_waiting(
    local: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    with local.catalog.write() as conn:
        other = sources.add(conn, "other", b"/other", {})
    local.see("a.png")
    local.see("b.png", source=other)
    form = batches.form

    def dying(conn: sa.Connection, source: sources.Source, *arguments: Any, **options: Any) -> batches.Batch:
        made = form(conn, source, *arguments, **options)
        if source.name == "other":
            raise KeyboardInterrupt
        return made

    with monkeypatch.context() as patch:
        patch.setattr(batches, "form", dying)
        with pytest.raises(KeyboardInterrupt):
            local.form("first")
    assert local.sizes() == [1]
    (key,) = local.form("second").keys
    assert key.startswith("other.")
    assert local.sizes() == [1, 1]


def test_nothing_is_formed_for_a_paused_source_and_nothing_of_it_is_lost(local: Inbox) -> None:
    with local.catalog.write() as conn:
        sources.set_state(conn, "demo", "paused")
        sources.add(conn, "other", b"/other", {})
    local.see("a.png")
    formed = local.form(now_or_never=True)
    assert (formed.keys, formed.drained) == ([], 1)
    with local.catalog.write() as conn:
        sources.set_state(conn, "demo", "active")
    assert len(local.form(now_or_never=True).keys) == 1


def test_one_source_alone_can_be_formed(local: Inbox) -> None:
    with local.catalog.write() as conn:
        other = sources.add(conn, "other", b"/other", {})
    local.see("a.png")
    local.see("b.png", source=other)
    (key,) = local.form(source_id=other.id, now_or_never=True).keys
    assert key.startswith("other.")


def test_a_source_that_names_an_unknown_model_is_paused_and_the_others_go_on(local: Inbox) -> None:
    local.stages = standard_stages(local.settings)
    with local.catalog.write() as conn:
        other = sources.add(conn, "other", b"/other", {"embedder": "no-such-model"})
    local.see("a.png")
    local.see("b.png", source=other)
    (key,) = local.form(now_or_never=True).keys
    assert key.startswith("demo.")
    with local.catalog.read() as conn:
        found = sources.get(conn, "other")
    assert found.state == "paused"
    assert "no-such-model" in (found.state_reason or "")


# --- With real files. ---


def counts(lab: Lab, feature: str) -> dict[str, int]:
    rules = [stage.rule for stage in cheap_stages(lab.settings)]
    with lab.catalog.read() as conn:
        found = status.of_source(conn, lab.source, rules)
    return {name: count for name, count in found.features[feature].items() if count}


def work(lab: Lab) -> list[str]:
    """Form and run everything; returns the kinds of the batches."""
    stages = cheap_stages(lab.settings)
    formed = lab.form(stages)
    for batch in formed:
        run_lane(lab.services, stages, batch.key)
        run_lane(lab.services, stages, batch.key, "enhance")
    return [batch.kind for batch in formed]


def test_the_same_bytes_under_two_names_are_one_media(lab: Lab) -> None:
    picture = lab.picture("a.png")
    (lab.folder / "copy.png").write_bytes(picture.read_bytes())
    work(lab)
    (lab.folder / "later.png").write_bytes(picture.read_bytes())
    work(lab)
    assert counts(lab, "raw_media") == {"ok": 3}
    assert counts(lab, "embeddings") == {"ok": 1}
    with lab.catalog.read() as conn:
        assert conn.execute(sa.select(sa.func.count()).select_from(t.media)).scalar_one() == 1
        rows = conn.execute(sa.select(t.features.c.feature, t.features.c.attempts).order_by(t.features.c.feature)).all()
    assert [tuple(row) for row in rows] == [("embeddings", 1), ("enhanced_images", 1), ("raw_media", 1)]


def test_raising_a_limit_makes_work_of_just_what_was_too_large(lab: Lab) -> None:
    with lab.catalog.write() as conn:
        sources.set_policy(conn, "demo", {"enhance.max_pixels": 1000})
    lab.picture("small.png", 1, size=(32, 24))
    lab.picture("large.png", 2, size=(64, 48))
    lab.picture("huge.png", 3, size=(640, 480))
    work(lab)
    assert counts(lab, "enhanced_images") == {"ok": 1, "not_wanted": 2}
    assert work(lab) == []
    with lab.catalog.write() as conn:
        sources.set_policy(conn, "demo", {"enhance.max_pixels": 5000})
    assert counts(lab, "enhanced_images") == {"ok": 1, "pending": 1, "not_wanted": 1}
    assert work(lab) == ["recompute"]
    assert counts(lab, "enhanced_images") == {"ok": 2, "not_wanted": 1}
    assert work(lab) == []
    with lab.catalog.read() as conn:
        found = conn.execute(
            sa.select(t.features.c.output, t.features.c.attempts).where(t.features.c.feature == "enhanced_images")
        ).all()
    assert sorted((row[0]["pixels"], row[1]) for row in found) == [(768, 1), (3072, 1)]


def test_a_metadata_only_touch_costs_no_model_call(lab: Lab) -> None:
    picture = lab.picture("a.png")
    work(lab)
    os.utime(picture, ns=(5, 5))
    work(lab)
    with lab.catalog.read() as conn:
        attempts = conn.execute(sa.select(t.features.c.feature, t.features.c.attempts)).all()
    assert {row[0]: row[1] for row in attempts} == {"raw_media": 1, "embeddings": 1, "enhanced_images": 1}
