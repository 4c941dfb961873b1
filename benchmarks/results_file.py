"""Writing results: the machine they were measured on, and the figures."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """CPU, cores and memory, in words."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB"


def write(name: str, figures: dict[str, Any]) -> None:
    """Write `results/NAME.json` and print it."""
    RESULTS.mkdir(exist_ok=True)
    found = {"name": name, "machine": machine(), "figures": figures}
    text = json.dumps(found, indent=2)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(text)


def spread(values: list[float]) -> dict[str, float]:
    """Minimum, median, 95th percentile and maximum, in seconds."""
    ordered = sorted(values)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
    return {
        "n": len(ordered),
        "min": round(ordered[0], 2),
        "median": round(ordered[len(ordered) // 2], 2),
        "p95": round(p95, 2),
        "max": round(ordered[-1], 2),
    }
