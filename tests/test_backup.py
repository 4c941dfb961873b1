"""What `docs/how-to/back-up.md` says, done: catalog and store into other places, and everything is there again."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cheap_stages import DIM, cheap_stages, run_lane
from lab import Lab
from postgres import Server, find_programs
from s3_server import S3Server

from mirror_realm_assets import installation
from mirror_realm_assets.catalog import sources, status
from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.ingest.batching import form_batches
from mirror_realm_assets.ingest.watch import FolderWatch
from mirror_realm_assets.resources.library import close_services, open_services
from mirror_realm_assets.search.query import search
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.stages.services import Services


def fill(lab: Lab) -> None:
    for number in range(6):
        lab.picture(f"{number}.png", number)
    (lab.folder / "bad.jpg").write_bytes(b"nothing")
    stages = cheap_stages(lab.settings)
    for batch in lab.form(stages):
        run_lane(lab.services, stages, batch.key)
        run_lane(lab.services, stages, batch.key, "enhance")


def state(services: Services) -> object:
    """What is searched, and what is counted."""
    stages = cheap_stages(services.settings)
    with services.catalog.read() as conn:
        source = sources.get(conn, "demo")
        counts = status.of_source(conn, source, [stage.rule for stage in stages])
    recipe = stages[1].recipe(source.policy)
    assert recipe is not None
    query = np.arange(DIM, dtype=np.float32)
    hits = search(services.catalog, services.store, query, recipe=recipe.digest, model="toy")
    assert len(hits) == 6
    return [replace(hit, score=round(hit.score, 6)) for hit in hits], counts


def restored(settings: Settings, folder: Path, before: object) -> None:
    """The library at these settings is the one that was backed up, with its originals away."""
    installation.install(settings)
    folder.rename(folder.with_name("offline"))
    services = open_services(settings)
    try:
        assert state(services) == before
        with services.catalog.read() as conn:
            source = sources.get(conn, "demo")
        with pytest.raises(SetupError, match=r"cannot be opened|not there"):
            FolderWatch(services.catalog, settings, source).scan()
        formed = form_batches(services.catalog, settings, cheap_stages(settings), "test", now_or_never=True)
        assert formed.keys == []
        assert state(services) == before
        folder.with_name("offline").rename(folder)
        scanned = FolderWatch(services.catalog, settings, source).scan()
        assert (scanned.taken, scanned.missing, scanned.errors) == (0, 0, [])
    finally:
        close_services(settings)


@pytest.fixture
def server_url(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("MIRROR_REALM_S3_ENDPOINT_URL", s3_server.url)
    monkeypatch.setenv("MIRROR_REALM_S3_REGION", "us-east-1")
    return s3_server.url


@pytest.fixture
def on_servers(postgres_server: Server, s3_server: S3Server, server_url: str, tmp_path: Path) -> Iterator[Lab]:
    bucket = f"b-{uuid.uuid4()}"
    client: Any = s3_server.client()
    client.create_bucket(Bucket=bucket)
    extra = {
        "configured_catalog_url": postgres_server.url(postgres_server.create()),
        "configured_store_url": f"s3://{bucket}/one",
    }
    lab = Lab(tmp_path / "home", tmp_path / "photos", extra=extra)
    yield lab
    lab.close()


def test_a_library_on_servers_is_restored_into_other_ones(
    on_servers: Lab, postgres_server: Server, s3_server: S3Server, tmp_path: Path
) -> None:
    lab = on_servers
    fill(lab)
    before = state(lab.services)
    dump = tmp_path / "catalog.dump"
    url = lab.settings.catalog_url.replace("+psycopg2", "")
    programs = find_programs()
    subprocess.run([programs / "pg_dump", "-Fc", "-f", dump, url], check=True)
    client: Any = s3_server.client()
    bucket = lab.settings.store_url.split("/")[2]
    for found in client.list_objects_v2(Bucket=bucket, Prefix="one/")["Contents"]:
        key = found["Key"]
        client.copy_object(CopySource={"Bucket": bucket, "Key": key}, Bucket=bucket, Key=f"two/{key[4:]}")
        client.delete_object(Bucket=bucket, Key=key)
    lab.close()

    other = postgres_server.url(postgres_server.create())
    subprocess.run([programs / "pg_restore", "-d", other.replace("+psycopg2", ""), dump], check=True)
    settings = Settings.at(
        tmp_path / "other", quiet_seconds=0, configured_catalog_url=other, configured_store_url=f"s3://{bucket}/two"
    )
    restored(settings, lab.folder, before)


def test_a_library_in_a_home_is_restored_into_another_one(lab: Lab, tmp_path: Path) -> None:
    fill(lab)
    before = state(lab.services)
    (tmp_path / "other").mkdir()
    # While everything goes on: a snapshot of the catalog first, then the objects, which never change.
    with sqlite3.connect(lab.home / "catalog.sqlite") as conn:
        conn.execute("VACUUM INTO ?", [str(tmp_path / "other" / "catalog.sqlite")])
    shutil.copytree(lab.home / "store", tmp_path / "other" / "store")
    lab.close()
    shutil.rmtree(lab.home)
    restored(Settings.at(tmp_path / "other", quiet_seconds=0), lab.folder, before)
