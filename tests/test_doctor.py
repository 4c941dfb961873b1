import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from own_models import TOY, weights_file

from mirror_realm_assets import installation
from mirror_realm_assets.catalog import sources, workers
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.doctor import Finding, examination, examine, machine, serving
from mirror_realm_assets.doctor import home as home_checks
from mirror_realm_assets.installation import install
from mirror_realm_assets.liveness import HomeLock, identity
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.store.opening import open_store
from mirror_realm_assets.weights.adding import add


@pytest.fixture
def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.fixture
def settings(
    tmp_path: Path, models_dir: Path, migrated_sqlite: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """A home in which everything is right."""
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    home = tmp_path / "home"
    home.mkdir()
    (home / "models").symlink_to(models_dir)
    shutil.copy(migrated_sqlite, home / "catalog.sqlite")
    found = Settings.at(home, port=free_port, device="cpu", precision="fp32", low_space_bytes=1)
    install(found)
    catalog = Catalog(found.catalog_url)
    open_store(found.store_url, catalog.uuid())
    catalog.close()
    return found


def changed(settings: Settings, **values: object) -> Settings:
    return settings.model_copy(update=values)


def findings(settings: Settings) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(settings)}


def levels(settings: Settings) -> dict[str, str]:
    return {finding.name: finding.level for finding in examine(settings) if finding.level != "ok"}


def test_a_sound_home_fails_nothing_and_every_fault_comes_with_a_remedy(settings: Settings) -> None:
    found = examine(settings)
    assert not [finding for finding in found if finding.level == "fail"]
    assert all(finding.remedy for finding in found if finding.level != "ok")
    names = [finding.name for finding in found]
    groups = list(dict.fromkeys(finding.group for finding in found))
    assert groups == list(examination.GROUPS)
    assert {"python", "packages", "device", "precision", "cpu", "memory", "home", "space", "catalog", "store"} <= {
        *names
    }
    assert len(names) == len(set(names))
    json.dumps([asdict(finding) for finding in found])


def test_looking_creates_nothing_and_loads_neither_torch_nor_dagster(tmp_path: Path) -> None:
    code = (
        "import sys; from mirror_realm_assets.doctor import examine; from mirror_realm_assets.settings import Settings;"
        "found = {f.name: f for f in examine(Settings())}; assert found['catalog'].level == 'fail', found;"
        "assert 'mirror-realm init' in found['catalog'].remedy, found;"
        "assert not {'torch', 'dagster'} & set(sys.modules)"
    )
    env = {**os.environ, "MIRROR_REALM_HOME": str(tmp_path / "new"), "DAGSTER_HOME": str(tmp_path / "dagster")}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    assert list(tmp_path.iterdir()) == []


def test_missing_and_altered_weights_fail_by_model(settings: Settings, models_dir: Path) -> None:
    models = settings.models_dir
    models.unlink()
    models.mkdir()
    (models / "realesrgan-x4plus.safetensors").write_bytes(b"altered")
    found = findings(settings)
    assert found["model realesrgan-x4plus"].level == "fail"
    assert "altered" in found["model realesrgan-x4plus"].found
    assert "missing" in found["model efficientnet-lite0"].found
    assert "models fetch" in found["model efficientnet-lite0"].remedy


def test_an_added_model_is_looked_at_and_its_remedy_is_to_add_it_again(settings: Settings) -> None:
    models = settings.models_dir
    models.unlink()
    model = add(weights_file(TOY), TOY, models, name="mine").model
    assert findings(settings)["model mine"].level == "ok"
    (models / model.filename).unlink()
    found = findings(settings)["model mine"]
    assert (found.level, str(models / model.filename) in found.found) == ("fail", True)
    assert f"mirror-realm models add FILE --architecture {TOY} --name mine" in found.remedy


