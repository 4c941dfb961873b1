"""The stage `archived_media`, over folders and buckets: what it copies, under which names, and what it never does."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cheap_stages import cheap_stages, run_lane
from lab import Lab
from PIL import Image
from s3_server import S3Server

from mirror_realm_assets.archive import places
from mirror_realm_assets.archive.places import MARKER, FolderArchive
from mirror_realm_assets.catalog import sources, status
from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.stages.lanes import pending_of
from mirror_realm_assets.store.uploads import PART_BYTES


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An archive, prepared."""
    FolderArchive(tmp_path / "archive").prepare()
    return tmp_path / "archive"


@pytest.fixture
def lab(tmp_path: Path, archive: Path) -> Iterator[Lab]:
    made = Lab(tmp_path / "home", tmp_path / "photos", options={"archive": str(archive)})
    yield made
    made.close()


def work(lab: Lab, *lanes: str) -> None:
    """Whatever is pending, lane by lane."""
    stages = cheap_stages(lab.settings)
    lab.form(stages)
    for lane in lanes or ("search", "enhance", "archive"):
        with lab.catalog.read() as conn:
            found = pending_of(conn, stages, lane)  # type: ignore[arg-type]
        for batch in found:
            run_lane(lab.services, stages, batch.key, lane)


def counts(lab: Lab) -> dict[str, int]:
    with lab.catalog.read() as conn:
        found = status.of_source(conn, lab.source, [stage.rule for stage in cheap_stages(lab.settings)])
    return {state: count for state, count in found.features["archived_media"].items() if count}


def there(archive: Path) -> set[str]:
    found = {str(path.relative_to(archive)) for path in archive.rglob("*") if path.is_file()}
    return found - {MARKER}


def change(lab: Lab, **options: Any) -> None:
    with lab.catalog.write() as conn:
        sources.set_policy(conn, "demo", options)


def taken(lab: Lab, name: str, number: int, when: str) -> Path:
    """A JPEG that says when it was taken."""
    png = lab.picture("tmp.png", number)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = when
    target = lab.folder / name
    target.parent.mkdir(exist_ok=True)
    Image.open(png).save(target, exif=exif)
    png.unlink()
    return target


def test_originals_and_enhanced_pictures_lie_under_the_month_they_were_taken(lab: Lab, archive: Path) -> None:
    one = taken(lab, "one.jpg", 1, "2019:07:04 10:11:12")
    two = lab.picture("two.png", 2)
    os.utime(two, (1_600_000_000, 1_600_000_000))  # 2020-09-13
    work(lab)
    assert there(archive) == {
        "year=2019/month=07/one.jpg",
        "year=2019/month=07/one.enhanced.jpg",
        "year=2020/month=09/two.png",
        "year=2020/month=09/two.enhanced.jpg",
    }
    kept = archive / "year=2019/month=07/one.jpg"
    assert kept.read_bytes() == one.read_bytes()
    assert (archive / "year=2020/month=09/two.png").stat().st_mtime == 1_600_000_000
    assert counts(lab) == {"ok": 2}


def test_nothing_is_archived_twice_and_nothing_without_an_archive(lab: Lab, archive: Path) -> None:
    lab.picture("a.png", 1)
    work(lab)
    before = {name: (archive / name).stat().st_ino for name in there(archive)}
    change(lab, **{"archive.what": "originals"})  # another recipe: everything is looked at again
    work(lab)
    assert {name: (archive / name).stat().st_ino for name in there(archive)} == before
    change(lab, archive="")
    lab.picture("b.png", 2)
    work(lab)
    assert set(before) == there(archive)
    assert counts(lab) == {"not_wanted": 2}


def test_other_bytes_under_one_name_get_their_digest_and_are_never_overwritten(lab: Lab, archive: Path) -> None:
    change(lab, **{"archive.template": "{filename}", "archive.what": "originals"})
    for number, folder in enumerate(("2019", "2020", "2021")):
        (lab.folder / folder).mkdir()
        lab.picture(f"{folder}/IMG_1.png", number)
    shutil.copy(lab.folder / "2019/IMG_1.png", lab.folder / "2021/copy of IMG_1.png")
    (archive / "IMG_1.png").write_bytes(b"what somebody else put there")
    work(lab)
    found = {hashlib.sha256((archive / name).read_bytes()).hexdigest() for name in there(archive) - {"IMG_1.png"}}
    assert found == {hashlib.sha256(path.read_bytes()).hexdigest() for path in lab.folder.rglob("*.png")}
    assert len(there(archive)) == 4
    assert (archive / "IMG_1.png").read_bytes() == b"what somebody else put there"


