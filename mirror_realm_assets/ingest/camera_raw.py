"""Raw files of cameras, with LibRaw: what runs inside the sandboxed child, and only there.

What belongs here: telling a camera's TIFF from a picture's, the camera's own preview, developing. What does not: what
the preview's JPEG means (`ingest.decoding` reads it as any other).

The proxy is the camera's own rendition where the file has one that is large enough: it is what its owner saw, and takes
milliseconds instead of seconds. Enhancement and export develop the sensor's data.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import mmap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mirror_realm_assets.errors import Refused
from mirror_realm_assets.ingest import formats, image_digest, upright
from mirror_realm_assets.ingest.decoded import Decoded, DecodedPart
from mirror_realm_assets.ingest.exif import Metadata, Value, read_metadata
from mirror_realm_assets.ingest.formats import Format
from mirror_realm_assets.ingest.mapped import as_file
from mirror_realm_assets.ingest.phash import perceptual_hash
from mirror_realm_assets.ingest.proxies import encoded, shrunk

if TYPE_CHECKING:
    import numpy as np
    import rawpy
    from PIL import Image

_NEW_SUBFILE_TYPE, _PHOTOMETRIC, _SUB_FOLDERS, _DNG_VERSION = 254, 262, 330, 50706
_ORIENTATION = 274
_MOSAIC, _LINEAR = 32803, 34892  # photometric interpretations of sensor data
_MAX_SUB_FOLDERS = 16
_TURNED = frozenset({5, 6})  # LibRaw's "flip" of pictures that stand upright on their side
# LibRaw's flip as EXIF tells an orientation: the file's preview is stored as the sensor lies.
_ORIENTATIONS = {0: 1, 3: 3, 5: 8, 6: 6}


def kind_of_tiff(data: mmap.mmap) -> Format:
    """TIFF, or DNG or another camera's raw file, which are TIFFs whose first picture is a thumbnail."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    file = as_file(data)
    try:
        head = data[:8]
        if head[2] == 43:  # BigTIFF, which no camera writes
            return formats.TIFF
        folder = ImageFileDirectory_v2(head)
        file.seek(folder.next)
        folder.load(file)
        if _DNG_VERSION in folder:
            return formats.DNG
        if folder.get(_NEW_SUBFILE_TYPE, 0) == 1 or folder.get(_PHOTOMETRIC) in (_MOSAIC, _LINEAR):
            return formats.CAMERA_RAW
        inner = folder.get(_SUB_FOLDERS, ())
        for offset in (inner if isinstance(inner, tuple) else (inner,))[:_MAX_SUB_FOLDERS]:
            below = ImageFileDirectory_v2(head)
            file.seek(offset)
            below.load(file)
            if below.get(_PHOTOMETRIC) == _MOSAIC:
                return formats.CAMERA_RAW
    except Exception:  # noqa: S110 - hostile tags raise anything; as a picture it is going to be refused with a reason
        pass
    return formats.TIFF


def describe(data: mmap.mmap, format_: Format, long_side: int, *, max_pixels: int) -> Decoded:
    """The picture, its proxy from the camera's preview where that is at least as large as the proxy.

    Args:
        data: the file's bytes.
        format_: told by content.
        long_side: of the proxy, in pixels.
        max_pixels: of the developed picture.

    Raises:
        Refused: `unsupported` for cameras that LibRaw does not know, `too_many_pixels`, `corrupt`.
    """
    with _opened(data, max_pixels) as raw:
        width, height = _upright_size(raw)
        preview = _preview(raw)
        notes: list[str] = []
        if preview is None or max(preview.size) < min(long_side, max(width, height)):
            # At half the size four sensor cells make one pixel: no guessing of colours, a quarter of the time.
            picture = _developed(raw, half=max(width, height) >= 2 * long_side)
        else:
            picture = preview
            notes.append("shown as the camera rendered it")
        proxy = shrunk(picture, long_side)
        metadata = _metadata(data, raw, preview)
        part = DecodedPart(
            kind="still",
            width=width,
            height=height,
            image_digest=_digest(raw),
            proxy=encoded(proxy),
            proxy_width=proxy.width,
            proxy_height=proxy.height,
        )
        return Decoded(
            format_.mime,
            (part,),
            frames=1,
            phash=perceptual_hash(proxy),
            exif=metadata.values,
            taken_at=metadata.taken_at,
            notes=(*notes, *metadata.notes),
        )


