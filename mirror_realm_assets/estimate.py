"""What a source will take: files, hours on this machine, bytes.

What belongs here: the estimate that people see before anything is computed. Sizes of pictures come from the headers of
a sample, so that a folder of any size is estimated in seconds.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mirror_realm_assets.catalog import measured
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.sources import Source
from mirror_realm_assets.errors import MirrorRealmError
from mirror_realm_assets.ingest.batching import search_seconds
from mirror_realm_assets.ingest.folder_watch import own_folders
from mirror_realm_assets.ingest.originals import open_beneath
from mirror_realm_assets.ingest.scan import Entry, Walk
from mirror_realm_assets.settings import Settings

_SAMPLE = 200
_HEADER_BYTES = 256 * 1024
# Of enhanced PNG on photographs: about 1.9 bytes for each pixel of the result.
BYTES_PER_PIXEL = {"png": 1.9, "jpeg": 0.5, "webp": 0.25}
# Of a proxy (JPEG, quality 95, 4:4:4): 0.12 to 0.62 bytes a pixel on 14 photographs; and of a vector with its row.
_PROXY_BYTES_PER_PIXEL = 0.5
EMBEDDING_BYTES = 3_000
_KINDS = 8


@dataclass(frozen=True)
class Estimate:
    """What a source will take.

    Attributes:
        files, bytes: in the folder, ignored ones left out.
        kinds: files by suffix, the most frequent ones; `other` is the rest.
        too_large: files above the limit of bytes, which are refused.
        sampled: pictures whose size was looked at.
        search_seconds: until everything can be searched.
        enhance_files, enhance_seconds, enhance_bytes: of the pictures that the policy enhances.
        not_wanted: pictures that are too large for it.
        device, precision: what enhancement runs on here.
        seconds_per_megapixel: of enhancement.
        rate_from: `measured` on this machine, or the `table` of another.
        search_bytes: of what the search lane stores.
        free_bytes: on the store's disk, or None when that cannot be told.
        fits: whether all that is stored leaves the disk above its low-space mark; None when that cannot be told.
    """

    files: int
    bytes: int
    kinds: dict[str, int]
    too_large: int
    sampled: int
    search_seconds: float
    enhance_files: int
    enhance_seconds: float
    enhance_bytes: int
    not_wanted: int
    device: str
    precision: str
    seconds_per_megapixel: float
    rate_from: str
    search_bytes: int
    free_bytes: int | None = None
    fits: bool | None = None

    def as_json(self) -> dict[str, Any]:
        """The form of `sources estimate --json`."""
        return asdict(self)


def of_folder(
    settings: Settings,
    source: Source,
    *,
    seed: int = 0,
    catalog: Catalog | None = None,
    on_progress: Callable[[Walk], None] = lambda _walk: None,
) -> Estimate:
    """Estimate a source from its folder as it is now.

    Args:
        settings: of this process.
        source: the source.
        seed: of the sample.
        catalog: whose timings, if there are any, replace the table of speeds.
        on_progress: told about the walk, folder by folder.

    Raises:
        SetupError: `folder_missing`.
    """
    every = list(Walk(source.root, source.policy.ignore, own_folders(settings), on_folder=on_progress))
    entries = [entry for entry in every if entry.size <= settings.max_file_bytes]
    sample = random.Random(seed).sample(entries, min(_SAMPLE, len(entries)))  # noqa: S311 - a sample, no secret
    sizes = [size for entry in sample if (size := _size(source.root, entry)) is not None]
    pixels = [width * height for width, height in sizes]
    policy = source.policy
    wanted = [size for size in pixels if size <= policy.enhance_max_pixels] if policy.enhance else []
    share = len(entries) / len(sample) if sample else 0.0
    device, precision = runs_on(settings)
    rate, rate_from = enhance_rate(policy.enhance_model, device, precision, catalog)
    result_pixels = sum(wanted) * policy.enhance_outscale**2
    proxies = sum(_proxy_pixels(size, settings.proxy_long_side) for size in sizes) * _PROXY_BYTES_PER_PIXEL
    return _on_disk(
        settings,
        Estimate(
            files=len(every),
            bytes=sum(entry.size for entry in every),
            kinds=_kinds(every),
            too_large=len(every) - len(entries),
            sampled=len(pixels),
            search_seconds=round(sum(search_seconds(entry.size) for entry in entries), 1),
            enhance_files=round(len(wanted) * share),
            enhance_seconds=round(sum(wanted) / 1e6 * rate * share, 1),
            enhance_bytes=round(result_pixels * BYTES_PER_PIXEL[policy.enhance_format] * share),
            not_wanted=round((len(pixels) - len(wanted)) * share) if policy.enhance else 0,
            device=device,
            precision=precision,
            seconds_per_megapixel=round(rate, 3),
            rate_from=rate_from,
            search_bytes=round((proxies + len(sizes) * EMBEDDING_BYTES) * share),
        ),
    )


def _on_disk(settings: Settings, found: Estimate) -> Estimate:
    """With the space there is where the store lies."""
    folder = settings.store_folder
    if folder is None:
        return found
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return found
    return replace(
        found, free_bytes=free, fits=free - found.search_bytes - found.enhance_bytes >= settings.low_space_bytes
    )


def _kinds(entries: Sequence[Entry]) -> dict[str, int]:
    """Files by suffix, most frequent first."""
    suffixes = Counter(os.path.splitext(entry.path)[1].lower() for entry in entries)  # noqa: PTH122 - bytes
    kinds = {os.fsdecode(suffix)[1:].encode("utf-8", "backslashreplace").decode() or "none": n
             for suffix, n in suffixes.most_common(_KINDS)}  # fmt: skip
    rest = len(entries) - sum(kinds.values())
    return kinds | ({"other": rest} if rest else {})


def runs_on(settings: Settings) -> tuple[str, str]:
    """Device and precision that enhancement would choose here, told without loading torch."""
    from mirror_realm_assets.weights.hardware import Device, choose_precision, cpu_flags

    on_gpus = settings.device == "cuda" or (settings.on_cluster and settings.gpus > 0)
    device: Device = "cuda" if on_gpus else "cpu"
    return device, choose_precision(settings.precision, device, cpu_flags())


def enhance_rate(model: str, device: Any, precision: Any, catalog: Catalog | None) -> tuple[float, str]:
    """Seconds a megapixel, and where the figure is from."""
    from mirror_realm_assets.enhance.estimate import seconds_per_megapixel
    from mirror_realm_assets.weights.hardware import cpu_flags

    if catalog is not None:
        with catalog.read() as conn:
            rate = measured.enhancement_rate(conn, model, device, precision)
        if rate is not None:
            return rate, "measured"
    return seconds_per_megapixel(model, precision, device, cpu_flags()), "table"


def _proxy_pixels(size: tuple[int, int], long_side: int) -> float:
    scale = min(1.0, long_side / max(*size, 1))
    return size[0] * size[1] * scale**2


def _size(root: bytes, entry: Entry) -> tuple[int, int] | None:
    """Width and height that a picture's header claims, or None when it is none we know."""
    from mirror_realm_assets.ingest.header import claimed_size

    try:
        fd = open_beneath(root, entry.path)
    except MirrorRealmError:
        return None
    try:
        return claimed_size(os.pread(fd, _HEADER_BYTES, 0))
    except OSError:
        return None
    finally:
        os.close(fd)


__all__: Sequence[str] = ["BYTES_PER_PIXEL", "EMBEDDING_BYTES", "Estimate", "enhance_rate", "of_folder", "runs_on"]
