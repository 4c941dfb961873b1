"""Decoding one file: what runs inside the sandboxed child, and only there.

What belongs here: who decodes what, the reason why a file cannot be decoded; and opening, checking, loading and
describing a picture with Pillow. What does not: other kinds of file (`videos`, `documents`, `camera_raw`), colour and
depth (`upright`), metadata (`exif`), and processes (`sandbox`).
"""

from __future__ import annotations

import hashlib
import importlib
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from mirror_realm_assets.errors import Refused
from mirror_realm_assets.ingest import camera_raw, documents, formats, image_digest, stills, unended, upright, videos
from mirror_realm_assets.ingest.decoded import Decoded, DecodedPart
from mirror_realm_assets.ingest.exif import Metadata, read_metadata
from mirror_realm_assets.ingest.formats import Format
from mirror_realm_assets.ingest.mapped import as_file, as_unmapped_file
from mirror_realm_assets.ingest.phash import perceptual_hash
from mirror_realm_assets.ingest.proxies import encoded, fitted
from mirror_realm_assets.ingest.still import StillFacts

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

T = TypeVar("T")

_PLUGINS = ("Jpeg", "Mpo", "Png", "Gif", "WebP", "Tiff", "Bmp", "Jpeg2K", "Avif")
_DECODER_THREADS = 2  # by default one for each core, and each takes address space, which is limited
# Of a file's time, what frames and pages may take; then it is shown by those that there are.
_SHARE_OF_SECONDS = 0.6
# What Pillow and its libraries say where bytes are missing; corruption inside sounds different.
_TRUNCATED = ("truncated", "unexpected end", "end of file", "end-of-file", "not enough", "premature")
# Inflated, in one chunk of a PNG: above, Pillow gives up the picture. Its own limit of 1 MB gives up those of programs
# that keep their whole workflow there. All chunks together may have 64 MB.
_MAX_TEXT_BYTES = 16 << 20
_BITS_PER_SAMPLE, _TIFF_ORIENTATION = 258, 274


def load_plugins() -> None:
    """Import the decoders we allow, and none of the others that Pillow has."""
    import numpy  # noqa: F401 - so that the first picture does not pay for it
    import pillow_heif
    from PIL import AvifImagePlugin, ImageCms, ImageFile, PngImagePlugin  # noqa: F401

    for name in _PLUGINS:
        importlib.import_module(f"PIL.{name}ImagePlugin")
    AvifImagePlugin.DEFAULT_MAX_THREADS = _DECODER_THREADS
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    PngImagePlugin.MAX_TEXT_CHUNK = _MAX_TEXT_BYTES
    pillow_heif.register_heif_opener(
        decode_threads=_DECODER_THREADS, thumbnails=False, depth_images=False, aux_images=False
    )


def answer(request: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], bytes]:
    """The reply to one request of `Decoder`: facts and proxy, a size, or `refused` with a message."""
    try:
        source = fds[0]
        format_ = formats.require(os.pread(source, formats.SNIFF_BYTES, 0))
        if format_.reader == "video":
            return _described_video(source, format_, request).as_reply()
        with mmap.mmap(source, os.fstat(source).st_size, prot=mmap.PROT_READ) as data:
            if format_ is formats.TIFF:
                format_ = camera_raw.kind_of_tiff(data)
            if request["do"] == "pixels":
                return _write_pixels(data, format_, request, fds[1]), b""
            if request["do"] == "still":
                return _write_still(data, format_, request, fds[1]).as_reply()
            return _described(data, format_, request).as_reply()
    except Exception as error:
        # Parsers of hostile bytes raise anything at all; each is a verdict on the file.
        reason = refusal(error)
        return {"refused": reason.code, "message": reason.message}, b""


def _described_video(source: int, format_: Format, request: dict[str, Any]) -> Decoded:
    if request["do"] != "proxy":
        raise Refused("unsupported", "Only still pictures have pixels at full size.")
    return videos.describe(
        as_unmapped_file(source),
        format_,
        request["long_side"],
        max_pixels=request["max_pixels"],
        seconds=request["seconds"] * _SHARE_OF_SECONDS,
    )


def _described(data: mmap.mmap, format_: Format, request: dict[str, Any]) -> Decoded:
    max_pixels, long_side = request["max_pixels"], request["long_side"]
    seconds = request["seconds"] * _SHARE_OF_SECONDS
    if format_.reader == "document":
        return documents.describe(data, long_side, max_pixels=max_pixels, seconds=seconds)
    if format_.reader == "camera_raw":
        return camera_raw.describe(data, format_, long_side, max_pixels=max_pixels)
    return _whole(data, format_, lambda data: _describe(_opened(data, format_, request), long_side))