def test_links_and_folders_in_the_way_are_left_alone(lab: Lab, archive: Path, tmp_path: Path) -> None:
    change(lab, **{"archive.template": "{filename}", "archive.what": "originals"})
    lab.picture("a.png", 1)
    lab.picture("b.png", 2)
    outside = tmp_path / "outside"
    outside.write_bytes((lab.folder / "a.png").read_bytes())
    (archive / "a.png").symlink_to(outside)
    (archive / "b.png").mkdir()
    work(lab)
    assert (archive / "a.png").is_symlink() and (archive / "b.png").is_dir()
    assert len(there(archive)) == 3 and counts(lab) == {"ok": 2}


def test_the_archive_of_enhanced_pictures_waits_for_them(lab: Lab, archive: Path) -> None:
    lab.picture("a.png", 1)
    work(lab, "search", "archive")
    assert there(archive) == set() and counts(lab) == {"pending": 1}
    work(lab, "enhance", "archive")
    assert len(there(archive)) == 2 and counts(lab) == {"ok": 1}


def test_an_archive_of_originals_does_not(lab: Lab, archive: Path) -> None:
    change(lab, **{"archive.what": "originals"})
    lab.picture("a.png", 1)
    work(lab, "search", "archive")
    assert len(there(archive)) == 1 and counts(lab) == {"ok": 1}


def test_a_raised_limit_archives_what_is_enhanced_under_it(lab: Lab, archive: Path) -> None:
    change(lab, **{"enhance.max_pixels": 100})
    lab.picture("a.png", 1)
    work(lab)
    assert len(there(archive)) == 1 and counts(lab) == {"ok": 1}
    change(lab, **{"enhance.max_pixels": 10_000})
    work(lab)
    assert len(there(archive)) == 2 and counts(lab) == {"ok": 1}


def test_an_original_that_is_gone_is_a_failure_of_its_own(lab: Lab, archive: Path) -> None:
    lab.picture("a.png", 1)
    gone = lab.picture("b.png", 2)
    work(lab, "search", "enhance")
    gone.unlink()
    stages = cheap_stages(lab.settings)
    with lab.catalog.read() as conn:
        (batch,) = pending_of(conn, stages, "archive")
    run_lane(lab.services, stages, batch.key, "archive")
    assert counts(lab) == {"ok": 1, "failed": 1}


def test_an_archive_that_is_not_mounted_leaves_everything_pending(lab: Lab, archive: Path) -> None:
    lab.picture("a.png", 1)
    work(lab, "search", "enhance")
    (archive / MARKER).rename(archive / "elsewhere")
    with pytest.raises(SetupError, match="not mounted"):
        work(lab, "archive")
    assert counts(lab) == {"pending": 1}
    (archive / "elsewhere").rename(archive / MARKER)
    work(lab, "archive")
    assert counts(lab) == {"ok": 1}


