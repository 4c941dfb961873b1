"""The recipe for the dagster CLI, run as it stands in the documentation."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from running_home import RunningHome

RECIPE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "run-from-ci.md"
pytestmark = [pytest.mark.xdist_group("inference"), pytest.mark.timeout(500)]  # other tests share the cores


def blocks() -> list[str]:
    """The scripts of the part about the dagster CLI."""
    _, _, part = RECIPE.read_text(encoding="utf-8").partition("## With the dagster CLI")
    return re.findall(r"```bash\n(.*?)```", part, re.DOTALL)


def bash(script: str, folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    programs = str(Path(sys.executable).parent)
    done = subprocess.run(
        ["bash", "-eu", "-c", script],
        cwd=folder,
        env={**env, "PATH": f"{programs}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


def test_a_folder_becomes_searchable_by_the_dagster_cli_alone(
    drop: Callable[..., Path], tmp_path: Path, models_dir: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, name in enumerate(("beach.png", "second.png", "third.png")):
        drop(photos, number, name=name)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MIRROR_REALM_", "DAGSTER_"))}
    script, _launch = blocks()
    bash(script, tmp_path, {**clean, "MIRROR_REALM_MODELS_DIR": str(models_dir)})
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found[0]["paths"] == [str(photos / "beach.png")]
    assert len(found) == 3
    # Nothing is left to do, and nobody is told to do it.
    env = {**clean, "MIRROR_REALM_HOME": str(tmp_path / "home"), "MIRROR_REALM_MODELS_DIR": str(models_dir)}
    assert bash("mirror-realm ingest photos --form-only", tmp_path, env).stdout == ""
    counts = json.loads(bash("mirror-realm ingest photos --form-only --json", tmp_path, env).stdout)
    assert counts == {"source": "photos", "scanned": 3, "batches": []}


def test_a_job_is_launched_through_the_queue_of_a_running_service(
    new_home: Callable[..., RunningHome], drop: Callable[..., Path], tmp_path: Path
) -> None:
    home = new_home("enhance=false")
    drop(home.folder, 0, name="a.png")
    home.run("ingest", "demo")
    home.up()
    workspace = home.home / "up.workspace.yaml"
    end = time.monotonic() + 60
    while not workspace.exists():
        assert time.monotonic() < end, home.logs()
        time.sleep(0.2)
    before = len(home.dagster_runs())
    _, launch = blocks()
    env = {**home.env, "DAGSTER_HOME": str(home.home / "dagster")}
    bash(launch.replace('"photos"', '"demo"'), tmp_path, env)
    runs = home.wait_runs_ended(120)
    assert len(runs) == before + 1
    assert [run for run in runs if run[0] == "index_job"] == [("index_job", "SUCCESS", "demo")] * 2
