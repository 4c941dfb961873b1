"""The blocking checks, run by Dagster over a real ledger and a real store."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy as sa
from cheap_stages import DIM, cheap_stages, run_lane
from lab import Lab
from pyarrow import parquet

from mirror_realm_assets.assets.gate import Gate
from mirror_realm_assets.catalog import batches, sources
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.batches import NewItem
from mirror_realm_assets.catalog.engine import now
from mirror_realm_assets.checks.gates import embeddings_are_vectors, index_equals_ledger, no_systemic_failure
from mirror_realm_assets.errors import REASONS
from mirror_realm_assets.partitions import data_source, media_batch
from mirror_realm_assets.resources.library import LibraryResource, close_services
from mirror_realm_assets.search.update import update_index
from mirror_realm_assets.store import keys
from mirror_realm_assets.store.shards import decode_shard

Evaluate = Callable[[Gate, str], dg.AssetCheckEvaluation]


class NoVerdict(Exception):
    """The check itself ended with an error, and its run with it."""


@pytest.fixture
def evaluate(lab: Lab) -> Iterator[Evaluate]:
    """Runs a check behind an asset of its name that does nothing, and behind that an asset that it may hold back."""
    library = LibraryResource(home=str(lab.home))

    def run(gate: Gate, key: str) -> dg.AssetCheckEvaluation:
        check, spec = gate.definition, gate.spec
        partitions = data_source if key == "demo" else media_batch

        @dg.asset(name=spec.asset_key.to_user_string(), partitions_def=partitions)
        def checked() -> None: ...

        @dg.asset(name="after", partitions_def=partitions, deps=[checked])
        def after() -> None: ...

        instance = dg.DagsterInstance.ephemeral()
        instance.add_dynamic_partitions(str(partitions.name), [key])
        result = dg.materialize(
            [checked, check, after],
            partition_key=key,
            instance=instance,
            resources={"library": library},
            raise_on_error=False,
        )
        verdicts = result.get_asset_check_evaluations()
        passed = bool(verdicts) and verdicts[0].passed
        assert result.success is passed, "the check blocks exactly when it does not pass"
        assert bool(result.asset_materializations_for_node("after")) is passed
        if not verdicts:
            raise NoVerdict
        return verdicts[0]

    yield run
    close_services(library.settings)


def batch_with(lab: Lab, outcomes: list[tuple[str, str | None]]) -> str:
    """A batch whose items of `raw_media` ended like this."""
    with lab.catalog.write() as conn:
        new = [NewItem(location_id=None) for _ in outcomes]
        batch = batches.form(conn, sources.get(conn, "demo"), new, ["raw_media", "embeddings"])
        at = now(conn)
        for n, (outcome, code) in enumerate(outcomes):
            c = t.batch_items.c
            ended = {"state": "settled", "outcome": outcome, "code": code, "settled_at": at}
            where = (c.batch_id == batch.id, c.n == n, c.feature == "raw_media")
            conn.execute(t.batch_items.update().where(*where).values(ended))
    return batch.key


OK, MEMORY, GONE, CORRUPT = ("ok", None), ("failed", "out_of_memory"), ("failed", "file_gone"), ("refused", "corrupt")


@pytest.mark.parametrize(
    ("outcomes", "passed"),
    [
        ([MEMORY] * 10 + [OK] * 10, True),  # half is not more than half
        ([MEMORY] * 11 + [OK] * 9, False),
        ([MEMORY] * 19, True),  # too few to tell
        ([MEMORY] * 20, False),
        ([MEMORY] * 10 + [GONE] * 10, True),  # not one and the same cause
        ([CORRUPT] * 40, True),  # the files' fault
        ([OK] * 20, True),
        ([GONE] * 30 + [OK] * 10, True),  # somebody tidied up before they were read
        ([GONE] * 30 + [MEMORY] * 11 + [OK] * 9, False),
    ],
)
def test_a_systemic_failure_is_more_than_half_of_at_least_twenty_with_one_code(
    lab: Lab, evaluate: Evaluate, outcomes: list[tuple[str, str | None]], passed: bool
) -> None:
    found = evaluate(no_systemic_failure(cheap_stages(lab.settings)[0]), batch_with(lab, outcomes))
    assert found.passed is passed
    assert found.metadata["items"].value == len(outcomes)
    assert found.metadata["failed"].value == sum(outcome == "failed" for outcome, _code in outcomes)
    if not passed:
        assert found.metadata["worst_code"].value == "out_of_memory"


def embedded(lab: Lab, number: int = 3) -> str:
    stages = cheap_stages(lab.settings)
    for n in range(number):
        lab.picture(f"{n}.png", n)
    (batch,) = lab.form(stages)
    run_lane(lab.services, stages, batch.key)
    return batch.key


def outputs(lab: Lab) -> list[dict[str, Any]]:
    with lab.catalog.read() as conn:
        query = sa.select(t.features.c.output).where(t.features.c.feature == "embeddings").order_by(t.features.c.id)
        return list(conn.execute(query).scalars())


def test_embeddings_are_read_back_finite_and_of_length_one(lab: Lab, evaluate: Evaluate) -> None:
    key = embedded(lab)
    found = evaluate(embeddings_are_vectors(cheap_stages), key)
    assert found.passed
    assert (found.metadata["vectors"].value, found.metadata["bad"].value) == (3, 0)
    for place in outputs(lab):
        vectors = decode_shard(lab.services.store.read(place["shard"], place["sha256"])).vectors
        assert np.isfinite(vectors).all()
        assert np.abs(np.linalg.norm(vectors, axis=1) - 1) == pytest.approx(np.zeros(len(vectors)), abs=0.01)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 0.0])
def test_an_embedding_that_is_no_vector_holds_the_run_up(lab: Lab, evaluate: Evaluate, wrong: float) -> None:
    key = embedded(lab)
    place = outputs(lab)[0]
    shard = decode_shard(lab.services.store.read(place["shard"], place["sha256"]))
    vectors = shard.vectors.astype(np.float16)
    vectors[place["row"]] = wrong
    table = pa.table(
        [
            pa.array(shard.image_digests, pa.string()),
            pa.array(shard.parts, pa.int32()),
            pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1), pa.float16()), DIM),
        ],
        names=["image_digest", "part", "vector"],
    ).replace_schema_metadata({"version": "1", "model": "toy", "recipe": shard.recipe, "dim": str(DIM)})
    out = io.BytesIO()
    parquet.write_table(table, out)
    data = out.getvalue()
    stored = lab.services.store.put(keys.shard_key(hashlib.sha256(data).hexdigest()), data)
    with lab.catalog.write() as conn:
        conn.execute(
            t.features.update()
            .where(t.features.c.feature == "embeddings")
            .values(output=place | {"shard": stored.key, "sha256": stored.sha256})
        )
    found = evaluate(embeddings_are_vectors(cheap_stages), key)
    assert not found.passed
    assert found.severity is dg.AssetCheckSeverity.ERROR
    assert found.metadata["code"].value == "model_failed" or found.metadata["code"].value == "store_corrupt"
    assert found.description


def test_a_check_that_does_not_pass_says_why_in_words(lab: Lab, evaluate: Evaluate) -> None:
    systemic = evaluate(no_systemic_failure(cheap_stages(lab.settings)[0]), batch_with(lab, [MEMORY] * 15 + [OK] * 5))
    assert systemic.description is not None
    assert "15 of 20 files failed" in systemic.description
    assert REASONS["out_of_memory"].remedy in systemic.description


def test_a_shard_that_is_gone_fails_the_check_with_a_reason_and_not_with_an_error(lab: Lab, evaluate: Evaluate) -> None:
    key = embedded(lab)
    (lab.home / "store" / outputs(lab)[0]["shard"]).unlink()
    found = evaluate(embeddings_are_vectors(cheap_stages), key)
    assert not found.passed
    assert found.metadata["code"].value == "store_failed"
    assert REASONS["store_failed"].remedy in (found.description or "")


def test_a_batch_without_embeddings_passes(lab: Lab, evaluate: Evaluate) -> None:
    (lab.folder / "a.png").write_bytes(b"no picture")
    stages = cheap_stages(lab.settings)
    (batch,) = lab.form(stages)
    run_lane(lab.services, stages, batch.key)
    found = evaluate(embeddings_are_vectors(cheap_stages), batch.key)
    assert found.passed
    assert found.metadata["vectors"].value == 0


def test_an_index_that_holds_what_the_ledger_names_passes_and_another_fails(lab: Lab, evaluate: Evaluate) -> None:
    check = index_equals_ledger(cheap_stages)
    assert evaluate(check, "demo").passed  # nothing published, nothing expected
    embedded(lab)
    update_index(lab.services, cheap_stages(lab.settings), "demo")
    found = evaluate(check, "demo")
    assert found.passed
    assert (found.metadata["in_manifest"].value, found.metadata["in_ledger"].value) == (3, 3)
    with lab.catalog.write() as conn:
        one = sa.select(sa.func.min(t.index_members.c.id)).scalar_subquery()
        conn.execute(t.index_members.delete().where(t.index_members.c.id == one))
    found = evaluate(check, "demo")
    assert not found.passed
    assert (found.metadata["in_manifest"].value, found.metadata["in_ledger"].value) == (3, 2)
