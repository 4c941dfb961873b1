"""The engine `realesrgan`: the package of that name, unchanged, behind the interface of our own engine.

What belongs here: giving it verified weights, and keeping its faults from becoming wrong results. What does not: our
own engine (`upscale`).

The package reads pickles, prints to stdout, and where a tile fails it puts the previous tile's pixels into its place.
Here its constructor is replaced by one that takes our weights, what it prints goes to stderr, and a failing network
raises what the package does not catch.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from mirror_realm_assets.enhance.layers import Pixels
from mirror_realm_assets.enhance.legacy import load
from mirror_realm_assets.enhance.progress import Prepared, Tiles, go_on, tell_nobody
from mirror_realm_assets.enhance.tiling import DEFAULT_HALO
from mirror_realm_assets.errors import Failed, SetupError
from mirror_realm_assets.weights.denoise import denoised_state
from mirror_realm_assets.weights.fetch import require
from mirror_realm_assets.weights.hardware import (
    Device,
    DeviceSetting,
    Precision,
    PrecisionSetting,
    choose_device,
    model_failure,
    release_memory,
)
from mirror_realm_assets.weights.registry import Model

if TYPE_CHECKING:
    import torch


class ReferenceUpscaler:
    """One enhancement model in the hands of `RealESRGANer`; see `upscale.Upscaler`, whose interface this is.

    It has two number formats, fp32 and (on a GPU) fp16, puts 10 pixels around a tile unless told otherwise, and without
    a tile takes the picture whole.

    Args:
        spec: an `enhance` model; its weights must be in `models_dir`.
        models_dir: the models folder.
        device: setting; `auto` takes a GPU where there is one.
        precision: setting; `auto` is fp16 on a GPU and fp32 on a CPU.
        threads: CPU threads of torch, for the whole process.
        denoise_strength: see `weights.denoise`; only for a model that has a pair to be mixed with.

    Raises:
        SetupError: `weights_missing`, `weights_altered`, `not_found` for a package that is not installed, or
            `invalid_argument` for settings that this engine does not have.
    """

    def __init__(
        self,
        spec: Model,
        models_dir: Path,
        *,
        device: DeviceSetting = "auto",
        precision: PrecisionSetting = "auto",
        threads: int = 2,
        denoise_strength: float | None = None,
    ) -> None:
        import torch

        if spec.purpose != "enhance" or spec.scale is None:
            raise SetupError("invalid_argument", f"{spec.name} does not enhance pictures.")
        state = _state(spec, models_dir, denoise_strength)
        self.name, self.digest, self.scale = spec.name, spec.weights_sha256, spec.scale
        self.device: Device = choose_device(device)
        self.precision: Precision = _precision(precision, self.device)
        torch.set_num_threads(threads)
        network = _network(spec, state)
        self._runner = _runner(network, spec.scale, half=self.precision == "fp16", device=self.device)

    def output_size(self, height: int, width: int, outscale: float | None = None) -> tuple[int, int]:
        """Height and width of the result: the package cuts where ours rounds."""
        factor = self.scale if outscale is None else outscale
        return max(1, int(height * factor)), max(1, int(width * factor))

    def upscale(self, image: Pixels, **options: Any) -> Pixels:
        """See `upscale.Upscaler.upscale`."""
        return next(self.strips(image, **options))

    def strips(
        self,
        image: Pixels,
        *,
        tile: int | None = None,
        halo: int | None = None,
        outscale: float | None = None,
        between_tiles: Callable[[], None] = go_on,
        on_progress: Callable[[Tiles], None] = tell_nobody,
    ) -> Iterator[Pixels]:
        """See `upscale.Upscaler.strips`; here the one strip is the whole result.

        Grey with alpha comes back as RGB with alpha; the network runs over alpha as well.

        Raises:
            Failed: as there, and `invalid_argument` for a picture of 16 bits so dark that the package would take it for
                one of 8.
        """
        if image.dtype == np.uint16 and int(image.max()) <= 256:  # the package tells them apart by their values
            raise Failed("invalid_argument", "So dark a picture of 16 bits needs the engine native.")
        runner = self._runner
        if runner is None:
            raise RuntimeError("this network is closed")
        runner.tile_size, runner.tile_pad = tile or 0, 10 if halo in (None, DEFAULT_HALO) else halo
        count = _tiles(image, tile)
        watch = runner.model.watch = _Watch(count, between_tiles, on_progress)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                enlarged, _mode = runner.enhance(_as_bgr(image), outscale=outscale)
        except Exception as error:
            if watch.cancelled is not None:
                raise watch.cancelled from None
            cause = error.__cause__ if isinstance(error, TileFailed) else error
            what = f"a picture of {image.shape[1]}x{image.shape[0]} pixels"
            raise model_failure(cause if isinstance(cause, Exception) else error, what) from error
        finally:
            runner.model.watch = None
        yield _as_rgb(enlarged)

    def prepare(self, image: Pixels, outscale: float | None = None) -> Prepared:
        """See `upscale.Upscaler.prepare`; the package does all of it in its one step."""
        return Prepared(image, outscale)

    def at_once(self, _picture: Prepared) -> int:
        """One: the package takes no more."""
        return 1

    def enlarged(
        self, pictures: Sequence[Prepared], *, between_tiles: Callable[[], None] = go_on
    ) -> list[Iterator[Pixels]]:
        """See `upscale.Upscaler.enlarged`."""
        return [self.strips(one.image, outscale=one.outscale, between_tiles=between_tiles) for one in pictures]

    def finished(self, _picture: Prepared, rows: Iterable[Pixels]) -> Iterator[Pixels]:
        """See `upscale.Upscaler.finished`; here nothing is left to do."""
        return iter(rows)

    def close(self) -> None:
        """Drop the network and give its memory back. May be called twice."""
        self._runner = None
        release_memory()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Watch:
    """Between two passes of the network: progress, and the caller's wish to stop."""

    def __init__(self, total: int, between_tiles: Callable[[], None], on_progress: Callable[[Tiles], None]) -> None:
        self._total, self._done = total, 0
        self._between_tiles, self._on_progress = between_tiles, on_progress
        self.cancelled: BaseException | None = None
        on_progress(Tiles(0, total, 1.0))

    def begin(self) -> None:
        if not self._done:
            return
        try:
            self._between_tiles()
        except BaseException as error:
            self.cancelled = error
            raise TileFailed("cancelled") from error

    def end(self) -> None:
        self._done = min(self._total, self._done + 1)
        self._on_progress(Tiles(self._done, self._total, 1 - self._done / self._total))


