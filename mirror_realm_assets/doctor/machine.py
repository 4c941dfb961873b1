"""The machine: its software, what models run on, cores, memory, clock, limits of watching.

What belongs here: what is so without any home.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from mirror_realm_assets.doctor.verdict import Finding, rate
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.weights.hardware import Device, choose_precision, cpu_flags, free_memory

_GIB = 1024**3
# Below this, an enhancement run (1 GB for the process, more for a tile) is likely to be ended by the kernel.
_MIN_MEMORY_BYTES = 2 * _GIB
# One watch is used by every folder of a source; a photo library of decades has some ten thousand.
_MIN_WATCHES = 65_536
# Any of them says that a GPU's driver is loaded: NVIDIA's own, within a container, under Windows, AMD's.
_GPU_DRIVERS = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
_INOTIFY = Path("/proc/sys/fs/inotify")
_BUILT = datetime(2026, 1, 1, tzinfo=UTC)  # no clock that is right shows an earlier time than this was written
_SKEW_SECONDS = 5.0


def software(_settings: Settings) -> list[Finding]:
    """Python and the pinned packages."""
    wrong = "" if sys.version_info[:2] == (3, 11) else "Use Python 3.11; the pinned packages need it."
    python = rate("python", f"Python {platform.python_version()}", fail=wrong)
    pins = [line.split("==") for line in metadata.requires("mirror-realm") or [] if "==" in line and ";" not in line]
    versions = {name: _version(name) for name, _ in pins}
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        return [python, rate("packages", f"Not installed: {', '.join(missing)}", fail="Install the package again.")]
    other = [f"{name} {versions[name]} (pinned: {pinned})" for name, pinned in pins if versions[name] != pinned]
    told = ", ".join(f"{name} {_version(name)}" for name in ("dagster", "torch", "faiss-cpu") if _version(name))
    found = "; ".join([told, *other])
    return [python, rate("packages", found, warn="Install the pinned versions." if other else "")]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package).partition("+")[0]  # after "+" stands the build, as in 2.14.1+cpu
    except metadata.PackageNotFoundError:
        return None


def _expected_device(settings: Settings) -> Device:
    """What torch will choose, as far as can be told without loading it."""
    gpu = "+cpu" not in metadata.version("torch") and any(Path(driver).exists() for driver in _GPU_DRIVERS)
    return "cuda" if gpu and settings.device != "cpu" else "cpu"


def device(settings: Settings) -> list[Finding]:
    """What models will run on."""
    chosen = _expected_device(settings)
    if settings.device == "cuda" and chosen == "cpu":
        remedy = "Set MIRROR_REALM_DEVICE to auto or cpu, or install the GPU's driver and torch for it."
        return [rate("device", "The device is set to cuda; there is no GPU that torch could use.", fail=remedy)]
    return [rate("device", f"{chosen} (setting: {settings.device})")]


def precision(settings: Settings) -> list[Finding]:
    """The number format they will use."""
    chosen_device, flags = _expected_device(settings), cpu_flags()
    chosen = choose_precision(settings.precision, chosen_device, flags)
    if chosen == "bf16" and chosen_device == "cpu" and choose_precision("auto", "cpu", flags) != "bf16":
        found = "bf16, which this CPU has to emulate: about 10 times slower than fp32"
        return [rate("precision", found, warn="Set MIRROR_REALM_PRECISION to auto.")]
    return [rate("precision", f"{chosen} (setting: {settings.precision})")]


def capacity(settings: Settings) -> list[Finding]:
    """Cores and memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    fewer = f"Set MIRROR_REALM_THREADS to {cores}: more slows everything." if settings.threads > cores else ""
    free = free_memory("cpu")
    more = "Free some memory: enhancement wants at least 2 GiB." if free < _MIN_MEMORY_BYTES else ""
    return [
        rate("cpu", f"{cores} cores, {settings.threads} threads for a model", warn=fewer),
        rate("memory", f"{free / _GIB:.1f} GiB free", warn=more),
    ]


def clock(settings: Settings) -> list[Finding]:
    """Leases and retries go by the clock; a file system with another one makes new files look old."""
    told = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    if datetime.now(UTC) < _BUILT:
        return [rate("clock", told, fail="Set the clock: leases and retries go by it.")]
    if not settings.home.is_dir() or not os.access(settings.home, os.W_OK):
        return [rate("clock", told)]
    with tempfile.TemporaryFile(dir=settings.home) as probe:
        skew = abs(os.fstat(probe.fileno()).st_mtime - time.time())
    if skew > _SKEW_SECONDS:
        found = f"{told}; the home's file system is {skew:.0f} s away from it"
        return [rate("clock", found, warn="Set both clocks by the same time server.")]
    return [rate("clock", told)]


def inotify(folders: int | None = None) -> Finding:
    """Whether the kernel lets so many folders be watched."""
    try:
        watches, instances = (int((_INOTIFY / name).read_text()) for name in ("max_user_watches", "max_user_instances"))
    except (OSError, ValueError):
        return rate("inotify", "no limits of this kind here; folders are polled", group="sources")
    remedy = "`sudo sysctl fs.inotify.max_user_watches=524288`; until then large sources are polled."
    needed = f"; the sources have {folders}" if folders is not None else ""
    found = f"{watches} folders can be watched, by {instances} programs{needed}"
    few = watches < max(_MIN_WATCHES, 2 * (folders or 0))
    return rate("inotify", found, warn=remedy if few else "", group="sources")
