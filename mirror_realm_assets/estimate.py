"""What a source will take: files, hours on this machine, bytes.

What belongs here: the estimate that people see before anything is computed. Sizes of pictures come from the headers of
a sample, so that a folder of any size is estimated in seconds.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mirror_realm_assets.catalog.sources import Source
from mirror_realm_assets.errors import MirrorRealmError
from mirror_realm_assets.ingest import scan
from mirror_realm_assets.ingest.batching import search_seconds
from mirror_realm_assets.ingest.originals import open_beneath
from mirror_realm_assets.ingest.scan import Entry
from mirror_realm_assets.ingest.watch import own_folders
from mirror_realm_assets.settings import Settings

_SAMPLE = 200
_HEADER_BYTES = 256 * 1024
# Of enhanced PNG on photographs: about 1.9 bytes for each pixel of the result.
_BYTES_PER_PIXEL = {"png": 1.9, "jpeg": 0.5, "webp": 0.25}


@dataclass(frozen=True)
class Estimate:
    """What a source will take.

    Attributes:
        files, bytes: in the folder, ignored ones left out.
        sampled: pictures whose size was looked at.
        search_seconds: until everything can be searched.
        enhance_files, enhance_seconds, enhance_bytes: of the pictures that the policy enhances.
        not_wanted: pictures that are too large for it.
    """

    files: int
    bytes: int
    sampled: int
    search_seconds: float
    enhance_files: int
    enhance_seconds: float
    enhance_bytes: int
    not_wanted: int

    def as_json(self) -> dict[str, Any]:
        """The form of `sources estimate --json`."""
        return asdict(self)


def of_folder(settings: Settings, source: Source, *, seed: int = 0) -> Estimate:
    """Estimate a source from its folder as it is now.

    Raises:
        SetupError: `folder_missing`.
    """
    entries = scan.walk(source.root, source.policy.ignore, own_folders(settings)).entries
    total = sum(entry.size for entry in entries)
    sample = random.Random(seed).sample(entries, min(_SAMPLE, len(entries)))  # noqa: S311 - a sample, no secret
    pixels = [size for entry in sample if (size := _pixels(source.root, entry)) is not None]
    policy = source.policy
    wanted = [size for size in pixels if size <= policy.enhance_max_pixels] if policy.enhance else []
    share = len(entries) / len(sample) if sample else 0.0
    rate = _enhance_rate(settings, policy.enhance_model)
    result_pixels = sum(wanted) * policy.enhance_outscale**2
    return Estimate(
        files=len(entries),
        bytes=total,
        sampled=len(pixels),
        search_seconds=round(sum(search_seconds(entry.size) for entry in entries), 1),
        enhance_files=round(len(wanted) * share),
        enhance_seconds=round(sum(wanted) / 1e6 * rate * share, 1),
        enhance_bytes=round(result_pixels * _BYTES_PER_PIXEL[policy.enhance_format] * share),
        not_wanted=round((len(pixels) - len(wanted)) * share) if policy.enhance else 0,
    )


def _enhance_rate(settings: Settings, model: str) -> float:
    """Seconds a megapixel, for the precision this machine would choose."""
    from mirror_realm_assets.enhance.estimate import seconds_per_megapixel
    from mirror_realm_assets.weights.hardware import Device, choose_precision, cpu_flags

    device: Device = "cuda" if settings.device == "cuda" else "cpu"
    return seconds_per_megapixel(model, choose_precision(settings.precision, device, cpu_flags()), device)


def _pixels(root: bytes, entry: Entry) -> int | None:
    """Pixels that a picture's header claims, or None when it is none we know."""
    from mirror_realm_assets.ingest.header import claimed_size

    try:
        fd = open_beneath(root, entry.path)
    except MirrorRealmError:
        return None
    try:
        size = claimed_size(os.pread(fd, _HEADER_BYTES, 0))
    except OSError:
        return None
    finally:
        os.close(fd)
    return size[0] * size[1] if size else None


__all__: Sequence[str] = ["Estimate", "of_folder"]
