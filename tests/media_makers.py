"""Videos, documents and raw files of cameras, made here for tests: no such file lies in the repository."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from PIL import Image

_TIFF_CODES = {1: "B", 3: "H", 4: "I"}


def scene(number: int, width: int = 320, height: int = 180) -> Image.Image:
    """A picture unlike those of other numbers, with the same brightness and structure in every run."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (5, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def video(
    scenes: Sequence[Image.Image],
    *,
    seconds: float = 2.0,
    rate: int = 10,
    key_every: int = 10,
    format: str = "mp4",
    codec: str = "libx264",
    metadata: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
) -> bytes:
    """A film of still scenes, each shown for `seconds`, with a key frame every `key_every` frames."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=format, options=options or {}) as container:
        container.metadata.update(metadata or {})
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = scenes[0].size
        stream.pix_fmt = "yuv420p"
        stream.gop_size = key_every
        if codec == "libx264":
            stream.options = {"sc_threshold": "0", "preset": "ultrafast", "crf": "12"}
        count = 0
        for picture in scenes:
            for _ in range(max(1, round(seconds * rate))):
                frame = av.VideoFrame.from_image(picture)
                frame.pts, frame.time_base = count, Fraction(1, rate)
                container.mux(stream.encode(frame))
                count += 1
        container.mux(stream.encode())
    return file.getvalue()


def turned(mp4: bytes) -> bytes:
    """The film with a display matrix as a phone held upright writes it: to be shown turned by 90 degrees clockwise."""
    plain = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    at = mp4.index(plain, mp4.index(b"tkhd"))
    return mp4[:at] + struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000) + mp4[at + len(plain) :]


def sound() -> bytes:
    """A container that holds sound alone."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def document(pages: Sequence[Image.Image], **info: str) -> bytes:
    """A PDF with a picture on each page, at 72 dpi: a pixel is a point."""
    file = io.BytesIO()
    pages[0].save(file, "PDF", save_all=True, append_images=list(pages[1:]), resolution=72.0, **info)
    return file.getvalue()


def raw_photo(rgb: np.ndarray, *, preview: Image.Image | None = None, orientation: int = 1, rating: int = 0) -> bytes:
    """A DNG: the picture as a sensor's mosaic, behind a JPEG preview if one is given.

    Args:
        rgb: HxWx3 uint8, even sides.
        preview: as the camera would have rendered it.
        orientation: 1 to 8, as EXIF tells it.
        rating: written as an editor would; 0 for none.
    """
    height, width = rgb.shape[:2]
    linear = (rgb.astype(np.float64) / 255) ** 2.2
    mosaic = np.empty((height, width))
    for row, column, channel in ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 2)):
        mosaic[row::2, column::2] = linear[row::2, column::2, channel]
    out = bytearray(b"II*\0\0\0\0\0")
    sensor = (mosaic * 65535).astype("<u2").tobytes()
    at = _put(out, sensor)
    core = [
        (254, 4, [0]),
        (256, 4, [width]),
        (257, 4, [height]),
        (258, 3, [16]),
        (259, 3, [1]),
        (262, 3, [32803]),
        (273, 4, [at]),
        (277, 3, [1]),
        (278, 4, [height]),
        (279, 4, [len(sensor)]),
        (33421, 3, [2, 2]),
        (33422, 1, [0, 1, 1, 2]),
    ]
    camera = [
        (271, 2, b"Mirror"),
        (272, 2, b"Realm One"),
        (274, 3, [orientation]),
        (306, 2, b"2024:05:06 07:08:09"),
        (50706, 1, [1, 4, 0, 0]),
        (50708, 2, b"Mirror Realm One"),
        (50721, 10, [(int(i == j) * 10000, 10000) for i in range(3) for j in range(3)]),
        (50728, 5, [(1, 1)] * 3),
        (50778, 3, [21]),
    ]
    if rating:
        camera.append((18246, 3, [rating]))
    if preview is None:
        first = _folder(out, core + camera)
    else:
        coded = io.BytesIO()
        preview.save(coded, "JPEG", quality=92)
        below = _folder(out, core)
        place = _put(out, coded.getvalue())
        shown = [
            (254, 4, [1]),
            (256, 4, [preview.width]),
            (257, 4, [preview.height]),
            (258, 3, [8, 8, 8]),
            (259, 3, [7]),
            (262, 3, [6]),
            (273, 4, [place]),
            (277, 3, [3]),
            (278, 4, [preview.height]),
            (279, 4, [len(coded.getvalue())]),
            (330, 4, [below]),
        ]
        first = _folder(out, shown + camera)
    out[4:8] = struct.pack("<I", first)
    return bytes(out)


def _put(out: bytearray, data: bytes) -> int:
    if len(out) % 2:
        out.append(0)
    at = len(out)
    out.extend(data)
    return at


def _folder(out: bytearray, entries: Sequence[tuple[int, int, object]]) -> int:
    rows = []
    for tag, kind, values in sorted(entries, key=lambda entry: entry[0]):
        if kind == 2:
            data, count = values + b"\0", len(values) + 1
        elif kind in (5, 10):
            code = "<II" if kind == 5 else "<ii"
            data, count = b"".join(struct.pack(code, *value) for value in values), len(values)
        else:
            data, count = struct.pack(f"<{len(values)}{_TIFF_CODES[kind]}", *values), len(values)
        place = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack("<I", _put(out, data))
        rows.append(struct.pack("<HHI", tag, kind, count) + place)
    return _put(out, struct.pack("<H", len(rows)) + b"".join(rows) + bytes(4))