def pixels(data: mmap.mmap, *, max_pixels: int) -> np.ndarray:
    """The developed picture: HxWx3 uint8 sRGB, upright.

    Raises:
        Refused: as for `describe`.
    """
    with _opened(data, max_pixels) as raw:
        return _develop(raw, half=False)


@contextlib.contextmanager
def _opened(data: mmap.mmap, max_pixels: int) -> Iterator[rawpy.RawPy]:
    import rawpy

    try:
        with rawpy.imread(as_file(data)) as raw:
            width, height = _upright_size(raw)
            if width * height > max_pixels:
                raise Refused("too_many_pixels", f"It has {width} x {height} pixels; {max_pixels} are allowed.")
            yield raw
    except rawpy.LibRawFileUnsupportedError as error:
        raise Refused("unsupported", "It is the raw file of a camera that LibRaw does not know.") from error
    except rawpy.LibRawError as error:
        text = str(error)
        if "memory" in text.lower():
            raise Refused("decoder_memory", "Developing it took more memory than is allowed.") from error
        raise Refused("corrupt", f"The camera's raw file cannot be developed: {text}") from error


def _upright_size(raw: rawpy.RawPy) -> tuple[int, int]:
    """As the developed picture has it."""
    sizes = raw.sizes
    turned = sizes.flip in _TURNED
    return (sizes.iheight, sizes.iwidth) if turned else (sizes.iwidth, sizes.iheight)


def _develop(raw: rawpy.RawPy, *, half: bool) -> np.ndarray:
    import rawpy

    return raw.postprocess(
        use_camera_wb=True, output_bps=8, half_size=half, output_color=rawpy.ColorSpace.sRGB, no_auto_bright=False
    )


def _developed(raw: rawpy.RawPy, *, half: bool) -> Image.Image:
    from PIL import Image

    return Image.fromarray(_develop(raw, half=half))


def _preview(raw: rawpy.RawPy) -> Image.Image | None:
    """The camera's own rendition, upright; None when there is none that can be shown."""
    import rawpy
    from PIL import Image

    try:
        found = raw.extract_thumb()
        if found.format != rawpy.ThumbFormat.JPEG:
            return None
        coded = Image.open(io.BytesIO(bytes(found.data)), formats=["JPEG"])
        own = dict(coded.getexif()).get(_ORIENTATION)
        picture = coded.convert("RGB")
    except Exception:
        return None  # the sensor's data are what counts
    # Some cameras turn the preview and say nothing, others say it in its EXIF, most leave it as the sensor lies.
    width, height = _upright_size(raw)
    orientation = own if isinstance(own, int) and 1 <= own <= 8 else _ORIENTATIONS.get(raw.sizes.flip, 1)
    stands = (picture.width > picture.height) == (width > height)
    if orientation >= 5 and stands and width != height:
        orientation = 1
    return upright.transposed(picture, orientation)


def _digest(raw: rawpy.RawPy) -> str:
    """Names the sensor's data: a rating that an editor writes into the file changes nothing of the picture."""
    import numpy as np

    sensor = np.ascontiguousarray(raw.raw_image_visible)
    digest = hashlib.sha256(b"camera raw 1")
    digest.update(repr((sensor.shape, str(sensor.dtype), list(raw.camera_whitebalance))).encode())
    digest.update(sensor.data.cast("B"))
    return image_digest.with_orientation(digest.digest(), _ORIENTATIONS.get(raw.sizes.flip, 1))


class _Tags:
    """What `read_metadata` asks of a picture, read from the tags alone."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data

    def getexif(self) -> Any:
        from PIL import Image

        found = Image.Exif()
        found.load_from_fp(as_file(self._data))
        return found


def _metadata(data: mmap.mmap, raw: rawpy.RawPy, preview: Image.Image | None) -> Metadata:
    source: Any = _Tags(data) if data[:2] in (b"II", b"MM") else preview
    found = Metadata({}, None, 1, ()) if source is None else read_metadata(source)
    values: dict[str, Value] = {name: value for name, value in found.values.items() if name != "orientation"}
    taken = found.taken_at
    other = raw.other
    for name, value in (
        ("iso", other.iso_speed),
        ("exposure", other.shutter_speed),
        ("f_number", other.aperture),
        ("focal_length", other.focal_length),
    ):
        if value and value > 0:
            values.setdefault(name, round(float(value), 6))
    if taken is None and other.timestamp and other.timestamp.year > 1970:
        taken = other.timestamp.isoformat(timespec="seconds")  # the camera's wall clock: no zone is known
        values.setdefault("taken_at", taken)
    return Metadata(values, taken, 1, found.notes)
