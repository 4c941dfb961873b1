"""Reader of ncnn model files (`.param` text and `.bin` numbers) for the RRDBNet family.

What belongs here: the ncnn file format, and the names that Real-ESRGAN's reference code gives to the tensors of an
RRDBNet. What does not: the other formats (`convert`), where files come from (`fetch`).

The format, as ncnn writes it: the text names one layer a line; the binary holds the numbers of the convolutions in
the same order and nothing else. Each is a 4-byte tag (which says 16- or 32-bit floats), the weights padded to 4 bytes,
then the bias in 32 bits. There is no index and no checksum, hence the rule here that every byte must be used.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_MAGIC = "7767517"
_TAG_FP16 = 0x01306B47
_TAGS_FP32 = (0, 0x0002C056)
# Layers that carry no numbers in an RRDBNet.
_WEIGHTLESS = frozenset({"Input", "Split", "Concat", "Eltwise", "BinaryOp", "Interp"})

# An RRDBNet is six convolutions around its trunk; each block of the trunk is three dense blocks of five.
_OUTER_CONVS = 6
_CONVS_PER_BLOCK = 15

Array = npt.NDArray[np.float16] | npt.NDArray[np.float32]


class NcnnFormatError(ValueError):
    """The files are no ncnn model of the kind this module reads; the message says where they differ."""


@dataclass(frozen=True)
class Convolution:
    """The numbers of one convolution.

    Attributes:
        weight: `(out, in, k, k)`, float16 or float32 as the file stores it.
        bias: `(out,)` float32, or None.
    """

    weight: Array
    bias: npt.NDArray[np.float32] | None


def read_convolutions(param: bytes, numbers: bytes) -> list[Convolution]:
    """Every convolution of an ncnn model in graph order.

    Args:
        param: content of the `.param` file (ASCII, either line ending).
        numbers: content of the `.bin` file.

    Raises:
        NcnnFormatError: unknown header, layer or tag; too few numbers, or bytes left over.
    """
    convolutions: list[Convolution] = []
    position = 0
    for name, arguments in _convolution_lines(param):
        try:
            convolution, position = _read_convolution(name, arguments, numbers, position)
        except (KeyError, ValueError, struct.error) as error:
            raise NcnnFormatError(f"layer {name}: {error}") from error
        convolutions.append(convolution)
    if position != len(numbers):
        raise NcnnFormatError(f"{len(numbers) - position} bytes are left over")
    return convolutions


def rrdbnet_state(param: bytes, numbers: bytes) -> dict[str, Array]:
    """The tensors of an RRDBNet under the names of Real-ESRGAN's reference code (`conv_first.weight`, ...).

    Args:
        param: content of the `.param` file.
        numbers: content of the `.bin` file.

    Returns:
        Weights `(out, in, k, k)` in the file's own precision and biases `(out,)` in float32.

    Raises:
        NcnnFormatError: as `read_convolutions`, or the layers are not those of an RRDBNet.
    """
    convolutions = read_convolutions(param, numbers)
    blocks, rest = divmod(len(convolutions) - _OUTER_CONVS, _CONVS_PER_BLOCK)
    if blocks < 1 or rest:
        raise NcnnFormatError(f"{len(convolutions)} convolutions do not make an RRDBNet")
    state: dict[str, Array] = {}
    for name, convolution in zip(_rrdbnet_names(blocks), convolutions, strict=True):
        state[f"{name}.weight"] = convolution.weight
        if convolution.bias is not None:
            state[f"{name}.bias"] = convolution.bias
    return state


def _rrdbnet_names(blocks: int) -> list[str]:
    dense = [f"body.{b}.rdb{r}.conv{c}" for b in range(blocks) for r in (1, 2, 3) for c in range(1, 6)]
    return ["conv_first", *dense, "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]


def _convolution_lines(param: bytes) -> Iterator[tuple[str, dict[str, str]]]:
    """Name and arguments of every convolution that the text declares."""
    try:
        lines = param.decode("ascii").splitlines()
    except UnicodeDecodeError as error:
        raise NcnnFormatError("the .param file is not ASCII text") from error
    if not lines or lines[0].strip() != _MAGIC:
        raise NcnnFormatError("the .param file does not start as an ncnn text model does")
    for line in lines[2:]:  # the second line counts layers and blobs
        try:
            kind, name, inputs, outputs, *rest = line.split()
            first = int(inputs) + int(outputs)
        except ValueError as error:
            raise NcnnFormatError(f"not a layer: {line[:80]!r}") from error
        if kind in _WEIGHTLESS:
            continue
        if kind != "Convolution":
            raise NcnnFormatError(f"layer {name}: {kind} is not part of an RRDBNet")
        pairs = (argument.partition("=") for argument in rest[first:])
        yield name, {key: value for key, _, value in pairs}


def _read_convolution(name: str, arguments: dict[str, str], numbers: bytes, start: int) -> tuple[Convolution, int]:
    """One convolution from byte `start` on, and the position after it. Argument keys are ncnn's own numbers."""
    outputs, kernel, count = int(arguments["0"]), int(arguments["1"]), int(arguments["6"])
    (tag,) = struct.unpack_from("<I", numbers, start)
    position = start + 4
    weight: Array
    if tag == _TAG_FP16:
        weight = np.frombuffer(numbers, "<f2", count, position)
        position += (2 * count + 3) // 4 * 4
    elif tag in _TAGS_FP32:
        weight = np.frombuffer(numbers, "<f4", count, position)
        position += 4 * count
    else:
        raise NcnnFormatError(f"layer {name}: unknown tag {tag:#x}")
    bias = None
    if int(arguments.get("5", "0")):
        bias = np.frombuffer(numbers, "<f4", outputs, position)
        position += 4 * outputs
    return Convolution(weight.reshape(outputs, -1, kernel, kernel), bias), position
