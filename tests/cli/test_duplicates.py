"""duplicates: what is there several times, and what nearly looks the same, in a library that was really read."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cli_home import HOSTILE, Home, run, run_json
from lab import Lab
from PIL import Image

from mirror_realm_assets.catalog import sources

MEMBER_KEYS = {"media", "digest", "source", "paths", "width", "height", "bytes", "distance"}
Photos = dict[str, npt.NDArray[np.uint8]]


@pytest.fixture
def home(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("MIRROR_REALM_HOME", str(lab.home))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return Home(lab)


def groups(*arguments: str) -> list[dict[str, Any]]:
    return list(run_json("duplicates", *arguments))


def names(group: dict[str, Any]) -> list[list[str]]:
    return [[Path(path).name for path in member["paths"]] for member in group["members"]]


def photo(pixels: npt.NDArray[np.uint8], size: int = 96) -> Image.Image:
    return Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS)


def test_a_library_without_copies_has_no_groups(home: Home, photos: Photos) -> None:
    assert groups() == []
    for name, pixels in photos.items():
        photo(pixels).save(home.lab.folder / f"{name}.png")
    home.read()
    assert groups() == []
    assert groups("--distance", "12") == []
    assert run("duplicates").stdout == ""


def test_files_with_the_same_bytes_are_one_exact_group(home: Home, photos: Photos) -> None:
    first = home.lab.folder / "first.png"
    photo(photos["coffee"]).save(first)
    shutil.copy(first, home.lab.folder / "second.png")
    home.read()
    (group,) = groups()
    (member,) = group["members"]
    assert (group["kind"], group["distance"], set(member)) == ("exact", 0, MEMBER_KEYS)
    assert member["paths"] == [str(first), str(home.lab.folder / "second.png")]
    assert member["digest"] == hashlib.sha256(first.read_bytes()).hexdigest()
    assert (member["source"], member["width"], member["height"]) == ("demo", 96, 96)
    assert (member["bytes"], member["distance"]) == (first.stat().st_size, 0)


def test_one_picture_with_other_metadata_is_the_same_picture_and_not_a_near_one(home: Home, photos: Photos) -> None:
    plain = photo(photos["chelsea"])
    plain.save(home.lab.folder / "plain.jpg", quality=90)
    tags = Image.Exif()
    tags[0x010F] = "A camera with a long name"
    plain.save(home.lab.folder / "tagged.jpg", quality=90, exif=tags)
    home.read()
    (group,) = groups()
    assert (group["kind"], group["distance"]) == ("same_picture", 0)
    assert names(group) == [["tagged.jpg"], ["plain.jpg"]]  # as many pixels, more bytes


def test_smaller_and_recompressed_copies_are_near_the_largest(home: Home, photos: Photos) -> None:
    for name, pixels in photos.items():
        photo(pixels, 192).save(home.lab.folder / f"{name}.png")
    photo(photos["coffee"]).save(home.lab.folder / "a-small-coffee.png")
    photo(photos["coffee"], 192).save(home.lab.folder / "coffee-q30.jpg", quality=30)
    home.read()
    (group,) = groups()
    assert group["kind"] == "near"
    assert names(group) == [["coffee.png"], ["coffee-q30.jpg"], ["a-small-coffee.png"]]
    assert group["members"][0]["distance"] == 0
    assert group["distance"] == max(member["distance"] for member in group["members"]) <= 6


def test_the_distance_decides_what_is_near(home: Home, photos: Photos) -> None:
    picture = photo(photos["coffee"], 192)
    picture.save(home.lab.folder / "whole.png")
    picture.crop((4, 4, 188, 188)).save(home.lab.folder / "cropped.png")
    home.read()
    (group,) = groups("--distance", "12")
    assert 0 < group["distance"] <= 12
    assert groups("--distance", str(group["distance"])) == [group]
    assert groups("--distance", str(group["distance"] - 1)) == []


def test_pictures_that_are_plain_are_not_all_the_same(home: Home) -> None:
    down = np.repeat(np.arange(64, dtype=np.uint8)[:, None], 64, axis=1)
    for n in range(6):
        Image.new("RGB", (64, 64), (40 * n, 30, 30)).save(home.lab.folder / f"flat-{n}.png")
        Image.fromarray(down * np.uint8(n // 2 + 1) + np.uint8(n)).save(home.lab.folder / f"slope-{n}.png")
    home.read()
    assert groups("--distance", "12") == []


def test_copies_are_found_over_sources_or_in_one(home: Home, photos: Photos, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    photo(photos["coffee"]).save(home.lab.folder / "here.png")
    shutil.copy(home.lab.folder / "here.png", other / "there.png")
    photo(photos["coffee"], 192).save(other / "large.png")
    with home.lab.catalog.write() as conn:
        added = sources.add(conn, "other", os.fsencode(other), {})
    home.read()
    _read_other(home, added)
    exact, near = groups()
    assert [member["source"] for member in exact["members"]] == ["demo", "other"]
    assert names(near) == [["large.png"], ["here.png"], ["there.png"]]
    assert groups("--source", "demo") == []
    (group,) = groups("--source", "other")
    assert names(group) == [["large.png"], ["there.png"]]


def _read_other(home: Home, added: sources.Source) -> None:
    from mirror_realm_assets.ingest.watch import FolderWatch

    FolderWatch(home.lab.catalog, home.lab.settings, added).scan()
    home.read()


def test_a_source_that_was_removed_has_no_copies(home: Home, photos: Photos) -> None:
    for name in ("a.png", "b.png"):
        photo(photos["coffee"]).save(home.lab.folder / name)
    home.read()
    assert len(groups()) == 1
    with home.lab.catalog.write() as conn:
        sources.set_state(conn, "demo", "removed")
    assert groups() == []


def test_names_from_disk_harm_neither_a_terminal_nor_json(home: Home, photos: Photos) -> None:
    for name in HOSTILE:
        photo(photos["coffee"]).save(home.lab.folder / "picture.png")
        home.put(name, (home.lab.folder / "picture.png").read_bytes())
    home.read()
    (group,) = groups()
    (member,) = group["members"]
    assert set(map(base64.b64decode, member["paths_b64"])) >= {home.put(name) for name in HOSTILE}
    told = run("duplicates")
    assert told.exit_code == 0
    assert "\x1b" not in told.output
    assert "\x9b" not in told.output
    for shown in ("<img onerror=alert(1)>.jpg", "[red].jpg", "a\\x1b[31mb.jpg", "\\udcff\\udcfe.jpg", ":smile:.jpg"):
        assert f"{home.lab.folder}/{shown}" in told.stdout


def test_a_person_sees_sizes_and_places(home: Home, photos: Photos) -> None:
    photo(photos["coffee"], 192).save(home.lab.folder / "large.png")
    photo(photos["coffee"]).save(home.lab.folder / "small.png")
    home.read()
    told = run("duplicates")
    title, large, small = told.stdout.splitlines()
    assert title.startswith("nearly the same picture: ")
    assert large.split()[:3] == ["192", "x", "192"]
    assert large.endswith(f"demo  {home.lab.folder}/large.png")
    assert small.endswith(f"demo  {home.lab.folder}/small.png")
    assert (
        "Groups: 0 of the same file, 0 of the same picture in other bytes, 1 of nearly the same picture." in told.stderr
    )


@pytest.mark.parametrize("distance", ["-1", "13", "x"])
def test_a_distance_that_makes_no_sense_is_wrong_usage(home: Home, distance: str) -> None:
    assert run("duplicates", "--distance", distance).exit_code == 2


def test_an_unknown_source_is_an_error(home: Home) -> None:
    result = run("duplicates", "--source", "nobody")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "There is no source 'nobody'." in result.stderr