def _whole(data: mmap.mmap, format_: Format, use: Callable[[mmap.mmap], T]) -> T:
    """What `use` makes of the picture, or of the completed one if nothing but its end marker is missing."""
    try:
        return use(data)
    except OSError as error:
        if format_ is not formats.JPEG or refusal(error).code != "truncated":
            raise
        completed = unended.completed(data)
        if completed is None:
            raise
    return use(completed)


def _opened(data: mmap.mmap, format_: Format, request: dict[str, Any]) -> _Picture:
    return _Picture.opened(data, format_, request["max_pixels"], request["max_frames"])


def _write_pixels(data: mmap.mmap, format_: Format, request: dict[str, Any], out: int) -> dict[str, int]:
    """Write the still at full size into the file `out`; returns its size."""
    if format_.reader == "camera_raw":
        return _write_array(camera_raw.pixels(data, max_pixels=request["max_pixels"]), out)
    if format_.reader != "picture":
        raise Refused("unsupported", "Only still pictures have pixels at full size.")
    return _whole(data, format_, lambda data: _write_picture(_opened(data, format_, request), out))


def _write_array(pixels: np.ndarray, out: int) -> dict[str, int]:
    with mmap.mmap(out, pixels.nbytes) as memory:
        memory.write(pixels.tobytes())
    return {"width": pixels.shape[1], "height": pixels.shape[0]}


def _write_still(data: mmap.mmap, format_: Format, request: dict[str, Any], out: int) -> StillFacts:
    """Write the still at full size, as the file holds it, into the file `out`."""
    if format_.reader == "camera_raw":
        size = _write_array(camera_raw.pixels(data, max_pixels=request["max_pixels"]), out)
        return StillFacts(size["height"], size["width"], 3, 8, False, None, None)
    if format_.reader != "picture":
        raise Refused("unsupported", "Only still pictures have pixels at full size.")

    def written(data: mmap.mmap) -> StillFacts:
        picture = _opened(data, format_, request)
        metadata = picture.load()
        return stills.write(
            picture.image,
            data,
            out,
            orientation=1 if picture.is_tiff else metadata.orientation,
            white=picture.white,
            icc=picture.profile()[0],
            frames=picture.frames,
        )

    return _whole(data, format_, written)