class TileFailed(Exception):
    """A pass of the network failed."""


def _guarded(network: torch.nn.Module) -> Any:
    """The network as the package calls it, whose failures the package does not catch."""
    import torch

    class Guarded(torch.nn.Module):
        watch: _Watch | None = None

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            if self.watch is not None:
                self.watch.begin()
            try:
                result: torch.Tensor = self.network(batch)
            except RuntimeError as error:
                raise TileFailed(str(error)) from error
            if self.watch is not None:
                self.watch.end()
            return result

    return Guarded()


def _runner(network: torch.nn.Module, scale: int, *, half: bool, device: Device) -> Any:
    """A `RealESRGANer` with a network in it, made without its constructor, which loads a pickle."""
    import torch

    runner = load("realesrgan").RealESRGANer.__new__(load("realesrgan").RealESRGANer)
    runner.scale, runner.tile_size, runner.tile_pad, runner.pre_pad = scale, 0, 10, 0
    runner.mod_scale, runner.half, runner.device = None, half, torch.device(device)
    model = _guarded(network).eval().to(runner.device)
    runner.model = model.half() if half else model
    return runner


def _state(spec: Model, models_dir: Path, denoise_strength: float | None) -> Mapping[str, torch.Tensor]:
    from safetensors.torch import load_file

    if denoise_strength is not None:
        return denoised_state(spec, denoise_strength, models_dir)
    return {name: tensor.float() for name, tensor in load_file(require(spec, models_dir)).items()}


def _network(spec: Model, state: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """The package's own network of a model, with our verified weights in it."""
    if spec.architecture == "RRDBNet":
        blocks = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("body."))
        network = load("basicsr.archs.rrdbnet_arch").RRDBNet(
            num_in_ch=3, num_out_ch=3, num_feat=64, num_block=blocks, num_grow_ch=32, scale=spec.scale
        )
    elif spec.architecture == "SRVGGNetCompact":
        # Two convolutions at the ends, and a pair of convolution and PReLU for each one between them.
        convolutions = (max(int(name.split(".")[1]) for name in state) - 2) // 2
        network = load("realesrgan.archs.srvgg_arch").SRVGGNetCompact(
            num_in_ch=3, num_out_ch=3, num_feat=64, num_conv=convolutions, upscale=spec.scale, act_type="prelu"
        )
    else:
        raise SetupError(
            "invalid_argument",
            f"The engine realesrgan has no network {spec.architecture}.",
            remedy="Use the engine native.",
        )
    network.load_state_dict(state, strict=True)
    built: torch.nn.Module = network
    return built


def _precision(setting: PrecisionSetting, device: Device) -> Precision:
    if setting == "auto":
        return "fp16" if device == "cuda" else "fp32"
    if setting == "bf16" or (setting == "fp16" and device == "cpu"):
        raise SetupError(
            "invalid_argument",
            f"The engine realesrgan has no precision {setting} on this device.",
            remedy="Set the precision to auto or fp32, or use the engine native.",
        )
    return setting


def _tiles(image: Pixels, tile: int | None) -> int:
    """How many passes of the network the package will need."""
    height, width = image.shape[:2]
    passes = 2 if image.ndim == 3 and image.shape[2] in (2, 4) else 1
    return passes * (-(-height // tile) * -(-width // tile) if tile else 1)


def _as_bgr(image: Pixels) -> npt.NDArray[Any]:
    if image.ndim == 2:
        return image
    order = {2: [0, 0, 0, 1], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[image.shape[2]]
    return np.ascontiguousarray(image[..., order])


def _as_rgb(image: npt.NDArray[Any]) -> Pixels:
    if image.ndim == 2:
        return image
    rgb: npt.NDArray[Any] = np.ascontiguousarray(image[..., [2, 1, 0, 3][: image.shape[2]]])
    return rgb
