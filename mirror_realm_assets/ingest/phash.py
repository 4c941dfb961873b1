"""The perceptual hash of a picture: near in bits means near in looks.

What belongs here: computing it. What does not: comparing hashes of different pictures, which needs the catalog.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

_SIDE = 32
_KEPT = 8
# A hash of half ones is what the median makes of any real picture; far from it the picture is flat and its hash noise
# that would make all flat pictures "duplicates".
_MIN_ONES, _MAX_ONES = 4, 60


@cache
def _cosines() -> np.ndarray:
    """The first rows of the discrete cosine transform (type II) over 32 samples."""
    import numpy as np

    frequency, sample = np.mgrid[0:_KEPT, 0:_SIDE]
    return np.cos(np.pi * frequency * (2 * sample + 1) / (2 * _SIDE))


def perceptual_hash(image: Image.Image) -> str | None:
    """64 bits as 16 hexadecimal characters, equal to `imagehash.phash`; None for a picture without structure.

    Computed here because the library brings scipy with it: 0.1 s and 60 MB in every decoder.

    Args:
        image: RGB, upright.
    """
    import numpy as np
    from PIL import Image

    grey = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    low = _cosines() @ np.asarray(grey, dtype=np.float64) @ _cosines().T
    low = np.round(low, 6)  # what is 0 but for rounding must not count as structure
    bits = low > np.median(low)
    if not _MIN_ONES <= int(bits.sum()) <= _MAX_ONES:
        return None
    return np.packbits(bits).tobytes().hex()