def refusal(error: Exception) -> Refused:
    """Why a picture is refused on which Pillow or one of its libraries raised `error`."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, Refused):
        return error
    if isinstance(error, Image.DecompressionBombError):
        return Refused("too_many_pixels", "Its declared size is a decompression bomb's.")
    if isinstance(error, UnidentifiedImageError):
        return Refused("corrupt", "Its beginning is a picture's, but its header makes no sense.")
    text = getattr(error, "strerror", None) or str(error)
    if isinstance(error, MemoryError) or "memory" in text.lower():
        return Refused("decoder_memory", "Decoding took more memory than is allowed.")
    if any(sign in text.lower() for sign in _TRUNCATED):
        return Refused("truncated", f"Its end is missing: {text}")
    return Refused("corrupt", f"It cannot be decoded: {type(error).__name__}: {text}")


@dataclass
class _Picture:
    """An opened picture whose declared size has been accepted."""

    data: mmap.mmap
    image: Image.Image
    mime: str
    frames: int
    max_pixels: int
    notes: list[str] = field(default_factory=list)

    @classmethod
    def opened(cls, data: mmap.mmap, format_: Format, max_pixels: int, max_frames: int) -> _Picture:
        from PIL import Image

        Image.MAX_IMAGE_PIXELS = max_pixels
        picture = cls(data, _open(data, format_), format_.mime, 1, max_pixels)
        picture._check_size()
        try:
            picture.frames = int(getattr(picture.image, "n_frames", 1))
        except Exception:  # a broken second page; the first may be fine
            picture.notes.append("frames could not be counted")
            picture.image = _open(data, format_)
        if picture.frames > max_frames:
            raise Refused("too_many_frames", f"It has {picture.frames} frames; {max_frames} are allowed.")
        return picture

    def _check_size(self) -> None:
        width, height = self.image.size
        if width < 1 or height < 1:
            raise Refused("corrupt", "Its declared size is empty.")
        if width * height > self.max_pixels:
            raise Refused("too_many_pixels", f"It has {width} x {height} pixels; {self.max_pixels} are allowed.")

    def load(self) -> Metadata:
        """Decode the first picture; what it says of itself."""
        tags = getattr(self.image, "tag_v2", None)
        # Pillow turns a TIFF upright while loading it and forgets how it was stored.
        stored = None if tags is None else tags.get(_TIFF_ORIENTATION, 1)
        xmp = self._take_xmp()
        self.image.load()
        self._check_size()  # a HEIF's size may turn out to be another
        xmp = self._take_xmp() or xmp
        metadata = read_metadata(self.image, xmp=xmp, stored_orientation=stored)
        self.notes.extend(metadata.notes)
        return metadata

    def _take_xmp(self) -> bytes:
        found: Any = b""
        for key in ("XML:com.adobe.xmp", "xmp"):
            found = self.image.info.pop(key, None) or found
        return found.encode("utf-8", "replace") if isinstance(found, str) else found if type(found) is bytes else b""

    @property
    def is_tiff(self) -> bool:
        return self.mime == formats.TIFF.mime

    @property
    def white(self) -> float:
        bits = getattr(self.image, "tag_v2", {}).get(_BITS_PER_SAMPLE)
        return upright.white_level(self.image, bits=bits[0] if isinstance(bits, tuple) and bits else None)

    def profile(self) -> tuple[bytes | None, str | None]:
        """The colour profile and its name; neither, with a note, when it is garbage."""
        icc = self.image.info.get("icc_profile")
        if not isinstance(icc, bytes) or not icc:
            return None, None
        name = upright.describe_profile(icc)
        if name is None:
            self.notes.append("garbage ICC profile ignored")
        return (None if name is None else icc), name


def _open(data: mmap.mmap, format_: Format) -> Image.Image:
    from PIL import Image

    return Image.open(as_file(data), formats=[format_.name])


def _describe(picture: _Picture, long_side: int) -> Decoded:
    if picture.mime == formats.PNG.mime:
        # Loading heeds no checksum: where a broken copy left zeros, it makes a picture of noise.
        _open(picture.data, formats.PNG).verify()
    core = image_digest.of_coded(picture.data, picture.mime)
    width, height = picture.image.size
    if core is not None and picture.mime == formats.JPEG.mime:
        # Scale while decoding, by 2, 4 or 8: half the time (0.14 against 0.32 s for 12 megapixels), a fraction of the
        # memory, and 0.24 grey levels away on average. Full-size pixels are needed only where they name the picture.
        picture.image.draft(None, fitted((width, height), long_side))
        drafted = True
    else:
        drafted = False
    metadata = picture.load()
    if not drafted:
        width, height = picture.image.size
    if core is None:
        # Pages after the first are not decoded here; the file's bytes stand for them, so that two files which
        # begin alike never share a digest.
        extra = hashlib.sha256(picture.data).digest() if picture.frames > 1 else b""
        core = image_digest.of_pixels(picture.image, picture.image.info.get("icc_profile"), extra=extra)
    orientation = 1 if picture.is_tiff else metadata.orientation
    icc, icc_name = picture.profile()
    has_alpha = bool(picture.image.has_transparency_data)
    proxy = _proxy_of(picture, icc, orientation, fitted((width, height), long_side))
    if orientation >= 5:
        width, height = height, width
    part = DecodedPart(
        kind="still",
        width=width,
        height=height,
        image_digest=image_digest.with_orientation(core, orientation),
        proxy=encoded(proxy),
        proxy_width=proxy.width,
        proxy_height=proxy.height,
    )
    return Decoded(
        picture.mime,
        (part,),
        frames=picture.frames,
        phash=perceptual_hash(proxy),
        exif=metadata.values,
        taken_at=metadata.taken_at,
        has_alpha=has_alpha,
        icc=icc_name,
        notes=tuple(picture.notes),
    )


def _proxy_of(picture: _Picture, icc: bytes | None, orientation: int, target: tuple[int, int]) -> Image.Image:
    from PIL import Image

    small = upright.to_eight_bit(picture.image, picture.white)
    if small.size != target:
        # First shrink, then convert colours: the order costs a fraction of a grey level and saves most of the work.
        small = small.resize(target, Image.Resampling.LANCZOS, reducing_gap=3.0)
    rgb, used = upright.to_srgb(small, icc)
    if icc is not None and not used:
        picture.notes.append("ICC profile of another kind of picture ignored")
    return upright.transposed(rgb, orientation)


def _write_picture(picture: _Picture, out: int) -> dict[str, int]:
    import numpy as np

    metadata = picture.load()
    orientation = 1 if picture.is_tiff else metadata.orientation
    icc, _ = picture.profile()
    white = picture.white
    width, height = picture.image.size
    if orientation >= 5:
        width, height = height, width
    with mmap.mmap(out, width * height * 3) as memory:
        whole = np.frombuffer(memory, dtype=np.uint8).reshape(height, width, 3)
        stored = upright.as_stored(whole, orientation)
        for top, strip in upright.strips(picture.image):
            rgb, _ = upright.to_srgb(upright.to_eight_bit(strip, white), icc)
            stored[top : top + rgb.height] = np.asarray(rgb)
        del whole, stored  # the mapping cannot be closed while arrays point into it
    return {"width": width, "height": height}
