"""On which device and in which number format a network runs, and giving memory back afterwards.

What belongs here: turning the settings `device` and `precision` into facts about this machine. What does not: the
networks themselves. Shared by every package that runs one.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mirror_realm_assets.errors import Failed, MirrorRealmError, SetupError

if TYPE_CHECKING:
    import torch

DeviceSetting = Literal["auto", "cpu", "cuda"]
PrecisionSetting = Literal["auto", "fp32", "bf16", "fp16"]
Device = Literal["cpu", "cuda"]
Precision = Literal["fp32", "bf16", "fp16"]

# Instructions that multiply bf16 natively: there it is 2.1-2.3 times as fast as fp32 (x4plus, measured). Without them
# it is emulated: ten times as slow as fp32 (x4plus on AVX2, measured).
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


def choose_device(setting: DeviceSetting) -> Device:
    """The device that a setting means on this machine.

    Raises:
        SetupError: `invalid_argument` when a GPU is demanded and torch sees none.
    """
    if setting == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if setting == "cuda":
        raise SetupError(
            "invalid_argument",
            "The device is set to cuda, but no GPU is usable here.",
            remedy="Set MIRROR_REALM_DEVICE to auto or cpu.",
        )
    return "cpu"


def choose_precision(setting: PrecisionSetting, device: Device, flags: frozenset[str]) -> Precision:
    """The number format that a setting means on a device.

    `auto` is fp16 on a GPU (as Real-ESRGAN itself does), bf16 on a CPU that has it natively, and else fp32.

    Args:
        setting: what the user chose.
        device: where the network runs.
        flags: the CPU's capabilities, from `cpu_flags`.

    Raises:
        SetupError: `invalid_argument` for fp16 on a CPU, which torch emulates at a fraction of the speed of fp32.
    """
    if setting == "fp16" and device == "cpu":
        raise SetupError(
            "invalid_argument",
            "The precision is set to fp16, which needs a GPU.",
            remedy="Set MIRROR_REALM_PRECISION to auto, fp32 or bf16.",
        )
    if setting != "auto":
        return setting
    if device == "cuda":
        return "fp16"
    return "bf16" if flags & _BF16_FLAGS else "fp32"


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Capabilities of this machine's first CPU as Linux names them; empty where they cannot be read."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "flags":
            return frozenset(value.split())
    return frozenset()


def torch_dtype(precision: Precision) -> torch.dtype:
    """The torch type of a number format."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def free_memory(device: Device, *, meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that may be allocated now: on the GPU, or in main memory within the limits of container and process.

    Args:
        device: whose memory.
        meminfo: Linux's account of main memory.
        cgroup: this process's control group (version 2); a limit there counts, because beyond it the kernel kills.
    """
    if device == "cuda":
        import torch

        # Torch keeps what it has freed, and gives it out again: to the driver it is taken, to us it is free.
        kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info()[0]) + int(kept)
    free = _meminfo_bytes(meminfo, "MemAvailable:")
    with contextlib.suppress(OSError, ValueError):  # no control group, or no limit ("max")
        limit = int((cgroup / "memory.max").read_text(encoding="ascii"))
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
        # The kernel drops the cache of files that nobody reads any more before it kills; writing results fills it.
        free = min(free, limit - used + _cached(cgroup / "memory.stat"))
    return max(0, min([free, *_left_to_this_process()]))


def _left_to_this_process() -> list[int]:
    """Bytes up to each limit (`ulimit -v`, `ulimit -d`) that this process has."""
    import resource

    # The kernel's own account of what it compares with each limit.
    used_for = {"VmSize:": resource.RLIMIT_AS, "VmData:": resource.RLIMIT_DATA}
    limits = {key: resource.getrlimit(limit)[0] for key, limit in used_for.items()}
    limits = {key: limit for key, limit in limits.items() if limit != resource.RLIM_INFINITY}
    return [limit - _meminfo_bytes(Path("/proc/self/status"), key, 0) for key, limit in limits.items()]


def _cached(memory_stat: Path) -> int:
    for line in memory_stat.read_text(encoding="ascii").splitlines():
        key, _, value = line.partition(" ")
        if key == "inactive_file":
            return int(value)
    return 0


def _meminfo_bytes(meminfo: Path, key: str, default: int = 2 * 1024**3) -> int:
    """An entry of /proc/meminfo in bytes; 2 GiB where there is none, which every supported machine has."""
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return default


def model_failure(error: Exception, subject: str) -> MirrorRealmError:
    """The typed error of a failed forward pass: ours unchanged, else `out_of_memory` or `model_failed`.

    torch reports a full GPU by type, a full main memory only by the text of a RuntimeError.

    Args:
        error: what the pass raised.
        subject: what was being worked on, for people ("a tile of 512x512 pixels").
    """
    import torch

    if isinstance(error, MirrorRealmError):
        return error
    text = str(error)
    full = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    if full or "allocate memory" in text or "not enough memory" in text:
        return Failed("out_of_memory", f"Memory ran out in {subject}.")
    return Failed("model_failed", f"The network failed in {subject}: {error}")


def release_memory() -> None:
    """Give memory of dropped networks back to the GPU and to the operating system.

    Without the trim, glibc keeps the freed pages of a network and an idle process stays as large as it once was.
    """
    gc.collect()
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


# Parameters of glibc's mallopt.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_USUAL_MMAPS, _LARGEST_THRESHOLD = 65_536, 32 * 1024**2


class KeptMemory:
    """Lets this process keep the memory that a network frees between its passes, until `give_back`.

    glibc gives large blocks back to the kernel at once, and the kernel clears every page anew at the next pass: half a
    million page faults a second, 40 % of an embedder's time (62 pictures a second with, 100 without, two threads). The
    process is no larger for it than at its peak, but stays so. Threads other than the first one gain all of it only
    where `MALLOC_ARENA_MAX=1` (see `start_environment`): an arena of their own is unmapped whenever it is empty.
    """

    _holders = 0

    def __init__(self) -> None:
        self._held = True
        if not KeptMemory._holders:
            _mallopt({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1})
        KeptMemory._holders += 1

    def give_back(self) -> None:
        """As glibc does by itself again, once nobody else wants to keep anything. May be called twice."""
        if not self._held:
            return
        self._held = False
        KeptMemory._holders -= 1
        if not KeptMemory._holders:
            # Once it is told anything glibc adapts no more; these are the values that it would come to.
            _mallopt(
                {
                    _M_MMAP_MAX: _USUAL_MMAPS,
                    _M_MMAP_THRESHOLD: _LARGEST_THRESHOLD,
                    _M_TRIM_THRESHOLD: 2 * _LARGEST_THRESHOLD,
                }
            )


def _mallopt(values: Mapping[int, int]) -> None:
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        libc = ctypes.CDLL("libc.so.6")
        for parameter, value in values.items():
            libc.mallopt(parameter, value)


START_ENVIRONMENT: Mapping[str, str] = {
    # OpenMP's threads spin for about 1 ms by default: beside one busy process on 2 cores, x4plus took 16 to 20 s so and
    # 9 to 14 s with this. Alone it costs up to a tenth.
    "GOMP_SPINCOUNT": "3000",
    "MALLOC_ARENA_MAX": "1",  # see `KeptMemory`
    # Large pages where the kernel gives them to who asks: a network's maps are fresh memory in every pass, and clearing
    # it page by page took a third of the time (x4plus in bf16, 512x512 on two cores: 20.8 s so, 13.6 s with this).
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""What the C library and OpenMP are to find in the environment when a program starts that runs networks."""


def start_environment() -> bool:
    """Set `START_ENVIRONMENT` for programs started from here, and for torch when it is loaded here.

    What a person has set stays.

    Returns:
        Whether anything was missing, so that this process itself started without it.
    """
    missing = {name: value for name, value in START_ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(missing)
    return bool(missing)
