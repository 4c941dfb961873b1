"""The command that enhances one picture, without a library."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mirror_realm_assets.cli.output import emit, human_seconds, json_option, safe, say, show
from mirror_realm_assets.settings import Settings

if TYPE_CHECKING:
    from mirror_realm_assets.enhance.engines import EngineName
    from mirror_realm_assets.enhance.picture import Progress
    from mirror_realm_assets.weights.hardware import PrecisionSetting

# A GPU does dozens of tiles a second.
_TELL_SECONDS = 0.5


@click.command()
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--model", default="realesrgan-x4plus", show_default=True, help="An enhancement model.")
@click.option("--outscale", type=float, help="How many times wider and higher.  [default: the model's own scale]")
@click.option("--tile", type=click.IntRange(min=1), help="Longest side of a tile in pixels.  [default: what fits]")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), help="Number format.")
@click.option("--engine", type=click.Choice(["native", "realesrgan"]), default="native", show_default=True)
@click.option("--denoise-strength", type=float, help="0 keeps noise, 1 takes it away; of realesr-general-x4v3 alone.")
@click.option("--faces/--no-faces", default=False, help="Restore faces as well.  [default: no-faces]")
@click.option("--force", is_flag=True, help="Replace OUT if it exists; IN is never written over.")
@json_option
def enhance(
    source: Path,
    target: Path,
    model: str,
    outscale: float | None,
    tile: int | None,
    precision: PrecisionSetting | None,
    engine: EngineName,
    denoise_strength: float | None,
    faces: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Enlarge the picture IN into the file OUT (.png, .jpg, .webp or .tif)."""
    from mirror_realm_assets.enhance.picture import enhance_file

    made = enhance_file(
        Settings.read(),
        source,
        target,
        model=model,
        outscale=outscale,
        tile=tile,
        precision=precision,
        engine=engine,
        denoise_strength=denoise_strength,
        faces=faces,
        force=force,
        on_progress=_Teller().tell,
    )
    if as_json:
        emit(asdict(made))
    else:
        sizes = f"{made.input[0]}x{made.input[1]} -> {made.output[0]}x{made.output[1]}"
        show(f"{safe(str(target))}: {sizes} in {human_seconds(made.seconds)} ({made.model}, {made.precision})")


class _Teller:
    """A line for each tile, with or without a terminal, but not more than two a second."""

    def __init__(self) -> None:
        self._told_at = -_TELL_SECONDS

    def tell(self, progress: Progress) -> None:
        """Say how far it is."""
        at = time.monotonic()
        ends = progress.done in (0, progress.tiles)
        if not ends and at - self._told_at < _TELL_SECONDS:
            return
        self._told_at = at
        left = f", about {human_seconds(progress.seconds_left)} left" if progress.done < progress.tiles else ""
        say(f"{progress.done} of {progress.tiles} tiles{left}")


COMMANDS = [enhance]
