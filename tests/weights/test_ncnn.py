"""Reading ncnn files."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from mirror_realm_assets.weights.ncnn import (
    Convolution,
    NcnnFormatError,
    PRelu,
    read_layers,
    rrdbnet_state,
    srvgg_state,
)

FP16_TAG = struct.pack("<I", 0x01306B47)
HEADER = b"7767517\r\n2 2\r\n"
# One convolution from 1 to 1 channels, 3x3, with a bias: nine numbers, so that 16-bit ones need padding.
ONE = HEADER + b"Input input 0 1 data\r\nConvolution conv 1 1 data out 0=1 1=3 4=1 5=1 6=9\r\n"
HALVES = np.arange(9, dtype="<f2")
BIAS = np.array([0.5], "<f4")


def half_precision_numbers() -> bytes:
    return FP16_TAG + HALVES.tobytes() + b"\x00\x00" + BIAS.tobytes()


def test_half_precision_weights_and_their_padding_are_read() -> None:
    (convolution,) = read_layers(ONE, half_precision_numbers())
    assert isinstance(convolution, Convolution)
    assert convolution.weight.shape == (1, 1, 3, 3)
    assert convolution.weight.dtype == np.float16
    assert np.array_equal(convolution.weight.ravel(), HALVES)
    assert convolution.bias is not None
    assert convolution.bias.tolist() == [0.5]


def test_full_precision_weights_are_read() -> None:
    numbers = bytes(4) + HALVES.astype("<f4").tobytes() + BIAS.tobytes()
    (convolution,) = read_layers(ONE, numbers)
    assert isinstance(convolution, Convolution)
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
        read_layers(param, numbers)


def test_a_model_of_another_family_is_refused() -> None:
    with pytest.raises(NcnnFormatError, match="RRDBNet"):
        rrdbnet_state(ONE, half_precision_numbers())


# Two convolutions with two slopes between them, as SRVGGNetCompact is built.
COMPACT = (
    HEADER
    + b"Input input 0 1 data\r\nSplit split 1 2 data a b\r\n"
    + b"Convolution c0 1 1 a c 0=1 1=3 4=1 5=1 6=9\r\nPReLU p1 1 1 c d 0=2\r\n"
    + b"Convolution c2 1 1 d e 0=1 1=3 4=1 5=1 6=9\r\nPixelShuffle s 1 1 e f 0=4\r\n"
    + b"Interp i 1 1 b g 0=1 1=4.0 2=4.0\r\nBinaryOp add 2 1 f g output\r\n"
)
SLOPES = np.array([0.25, -1.5], "<f4")


def compact_numbers() -> bytes:
    return half_precision_numbers() + SLOPES.tobytes() + half_precision_numbers()


def test_the_slopes_of_a_prelu_are_read_between_its_convolutions() -> None:
    first, slopes, last = read_layers(COMPACT, compact_numbers())
    assert isinstance(slopes, PRelu)
    assert slopes.slope.tolist() == SLOPES.tolist()
    assert isinstance(first, Convolution)
    assert isinstance(last, Convolution)


def test_a_compact_network_gets_the_names_of_its_reference_code() -> None:
    state = srvgg_state(COMPACT, compact_numbers())
    assert list(state) == ["body.0.weight", "body.0.bias", "body.1.weight", "body.2.weight", "body.2.bias"]
    assert state["body.1.weight"].tolist() == SLOPES.tolist()


@pytest.mark.parametrize(
    ("param", "numbers"),
    [
        (ONE, half_precision_numbers()),
        (COMPACT.replace(b"PReLU p1 1 1 c d 0=2\r\n", b""), half_precision_numbers() * 2),
        (COMPACT.replace(b"0=2", b"0=3"), compact_numbers()),
        (COMPACT.replace(b"0=2", b"0=-1"), compact_numbers()),
        (COMPACT, compact_numbers()[:-1]),
    ],
    ids=["one layer", "no slopes", "more slopes than numbers", "a negative count", "a byte too few"],
)
def test_a_compact_network_that_does_not_fit_is_refused(param: bytes, numbers: bytes) -> None:
    with pytest.raises(NcnnFormatError):
        srvgg_state(param, numbers)


def test_an_rrdbnet_has_no_slopes() -> None:
    with pytest.raises(NcnnFormatError, match="RRDBNet"):
        rrdbnet_state(COMPACT, compact_numbers())
