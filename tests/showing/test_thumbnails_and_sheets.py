"""Thumbnails of what the store has, the contact sheet, and what becomes of damaged pictures."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
from lab import Lab
from PIL import Image

from mirror_realm_assets.pipeline import standard_stages
from mirror_realm_assets.showing.sheet import Pair, draw, pairs_of
from mirror_realm_assets.showing.thumbnails import Thumbnail, of_file, of_subjects
from mirror_realm_assets.stages.engine import run_stage


def opened(thumbnail: Thumbnail) -> Image.Image:
    return Image.open(io.BytesIO(thumbnail.data), formats=["WEBP"])


@pytest.fixture
def subjects(lab: Lab) -> list[tuple[str, int]]:
    """Three pictures that are read: content digest and part."""
    files = [lab.picture(f"{number}.png", number, (96, 64)) for number in range(3)]
    stages = standard_stages(lab.settings)
    (batch,) = lab.form(stages)
    run_stage(stages[0], batch.key, lab.services, stages)
    return [(hashlib.sha256(file.read_bytes()).hexdigest(), 0) for file in files]


def test_thumbnails_are_made_from_proxies_and_a_damaged_one_costs_no_other(
    lab: Lab, subjects: list[tuple[str, int]]
) -> None:
    first = of_subjects(lab.services, subjects, side=48)
    assert [opened(first[subject]).size for subject in subjects] == [(48, 32)] * 3
    assert (first[subjects[0]].width, first[subjects[0]].height) == (48, 32)

    damaged, gone = sorted((lab.home / "store" / "derived" / "raw_media").rglob("*.jpg"))[:2]
    damaged.chmod(0o600)
    damaged.write_bytes(b"not what it was")
    gone.unlink()
    missing = ("0" * 64, 0)
    after = of_subjects(lab.services, [*subjects, missing], side=48)
    assert sorted(bool(thumbnail.data) for thumbnail in after.values()) == [False, False, False, True]
    reasons = {thumbnail.missing for thumbnail in after.values()}
    assert any("cannot be read (store_corrupt)" in reason for reason in reasons)
    assert any("no preview" in reason for reason in reasons)


def test_the_asked_picture_is_decoded_in_the_sandbox_or_says_why_not(lab: Lab, tmp_path: Path) -> None:
    Image.new("RGB", (400, 100), "red").save(tmp_path / "asked.png")
    (tmp_path / "words.png").write_text("no picture")
    assert opened(of_file(lab.services, tmp_path / "asked.png", side=100)).size == (100, 25)
    refused = of_file(lab.services, tmp_path / "words.png", side=100)
    assert not refused.data
    assert refused.missing


def pair(name: str, size: tuple[int, int], colour: str) -> Pair:
    enlarged = (size[0] * 4, size[1] * 4)
    images = (Image.new("RGB", size, "black"), Image.new("RGB", enlarged, colour))
    return Pair(name, *images, size=size, enlarged=enlarged, model="toy")


def test_a_sheet_shows_before_and_after_at_one_size() -> None:
    sheet = Image.open(io.BytesIO(draw([pair("a.jpg", (160, 120), "#ff0000")])), formats=["PNG"]).convert("RGB")
    black = [box for count, colour in sheet.getcolors(1 << 24) or [] if colour == (0, 0, 0) for box in [count]]
    red = [count for count, colour in sheet.getcolors(1 << 24) or [] if colour == (255, 0, 0)]
    assert black == red == [400 * 300]


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_a_sheet_has_room_for_every_pair_and_any_name(count: int) -> None:
    shapes = [(160, 120), (90, 120), (1000, 3), (3, 1000), (640, 480), (1, 1)]
    names = ["a.jpg", "<img onerror=alert(1)>.jpg", "镜界.jpg", "x" * 300, "", "\\x1b[31m.jpg"]
    sheet = Image.open(io.BytesIO(draw([pair(names[n], shapes[n], "blue") for n in range(count)])))
    assert sheet.format == "PNG"
    assert sheet.width > 800
    assert sheet.height > 300 * -(-count // 2)


def test_without_an_enhanced_picture_there_is_nothing_to_show(lab: Lab, subjects: list[tuple[str, int]]) -> None:
    assert pairs_of(lab.services, "demo", count=6) == []
    with pytest.raises(ValueError, match="needs a picture"):
        draw([])
