"""How good results look: Set5 and Set14 under `$MIRROR_REALM_TEST_MEDIA/sr`, or two photos of scikit-image without it.

Each picture is made a quarter as wide and high, clean or degraded (blurred, noisy, compressed), enlarged again by
bicubic interpolation, by the package `realesrgan` and by our engine, and compared with the original: PSNR, SSIM, and a
perceptual distance, 1 minus the cosine between feature maps of EfficientNet-Lite0. Writes `results/quality.json` and a
page with the pictures, `results/quality.html`. A network that invents detail loses to bicubic in PSNR: that is known.
"""

from __future__ import annotations

import base64
import io
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.enhance import psnr
from benchmarks.results_file import RESULTS, machine, write
from mirror_realm_assets.enhance.reference import ReferenceUpscaler
from mirror_realm_assets.enhance.upscale import Upscaler
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.weights.fetch import fetch, require
from mirror_realm_assets.weights.registry import MODELS

Picture = npt.NDArray[np.uint8]
MODEL, EYES = MODELS["realesrgan-x4plus"], MODELS["efficientnet-lite0"]
SCALE = 4
_SHOWN = 320
_MEASURES = ("psnr", "ssim", "distance")


def main() -> None:
    """Measure, and write figures and page."""
    settings = Settings.read()
    for model in (MODEL, EYES):
        fetch(model, settings.models_dir)
    look = _eyes(require(EYES, settings.models_dir))
    rows: list[dict[str, Any]] = []
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
            for kind, small in (("clean", _shrunk(original)), ("degraded", _degraded(_shrunk(original)))):
                made = {way: run(small) for way, run in ways.items()}
                found = {way: _compared(picture, original, look) for way, picture in made.items()}
                rows.append({"name": name, "kind": kind, "found": found, "pictures": made | {"original": original}})
                print(f"{name} {kind}: {found}", file=sys.stderr)
        precision = ours.precision
    figures: dict[str, Any] = {"pictures": len(rows) // 2, "native_precision": precision}
    for kind in ("clean", "degraded"):
        figures[kind] = {
            way: {
                measure: round(statistics.mean(row["found"][way][measure] for row in rows if row["kind"] == kind), 3)
                for measure in _MEASURES
            }
            for way in ways
        }
    write("quality", figures)
    (RESULTS / "quality.html").write_text(_page(rows, figures), encoding="utf-8")


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


def _compared(
    picture: Picture, original: Picture, look: Callable[[Picture], npt.NDArray[np.float32]]
) -> dict[str, float]:
    from skimage.metrics import structural_similarity

    one, other = look(picture), look(original)
    cosine = float((one * other).sum() / (np.linalg.norm(one) * np.linalg.norm(other)))
    similarity = float(structural_similarity(picture, original, channel_axis=2))
    return {"psnr": round(psnr(picture, original), 2), "ssim": round(similarity, 3), "distance": round(1 - cosine, 3)}


def _eyes(weights: Path) -> Callable[[Picture], npt.NDArray[np.float32]]:
    """The feature map before pooling, of the whole picture at its size."""
    import torch
    from safetensors.torch import load_file

    from mirror_realm_assets.understand.efficientnet_lite import efficientnet_lite0

    network = efficientnet_lite0()
    network.load_state_dict(load_file(weights), strict=True)
    network.eval()
    seen: list[torch.Tensor] = []
    blocks = dict(network.named_children())["blocks"]
    blocks.register_forward_hook(lambda _module, _inputs, output: seen.append(output))

    def look(picture: Picture) -> npt.NDArray[np.float32]:
        seen.clear()
        with torch.inference_mode():
            network(torch.tensor(picture.astype(np.float32).transpose(2, 0, 1) / 127.5 - 1)[None])
        features: npt.NDArray[np.float32] = seen[0].numpy().ravel()
        return features

    return look


def _page(rows: list[dict[str, Any]], figures: dict[str, Any]) -> str:
    ways = ("bicubic", "realesrgan", "native")
    head = "<tr><th></th>" + "".join(f"<th>{way}</th>" for way in (*ways, "original")) + "</tr>"
    body = []
    for row in rows:
        cells = []
        for way in (*ways, "original"):
            found = row["found"].get(way)
            words = "" if found is None else ", ".join(f"{key} {value}" for key, value in found.items())
            cells.append(f'<td><img src="{_data_uri(row["pictures"][way])}"><br><small>{words}</small></td>')
        body.append(f"<tr><th>{row['name']}<br>{row['kind']}</th>{''.join(cells)}</tr>")
    means = "".join(
        f"<p>{kind}: " + "; ".join(f"{way} {figures[kind][way]}" for way in ways) + "</p>"
        for kind in ("clean", "degraded")
    )
    style = "body{font-family:sans-serif}td,th{padding:4px;vertical-align:top}img{max-width:320px}"
    return (
        f'<!doctype html><meta charset="utf-8"><title>Quality</title><style>{style}</style><h1>Quality</h1>'
        f"<p>{machine()}; {figures['pictures']} pictures; PSNR and SSIM: more is better, distance: less is better.</p>"
        f"{means}<table>{head}{''.join(body)}</table>\n"
    )


def _data_uri(picture: Picture) -> str:
    """The middle of a picture, at its size."""
    from PIL import Image

    top, left = (max(0, (side - _SHOWN) // 2) for side in picture.shape[:2])
    buffer = io.BytesIO()
    Image.fromarray(picture[top : top + _SHOWN, left : left + _SHOWN]).save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
