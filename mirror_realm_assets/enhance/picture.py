"""Enhancing one picture file into another, without a library.

What belongs here: the way from file to file, and the promise that the original is never written to and the result
appears whole or not at all. What does not: the network (`upscale`), encoding (`codec`), terminals (`cli`).
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mirror_realm_assets.catalog.policy import SourcePolicy
from mirror_realm_assets.enhance.codec import SUFFIXES, PictureFormat, Style, encode_rows, require_size
from mirror_realm_assets.enhance.engines import Engine, EngineName, open_engine
from mirror_realm_assets.enhance.estimate import estimate_seconds, seconds_per_megapixel
from mirror_realm_assets.enhance.faces import FaceRestorer, open_restorer, rows_with_faces
from mirror_realm_assets.enhance.layers import Pixels
from mirror_realm_assets.enhance.probing import probe_file
from mirror_realm_assets.enhance.progress import Tiles
from mirror_realm_assets.enhance.remembered import RememberedTiles
from mirror_realm_assets.errors import Failed, MirrorRealmError, SetupError, as_error
from mirror_realm_assets.ingest.decoder import Decoder
from mirror_realm_assets.ingest.originals import read_original
from mirror_realm_assets.ingest.still import Still
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.weights.added import find
from mirror_realm_assets.weights.hardware import PrecisionSetting, cpu_flags

MAX_OUTSCALE = 8.0
FORMATS: dict[str, PictureFormat] = {f".{suffix}": name for name, suffix in SUFFIXES.items()}
FORMATS |= {".jpeg": "jpeg", ".tiff": "tiff"}
"""The format that a result's suffix asks for."""

# What file systems without hard links (FAT, some network drives) answer to the attempt.
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EINVAL})


@dataclass(frozen=True)
class Progress:
    """How far it is: `done` of `tiles`, and the seconds that the rest will probably take."""

    done: int
    tiles: int
    seconds_left: float


@dataclass(frozen=True)
class Enhanced:
    """What was made.

    Attributes:
        seconds: from reading the original to the result's last byte, the loading of the model included.
        input: width and height of the upright original.
        output: width and height of the result.
        tiles: how many pieces the picture was cut into.
        model: name of the model.
        precision: the number format that it ran in.
    """

    seconds: float
    input: tuple[int, int]
    output: tuple[int, int]
    tiles: int
    model: str
    precision: str