def test_one_that_goes_away_in_between_stops_the_run(lab: Lab, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        lab.picture(f"{number}.png", number)
    work(lab, "search", "enhance")
    real, calls = places._sync, iter(range(10_000))

    def unmounted(folder: Path) -> None:
        if next(calls) == 20:
            (archive / MARKER).unlink()
            raise OSError(errno.EIO, "Input/output error")
        real(folder)

    monkeypatch.setattr(places, "_sync", unmounted)
    with pytest.raises(SetupError, match="not mounted"):
        work(lab, "archive")
    assert counts(lab).get("failed", 0) == 0
    (archive / MARKER).touch()
    monkeypatch.setattr(places, "_sync", real)
    work(lab, "archive")
    assert counts(lab) == {"ok": 30} and len(there(archive)) == 60


def test_a_full_archive_leaves_everything_pending(lab: Lab, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(25):
        lab.picture(f"{number}.png", number)
    work(lab, "search", "enhance")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(SetupError, match="no space left in the archive"):
        patched.setattr(places.os, "fsync", full)
        work(lab, "archive")
    assert there(archive) == set() and counts(lab) == {"pending": 25} and lab.source.state == "active"
    work(lab, "archive")
    assert counts(lab) == {"ok": 25}


def test_what_reads_back_otherwise_is_not_archived(lab: Lab, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.picture("a.png", 1)
    work(lab, "search", "enhance")
    monkeypatch.setattr(places.hashlib, "file_digest", lambda *_: hashlib.sha256(b"rotten"))
    work(lab, "archive")
    assert there(archive) == set()
    assert counts(lab).get("ok", 0) == 0


@pytest.fixture
def bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Any]:
    """A new bucket's name, and a client."""
    name = f"archive-{uuid.uuid4()}"
    client: Any = s3_server.client()
    client.create_bucket(Bucket=name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    return name, client


@pytest.fixture
def bucket_lab(bucket: tuple[str, Any], s3_server: S3Server, tmp_path: Path) -> Iterator[Lab]:
    extra = {"s3_endpoint_url": s3_server.url, "s3_region": "us-east-1", "s3_encryption": "AES256"}
    made = Lab(tmp_path / "home", tmp_path / "photos", options={"archive": f"s3://{bucket[0]}/of/photos"}, extra=extra)
    yield made
    made.close()


def test_a_bucket_keeps_metadata_type_checksum_and_encryption(bucket_lab: Lab, bucket: tuple[str, Any]) -> None:
    name, client = bucket
    original = taken(bucket_lab, "照片.jpg", 1, "2019:07:04 10:11:12")
    work(bucket_lab)
    digest = hashlib.sha256(original.read_bytes())
    found = client.head_object(Bucket=name, Key="of/photos/year=2019/month=07/照片.jpg", ChecksumMode="ENABLED")
    assert found["ContentType"] == "image/jpeg" and found["ServerSideEncryption"] == "AES256"
    assert found["ChecksumSHA256"] == base64.b64encode(digest.digest()).decode()
    assert found["Metadata"]["processed-by"] == "mirror-realm" and found["Metadata"]["kind"] == "original"
    assert found["Metadata"]["taken-at"].startswith("2019-07-04T10:11:12")
    enhanced = client.head_object(Bucket=name, Key="of/photos/year=2019/month=07/照片.enhanced.jpg")
    assert enhanced["Metadata"]["original-sha256"] == digest.hexdigest()
    assert counts(bucket_lab) == {"ok": 1}


def test_a_name_in_a_bucket_is_never_written_over(bucket_lab: Lab, bucket: tuple[str, Any]) -> None:
    name, client = bucket
    change(bucket_lab, **{"archive.template": "{filename}", "archive.what": "originals"})
    original = bucket_lab.picture("a.png", 1)
    client.put_object(Bucket=name, Key="of/photos/a.png", Body=b"somebody else's")
    work(bucket_lab)
    digest = hashlib.sha256(original.read_bytes()).hexdigest()
    assert client.get_object(Bucket=name, Key="of/photos/a.png")["Body"].read() == b"somebody else's"
    assert client.get_object(Bucket=name, Key=f"of/photos/a-{digest[:8]}.png")["Body"].read() == original.read_bytes()


def test_a_large_file_goes_in_parts_and_is_read_back(bucket_lab: Lab, bucket: tuple[str, Any]) -> None:
    name, client = bucket
    change(bucket_lab, **{"archive.template": "{filename}", "archive.what": "originals"})
    original = bucket_lab.folder / "a.bmp"
    bucket_lab.picture("a.bmp", 1, (3000, 2000))
    assert original.stat().st_size > PART_BYTES
    work(bucket_lab)
    assert client.get_object(Bucket=name, Key="of/photos/a.bmp")["Body"].read() == original.read_bytes()
    assert counts(bucket_lab) == {"ok": 1}


def test_a_bucket_that_is_not_there_leaves_everything_pending(bucket_lab: Lab) -> None:
    change(bucket_lab, archive="s3://no-such-bucket-of-ours/x")
    bucket_lab.picture("a.png", 1)
    with pytest.raises(SetupError, match="cannot be used"):
        work(bucket_lab)
    assert counts(bucket_lab) == {"pending": 1}


@pytest.mark.parametrize(
    "place", ["photos", "ftp://host/x", "s3://", "s3://user:secret@bucket/x", "s3://bucket/x?versionId=1", "/a/../b"]
)
def test_an_address_that_cannot_be_one_is_refused_without_repeating_secrets(place: str) -> None:
    from mirror_realm_assets.archive.stage import address

    with pytest.raises(SetupError) as caught:
        address(place)
    assert "secret" not in str(caught.value)
