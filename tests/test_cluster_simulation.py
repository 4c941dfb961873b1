"""The simulation of a cluster keeps what must be kept, so that its figures mean something."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.cluster import TIMES
from benchmarks.cluster_simulation import SHARES, Figures, Policy, batch_files, simulate
from mirror_realm_assets.ingest.batching import search_seconds
from mirror_realm_assets.settings import Settings

_BASE = Path(__file__).resolve().parent.parent / "deploy" / "base"
_TIMES = {name: value for name, (value, _how, _source) in TIMES.items()}
_WORK = ("file_bytes", "cpu_seconds_per_file", "embed_seconds", "enhanced_megapixels", "enhance_seconds_per_megapixel")
_ONLY_GPU_WORK = {name: value if name in _WORK else 0.0 for name, value in _TIMES.items()}
_UNLIMITED = Policy(runs_at_once=10**6, lane_runs=10**6, run_buffer=10**6)


def of(
    gpus: int,
    files: int,
    policy: Policy = _UNLIMITED,
    times: Mapping[str, float] = _TIMES,
    lanes: str = "and all enhanced",
) -> Figures:
    return simulate(gpus, files, lanes, policy, times)


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 10**6), st.integers(1, 40), st.sampled_from(sorted(SHARES)))
def test_all_is_done_and_no_gpu_works_more_than_always(gpus: int, files: int, runs: int, lanes: str) -> None:
    found = of(gpus, files, Policy(runs_at_once=runs, lane_runs=runs), lanes=lanes)
    assert found.files == files
    assert 0 <= found.gpu_busy <= 1
    assert found.most_runs <= runs
    assert found.runs >= found.partitions + found.index_runs
    enhancing = SHARES[lanes] * _TIMES["enhanced_megapixels"] * _TIMES["enhance_seconds_per_megapixel"]
    work = files * (_TIMES["embed_seconds"] + _TIMES["record_seconds"] + enhancing) / 3600
    assert work <= gpus * found.hours + gpus * 0.01


@pytest.mark.parametrize("gpus", [1, 4, 40])
@pytest.mark.parametrize("lanes", ["search", "and all enhanced"])
def test_without_overhead_the_time_is_the_work_over_the_gpus(gpus: int, lanes: str) -> None:
    files = 400 * batch_files(_UNLIMITED, _ONLY_GPU_WORK)
    each = SHARES[lanes] * _TIMES["enhanced_megapixels"] * _TIMES["enhance_seconds_per_megapixel"]
    each += _TIMES["embed_seconds"]
    found = of(gpus, files, replace(_UNLIMITED, tick_seconds=1e-3, dequeue_seconds=1e-3), _ONLY_GPU_WORK, lanes)
    assert found.hours == pytest.approx(files * each / gpus / 3600, rel=0.02)
    assert found.gpu_busy == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("policy", [Policy(), _UNLIMITED], ids=["as deployed", "unlimited"])
@pytest.mark.parametrize("lanes", sorted(SHARES))
def test_more_gpus_never_make_it_slower(policy: Policy, lanes: str) -> None:
    hours = [of(gpus, 10**6, policy, lanes=lanes).hours for gpus in (1, 2, 3, 5, 8, 13, 40, 100)]
    # What is left over at the end may fall badly: a few minutes.
    assert all(after <= before + 0.1 for before, after in itertools.pairwise(hours)), hours


def test_search_hardly_waits_for_enhancement() -> None:
    alone, both = of(2, 300_000, lanes="search"), of(2, 300_000)
    assert both.searchable_hours <= alone.searchable_hours * 1.15
    assert both.hours > alone.hours


def test_more_runs_in_the_queue_are_of_no_use_where_the_sensors_ask_for_few() -> None:
    few = of(10, 10**6, Policy(), lanes="search")
    queue = of(10, 10**6, Policy(runs_at_once=400), lanes="search")
    both = of(10, 10**6, Policy(runs_at_once=400, lane_runs=400), lanes="search")
    assert queue.hours > 0.95 * few.hours
    assert both.hours < 0.5 * few.hours


def test_a_slice_of_whole_seconds_is_as_good_as_another() -> None:
    assert of(3, 10**5, replace(Policy(), slice_seconds=900)) == of(3, 10**5, replace(Policy(), slice_seconds=900.0))


def test_the_policy_is_that_of_manifests_and_sensors() -> None:
    data = yaml.safe_load((_BASE / "settings.yaml").read_text())["data"]
    config = yaml.safe_load((_BASE / "dagster.yaml").read_text())
    queue = config["run_coordinator"]["config"]
    policy = Policy()
    assert policy.batch_seconds == float(data["MIRROR_REALM_BATCH_SECONDS"])
    assert policy.batch_items == int(data["MIRROR_REALM_BATCH_ITEMS"])
    assert policy.batch_bytes == int(data["MIRROR_REALM_BATCH_BYTES"])
    assert policy.slice_seconds == float(data["MIRROR_REALM_SLICE_SECONDS"])
    assert policy.runs_at_once == config["concurrency"]["runs"]["max_concurrent_runs"]
    assert policy.run_buffer == config["concurrency"]["pools"].get("op_granularity_run_buffer", 0)
    assert policy.workers == queue["dequeue_num_workers"]
    assert policy.dequeue_seconds == queue["dequeue_interval_seconds"]
    assert policy.index_seconds == Settings.model_fields["index_backlog_seconds"].default
    assert policy.lane_runs == int(data["MIRROR_REALM_LANE_RUNS"])


def test_batches_are_reckoned_as_the_sensor_reckons_them() -> None:
    size = int(_TIMES["file_bytes"])
    assert batch_files(Policy(), _TIMES) == int(Policy().batch_seconds / search_seconds(size))