def enhance_file(
    settings: Settings,
    source: Path,
    target: Path,
    *,
    model: str = "realesrgan-x4plus",
    outscale: float | None = None,
    tile: int | None = None,
    precision: PrecisionSetting | None = None,
    engine: EngineName = "native",
    denoise_strength: float | None = None,
    faces: bool = False,
    force: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Enhanced:
    """Enlarge the picture in `source` and write the result to `target`.

    Args:
        settings: limits, device, threads and the models folder.
        source: any picture that can be ingested; decoded as untrusted, only read.
        target: its suffix decides the format; the folder must exist.
        model: name of an `enhance` model.
        outscale: how many times wider and higher; None means the model's own scale.
        tile: longest side of a tile in input pixels; None takes what fits into memory.
        precision: replaces that of the settings.
        engine: whose hands the model is in.
        denoise_strength: 0 keeps noise, 1 takes it away; only of models that have a pair to be mixed with.
        faces: whether faces are restored, by the model and with the weight that a source has by default.
        force: whether an existing file may be replaced. The original never is, under whatever name.
        on_progress: called before the first tile and after each.

    Returns:
        Sizes and times.

    Raises:
        SetupError: the paths or numbers make no sense, weights are missing, or the result cannot be written.
        Refused: the original is at fault.
        Failed: it cannot be read, or memory ran out.
    """
    began = time.monotonic()
    file_format = _require_target(source, target, force)
    if outscale is not None and not (math.isfinite(outscale) and 0 < outscale <= MAX_OUTSCALE):
        raise SetupError("invalid_argument", f"outscale must be above 0 and at most {MAX_OUTSCALE:g}, not {outscale}.")
    chosen = find(settings.models_dir, model, "enhance")
    with _naming(source):
        still = _still(settings, source)
    height, width = still.pixels.shape[:2]
    _require_fit(file_format, width, height, outscale or chosen.scale or 1)
    style = Style(file_format, icc=still.icc, exif=still.exif)
    with contextlib.ExitStack() as opened:
        restorer = opened.enter_context(_restorer(settings)) if faces else None
        network = opened.enter_context(
            open_engine(
                engine,
                chosen,
                settings.models_dir,
                device=settings.device,
                precision=precision or settings.precision,
                threads=settings.threads,
                denoise_strength=denoise_strength,
                remembered=RememberedTiles(settings.tiles_file),
            )
        )
        size = network.output_size(height, width, outscale)
        watch = _Watch(network, height * width, on_progress)
        rows: Iterable[Pixels] = network.strips(still.pixels, tile=tile, outscale=outscale, on_progress=watch)
        if restorer is not None:
            usual = SourcePolicy()
            rows = rows_with_faces(
                rows,
                restorer,
                still.pixels,
                size,
                weight=usual.enhance_faces_weight,
                min_size=usual.enhance_faces_min_size,
            )
        _write(rows, size, style, source, target, force)
    return Enhanced(
        seconds=round(time.monotonic() - began, 3),
        input=(width, height),
        output=(size[1], size[0]),
        tiles=watch.tiles,
        model=network.name,
        precision=network.precision,
    )


def _restorer(settings: Settings) -> FaceRestorer:
    return open_restorer(
        SourcePolicy().enhance_faces_model, settings.models_dir, device=settings.device, threads=settings.threads
    )


class _Watch:
    """Tells how far it is, and how long the rest will take: first by what is known of the model, then by itself."""

    def __init__(self, network: Engine, pixels: int, on_progress: Callable[[Progress], None]) -> None:
        rate = seconds_per_megapixel(network.name, network.precision, network.device, cpu_flags())
        self._expected = estimate_seconds(pixels, rate, pictures=0)
        self._on_progress = on_progress
        self._began = time.monotonic()
        self.tiles = 0

    def __call__(self, found: Tiles) -> None:
        self.tiles = found.total
        left = self._expected * found.left
        if found.done > 0 and found.left < 1:
            left = (time.monotonic() - self._began) * found.left / (1 - found.left)
        self._on_progress(Progress(found.done, found.total, left))


def _still(settings: Settings, source: Path) -> Still:
    # Links are the user's own choice here; `read_original` would follow none that leads out of the folder.
    path = os.fsencode(os.path.realpath(source))
    folder, name = os.path.split(path)
    sandbox = Decoder(
        seconds=settings.decode_seconds,
        memory_bytes=settings.decode_memory_bytes,
        max_pixels=settings.max_pixels,
        max_frames=settings.max_frames,
    )
    with read_original(folder, name, max_bytes=settings.max_file_bytes) as original, sandbox as decoder:
        return decoder.still(original.fd)


@contextmanager
def _naming(source: Path) -> Iterator[None]:
    """Errors of reading speak of "the file": here a person has to be told which."""
    try:
        yield
    except MirrorRealmError as error:
        later = "Try again when the program that writes it has ended."
        remedy = later if error.code == "changed_while_reading" else error.remedy
        name = str(source)[-120:]  # leaves room for what is wrong
        raise type(error)(error.code, f"{name}: {error.message}", remedy=remedy) from error


def _require_target(source: Path, target: Path, force: bool) -> PictureFormat:
    """The result's format, having made sure of everything that would make hours of work vain."""
    try:
        source.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SetupError("not_found", f"There is no file {source}.", remedy="Check its path.") from error
    except OSError:
        pass  # something is there; reading it says what is wrong
    file_format = FORMATS.get(target.suffix.lower())
    if file_format is None:
        raise SetupError(
            "invalid_argument",
            f"{target.name} has no suffix of a picture format that can be written.",
            remedy=f"Let the result's name end in one of {', '.join(FORMATS)}.",
        )
    _require_free(source, target, force)
    draft = _draft(target)
    try:
        os.close(_create(draft))
        draft.unlink()
    except OSError as error:
        raise _unwritable(target, error) from error
    return file_format


def _require_free(source: Path, target: Path, force: bool) -> None:
    """Asked twice, before the work and before the result gets its name."""
    try:
        if target.samefile(source):
            raise SetupError(
                "invalid_argument",
                f"{target} is the original itself, which is never written over.",
                remedy="Choose another name for the result.",
            )
    except OSError:
        pass  # there is no such file yet, or a link to nowhere
    try:
        mode = target.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unwritable(target, error) from error
    if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
        raise SetupError("already_exists", f"{target} is no regular file.")
    if not force:
        raise SetupError("already_exists", f"{target} exists already.", remedy="Choose another name, or add --force.")


def _require_fit(file_format: PictureFormat, width: int, height: int, outscale: float) -> None:
    longest = max(1, round(max(width, height) * outscale))
    try:
        require_size((1, longest), file_format)
    except MirrorRealmError as error:
        raise SetupError(
            "invalid_argument",
            f"The result would be {longest} pixels long, more than {file_format} can hold.",
            remedy="Let the result's name end in .png or .tif, or choose a smaller --outscale.",
        ) from error


def _write(
    rows: Iterable[Pixels], size: tuple[int, int], style: Style, source: Path, target: Path, force: bool
) -> None:
    draft = _draft(target)
    try:
        with os.fdopen(_create(draft), "wb") as file:
            encode_rows(rows, size, style, file, target.parent)
            file.flush()
            os.fsync(file.fileno())
        found = probe_file(draft)
        if (found.height, found.width) != size:
            raise Failed("not_verified", f"The result is {found.width}x{found.height}, not {size[1]}x{size[0]}.")
        _require_free(source, target, force)
        _publish(draft, target, force)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def _publish(draft: Path, target: Path, force: bool) -> None:
    """Give the finished draft its name; without `force` never over what appeared there meanwhile."""
    if not force:
        try:
            target.hardlink_to(draft)
            return
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
    draft.replace(target)


def _draft(target: Path) -> Path:
    return target.parent / f".mirror-realm-{secrets.token_hex(8)}.part"


def _create(path: Path) -> int:
    # The mode that any program of the user would give it: the umask decides.
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def _unwritable(target: Path, error: OSError) -> SetupError:
    if isinstance(error, FileExistsError):
        return SetupError("already_exists", f"{target} exists already.", remedy="Choose another name, or add --force.")
    if as_error(error).code == "disk_full":
        return SetupError(
            "disk_full", f"There is no space left for {target}.", remedy="Free space there, or choose another folder."
        )
    return SetupError(
        "invalid_argument",
        f"{target} cannot be written: {error.strerror or error}.",
        remedy="Choose a place that exists and that you may write to.",
    )
