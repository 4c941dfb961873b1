import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from click.testing import CliRunner, Result

from mirror_realm_assets.catalog import intents, leases, workers
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.cli.main import cli
from mirror_realm_assets.liveness import identity
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.store import keys
from mirror_realm_assets.store.interface import Store
from mirror_realm_assets.store.opening import open_store


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


@pytest.fixture(scope="module")
def initialised(tmp_path_factory: pytest.TempPathFactory, models_dir: Path) -> Iterator[tuple[Path, Result]]:
    """A home made by `init`, and what that printed."""
    home = tmp_path_factory.mktemp("home")
    (home / "models").symlink_to(models_dir)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIRROR_REALM_HOME", str(home))
        patch.setenv("DAGSTER_HOME", str(home / "dagster"))
        yield home, run("init", "--json")


@pytest.fixture
def home(initialised: tuple[Path, Result]) -> Path:
    return initialised[0]


@pytest.fixture
def catalog(home: Path) -> Iterator[Catalog]:
    found = Catalog(Settings().catalog_url)
    yield found
    with found.write() as conn:
        for table in (t.leases, t.intents, t.objects, t.workers):
            conn.execute(table.delete())
    found.close()


@pytest.fixture
def store(catalog: Catalog) -> Iterator[Store]:
    found = open_store(Settings().store_url, catalog.uuid())
    yield found
    for entry in list(found.list()):
        found.trash(entry.key)


def put_old(store: Store, data: bytes, *, days: float) -> str:
    """An object that was stored `days` ago."""
    key = keys.original_key(hashlib.sha256(data).hexdigest())
    store.put(key, data)
    at = (datetime.now(UTC) - timedelta(days=days)).timestamp()
    for path in Path(Settings().store_url).rglob("*"):
        if path.is_file() and path.read_bytes() == data:
            os.utime(path, (at, at))
    return key


# --- init ---


def test_init_makes_the_pools_known_to_dagster(home: Path) -> None:
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        assert set(instance.event_log_storage.get_concurrency_keys()) == {"embed", "enhance", "index_writer"}


def test_init_prints_where_everything_is(initialised: tuple[Path, Result]) -> None:
    home, result = initialised
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found.pop("store_id") == json.loads((home / "store" / "store.json").read_text())["id"]
    assert found == {
        "home": str(home),
        "catalog": f"sqlite:///{home}/catalog.sqlite",
        "store": str(home / "store"),
        "models": str(home / "models"),
        "dagster_home": str(home / "dagster"),
        "dagster_yaml": "installed",
    }
    assert (home / "dagster" / "history" / "runs.db").exists()


