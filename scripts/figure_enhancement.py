"""Draw `docs/figures/enhancement.png`: two details, enlarged four times in four ways.

`python scripts/figure_enhancement.py [FILE]`. The pictures are scikit-image's: the astronaut is NASA's and in the
public domain, Chelsea is CC0.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import skimage.data
from PIL import Image, ImageDraw, ImageFont

from mirror_realm_assets.enhance.upscale import Upscaler
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.weights.fetch import fetch
from mirror_realm_assets.weights.registry import MODELS

Picture = npt.NDArray[np.uint8]
_FIGURE = Path(__file__).parent.parent / "docs" / "figures" / "enhancement.png"
_MODELS = ("realesrgan-x4plus", "realesr-animevideov3")
_SIDE, _SCALE = 66, 4
_CORNERS = {"astronaut": (82, 193), "chelsea": (84, 122)}  # row and column of a detail
_CONTEXT = 24  # pixels around a detail that the networks see as well
_GAP, _LABEL = 10, 30


def main() -> None:
    """Enlarge, and write the figure."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else _FIGURE
    pieces = {name: getattr(skimage.data, name)() for name in _CORNERS}
    columns: dict[str, list[Picture]] = {"as it is": [], "bicubic": []}
    for name, corner in _CORNERS.items():
        columns["as it is"].append(_resized(_around(pieces[name], corner), Image.Resampling.NEAREST))
        columns["bicubic"].append(_resized(_around(pieces[name], corner), Image.Resampling.BICUBIC))
    settings = Settings.read()
    for model in _MODELS:
        fetch(MODELS[model], settings.models_dir)
        with Upscaler(MODELS[model], settings.models_dir, device="cpu", threads=settings.threads) as upscaler:
            columns[model] = [upscaler.upscale(_around(pieces[name], corner)) for name, corner in _CORNERS.items()]
    figure = _figure({title: [_middle(each) for each in column] for title, column in columns.items()})
    figure.save(target, optimize=True)
    print(f"{target}: {figure.width} x {figure.height} pixels, {target.stat().st_size // 1000} kB")


def _around(picture: Picture, corner: tuple[int, int]) -> Picture:
    top, left = (edge - _CONTEXT for edge in corner)
    side = _SIDE + 2 * _CONTEXT
    return np.ascontiguousarray(picture[top : top + side, left : left + side])


def _resized(picture: Picture, how: Image.Resampling) -> Picture:
    size = (picture.shape[1] * _SCALE, picture.shape[0] * _SCALE)
    return np.asarray(Image.fromarray(picture).resize(size, how))


def _middle(enlarged: Picture) -> Picture:
    begin, side = _CONTEXT * _SCALE, _SIDE * _SCALE
    return enlarged[begin : begin + side, begin : begin + side]


def _figure(columns: dict[str, list[Picture]]) -> Image.Image:
    side = _SIDE * _SCALE
    rows = len(next(iter(columns.values())))
    figure = Image.new("RGB", (len(columns) * (side + _GAP) - _GAP, _LABEL + rows * (side + _GAP) - _GAP), "white")
    pen, font = ImageDraw.Draw(figure), ImageFont.load_default(size=18)
    for number, (title, pictures) in enumerate(columns.items()):
        left = number * (side + _GAP)
        pen.text((left, 4), title, fill="black", font=font)
        for row, picture in enumerate(pictures):
            figure.paste(Image.fromarray(picture), (left, _LABEL + row * (side + _GAP)))
    return figure


if __name__ == "__main__":
    main()
