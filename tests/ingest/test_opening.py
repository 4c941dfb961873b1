"""Opening a known original again: the right bytes from any place that has them, or a clear failure."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from lab import Lab

from mirror_realm_assets.catalog import sources
from mirror_realm_assets.errors import MirrorRealmError
from mirror_realm_assets.ingest.opening import open_original
from mirror_realm_assets.ingest.stage import raw_media_stage
from mirror_realm_assets.stages.engine import run_stage


def read(lab: Lab) -> None:
    stages = (raw_media_stage(lab.settings),)
    for batch in lab.form(stages):
        run_stage(stages[0], batch.key, lab.services, stages)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def opened(lab: Lab, wanted: str) -> bytes:
    with open_original(lab.services, wanted) as original:
        assert original.digest == wanted
        return os.pread(original.fd, original.size + 1, 0)


def code(lab: Lab, wanted: str) -> str:
    with pytest.raises(MirrorRealmError) as error:
        opened(lab, wanted)
    return error.value.code


def rewrite(path: Path, data: bytes) -> None:
    """Other bytes under the old size and time, as only a digest can tell."""
    times = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_any_place_that_still_holds_the_bytes_will_do(lab: Lab) -> None:
    places = [lab.picture(f"{name}.png") for name in ("a", "b", "c")]
    data = places[0].read_bytes()
    read(lab)
    places[0].unlink()
    rewrite(places[1], data[::-1])
    assert opened(lab, digest(data)) == data
    rewrite(places[2], data[::-1])
    assert code(lab, digest(data)) == "original_changed"


def test_changed_bytes_never_pass_for_the_original(lab: Lab) -> None:
    place = lab.picture("a.png")
    data = place.read_bytes()
    read(lab)
    rewrite(place, data[:-1] + b"!")
    assert code(lab, digest(data)) == "original_changed"
    rewrite(place, data)
    assert opened(lab, digest(data)) == data


def test_an_original_at_none_of_its_places_is_gone(lab: Lab) -> None:
    place = lab.picture("a.png")
    wanted = digest(place.read_bytes())
    read(lab)
    place.unlink()
    assert code(lab, wanted) == "original_gone"
    assert code(lab, "0" * 64) == "original_gone"


def test_the_kept_copy_serves_when_the_source_is_gone(lab: Lab) -> None:
    with lab.catalog.write() as conn:
        sources.set_policy(conn, "demo", {"originals": "copy"})
    place = lab.picture("a.png")
    data = place.read_bytes()
    read(lab)
    place.unlink()
    assert opened(lab, digest(data)) == data


def test_a_link_swapped_in_for_the_file_or_its_folder_is_not_followed_out(lab: Lab, tmp_path: Path) -> None:
    (lab.folder / "sub").mkdir()
    place = lab.picture("sub/a.png")
    data = place.read_bytes()
    read(lab)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.png").write_bytes(data)  # the very same bytes, and yet not ours to read
    place.unlink()
    place.symlink_to(outside / "a.png")
    assert code(lab, digest(data)) == "original_gone"
    place.unlink()
    (lab.folder / "sub").rmdir()
    (lab.folder / "sub").symlink_to(outside)
    assert code(lab, digest(data)) == "original_gone"


def test_a_moved_file_is_opened_at_its_new_place(lab: Lab) -> None:
    place = lab.picture("a.png")
    data = place.read_bytes()
    read(lab)
    place.rename(lab.folder / "moved.png")
    read(lab)
    assert opened(lab, digest(data)) == data