def test_init_may_be_repeated_and_keeps_an_edited_dagster_yaml(home: Path, catalog: Catalog) -> None:
    before = catalog.uuid()
    config = home / "dagster" / "dagster.yaml"
    ours = config.read_text()
    assert json.loads(run("init", "--json").stdout)["dagster_yaml"] == "unchanged"
    config.write_text(f"{ours}\n# mine\n")
    result = run("init")
    assert result.exit_code == 0
    assert "dagster.yaml: edited by you, kept as it is" in result.stdout
    assert config.read_text().endswith("# mine\n")
    assert catalog.uuid() == before
    config.write_text("run_launcher: {module: nowhere, class: [}\n")
    broken = run("init")
    assert broken.exit_code == 1
    assert "Dagster cannot start from" in broken.stderr
    config.write_text(ours)


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("MIRROR_REALM_CATALOG_URL", "nonsense", "means no database"),
        ("MIRROR_REALM_CATALOG_URL", "postgresql+psycopg2://me:secret@127.0.0.1:1/none", "me:***@127.0.0.1"),
        ("MIRROR_REALM_STORE_URL", "ftp://there/store", "URL scheme ftp"),
        ("MIRROR_REALM_HOME", "/proc/nowhere", "/proc/nowhere cannot be used"),
    ],
)
def test_what_init_cannot_use_is_one_sentence(
    initialised: tuple[Path, Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    says: str,
) -> None:
    monkeypatch.setenv("MIRROR_REALM_HOME", str(tmp_path))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    monkeypatch.setenv(variable, value)
    result = run("init")
    assert result.exit_code == 1
    assert says in result.stderr
    assert "secret" not in result.stderr
    assert "Traceback" not in result.stderr


def test_a_file_that_is_no_catalog_is_left_alone(
    initialised: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIRROR_REALM_HOME", str(tmp_path))
    (tmp_path / "catalog.sqlite").write_bytes(b"something else" * 1000)
    result = run("init")
    assert result.exit_code == 1
    assert "file is not a database" in result.stderr
    assert (tmp_path / "catalog.sqlite").read_bytes() == b"something else" * 1000


# --- doctor ---


def test_doctor_prints_one_object_and_exits_with_0_when_nothing_fails(home: Path) -> None:
    result = run("doctor", "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["ok"]) == (0, True)
    assert {"name", "level", "found", "remedy", "group"} == set(found["checks"][0])
    assert "catalog" in {check["name"] for check in found["checks"]}


def test_doctor_exits_with_1_when_something_fails(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRROR_REALM_HOME", "/nowhere/[red]\x1b[31m")
    result = run("doctor")
    assert result.exit_code == 1
    assert "\x1b" not in result.output
    assert "[red]" in result.stdout
    assert "checks failed" in result.stderr
    assert json.loads(run("doctor", "--json").stdout)["ok"] is False


# --- gc ---


def test_gc_takes_what_is_old_and_unnamed_and_nothing_else(catalog: Catalog, store: Store) -> None:
    named, announced, nameless = (put_old(store, data, days=3) for data in (b"named", b"announced", b"nameless"))
    young = put_old(store, b"young", days=0)
    with catalog.write() as conn:
        intents.name_object(conn, named, "original", "0" * 64, 5)
        intents.begin(conn, [announced])
    dry = run("gc", "--dry-run", "--json")
    assert dry.exit_code == 0
    assert json.loads(dry.stdout)["trashed_keys"] == [nameless]
    assert all(store.exists(key) for key in (named, announced, nameless, young))
    result = run("gc")
    assert result.exit_code == 0
    assert nameless in result.stdout
    assert "To the trash went 1 objects" in result.stdout
    assert "objects looked at" in result.stderr
    assert [store.exists(key) for key in (named, announced, nameless, young)] == [True, True, False, True]


def test_gc_forgets_announcements_whose_writer_has_been_gone_for_a_day(catalog: Catalog, store: Store) -> None:
    key = put_old(store, b"given up", days=3)
    with catalog.write() as conn:
        intents.begin(conn, [key])
        conn.execute(t.intents.update().values(created_at=datetime.now(UTC) - timedelta(hours=25)))
    assert json.loads(run("gc", "--dry-run", "--json").stdout)["retired_intents"] == 0
    found = json.loads(run("gc", "--json").stdout)
    assert (found["retired_intents"], found["trashed_keys"]) == (1, [key])


def test_two_collections_at_once_are_refused_and_the_lease_is_given_back(catalog: Catalog, store: Store) -> None:
    with catalog.write() as conn:
        other = workers.register(conn, "gc", identity())
        lease = leases.acquire(conn, "store", other, 60)
    assert lease is not None
    result = run("gc")
    assert result.exit_code == 1
    assert "Another `mirror-realm gc` is cleaning this store." in result.stderr
    with catalog.write() as conn:
        leases.release(conn, lease)
    assert run("gc").exit_code == 0
    with catalog.read() as conn:
        assert leases.holder(conn, "store") is None


def test_gc_without_a_home_says_to_run_init(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRROR_REALM_HOME", str(tmp_path / "none"))
    result = run("gc")
    assert result.exit_code == 1
    assert "Run `mirror-realm init`." in result.stderr


def test_help_loads_neither_dagster_nor_torch() -> None:
    code = (
        "import sys; from mirror_realm_assets.cli.main import cli; print(sorted({'dagster', 'torch'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_usage_errors_exit_with_2() -> None:
    assert run("gc", "--nonsense").exit_code == 2
    assert run("init", "somewhere").exit_code == 2
