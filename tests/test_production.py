"""`MIRROR_REALM_ENV=production`: PostgreSQL for catalog and Dagster, a bucket for store and logs; what doctor says."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from cheap_stages import cheap_stages
from click.testing import CliRunner
from lab import Lab
from postgres import Server
from s3_server import S3Server

from mirror_realm_assets import installation
from mirror_realm_assets.cli.main import cli
from mirror_realm_assets.cli.setup import create_dagster_instance
from mirror_realm_assets.definitions import build_defs
from mirror_realm_assets.doctor import production
from mirror_realm_assets.doctor.verdict import Finding
from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.resources.library import LibraryResource
from mirror_realm_assets.settings import Settings


@pytest.fixture
def environment(
    s3_server: S3Server, postgres_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """What a person sets."""
    bucket = f"p-{uuid.uuid4()}"
    s3_server.client().create_bucket(Bucket=bucket)
    values = {
        "MIRROR_REALM_ENV": "production",
        "MIRROR_REALM_HOME": str(tmp_path / "home"),
        "MIRROR_REALM_CATALOG_URL": postgres_server.url(postgres_server.create()),
        "MIRROR_REALM_DAGSTER_URL": postgres_server.url(postgres_server.create()),
        "MIRROR_REALM_STORE_URL": f"s3://{bucket}/library",
        "MIRROR_REALM_S3_ENDPOINT_URL": s3_server.url,
        "MIRROR_REALM_S3_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return values


@pytest.fixture
def lab(environment: dict[str, str], tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path / "home", tmp_path / "photos")
    yield made
    made.close()


def by_name(found: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in found}


def test_a_batch_goes_through_dagster_on_postgresql_with_its_logs_in_the_bucket(
    lab: Lab, s3_server: S3Server, environment: dict[str, str]
) -> None:
    lab.picture("a.png", 1)
    (batch,) = lab.form(cheap_stages(lab.settings))
    definitions = build_defs(resource_overrides={"library": LibraryResource(home=str(lab.home))}, stages=cheap_stages)
    config = str(lab.settings.dagster_home)
    create_dagster_instance(lab.settings)
    with dg.DagsterInstance.from_config(config) as instance:
        instance.add_dynamic_partitions("media_batch", [batch.key])
        job = definitions.resolve_job_def("media_batch_job")
        result = job.execute_in_process(partition_key=batch.key, instance=instance)
        assert result.success
    assert "sqlite" not in {path.suffix[1:] for path in lab.settings.dagster_home.rglob("*.*")}
    engine = sa.create_engine(environment["MIRROR_REALM_DAGSTER_URL"])
    with engine.connect() as conn:
        assert conn.execute(sa.text("SELECT status FROM runs")).scalars().all() == ["SUCCESS"]
    engine.dispose()
    bucket, _, prefix = environment["MIRROR_REALM_STORE_URL"].removeprefix("s3://").partition("/")
    client: Any = s3_server.client()
    names = [
        found["Key"] for found in client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/compute-logs/")["Contents"]
    ]
    assert any(result.run_id in name for name in names)


def test_the_configuration_holds_no_password_and_is_known_as_ours(lab: Lab, environment: dict[str, str]) -> None:
    text = (lab.settings.dagster_home / "dagster.yaml").read_text()
    assert environment["MIRROR_REALM_DAGSTER_URL"] not in text
    assert installation.install(lab.settings).config == "unchanged"
    local = Settings.at(lab.home, env="local")
    assert installation.install(local).config == "updated"
    assert (lab.settings.dagster_home / "dagster.yaml").read_bytes() == installation.TEMPLATE.read_bytes()


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("MIRROR_REALM_CATALOG_URL", "sqlite:////srv/x.sqlite", "MIRROR_REALM_CATALOG_URL"),
        ("MIRROR_REALM_DAGSTER_URL", None, "MIRROR_REALM_DAGSTER_URL"),
        ("MIRROR_REALM_DAGSTER_URL", "postgresql://u@h/d", "MIRROR_REALM_DAGSTER_URL"),
        ("MIRROR_REALM_STORE_URL", "/srv/store", "MIRROR_REALM_STORE_URL"),
    ],
)
def test_a_production_that_lacks_a_part_is_refused_and_named(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, name: str, value: str | None, told: str
) -> None:
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)
    found = CliRunner().invoke(cli, ["init"])
    assert found.exit_code == 1 and told in found.stderr
    assert by_name(production.setting(Settings.read()))["environment"].level == "fail"


def test_one_database_for_both_is_refused(environment: dict[str, str]) -> None:
    settings = Settings.read().model_copy(update={"dagster_url": environment["MIRROR_REALM_CATALOG_URL"]})
    with pytest.raises(SetupError, match="same database"):
        installation.install(settings)


def test_doctor_finds_nothing_wrong(lab: Lab) -> None:
    found = production.setting(lab.settings) + production.databases(lab.settings) + production.bucket(lab.settings)
    assert {finding.name: finding.level for finding in found} == dict.fromkeys(
        [
            "environment", "catalog rights", "catalog's clock", "Dagster's database rights",
            "Dagster's database's clock", "bucket", "bucket's clock",
        ],
        "ok",
    )  # fmt: skip


def test_doctor_leaves_nothing_in_the_bucket(lab: Lab, s3_server: S3Server, environment: dict[str, str]) -> None:
    production.bucket(lab.settings)
    bucket = environment["MIRROR_REALM_STORE_URL"].split("/")[2]
    client: Any = s3_server.client()
    assert [found["Key"] for found in client.list_objects_v2(Bucket=bucket)["Contents"]] == ["library/store.json"]


def test_doctor_says_which_right_is_lacking(lab: Lab, postgres_server: Server) -> None:
    with lab.catalog.write() as conn:
        conn.execute(sa.text("CREATE ROLE reader LOGIN"))
        conn.execute(sa.text("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader"))
    try:
        reader = sa.make_url(lab.settings.catalog_url).set(username="reader")
        settings = lab.settings.model_copy(
            update={"configured_catalog_url": reader.render_as_string(hide_password=False)}
        )
        found = by_name(production.databases(settings))["catalog rights"]
        assert found.level == "fail" and "INSERT on" in found.found and "Grant" in found.remedy
    finally:
        with lab.catalog.write() as conn:
            conn.execute(sa.text("DROP OWNED BY reader"))
            conn.execute(sa.text("DROP ROLE reader"))


def test_doctor_tells_a_database_and_a_bucket_that_do_not_answer(lab: Lab) -> None:
    dead = lab.settings.model_copy(
        update={
            "configured_catalog_url": "postgresql+psycopg2://me:secret@127.0.0.1:9/x",
            "configured_store_url": "s3://no-bucket-of-this-name/x",
        }
    )
    rights = by_name(production.databases(dead))["catalog rights"]
    assert rights.level == "fail" and "does not answer" in rights.found and "secret" not in rights.found
    assert by_name(production.bucket(dead))["bucket"].level == "fail"


def test_doctor_tells_that_both_lie_in_one_database(lab: Lab, environment: dict[str, str]) -> None:
    settings = lab.settings.model_copy(update={"dagster_url": lab.settings.catalog_url})
    assert by_name(production.databases(settings))["Dagster's database rights"].level == "fail"


@pytest.mark.parametrize(
    ("seconds", "level"), [(0.4, "ok"), (-4, "ok"), (6, "warn"), (-60, "warn"), (601, "fail"), (-3600, "fail")]
)
def test_a_clock_that_is_off_is_told(seconds: float, level: str) -> None:
    assert production._clock("a clock", seconds).level == level


@pytest.mark.parametrize(
    ("runs", "pool", "level", "told"),
    [
        (4, 1, "ok", "4 runs at once"),
        (4000, 1, "warn", "max_concurrent_runs"),
        (-1, 1, "warn", "max_concurrent_runs"),
        (4, 50, "warn", "default_limit"),
    ],
)
def test_limits_that_do_not_fit_this_machine_are_told(
    tmp_path: Path, runs: int, pool: int, level: str, told: str
) -> None:
    settings = Settings.at(tmp_path, device="cpu")
    settings.dagster_home.mkdir()
    concurrency = {"runs": {"max_concurrent_runs": runs}, "pools": {"default_limit": pool}}
    (settings.dagster_home / "dagster.yaml").write_text(json.dumps({"concurrency": concurrency}))
    (found,) = production.limits(settings)
    assert found.level == level and told in found.found + found.remedy


def test_a_machine_too_small_for_one_enhancement_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings.at(tmp_path, device="cpu")
    settings.dagster_home.mkdir()
    concurrency = {"runs": {"max_concurrent_runs": 1}, "pools": {"default_limit": 1}}
    (settings.dagster_home / "dagster.yaml").write_text(json.dumps({"concurrency": concurrency}))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=1_550_000_000))
    (found,) = production.limits(settings)
    assert found.level == "warn" and "more memory" in found.remedy
