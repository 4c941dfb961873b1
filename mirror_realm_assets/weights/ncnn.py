"""Reader of ncnn model files (`.param` text and `.bin` numbers) for Real-ESRGAN's two families of networks.

What belongs here: the ncnn file format, and the names that Real-ESRGAN's reference code gives to the tensors of an
RRDBNet and of an SRVGGNetCompact. What does not: the other formats (`convert`), where files come from (`fetch`).

The format, as ncnn writes it: the text names one layer a line; the binary holds the numbers of the layers that have
any, in the same order and nothing else. A convolution is a 4-byte tag (which says 16- or 32-bit floats), the weights
padded to 4 bytes, then the bias in 32 bits; a PReLU is its slopes in 32 bits, without a tag. There is no index and no
checksum, hence the rule here that every byte must be used.
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
# Layers that carry no numbers in these networks.
_WEIGHTLESS = frozenset({"Input", "Split", "Concat", "Eltwise", "BinaryOp", "Interp", "PixelShuffle"})

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


@dataclass(frozen=True)
class PRelu:
    """The numbers of one parametric ReLU.

    Attributes:
        slope: `(channels,)` float32, by which negative values are multiplied.
    """

    slope: npt.NDArray[np.float32]


Layer = Convolution | PRelu


def read_layers(param: bytes, numbers: bytes) -> list[Layer]:
    """Every layer of an ncnn model that has numbers, in graph order.

    Args:
        param: content of the `.param` file (ASCII, either line ending).
        numbers: content of the `.bin` file.

    Raises:
        NcnnFormatError: unknown header, layer or tag; too few numbers, or bytes left over.
    """
    layers: list[Layer] = []
    position = 0
    for kind, name, arguments in _layer_lines(param):
        layer: Layer
        try:
            if kind == "PReLU":
                layer, position = _read_prelu(arguments, numbers, position)
            else:
                layer, position = _read_convolution(name, arguments, numbers, position)
        except (KeyError, ValueError, struct.error) as error:
            raise NcnnFormatError(f"layer {name}: {error}") from error
        layers.append(layer)
    if position != len(numbers):
        raise NcnnFormatError(f"{len(numbers) - position} bytes are left over")
    return layers


def rrdbnet_state(param: bytes, numbers: bytes) -> dict[str, Array]:
    """The tensors of an RRDBNet under the names of Real-ESRGAN's reference code (`conv_first.weight`, ...).

    Args:
        param: content of the `.param` file.
        numbers: content of the `.bin` file.

    Returns:
        Weights `(out, in, k, k)` in the file's own precision and biases `(out,)` in float32.

    Raises:
        NcnnFormatError: as `read_layers`, or the layers are not those of an RRDBNet.
    """
    layers = read_layers(param, numbers)
    blocks, rest = divmod(len(layers) - _OUTER_CONVS, _CONVS_PER_BLOCK)
    if blocks < 1 or rest or not all(isinstance(layer, Convolution) for layer in layers):
        raise NcnnFormatError(f"these {len(layers)} layers do not make an RRDBNet")
    return _named(_rrdbnet_names(blocks), layers)


def srvgg_state(param: bytes, numbers: bytes) -> dict[str, Array]:
    """The tensors of an SRVGGNetCompact under the names of Real-ESRGAN's reference code (`body.0.weight`, ...).

    Args:
        param: content of the `.param` file.
        numbers: content of the `.bin` file.

    Returns:
        Weights `(out, in, k, k)` in the file's own precision, biases `(out,)` and slopes `(channels,)` in float32.

    Raises:
        NcnnFormatError: as `read_layers`, or the layers are not convolutions with a PReLU between each two.
    """
    layers = read_layers(param, numbers)
    wanted = [PRelu if n % 2 else Convolution for n in range(len(layers))]
    if len(layers) < 3 or len(layers) % 2 == 0 or [type(layer) for layer in layers] != wanted:
        raise NcnnFormatError(f"these {len(layers)} layers do not make an SRVGGNetCompact")
    return _named([f"body.{n}" for n in range(len(layers))], layers)


def _named(names: list[str], layers: list[Layer]) -> dict[str, Array]:
    state: dict[str, Array] = {}
    for name, layer in zip(names, layers, strict=True):
        if isinstance(layer, PRelu):
            state[f"{name}.weight"] = layer.slope
            continue
        state[f"{name}.weight"] = layer.weight
        if layer.bias is not None:
            state[f"{name}.bias"] = layer.bias
    return state


def _rrdbnet_names(blocks: int) -> list[str]:
    dense = [f"body.{b}.rdb{r}.conv{c}" for b in range(blocks) for r in (1, 2, 3) for c in range(1, 6)]
    return ["conv_first", *dense, "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]


def _layer_lines(param: bytes) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Kind, name and arguments of every layer with numbers that the text declares."""
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
        if kind not in ("Convolution", "PReLU"):
            raise NcnnFormatError(f"layer {name}: {kind} is not part of these networks")
        pairs = (argument.partition("=") for argument in rest[first:])
        yield kind, name, {key: value for key, _, value in pairs}


def _read_prelu(arguments: dict[str, str], numbers: bytes, start: int) -> tuple[PRelu, int]:
    """One PReLU from byte `start` on, and the position after it."""
    channels = int(arguments["0"])
    if channels < 1:  # numpy takes -1 as "all that is left"
        raise ValueError(f"{channels} slopes")
    return PRelu(np.frombuffer(numbers, "<f4", channels, start)), start + 4 * channels


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
