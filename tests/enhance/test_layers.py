"""Grey stays grey, transparency stays itself, and nothing unseen bleeds into what is seen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror_realm_assets.enhance.layers import as_grey, put_together, taken_apart
from mirror_realm_assets.enhance.resizing import RowResizer, resized_rows

RNG = np.random.default_rng(5)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_grey_is_three_equal_channels_and_comes_back_as_one(kind: type) -> None:
    grey = RNG.integers(0, np.iinfo(kind).max, (9, 7), kind)
    for picture in (grey, np.repeat(grey[..., None], 3, axis=2)):
        layers = taken_apart(picture)
        assert layers.grey and layers.alpha is None and layers.colours.shape == (9, 7, 3)
        assert np.array_equal(as_grey(layers.colours), grey)
    assert not taken_apart(np.dstack([grey, grey, grey + 1])).grey


def test_transparency_goes_beside_and_unseen_colours_become_the_nearest_seen_one() -> None:
    picture = np.zeros((8, 10, 4), np.uint8)
    picture[:, :5] = (200, 100, 50, 255)
    picture[:, 5:7] = (10, 20, 30, 128)
    layers = taken_apart(picture)
    assert layers.alpha is not None and np.array_equal(layers.alpha, picture[..., 3])
    assert np.array_equal(layers.colours[:, :7], picture[:, :7, :3])
    assert (layers.colours[:, 7:] == (10, 20, 30)).all()
    assert np.array_equal(put_together(picture[..., :3], layers.alpha), picture)


def test_what_is_opaque_everywhere_has_no_transparency_and_what_is_nowhere_keeps_its_colours() -> None:
    opaque = RNG.integers(0, 255, (5, 5, 4), np.uint8)
    opaque[..., 3] = 255
    assert taken_apart(opaque).alpha is None
    opaque[..., 3] = 0
    layers = taken_apart(opaque)
    assert layers.alpha is not None and np.array_equal(layers.colours, opaque[..., :3])


@pytest.mark.parametrize("shape", [(4,), (4, 4, 5), (0, 4, 3), (4, 4, 3, 1)])
def test_other_arrays_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        taken_apart(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="expected"):
        taken_apart(np.zeros((4, 4, 3), np.float32))  # type: ignore[arg-type]


@given(
    height=st.integers(1, 90),
    width=st.integers(1, 12),
    target=st.tuples(st.integers(1, 150), st.integers(1, 12)),
    kind=st.sampled_from([np.uint8, np.uint16]),
    channels=st.sampled_from([1, 3]),
    data=st.data(),
)
def test_rows_come_out_as_from_the_whole_picture(
    height: int, width: int, target: tuple[int, int], kind: type, channels: int, data: st.DataObject
) -> None:
    shape = (height, width) if channels == 1 else (height, width, channels)
    picture = np.random.default_rng(height * width).integers(0, np.iinfo(kind).max, shape, kind, endpoint=True)
    whole = resized_rows(picture, target, 0, target[0])
    assert whole.shape[:2] == target and whole.dtype == kind
    resizer = RowResizer((height, width), target)
    made, top = [], 0
    while top < height:
        count = data.draw(st.integers(1, height - top))
        made.extend(resizer.push(picture[top : top + count]))
        top += count
    rows = np.concatenate(made)
    assert rows.shape == whole.shape
    assert np.abs(rows.astype(int) - whole).max() <= 1
    cut = data.draw(st.integers(0, target[0] - 1))
    part = resized_rows(picture, target, cut, target[0])
    assert np.abs(part.astype(int) - whole[cut:]).max() <= 1
