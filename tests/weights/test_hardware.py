"""Choosing device and number format."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from mirror_realm_assets.errors import Failed, SetupError
from mirror_realm_assets.weights.hardware import (
    Device,
    Precision,
    PrecisionSetting,
    choose_device,
    choose_precision,
    cpu_flags,
    free_memory,
    model_failure,
)

NATIVE = frozenset({"avx2", "avx512_bf16"})
EMULATED = frozenset({"avx2", "avx512f"})


@pytest.mark.parametrize(
    ("setting", "device", "flags", "expected"),
    [
        ("auto", "cpu", NATIVE, "bf16"),
        ("auto", "cpu", frozenset({"amx_bf16"}), "bf16"),
        ("auto", "cpu", EMULATED, "fp32"),
        ("auto", "cuda", EMULATED, "fp16"),
        ("fp32", "cpu", NATIVE, "fp32"),
        ("bf16", "cpu", EMULATED, "bf16"),
        ("fp32", "cuda", NATIVE, "fp32"),
    ],
)
def test_precision_follows_the_setting_then_the_machine(
    setting: PrecisionSetting, device: Device, flags: frozenset[str], expected: Precision
) -> None:
    assert choose_precision(setting, device, flags) == expected


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(SetupError, match="GPU"):
        choose_precision("fp16", "cpu", NATIVE)


def test_a_demanded_gpu_that_is_absent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert choose_device("auto") == "cpu"
    with pytest.raises(SetupError, match="MIRROR_REALM_DEVICE"):
        choose_device("cuda")


def test_the_flags_of_the_first_cpu_are_read(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx512_bf16\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert cpu_flags(cpuinfo) == {"fpu", "avx512_bf16"}
    assert cpu_flags(tmp_path / "absent") == frozenset()


def test_free_memory_respects_the_limit_of_a_container(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 4000 kB\nMemAvailable: 3000 kB\n")
    assert free_memory("cpu", meminfo=meminfo, cgroup=tmp_path) == 3000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    (tmp_path / "memory.stat").write_text("anon 900000\ninactive_file 100000\n")
    assert free_memory("cpu", meminfo=meminfo, cgroup=tmp_path) == 3000 * 1024
    (tmp_path / "memory.max").write_text("1500000\n")
    assert free_memory("cpu", meminfo=meminfo, cgroup=tmp_path) == 600_000


@pytest.mark.parametrize("limited", [resource.RLIMIT_AS, resource.RLIMIT_DATA])
def test_free_memory_respects_the_limits_of_the_process(monkeypatch: pytest.MonkeyPatch, limited: int) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda kind: (1, 1) if kind == limited else (resource.RLIM_INFINITY,) * 2)
    assert free_memory("cpu") == 0
    monkeypatch.setattr("resource.getrlimit", lambda kind: (2**60 if kind == limited else resource.RLIM_INFINITY,) * 2)
    assert 0 < free_memory("cpu") < 2**60


def test_a_full_memory_is_told_from_other_failures() -> None:
    full = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
    assert model_failure(full, "a tile").code == "out_of_memory"
    assert model_failure(MemoryError(), "a tile").code == "out_of_memory"
    assert model_failure(RuntimeError("shapes differ"), "a tile").code == "model_failed"
    ours = Failed("cancelled", "Stop.")
    assert model_failure(ours, "a tile") is ours


def test_kept_memory_spares_page_faults_and_is_given_back() -> None:
    script = """
import resource
import torch
from mirror_realm_assets.weights.hardware import KeptMemory, release_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(12_000_000)  # 48 MB: beyond what glibc ever keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    status = open("/proc/self/status").read()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024

torch.set_num_threads(1)
faults()
start = resident()
kept, second = KeptMemory(), KeptMemory()
faults()
while_kept = faults()
second.give_back()
second.give_back()
still_kept = faults()
grown = resident() - start
kept.give_back()
release_memory()
print(while_kept, still_kept, faults(), grown, resident() - start)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    while_kept, still_kept, after, grown, left = (float(word) for word in done.stdout.split())
    assert max(while_kept, still_kept) < after / 10
    assert grown > 40 and grown - left > 40  # megabytes: what was kept is gone
