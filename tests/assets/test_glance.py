"""Previews in events: within their budgets whatever the pictures are, and never missing for a normal one."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mirror_realm_assets.assets.glance import glance, preview


def picture(width: int, height: int, seed: int = 0, kind: str = "PNG") -> bytes:
    """Noise: the hardest picture to make small."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def shown(text: str | None) -> Image.Image:
    """The picture inside the Markdown."""
    assert text is not None
    found = re.fullmatch(r"(?:\*\*[a-z |]+\*\*\n\n)?!\[[a-z |]+\]\(data:image/webp;base64,([A-Za-z0-9+/=]+)\)", text)
    assert found, text[:80]
    with Image.open(io.BytesIO(base64.b64decode(found[1]))) as image:
        image.load()
        return image


sizes = st.tuples(st.integers(1, 160), st.integers(1, 160))


@settings(max_examples=10)
@given(st.lists(sizes, min_size=1, max_size=6), st.sampled_from(["PNG", "JPEG", "WEBP"]))
def test_any_pictures_fit_the_budgets(found: list[tuple[int, int]], kind: str) -> None:
    pictures = [(picture(width, height, n, kind),) for n, (width, height) in enumerate(found)]
    text = glance(pictures)
    assert text is not None
    assert len(text) < 1000
    shown(text)
    sheet = preview(pictures)
    assert sheet is not None
    assert len(sheet.encode()) <= 24 * 1024
    shown(sheet)


@settings(max_examples=6)
@given(st.lists(st.tuples(sizes, st.integers(1, 2)), min_size=1, max_size=4))
def test_before_and_after_are_shown_side_by_side_at_one_size(found: list[tuple[tuple[int, int], int]]) -> None:
    pairs = [
        (picture(width, height, n), picture(width * scale, height * scale, n))
        for n, ((width, height), scale) in enumerate(found)
    ]
    sheet = preview(pairs)
    assert sheet is not None
    assert sheet.startswith("**before | after**")
    assert len(sheet) <= 24 * 1024
    shown(sheet)


@pytest.mark.parametrize("size", [(8000, 1), (1, 8000), (4000, 3000), (1, 1)])
def test_extreme_shapes_are_shown_too(size: tuple[int, int]) -> None:
    data = (picture(*size, kind="JPEG"),)
    assert len(glance([data] * 4) or "") in range(1, 1000)
    assert preview([data]) is not None


def test_a_full_sheet_of_noise_is_shown_smaller_and_not_left_out() -> None:
    pairs = [(picture(128, 128, n), picture(256, 256, n)) for n in range(8)]
    sheet = preview(pairs)
    assert sheet is not None
    assert len(sheet) <= 24 * 1024
    assert shown(sheet).width > 200


def test_four_everyday_pictures_are_all_in_the_glance(photos: dict[str, np.ndarray]) -> None:
    encoded = []
    for pixels in [*photos.values(), photos["chelsea"][::-1]]:
        out = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(out, "JPEG")
        encoded.append((out.getvalue(),))
    strip = shown(glance(encoded))
    assert strip.size == (4 * 36 + 3 * 2, 36)


def test_the_glance_shows_what_came_out() -> None:
    def plain(colour: str) -> bytes:
        out = io.BytesIO()
        Image.new("RGB", (40, 40), colour).save(out, "PNG")
        return out.getvalue()

    strip = shown(glance([(plain("red"), plain("blue"))])).convert("RGB")
    red, _green, blue = strip.getpixel((18, 18))  # type: ignore[misc]
    assert blue > 200 > 60 > red


def test_without_pictures_there_is_nothing_to_show() -> None:
    assert glance([]) is None
    assert preview([]) is None