def test_emulated_bf16_and_too_many_threads_are_warned_of(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset({"avx2"}))
    found = levels(changed(settings, precision="bf16", threads=10_000))
    assert found["precision"] == found["cpu"] == "warn"
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset({"avx512_bf16"}))
    assert "precision" not in levels(changed(settings, precision="bf16"))


def test_settings_that_this_machine_does_not_allow_fail_with_a_remedy(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_GPU_DRIVERS", ())
    found = findings(changed(settings, device="cuda", precision="fp16"))
    assert found["device"].level == "fail"
    assert "MIRROR_REALM_DEVICE" in found["device"].remedy
    assert found["precision"].level == "fail"


def test_too_little_space_is_warned_of(settings: Settings) -> None:
    assert levels(changed(settings, low_space_bytes=2**62))["space"] == "warn"


def test_a_home_that_cannot_be_written_to_fails(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(home_checks.tempfile, "TemporaryFile", refuse)
    found = findings(settings)["home"]
    assert (found.level, "Permission denied" in found.found) == ("fail", True)


def test_a_catalog_of_another_revision_says_what_to_do(settings: Settings) -> None:
    catalog = Catalog(settings.catalog_url)
    with catalog.write() as conn:
        conn.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    assert "newer" in findings(settings)["catalog"].remedy
    with catalog.write() as conn:
        conn.exec_driver_sql("DELETE FROM alembic_version")
    assert "mirror-realm init" in findings(settings)["catalog"].remedy
    catalog.close()


def test_a_catalog_that_cannot_be_read_is_one_sentence_without_the_password(settings: Settings) -> None:
    (settings.home / "catalog.sqlite").write_bytes(b"no database at all" * 100)
    broken = findings(settings)["catalog"]
    assert broken.level == "fail"
    assert "file is not a database" in broken.found
    away = changed(settings, configured_catalog_url="postgresql+psycopg2://me:secret@127.0.0.1:1/none")
    found = findings(away)["catalog"]
    assert found.level == "fail"
    assert "secret" not in found.found
    assert findings(changed(settings, configured_catalog_url="nonsense"))["catalog"].level == "fail"


def test_sqlite_on_a_network_file_system_fails(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "on_network", lambda _path: True)
    config = settings.dagster_home / "dagster.yaml"
    config.write_text("telemetry: {enabled: false}\n")
    found = findings(settings)
    assert (found["catalog"].level, "PostgreSQL" in found["catalog"].remedy) == ("fail", True)
    assert (found["dagster.yaml"].level, "DAGSTER_HOME" in found["dagster.yaml"].remedy) == ("fail", True)
    config.write_text("storage:\n  postgres: {}\n")  # whoever names a storage has decided
    assert findings(settings)["dagster.yaml"].level == "ok"


def test_the_store_of_another_catalog_fails_and_a_missing_one_is_not_made(settings: Settings) -> None:
    identity_file = Path(settings.store_url) / "store.json"
    stored = json.loads(identity_file.read_text())
    identity_file.write_text(json.dumps({**stored, "catalog": "another"}))
    assert "another" in findings(settings)["store"].found
    shutil.rmtree(settings.store_url)
    assert findings(settings)["store"].level == "fail"
    assert not Path(settings.store_url).exists()


def test_dagster_yaml_is_told_to_be_ours_kept_or_missing(settings: Settings) -> None:
    config = settings.dagster_home / "dagster.yaml"
    assert "is ours" in findings(settings)["dagster.yaml"].found
    config.write_text("telemetry: {enabled: false}\n")
    kept = findings(settings)["dagster.yaml"]
    assert (kept.level, "kept" in kept.found) == ("ok", True)
    config.unlink()
    assert findings(settings)["dagster.yaml"].level == "fail"


def test_sources_without_a_folder_and_paused_ones_are_named_with_the_reason(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    catalog = Catalog(settings.catalog_url)
    with catalog.write() as conn:
        sources.add(conn, "gone", os.fsencode(tmp_path / "gone\x1b[31m"), {})
        sources.add(conn, "resting", os.fsencode(tmp_path / "there"), {})
        sources.add(conn, "fine", os.fsencode(tmp_path / "there"), {})
        sources.set_state(conn, "resting", "paused", "half of it failed")
    catalog.close()
    found = findings(settings)
    assert found["source gone"].level == "fail"
    assert found["source resting"].level == "warn"
    assert "half of it failed" in found["source resting"].found
    assert "sources resume resting" in found["source resting"].remedy
    assert found["source fine"].level == "ok"


def test_workers_that_are_gone_are_counted(settings: Settings) -> None:
    child = subprocess.Popen(["sleep", "60"])
    catalog = Catalog(settings.catalog_url)
    with catalog.write() as conn:
        workers.register(conn, "run", identity(child.pid))
        workers.register(conn, "run", identity())
    catalog.close()
    child.kill()
    child.wait()
    found = findings(settings)["workers"]
    assert (found.level, found.found) == ("warn", "1 at work, 1 ended without saying so")


def test_a_taken_port_names_who_has_it_and_a_live_supervisor_is_seen(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", settings.port)), HomeLock(settings.home / "up.lock"):
        found = findings(settings)
    assert found["port"].level == "warn"
    assert f"process {os.getpid()}" in found["port"].found
    assert f"process {os.getpid()}" in found["supervisor"].found
    assert findings(settings)["supervisor"].found == "not running"


def test_a_low_limit_of_watches_is_warned_of(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_INOTIFY", tmp_path)
    assert "inotify" not in levels(settings)
    (tmp_path / "max_user_watches").write_text("8192\n")
    (tmp_path / "max_user_instances").write_text("128\n")
    assert levels(settings)["inotify"] == "warn"


def test_a_check_that_goes_wrong_is_a_finding_and_the_others_go_on(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_settings: Settings) -> list[Finding]:
        raise RuntimeError("surprise")

    monkeypatch.setattr(examination, "_CHECKS", (("home", "odd", broken), *examination._CHECKS))
    found = findings(settings)
    assert found["odd"].level == "fail"
    assert "surprise" in found["odd"].found
    assert found["home"].level == "ok"


def test_more_folders_than_may_be_watched_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_INOTIFY", tmp_path)
    (tmp_path / "max_user_watches").write_text("100000\n")
    (tmp_path / "max_user_instances").write_text("128\n")
    assert machine.inotify(1000).level == "ok"
    assert machine.inotify(90_000).level == "warn"


def test_what_dagster_says_of_itself_is_judged(settings: Settings) -> None:
    """An answer of its webserver, in which each thing that can be wrong is."""
    answer = {
        "instance": {
            "daemonHealth": {
                "allDaemonStatuses": [
                    {"daemonType": "SENSOR", "required": True, "healthy": False, "lastHeartbeatTime": None},
                    {"daemonType": "BACKFILL", "required": False, "healthy": None, "lastHeartbeatTime": None},
                ]
            },
            "runQueueConfig": {"maxConcurrentRuns": 4},
            "poolConfig": {"defaultPoolLimit": None},
            "concurrencyLimits": [{"concurrencyKey": "enhance", "limit": 2}],
        },
        "repositoriesOrError": {"nodes": [{"sensors": [{"name": "index", "sensorState": {"status": "STOPPED"}}]}]},
        "workspaceOrError": {
            "locationEntries": [
                {"name": "ours", "locationOrLoadError": {"__typename": "PythonError", "message": "no such module"}}
            ]
        },
    }
    found = {finding.name: finding for finding in serving.judge(answer)}
    assert {name: finding.level for name, finding in found.items()} == {
        "daemon": "fail",
        "sensors": "warn",
        "queue": "warn",
        "code location": "fail",
    }
    assert "SENSOR" in found["daemon"].found
    assert "index" in found["sensors"].found
    assert "enhance 2" in found["queue"].found
    assert all(finding.remedy for finding in found.values())
