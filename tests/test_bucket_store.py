"""A library whose store is a bucket: from a file to a search hit, and what is said of the set-up."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cheap_stages import DIM, cheap_stages, run_lane
from click.testing import CliRunner
from lab import Lab
from s3_server import S3Server

from mirror_realm_assets.catalog import sources, status
from mirror_realm_assets.cli.main import cli
from mirror_realm_assets.doctor import ledger
from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.resources.library import close_services, open_services
from mirror_realm_assets.resources.stores import open_store
from mirror_realm_assets.search.query import search
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.store.s3 import S3Store


@pytest.fixture
def url(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of a prefix in a new bucket."""
    name = f"b-{uuid.uuid4()}"
    client: Any = s3_server.client()
    client.create_bucket(Bucket=name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("MIRROR_REALM_S3_ENDPOINT_URL", s3_server.url)
    monkeypatch.setenv("MIRROR_REALM_S3_REGION", "us-east-1")
    return f"s3://{name}/library/one"


@pytest.fixture
def bucket_lab(url: str, tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path / "home", tmp_path / "photos", extra={"configured_store_url": url})
    yield made
    made.close()


def found_by(lab: Lab) -> list[str]:
    stages = cheap_stages(lab.settings)
    recipe = stages[1].recipe(lab.source.policy)
    assert recipe is not None
    query = np.ones(DIM, np.float32) / np.sqrt(DIM)
    hits = search(lab.catalog, lab.services.store, query.astype(np.float32), recipe=recipe.digest, model="toy")
    return [path.decode() for hit in hits for path in hit.paths]


def test_from_a_file_to_a_search_hit(bucket_lab: Lab) -> None:
    lab = bucket_lab
    assert isinstance(lab.services.store, S3Store)
    for number in range(5):
        lab.picture(f"{number}.png", number)
    stages = cheap_stages(lab.settings)
    for batch in lab.form(stages):
        run_lane(lab.services, stages, batch.key)
        run_lane(lab.services, stages, batch.key, "enhance")
    with lab.catalog.read() as conn:
        told = status.of_source(conn, lab.source, [stage.rule for stage in stages]).features
    assert told.pop("archived_media")["not_wanted"] == 5
    assert {feature: counts["ok"] for feature, counts in told.items()} == dict.fromkeys(told, 5)
    first = found_by(lab)
    assert sorted(first) == [f"{number}.png" for number in range(5)]
    # What is on this machine is only a copy.
    close_services(lab.settings)
    for copy in lab.settings.cache_dir.rglob("*"):
        if copy.is_file():
            copy.unlink()
    lab.services = open_services(lab.settings)
    assert found_by(lab) == first
    assert not (lab.home / "store").exists()


def test_a_library_of_another_catalog_is_refused(bucket_lab: Lab, tmp_path: Path) -> None:
    url = bucket_lab.settings.store_url
    with pytest.raises(SetupError) as caught:
        open_store(Settings.at(tmp_path, configured_store_url=url), "another")
    assert caught.value.code == "store_mismatch"


def test_doctor_makes_no_store_and_says_what_is_wrong(url: str, tmp_path: Path) -> None:
    settings = Settings.at(tmp_path, configured_store_url=url)
    assert "There is no store in s3://" in ledger._store(settings, "a-catalog").found
    open_store(settings, "a-catalog")
    assert url in ledger._store(settings, "a-catalog").found
    away = Settings.at(tmp_path, configured_store_url="s3://no-such-bucket-here/x")
    assert "NoSuchBucket" in ledger._store(away, "a-catalog").found


@pytest.mark.parametrize("wrong", ["s3://", "s3:///prefix", "ftp://host/x"])
def test_a_url_that_names_no_store_is_refused(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(SetupError) as caught:
        open_store(Settings.at(tmp_path, configured_store_url=wrong), "a-catalog")
    assert caught.value.code == "invalid_argument"


def test_init_and_sources_with_a_bucket(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRROR_REALM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MIRROR_REALM_STORE_URL", url)
    (tmp_path / "photos").mkdir()
    for words in (["init"], ["init"], ["sources", "add", "demo", "--folder", str(tmp_path / "photos")], ["gc"]):
        result = CliRunner().invoke(cli, words)
        assert result.exit_code == 0, result.output
    with open_services(Settings.read()).catalog.read() as conn:
        assert sources.get(conn, "demo").name == "demo"
    close_services(Settings.read())
