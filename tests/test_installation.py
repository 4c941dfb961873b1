from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mirror_realm_assets import installation
from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.installation import (
    TEMPLATE,
    Mount,
    install,
    kind_of_file_system,
    read_mounts,
    require,
    write_atomically,
)
from mirror_realm_assets.settings import Settings

REPOSITORY = Path(__file__).parents[1]
LOCAL = (Mount(Path("/"), "ext4"),)

READ_INSTANCE = """
import json
import dagster as dg
with dg.DagsterInstance.get() as instance:
    concurrency = instance.get_concurrency_config()
    queue = concurrency.run_queue_config
    print(json.dumps({
        "coordinator": type(instance.run_coordinator).__name__,
        "storage": type(instance.event_log_storage).__name__,
        "dequeue": instance.run_coordinator.dequeue_interval_seconds,
        "max_runs": queue.max_concurrent_runs,
        "code_failures": [queue.max_user_code_failure_retries, queue.user_code_failure_retry_delay],
        "pools": [concurrency.pool_config.default_pool_limit, concurrency.pool_config.pool_granularity.value],
        "telemetry": instance.telemetry_enabled,
        "nux": instance.nux_enabled,
        "monitoring": instance.run_monitoring_enabled,
        "monitoring_settings": instance.run_monitoring_settings,
        "max_runtime": instance.run_monitoring_max_runtime_seconds,
        "retries": [instance.run_retries_enabled, instance.run_retries_max_retries,
                    instance.run_retries_retry_on_asset_or_op_failure],
        "retention": instance.get_settings("retention")["sensor"]["purge_after_days"],
    }))
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("DAGSTER_HOME", "MIRROR_REALM_CATALOG_URL", "MIRROR_REALM_STORE_URL", "MIRROR_REALM_ENV"):
        monkeypatch.delenv(name, raising=False)
    return Settings.at(tmp_path / "home")


def code_of(settings: Settings, mounts: tuple[Mount, ...] = LOCAL) -> str:
    with pytest.raises(SetupError) as refusal:
        install(settings, mounts=mounts)
    return refusal.value.code


def test_install_makes_a_private_home_and_is_safe_to_repeat(settings: Settings) -> None:
    with pytest.raises(SetupError, match="mirror-realm init"):
        require(settings)
    first = install(settings)
    assert first.config == "installed"
    assert settings.home.stat().st_mode & 0o777 == 0o700
    assert (first.dagster_home / "dagster.yaml").read_bytes() == TEMPLATE.read_bytes()
    assert first.store == settings.home / "store"
    assert first.store.is_dir()
    assert first.models.is_dir()
    require(settings)
    assert install(settings).config == "unchanged"


def test_a_dagster_yaml_that_a_person_edited_is_kept(settings: Settings) -> None:
    install(settings)
    config = settings.dagster_home / "dagster.yaml"
    config.write_text("telemetry: {enabled: true}\n", encoding="utf-8")
    assert install(settings).config == "kept"
    assert config.read_text(encoding="utf-8") == "telemetry: {enabled: true}\n"
    config.unlink()
    assert install(settings).config == "installed"


def test_an_older_template_of_ours_is_replaced(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = tmp_path / "older.yaml"
    older.write_text("nux: {enabled: false}\n", encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(installation, "TEMPLATE", older)
        install(settings)
    assert install(settings).config == "updated"
    assert (settings.dagster_home / "dagster.yaml").read_bytes() == TEMPLATE.read_bytes()


def test_an_installation_stopped_before_its_digest_was_written_is_completed(settings: Settings) -> None:
    install(settings)
    digest = settings.dagster_home / ".dagster.yaml.sha256"
    digest.unlink()
    assert install(settings).config == "unchanged"
    assert digest.exists()


def test_a_home_that_is_a_file_is_unusable(settings: Settings) -> None:
    settings.home.write_text("", encoding="utf-8")
    assert code_of(settings) == "home_unusable"


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "disk_full"), (errno.EDQUOT, "disk_full"), (errno.EROFS, "home_unusable")]
)
def test_a_full_or_read_only_disk_is_named(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(installation, "write_atomically", fail)
    assert code_of(settings) == code


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "9p", "ceph"])
def test_sqlite_on_a_network_file_system_is_refused_before_anything_is_made(settings: Settings, kind: str) -> None:
    assert code_of(settings, (*LOCAL, Mount(settings.home.parent, kind))) == "sqlite_on_network"
    assert not settings.home.exists()


def test_with_postgresql_only_dagsters_own_database_is_refused_there(tmp_path: Path) -> None:
    mounts = (*LOCAL, Mount(tmp_path / "share", "nfs"))
    url = "postgresql+psycopg2://localhost/catalog"
    settings = Settings.at(tmp_path / "share" / "home", configured_catalog_url=url)
    with pytest.raises(SetupError, match="DAGSTER_HOME"):
        install(settings, mounts=mounts)
    install(
        Settings.at(settings.home, configured_catalog_url=url, configured_dagster_home=tmp_path / "local"),
        mounts=mounts,
    )
    # Whoever names Dagster's storage has decided.
    settings.dagster_home.mkdir()
    (settings.dagster_home / "dagster.yaml").write_text("storage:\n  postgres: {}\n", encoding="utf-8")
    assert install(settings, mounts=mounts).config == "kept"


def test_the_deepest_and_latest_mount_decides() -> None:
    mounts = read_mounts(
        "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
        "40 27 0:50 / /mnt/my\\040photos rw shared:1 master:2 - autofs systemd-1 rw\n"
        "41 40 0:51 / /mnt/my\\040photos rw,relatime shared:1 - nfs4 server:/photos rw\n"
    )
    assert kind_of_file_system(Path("/mnt/my photos/new/folder"), mounts) == "nfs4"
    assert kind_of_file_system(Path("/mnt/my photos 2"), mounts) == "ext4"
    assert kind_of_file_system(Path("/mnt"), ()) is None


def test_a_symlink_to_a_network_file_system_is_followed(tmp_path: Path) -> None:
    (tmp_path / "share").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "share")
    mounts = (*LOCAL, Mount((tmp_path / "share").resolve(), "nfs"))
    assert kind_of_file_system(tmp_path / "link" / "catalog.sqlite", mounts) == "nfs"


def test_a_store_elsewhere_makes_no_folder(tmp_path: Path) -> None:
    settings = Settings.at(tmp_path / "home", configured_store_url="s3://bucket/prefix")
    assert install(settings, mounts=LOCAL).store is None


def test_a_write_that_fails_leaves_the_old_content_and_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_the_top_level_dagster_yaml_is_the_template() -> None:
    assert (REPOSITORY / "dagster.yaml").read_bytes() == TEMPLATE.read_bytes()


def test_the_workspace_names_our_definitions() -> None:
    workspace = yaml.safe_load((REPOSITORY / "workspace.yaml").read_text(encoding="utf-8"))
    assert workspace == {"load_from": [{"python_module": "mirror_realm_assets.definitions"}]}


def test_dagster_reads_from_our_template_what_we_mean(settings: Settings) -> None:
    install(settings)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", READ_INSTANCE],
        env={**os.environ, "DAGSTER_HOME": str(settings.dagster_home)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "coordinator": "QueuedRunCoordinator",
        "storage": "SqliteEventLogStorage",
        "dequeue": 1,
        "max_runs": 4,
        "code_failures": [20, 5],
        "pools": [1, "run"],
        "telemetry": False,
        "nux": False,
        "monitoring": True,
        "monitoring_settings": {
            "enabled": True,
            "poll_interval_seconds": 10,
            "free_slots_after_run_end_seconds": 300,
        },
        "max_runtime": 0,
        "retries": [True, 3, False],
        "retention": {"skipped": 1, "success": 7, "failure": 30, "started": 7},
    }
