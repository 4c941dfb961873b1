"""Reading ncnn files."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from mirror_realm_assets.weights.ncnn import NcnnFormatError, read_convolutions, rrdbnet_state

FP16_TAG = struct.pack("<I", 0x01306B47)
HEADER = b"7767517\r\n2 2\r\n"
# One convolution from 1 to 1 channels, 3x3, with a bias: nine numbers, so that 16-bit ones need padding.
ONE = HEADER + b"Input input 0 1 data\r\nConvolution conv 1 1 data out 0=1 1=3 4=1 5=1 6=9\r\n"
HALVES = np.arange(9, dtype="<f2")
BIAS = np.array([0.5], "<f4")


def half_precision_numbers() -> bytes:
    return FP16_TAG + HALVES.tobytes() + b"\x00\x00" + BIAS.tobytes()


def test_half_precision_weights_and_their_padding_are_read() -> None:
    (convolution,) = read_convolutions(ONE, half_precision_numbers())
    assert convolution.weight.shape == (1, 1, 3, 3)
    assert convolution.weight.dtype == np.float16
    assert np.array_equal(convolution.weight.ravel(), HALVES)
    assert convolution.bias is not None
    assert convolution.bias.tolist() == [0.5]


def test_full_precision_weights_are_read() -> None:
    numbers = bytes(4) + HALVES.astype("<f4").tobytes() + BIAS.tobytes()
    (convolution,) = read_convolutions(ONE, numbers)
    assert convolution.weight.dtype == np.float32
    assert np.array_equal(convolution.weight.ravel(), HALVES)


@pytest.mark.parametrize(
    ("param", "numbers"),
    [
        (ONE, half_precision_numbers() + b"\x00"),
        (ONE, half_precision_numbers()[:-1]),
        (ONE, half_precision_numbers()[:10]),
        (ONE, b""),
        (ONE, struct.pack("<I", 7) + half_precision_numbers()[4:]),
        (ONE.replace(b"7767517", b"7767518"), half_precision_numbers()),
        (ONE.replace(b"Convolution", b"Deconvolution"), half_precision_numbers()),
        (ONE.replace(b" 6=9", b""), half_precision_numbers()),
        (ONE + b"Convolution broken\r\n", half_precision_numbers()),
        (b"", b""),
        (b"\xff", b""),
    ],
    ids=[
        "a byte too many",
        "a byte too few",
        "cut in the weights",
        "no numbers",
        "unknown tag",
        "another header",
        "unknown layer",
        "missing argument",
        "short line",
        "empty",
        "not text",
    ],
)
def test_a_file_that_does_not_fit_is_refused(param: bytes, numbers: bytes) -> None:
    with pytest.raises(NcnnFormatError):
        read_convolutions(param, numbers)


def test_a_model_of_another_family_is_refused() -> None:
    with pytest.raises(NcnnFormatError, match="RRDBNet"):
        rrdbnet_state(ONE, half_precision_numbers())
