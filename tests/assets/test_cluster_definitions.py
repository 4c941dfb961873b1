"""What the definitions say of pods, and a step that does its asset's checks itself, as on a cluster."""

from __future__ import annotations

import json

import dagster as dg
import pytest
from cheap_stages import cheap_stages
from lab import Lab

from mirror_realm_assets.assets.factory import stage_asset
from mirror_realm_assets.checks.gates import no_systemic_failure
from mirror_realm_assets.definitions import build_defs
from mirror_realm_assets.op_tags import K8S_CONFIG
from mirror_realm_assets.resources.library import LibraryResource

_GPU_STAGES = ("embeddings", "enhanced_images")


@pytest.fixture(autouse=True)
def on_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRROR_REALM_LAUNCHER", "kubernetes")
    monkeypatch.setenv("MIRROR_REALM_GPUS", "2")


def test_steps_are_pods_that_ask_for_memory_and_those_with_a_network_for_a_gpu() -> None:
    defs = build_defs()
    assert defs.executor is not None
    assert getattr(defs.executor, "name", "") == "k8s_job_executor"
    wants = {}
    for asset in defs.resolve_all_asset_specs():
        op = defs.resolve_assets_def(asset.key).op
        limits = json.loads(op.tags[K8S_CONFIG])["container_config"]["resources"]["limits"]
        assert "memory" in limits, asset.key
        wants[asset.key.to_user_string()] = ("nvidia.com/gpu" in limits, op.pool)
    assert {name for name, (gpu, _) in wants.items() if gpu} == set(_GPU_STAGES)
    assert {name: pool for name, (gpu, pool) in wants.items() if gpu} == dict.fromkeys(_GPU_STAGES, "gpu")


def test_every_gate_of_a_single_machine_stands_on_its_asset(monkeypatch: pytest.MonkeyPatch) -> None:
    there = set(build_defs().resolve_asset_graph().asset_check_keys)
    monkeypatch.setenv("MIRROR_REALM_LAUNCHER", "process")
    assert there == set(build_defs().resolve_asset_graph().asset_check_keys)


def test_a_step_looks_at_its_own_batch(lab: Lab) -> None:
    lab.picture("a.png")
    stages = cheap_stages(lab.settings)
    (batch,) = lab.form(stages)
    (raw,) = [stage for stage in stages if stage.name == "raw_media"]
    asset = stage_asset(raw, cheap_stages, gates=[no_systemic_failure(raw)])
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("media_batch", [batch.key])
        done = dg.materialize(
            [asset],
            partition_key=batch.key,
            instance=instance,
            resources={"library": LibraryResource(home=str(lab.home))},
        )
        (looked,) = done.get_asset_check_evaluations()
        assert done.success and looked.passed
        assert looked.check_name == no_systemic_failure(raw).name
