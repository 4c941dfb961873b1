"""`mirror-realm export`: what it prints, its exit codes, and a store in a bucket."""

from __future__ import annotations

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from cheap_stages import cheap_stages
from click.testing import CliRunner, Result
from export_lab import manifest, put, there, work
from export_lab import run as export_run
from lab import Lab
from s3_server import S3Server

from mirror_realm_assets import pipeline
from mirror_realm_assets.cli.main import cli


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


@pytest.fixture
def home(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setenv("MIRROR_REALM_HOME", str(lab.home))
    monkeypatch.setattr(pipeline, "standard_stages", cheap_stages)
    return lab


def test_json_is_alone_on_stdout_and_counts(home: Lab, tmp_path: Path) -> None:
    home.picture("a.png", 1)
    work(home)
    to = tmp_path / "export"
    result = invoke("export", "--to", str(to), "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found.pop("written") + found.pop("linked") == 1
    assert found == {
        "to": str(to), "manifest": str(to / "mirror-realm-export.jsonl"), "dry_run": False, "unchanged": 0,
        "removed": 0, "kept": 0, "kept_files": [], "failures": 0, "failed": [],
    }  # fmt: skip
    assert there(to) == {"demo/a.enhanced.jpg"}
    again = invoke("export", "--to", str(to))
    assert again.exit_code == 0 and "1 unchanged" in again.stderr and again.stdout == ""


def test_a_failure_is_told_with_its_reason_and_ends_with_1(home: Lab, tmp_path: Path) -> None:
    gone = home.picture("[red]a.png", 1)
    home.picture("b.png", 2)
    work(home)
    digest = hashlib.sha256(gone.read_bytes()).hexdigest()
    gone.unlink()
    result = invoke("export", "--to", str(tmp_path / "export"), "--what", "both", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    (failed,) = found["failed"]
    assert found["failures"] == 1 and found["written"] + found["linked"] == 3
    assert (failed["code"], failed["digest"], failed["path"]) == ("original_gone", digest, "[red]a.png")
    assert "[red]a.png" in result.stderr


def test_a_folder_that_cannot_be_taken_is_one_sentence(home: Lab, tmp_path: Path) -> None:
    result = invoke("export", "--to", str(tmp_path / "no" / "such"))
    assert result.exit_code == 1 and "There is no folder" in result.stderr
    result = invoke("export", "--to", str(tmp_path / "x"), "--template", "{path}")
    assert result.exit_code == 1 and "no field" in result.stderr and not (tmp_path / "x").exists()
    assert invoke("export", "--to", str(tmp_path / "x"), "--source", "none").exit_code == 1
    assert invoke("export").exit_code == 2


def test_a_store_in_a_bucket_is_read_verified(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"store-{uuid.uuid4()}"
    made: Any = s3_server.client()
    made.create_bucket(Bucket=name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    extra = {"configured_store_url": f"s3://{name}/of/us", "s3_endpoint_url": s3_server.url, "s3_region": "us-east-1"}
    lab = Lab(tmp_path / "home", tmp_path / "photos", extra=extra)
    try:
        lab.picture("a.png", 1)
        lab.picture("b.png", 2)
        work(lab)
        to = tmp_path / "export"
        assert put(export_run(lab, to, link="hard")) == 2
        line = manifest(to)["demo/a.enhanced.jpg"]
        data = (to / line["name"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == line["sha256"] and line["link"] == "copy"
        # What the bucket gives is compared with the digest that the ledger has.
        (to / "demo/b.enhanced.jpg").unlink()
        sha256 = manifest(to)["demo/b.enhanced.jpg"]["sha256"]
        for key in [entry.key for entry in lab.services.store.list("derived/enhanced_images")]:
            made.put_object(Bucket=name, Key=f"of/us/{key}", Body=b"rotten")
        for copy in (lab.home / "cache").rglob(sha256):
            copy.unlink()
        outcome = export_run(lab, to)
        assert outcome.unchanged == 1 and [each.code for each in outcome.failed] == ["store_corrupt"]
        assert there(to) == {"demo/a.enhanced.jpg"}
    finally:
        lab.close()
