"""The simulation of a cluster keeps what must be kept, so that its figures mean something."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.cluster import TIMES, Figures, Policy, batch_files, simulate
from mirror_realm_assets.settings import Settings

_TIMES = {name: value for name, (value, _source) in TIMES.items()}
_NO_OVERHEAD = _TIMES | dict.fromkeys(("pod_seconds", "load_seconds", "ledger_seconds", "read_seconds"), 0.0)
_UNLIMITED = Policy(runs_at_once=10**6, runs_a_second=1e9, batches_a_tick=10**6)


def of(gpus: int, files: int, policy: Policy = _UNLIMITED, times: dict[str, float] = _TIMES, **how: Any) -> Figures:
    return simulate(gpus, files, policy, times, **{"enhance": True, **how})


@given(st.integers(1, 20), st.integers(1, 10**6), st.integers(1, 40), st.booleans())
def test_every_file_is_done_and_no_gpu_works_more_than_always(
    gpus: int, files: int, runs_at_once: int, enhance: bool
) -> None:
    found = of(gpus, files, replace(_UNLIMITED, runs_at_once=runs_at_once), enhance=enhance)
    assert found.files == files
    assert 0 <= found.gpu_busy <= 1
    assert found.most_runs <= runs_at_once
    assert found.runs >= found.partitions


def test_without_overhead_the_time_is_the_work_over_the_gpus() -> None:
    times = _NO_OVERHEAD | {"embed_seconds": 0.01}
    files = 40 * batch_files(_UNLIMITED, times)
    for gpus in (1, 4, 40):
        found = of(gpus, files, times=times, enhance=False)
        assert found.hours == pytest.approx(files * 0.01 / gpus / 3600, abs=0.01)
        assert found.gpu_busy == pytest.approx(1.0, abs=0.001)


@given(st.integers(1, 30))
def test_another_gpu_never_makes_it_slower(gpus: int) -> None:
    assert of(gpus + 1, 300_000).hours <= of(gpus, 300_000).hours


def test_enhancement_waits_for_search_and_not_the_other_way_round() -> None:
    alone, both = of(2, 300_000, enhance=False), of(2, 300_000)
    assert both.searchable_hours <= alone.searchable_hours * 1.1
    assert both.hours > alone.hours


def test_too_few_runs_at_once_leave_gpus_idle() -> None:
    few = of(10, 10**6, replace(_UNLIMITED, runs_at_once=5))
    assert few.waited_for == "its turn in the queue"
    assert few.gpu_busy < of(10, 10**6).gpu_busy


def test_the_policy_is_that_of_the_manifests() -> None:
    from pathlib import Path

    base = Path(__file__).resolve().parent.parent / "deploy" / "base"
    data = yaml.safe_load((base / "settings.yaml").read_text())["data"]
    config = yaml.safe_load((base / "dagster.yaml").read_text())
    policy = Policy()
    assert policy.batch_seconds == float(data["MIRROR_REALM_BATCH_SECONDS"])
    assert policy.batch_items == int(data["MIRROR_REALM_BATCH_ITEMS"])
    assert policy.batch_bytes == int(data["MIRROR_REALM_BATCH_BYTES"])
    assert policy.slice_seconds == float(data["MIRROR_REALM_SLICE_SECONDS"])
    assert policy.runs_at_once == config["concurrency"]["runs"]["max_concurrent_runs"]
    assert Settings.model_fields["batch_seconds"].default < policy.batch_seconds
