"""The code location: it loads as Dagster loads it, it is light, and it says what the contract says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from mirror_realm_assets.address import LINEAGE
from mirror_realm_assets.definitions import build_defs

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def defs() -> dg.Definitions:
    return build_defs()


def test_importing_the_definitions_loads_no_heavy_library() -> None:
    code = (
        "import sys; from mirror_realm_assets.definitions import build_defs; build_defs()\n"
        "print([m for m in ('torch', 'torchvision', 'faiss', 'cv2', 'open_clip', 'timm', 'spandrel', 'PIL', 'pandas',"
        " 'pyarrow', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


def test_building_the_definitions_touches_no_file_and_uses_nothing_deprecated(tmp_path: Path) -> None:
    code = "from mirror_realm_assets.definitions import defs; defs()"
    env = {**os.environ, "MIRROR_REALM_HOME": str(tmp_path / "home"), "PYTHONWARNINGS": ""}
    command = [sys.executable, "-W", "error::DeprecationWarning", "-c", _STRICT + code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "home").exists()


_STRICT = """
import warnings
import dagster as dg
for name in ("PreviewWarning", "BetaWarning", "SupersessionWarning"):
    category = getattr(dg, name, None)
    if category is not None:
        warnings.simplefilter("error", category)
"""


def test_all_definitions_resolve(defs: dg.Definitions) -> None:
    dg.Definitions.validate_loadable(defs)
    for job in ("media_batch_job", "enhance_job", "archive_job", "index_job"):
        assert defs.resolve_job_def(job)


def test_assets_and_their_partitions_follow_the_contract(defs: dg.Definitions) -> None:
    graph = defs.resolve_asset_graph()
    partitions = {
        key.to_user_string(): node.partitions_def.name  # type: ignore[union-attr]
        for key in graph.materializable_asset_keys
        if (node := graph.get(key))
    }
    assert partitions == {
        "data_sources": "data_source",
        "raw_media": "media_batch",
        "embeddings": "media_batch",
        "enhanced_images": "media_batch",
        "archived_media": "media_batch",
        "faiss_index": "data_source",
    }


def test_every_asset_says_what_it_is(defs: dg.Definitions) -> None:
    graph = defs.resolve_asset_graph()
    for key in graph.materializable_asset_keys:
        spec = graph.get(key)
        assert spec.description and spec.owners and spec.kinds and spec.group_name and spec.code_version, key


def test_the_lineage_page_opens_every_group(defs: dg.Definitions) -> None:
    graph = defs.resolve_asset_graph()
    groups = {graph.get(key).group_name for key in graph.materializable_asset_keys}
    assert set(re.findall(r"global@global:(\w+)", LINEAGE)) == groups


def test_gpu_stages_carry_their_tags_and_pools(defs: dg.Definitions) -> None:
    job = defs.resolve_job_def("media_batch_job")
    embeddings = job.graph.node_named("embeddings").definition
    assert embeddings.pool == "embed"  # type: ignore[union-attr]
    limits = embeddings.tags["dagster-k8s/config"]
    assert "nvidia.com/gpu" in str(limits)
    enhanced = defs.resolve_job_def("enhance_job").graph.node_named("enhanced_images").definition
    assert enhanced.pool == "enhance"  # type: ignore[union-attr]


def test_sensors_run_by_default_and_tick_fast(defs: dg.Definitions) -> None:
    sensors = {sensor.name: sensor for sensor in defs.sensors or []}
    assert set(sensors) == {"batch_sensor", "enhance_sensor", "archive_sensor", "index_sensor", "reconciler", "pruner"}
    assert all(s.default_status is dg.DefaultSensorStatus.RUNNING for s in sensors.values())  # type: ignore[union-attr]
    assert sensors["batch_sensor"].minimum_interval_seconds == 1  # type: ignore[union-attr]


def test_every_gate_has_a_blocking_check(defs: dg.Definitions) -> None:
    checks = {
        spec.key.to_user_string(): spec.blocking
        for check in defs.asset_checks or []
        for spec in check.check_specs  # type: ignore[union-attr]
    }
    assert checks == {
        "raw_media:no_systemic_failure": True,
        "embeddings:no_systemic_failure": True,
        "enhanced_images:no_systemic_failure": True,
        "archived_media:no_systemic_failure": True,
        "embeddings:embeddings_are_vectors": True,
        "faiss_index:index_equals_ledger": True,
    }


def test_private_dagster_is_used_nowhere_in_the_package() -> None:
    found = [
        path.name
        for path in (REPOSITORY / "mirror_realm_assets").rglob("*.py")
        if any("dagster._" in line for line in path.read_text(encoding="utf-8").splitlines())
    ]
    assert found == []
