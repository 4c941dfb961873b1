"""The engines by their names, behind one interface.

What belongs here: the interface, and choosing. What does not: the engines (`upscale`, `reference`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

from mirror_realm_assets.enhance.layers import Pixels
from mirror_realm_assets.enhance.progress import Prepared, Tiles, go_on, tell_nobody
from mirror_realm_assets.enhance.remembered import RememberedTiles
from mirror_realm_assets.enhance.upscale import Upscaler
from mirror_realm_assets.weights.hardware import Device, DeviceSetting, Precision, PrecisionSetting
from mirror_realm_assets.weights.registry import Model

EngineName = Literal["native", "realesrgan"]


class Engine(Protocol):
    """One enhancement model in memory; see `upscale.Upscaler`."""

    @property
    def name(self) -> str:
        """The model's name."""
        ...

    @property
    def device(self) -> Device:
        """Where the network runs."""
        ...

    @property
    def precision(self) -> Precision:
        """The number format in use."""
        ...

    def output_size(self, height: int, width: int, outscale: float | None = None) -> tuple[int, int]:
        """Height and width of the result for a picture of that size."""
        ...

    def strips(
        self,
        image: Pixels,
        *,
        tile: int | None = None,
        outscale: float | None = None,
        between_tiles: Callable[[], None] = go_on,
        on_progress: Callable[[Tiles], None] = tell_nobody,
    ) -> Iterator[Pixels]:
        """Enlarge a picture, and give its rows from top to bottom."""
        ...

    def prepare(self, image: Pixels, outscale: float | None = None) -> Prepared:
        """First of three steps that together are `strips`; in any thread."""
        ...

    def at_once(self, picture: Prepared) -> int:
        """How many pictures like this one are best enlarged together."""
        ...

    def enlarged(
        self, pictures: Sequence[Prepared], *, between_tiles: Callable[[], None] = go_on
    ) -> list[Iterator[Pixels]]:
        """Second step, in the thread that owns the model: rows as it makes them, for each of some equal pictures."""
        ...

    def finished(self, picture: Prepared, rows: Iterable[Pixels]) -> Iterator[Pixels]:
        """Third step, in any thread: the result's rows from those of the model."""
        ...

    def close(self) -> None:
        """Drop the network and give its memory back."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_engine(
    engine: EngineName,
    spec: Model,
    models_dir: Path,
    *,
    device: DeviceSetting = "auto",
    precision: PrecisionSetting = "auto",
    threads: int = 2,
    denoise_strength: float | None = None,
    remembered: RememberedTiles | None = None,
) -> Engine:
    """The model `spec` in the hands of an engine.

    `denoise_strength`, from 0 to 1, is for a model that has a pair to be mixed with; `remembered` for the engine that
    chooses tiles, `native`.

    Raises:
        SetupError: weights are missing or altered, or the engine lacks a setting, a model, or its packages.
    """
    if engine == "native":
        return Upscaler(
            spec,
            models_dir,
            device=device,
            precision=precision,
            threads=threads,
            denoise_strength=denoise_strength,
            remembered=remembered,
        )
    from mirror_realm_assets.enhance.reference import ReferenceUpscaler

    return ReferenceUpscaler(
        spec, models_dir, device=device, precision=precision, threads=threads, denoise_strength=denoise_strength
    )
