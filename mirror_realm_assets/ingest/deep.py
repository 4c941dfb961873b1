"""Colours of more than 8 bits, which Pillow reads as 8: what runs inside the sandboxed child, and only there.

What belongs here: telling which files hold such colours, and reading them with another library. What does not: grey,
which Pillow reads whole but for HEIF, and what is made of the pixels (`stills`).

PNG and TIFF are read by OpenCV, HEIF by pillow-heif. Its 10 and 12 bits are brought to the whole range of 16 by their
white: 1023 and 4095 become 65535; the decoder itself would shift them to 65472 and 65520, which is no white. AVIF stays
with Pillow and 8 bits: pillow-heif cannot read it, and OpenCV 5.0 refuses deep ones that say which colours they have.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any

from mirror_realm_assets.ingest.mapped import as_file

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

    Deep = npt.NDArray[np.uint16]

_PNG_COLOURS = (2, 6)  # IHDR's colour types of RGB without and with alpha
_BITS, _PHOTOMETRIC, _RGB = 258, 262, 2


def colours(image: Image.Image, data: mmap.mmap) -> Deep | None:
    """A picture in 16 bits, in the order in which its file stores it.

    Args:
        image: the same picture, loaded by Pillow.
        data: the whole file.

    Returns:
        `HxW`, `HxWx2`, `HxWx3` RGB or `HxWx4` RGBA over the whole range; None where Pillow's reading is the better one.
    """
    found = _of_heif(image, data) if image.format == "HEIF" else _of_others(image, data)
    # Of another kind after all: 8 bits are better than nothing.
    return found if found is not None and found.shape[:2] == (image.height, image.width) else None


def _of_heif(image: Image.Image, data: mmap.mmap) -> Deep | None:
    if image.info.get("bit_depth", 8) <= 8:
        return None
    import numpy as np
    import pillow_heif

    file = pillow_heif.HeifFile(as_file(data), convert_hdr_to_8bit=False, hdr_to_16bit=False)
    picture = file[file.primary_index]
    kind, _, bits = picture.mode.partition(";")
    if kind not in ("L", "I", "LA", "RGB", "RGBA") or bits not in ("10", "12"):  # others have alpha multiplied in
        return None
    return _stretched(np.asarray(picture), 2 ** int(bits) - 1)


def _of_others(image: Image.Image, data: mmap.mmap) -> Deep | None:
    if not _is_deep(image, data):
        return None
    import cv2
    import numpy as np

    cv2.setNumThreads(1)
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.dtype != np.uint16 or found.ndim != 3:
        return None
    order = cv2.COLOR_BGR2RGB if found.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
    return np.asarray(cv2.cvtColor(found, order), np.uint16)


def _is_deep(image: Image.Image, data: mmap.mmap) -> bool:
    """Whether it is a PNG or TIFF of RGB or RGBA with 16 bits."""
    if image.format == "PNG":
        # Bit depth and colour type stand at fixed places of the first chunk.
        return data[24] == 16 and data[25] in _PNG_COLOURS
    if image.format != "TIFF":
        return False
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS)
    return isinstance(bits, tuple) and len(bits) in (3, 4) and set(bits) == {16} and tags.get(_PHOTOMETRIC) == _RGB


def _stretched(values: npt.NDArray[Any], white: int) -> Deep:
    import numpy as np

    levels = np.rint(np.arange(white + 1) * (65535 / white)).astype(np.uint16)
    stretched: Deep = levels[np.minimum(values, white)]
    return stretched
