"""The page that shows what `quality` compared: one HTML file with its pictures in it.

What belongs here: how the page looks. What does not: measuring (`quality`).
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.perceptual import Picture
from benchmarks.results_file import machine

if TYPE_CHECKING:
    from benchmarks.quality import Row

_SHOWN = 256  # pixels of the result's middle
_WORDS = {"psnr": "PSNR, dB (more is better)", "ssim": "SSIM (more is better)", "distance": "distance (less is better)"}
_STYLE = (
    "body{font-family:sans-serif;margin:1em}td,th{padding:4px;vertical-align:top;text-align:left}"
    "table.means td,table.means th{border-bottom:1px solid #bbb;padding:4px 12px}img{display:block}"
)


def page(rows: Sequence[Row], figures: Mapping[str, Any], ways: Sequence[str]) -> str:
    """The page: means first, then each picture's middle, as it was enlarged and as it was.

    Args:
        rows: what was compared.
        figures: means by kind and way, as `results/quality.json` has them.
        ways: names of what made the pictures, in the order of the columns.
    """
    columns = ("input", *ways, "original")
    head = "<tr><th></th>" + "".join(f"<th>{column}</th>" for column in columns) + "</tr>"
    body = "".join(_row(row, columns) for row in rows)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Quality</title><style>{_STYLE}</style>'
        f"<h1>Quality</h1><p>{html.escape(machine())}; {figures['pictures']} pictures, native in "
        f"{figures['native_precision']}. Each picture's middle, {_SHOWN} pixels wide and high, not scaled. A network "
        "that invents detail is farther from the original in PSNR than bicubic interpolation, and often in SSIM.</p>"
        f"{_means(figures, ways)}<table>{head}{body}</table></html>\n"
    )


def _means(figures: Mapping[str, Any], ways: Sequence[str]) -> str:
    lines = []
    for kind in ("clean", "degraded"):
        for measure, words in _WORDS.items():
            cells = "".join(f"<td>{figures[kind][way][measure]:.3f}</td>" for way in ways)
            won = figures[kind][f"native_better_than_bicubic_in_{measure}"]
            lines.append(f"<tr><th>{kind}</th><th>{words}</th>{cells}<td>{won} of {figures['pictures']}</td></tr>")
    head = "".join(f"<th>{way}</th>" for way in ways)
    head = f"<tr><th></th><th>mean</th>{head}<th>native better than bicubic</th></tr>"
    return f'<table class="means">{head}{"".join(lines)}</table>'


def _row(row: Row, columns: Sequence[str]) -> str:
    cells = []
    for column in columns:
        picture = _nearest(row.small) if column == "input" else row.made[column]
        found = row.found.get(column, {})
        words = ", ".join(f"{measure} {value}" for measure, value in found.items())
        cells.append(f'<td><img src="{_data_uri(picture)}" alt="{column}"><small>{words}</small></td>')
    return f"<tr><th>{html.escape(row.name)}<br>{row.kind}</th>{''.join(cells)}</tr>"


def _nearest(small: Picture) -> Picture:
    return small.repeat(4, axis=0).repeat(4, axis=1)


def _data_uri(picture: Picture) -> str:
    from PIL import Image

    top, left = (max(0, (side - _SHOWN) // 2) for side in picture.shape[:2])
    buffer = io.BytesIO()
    part = np.ascontiguousarray(picture[top : top + _SHOWN, left : left + _SHOWN])
    Image.fromarray(part).save(buffer, "JPEG", quality=92)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
