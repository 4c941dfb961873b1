"""How good results look: Set5 and Set14 under `$MIRROR_REALM_TEST_MEDIA/sr`, or two photos of scikit-image without it.

Each picture is made a quarter as wide and high by Pillow's bicubic filter, clean or degraded (blurred, noisy,
compressed), enlarged again by bicubic interpolation, by the package `realesrgan` and by our engine, and compared with
the original, in RGB and to its border: PSNR, SSIM, and a perceptual distance (`perceptual`). Writes
`results/quality.json`, and the page `build/quality.html` with the pictures, whose licences allow looking at them and no
more. A network that invents detail loses to bicubic in PSNR: that is known, and nothing here is asserted.
"""

from __future__ import annotations

import io
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.enhance import psnr
from benchmarks.perceptual import Picture, perceptual_distance
from benchmarks.quality_page import page
from benchmarks.results_file import write
from mirror_realm_assets.enhance.reference import ReferenceUpscaler
from mirror_realm_assets.enhance.upscale import Upscaler
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.weights.fetch import fetch, require
from mirror_realm_assets.weights.registry import MODELS

MODEL, EYES = MODELS["realesrgan-x4plus"], MODELS["efficientnet-lite0"]
SCALE = 4
WAYS, KINDS = ("bicubic", "realesrgan", "native"), ("clean", "degraded")
_PAGE = Path(__file__).parent.parent / "build" / "quality.html"
_MEASURES = ("psnr", "ssim", "distance")


@dataclass(frozen=True)
class Row:
    """One picture, small in one of two kinds, and what each way made of it.

    Attributes:
        name: of the picture.
        kind: `clean` or `degraded`.
        small: what was enlarged.
        made: by way; and the original.
        found: by way: `psnr`, `ssim`, `distance`.
    """

    name: str
    kind: str
    small: Picture
    made: dict[str, Picture]
    found: dict[str, dict[str, float]]


def main() -> None:
    """Measure, and write figures and page."""
    settings = Settings.read()
    for model in (MODEL, EYES):
        fetch(model, settings.models_dir)
    distance = perceptual_distance(require(EYES, settings.models_dir))
    rows: list[Row] = []
    with (
        ReferenceUpscaler(MODEL, settings.models_dir, device="cpu", threads=2) as package,
        Upscaler(MODEL, settings.models_dir, device=settings.device, threads=2) as ours,
    ):
        ways: dict[str, Callable[[Picture], Picture]] = {
            "bicubic": _bicubic,
            "realesrgan": lambda small: _three(package.upscale(small)),
            "native": lambda small: _three(ours.upscale(small)),
        }
        for name, original in _pictures():
            for kind, small in zip(KINDS, (_shrunk(original), _degraded(_shrunk(original))), strict=True):
                made = {way: run(small) for way, run in ways.items()}
                found = {way: _compared(picture, original, distance) for way, picture in made.items()}
                rows.append(Row(name, kind, small, made | {"original": original}, found))
                print(f"{name} {kind}: {found}", file=sys.stderr, flush=True)
        precision = ours.precision
    figures = {"pictures": len(rows) // len(KINDS), "native_precision": precision}
    figures |= {kind: _summary([row for row in rows if row.kind == kind]) for kind in KINDS}
    write("quality", figures)
    _PAGE.parent.mkdir(exist_ok=True)
    _PAGE.write_text(page(rows, figures, WAYS), encoding="utf-8")
    print(f"The pictures: {_PAGE}", file=sys.stderr)


def _summary(rows: list[Row]) -> dict[str, Any]:
    """Means by way, and on how many pictures our engine is better than bicubic."""
    means: dict[str, Any] = {
        way: {measure: round(statistics.mean(row.found[way][measure] for row in rows), 3) for measure in _MEASURES}
        for way in WAYS
    }
    for measure, better in (("psnr", 1), ("ssim", 1), ("distance", -1)):
        won = sum(better * (row.found["native"][measure] - row.found["bicubic"][measure]) > 0 for row in rows)
        means[f"native_better_than_bicubic_in_{measure}"] = won
    agreement = [psnr(row.made["native"], row.made["realesrgan"]) for row in rows]
    return means | {"native_to_realesrgan_psnr": round(min(agreement), 1)}


def _pictures() -> Iterator[tuple[str, Picture]]:
    from PIL import Image
    from skimage import data

    folder = Path(os.environ.get("MIRROR_REALM_TEST_MEDIA", "/nowhere")) / "sr"
    paths = [path for name in ("Set5", "Set14") for path in sorted((folder / name).glob("*.png"))]
    for path in paths:
        yield f"{path.parent.name}/{path.stem}", _cropped(np.asarray(Image.open(path).convert("RGB")))
    if not paths:
        for name in ("astronaut", "chelsea"):
            yield name, _cropped(getattr(data, name)()[:256, :256])


def _cropped(picture: Picture) -> Picture:
    """So that it divides by the scale."""
    height, width = (side - side % SCALE for side in picture.shape[:2])
    return np.ascontiguousarray(picture[:height, :width])


def _shrunk(picture: Picture) -> Picture:
    from PIL import Image

    size = (picture.shape[1] // SCALE, picture.shape[0] // SCALE)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def _degraded(picture: Picture) -> Picture:
    """Blurred a little, with noise, as a JPEG of quality 50."""
    from PIL import Image, ImageFilter

    blurred = np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(0.6)), np.float32)
    noisy = blurred + np.random.default_rng(7).normal(0, 5, picture.shape)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=50)
    return np.asarray(Image.open(buffer))


def _bicubic(small: Picture) -> Picture:
    from PIL import Image

    size = (small.shape[1] * SCALE, small.shape[0] * SCALE)
    return np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))


def _three(picture: npt.NDArray[Any]) -> Picture:
    """Grey comes back as one channel."""
    return np.repeat(picture[..., None], 3, axis=2) if picture.ndim == 2 else picture


def _compared(picture: Picture, original: Picture, distance: Callable[[Picture, Picture], float]) -> dict[str, float]:
    from skimage.metrics import structural_similarity

    similarity = float(structural_similarity(picture, original, channel_axis=2))
    return {
        "psnr": round(psnr(picture, original), 2),
        "ssim": round(similarity, 3),
        "distance": round(distance(picture, original), 3),
    }
