"""The Dockerfiles: linted, in step with the Makefile, and what they install is a whole package.

No image is built here: that wants a daemon and a registry. What their steps do is done by other tests and by `make`:
installing from `constraints.txt`, fetching and verifying weights.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType

import pytest
import yaml
from cluster_programs import program
from installation_on_cluster import REPOSITORY

IMAGES = REPOSITORY / "deploy" / "images"
FILES = sorted(IMAGES.glob("*.Dockerfile"))
each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)


def test_there_are_two_images() -> None:
    assert [file.name for file in FILES] == ["gpu.Dockerfile", "light.Dockerfile"]


@each_file
def test_hadolint_finds_nothing_and_nothing_is_hidden_from_it(file: Path) -> None:
    done = subprocess.run(
        [program("hadolint"), "--no-color", str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert "hadolint ignore" not in file.read_text(encoding="utf-8")


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python:latest\nRUN cd /tmp && sudo apt-get install curl\n")
    done = subprocess.run([program("hadolint"), str(bad)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "DL3007" in done.stdout


@each_file
def test_nobody_is_root_and_everything_is_pinned(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("USER ")] == ["USER 10001:10001"]
    bases = [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert len(set(bases)) == 1 and re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", bases[0])
    assert any(line.startswith("HEALTHCHECK ") for line in lines)
    manifest = yaml.safe_load((REPOSITORY / "deploy" / "base" / "daemon.yaml").read_text())
    assert manifest["spec"]["template"]["spec"]["securityContext"]["runAsUser"] == 10001
    installs = [line for line in lines if "pip install" in line and "--no-deps --no-build-isolation" not in line]
    assert installs and all("-c constraints.txt" in line for line in installs)


@each_file
def test_what_is_installed_is_what_the_makefile_installs(file: Path) -> None:
    text, make = file.read_text(encoding="utf-8"), (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    (legacy,) = re.findall(r"^LEGACY := (.*)$", make, re.MULTILINE)
    assert legacy in text
    for name in ("GOMP_SPINCOUNT", "MALLOC_ARENA_MAX", "OMP_NUM_THREADS"):
        (value,) = re.findall(rf"^export {name} \?= (\S+)$", make, re.MULTILINE)
        assert f"{name}={value} " in text
    (version,) = re.findall(r'image\.version="([^"]+)"', text)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert version == project["version"]


def test_what_is_copied_is_let_through_and_nothing_else() -> None:
    let = set(re.findall(r"^!(\S+)$", (REPOSITORY / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE))
    copied = set()
    for file in FILES:
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith("COPY ") and "--from" not in line:
                copied.update(line.split()[1:-1])
    assert copied == let
    assert all((REPOSITORY / name).exists() for name in copied)


def test_the_package_that_is_installed_is_whole(tmp_path: Path) -> None:
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(REPOSITORY / name, source)
    shutil.copytree(REPOSITORY / "mirror_realm_assets", source / "mirror_realm_assets")
    subprocess.run([*install, "--target", str(tmp_path / "site"), str(source)], check=True, timeout=240)
    installed, here = tmp_path / "site" / "mirror_realm_assets", REPOSITORY / "mirror_realm_assets"
    wanted = {path.relative_to(here) for path in here.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    found = {path.relative_to(installed) for path in installed.rglob("*") if path.is_file()}
    assert wanted <= found, f"left out: {sorted(wanted - found)[:5]}"


@pytest.fixture
def healthy() -> ModuleType:
    spec = importlib.util.spec_from_file_location("healthy", IMAGES / "healthy.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_program_is_asked_in_its_own_way(healthy: ModuleType) -> None:
    asked = {}
    for name in ("webserver", "daemon", "code-server", "watcher"):
        objects = yaml.safe_load_all((REPOSITORY / "deploy" / "base" / f"{name}.yaml").read_text())
        deployment = next(found for found in objects if found["kind"] == "Deployment")
        asked[name] = healthy.question(deployment["spec"]["template"]["spec"]["containers"][0]["args"])
    assert asked == {
        "webserver": "http://127.0.0.1:3000/server_info",
        "daemon": ["dagster-daemon", "liveness-check"],
        "code-server": ["dagster", "api", "grpc-health-check", "--port", "4000"],
        "watcher": None,
    }


def test_a_page_that_answers_is_well_and_one_that_does_not_is_not(healthy: ModuleType) -> None:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/server_info" else 500)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    server = HTTPServer(("127.0.0.1", 0), Page)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    assert healthy.well(f"{address}/server_info")
    assert not healthy.well(f"{address}/elsewhere")
    server.shutdown()
    server.server_close()
    assert not healthy.well(f"{address}/server_info")
    assert healthy.well([sys.executable, "-c", ""])
    assert not healthy.well([sys.executable, "-c", "raise SystemExit(1)"])
    assert healthy.well(None)
