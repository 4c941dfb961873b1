"""`python -m benchmarks [NAME...]`: runs the named benchmarks, all without names."""

from __future__ import annotations

import sys

from benchmarks import cluster, corrupt, engine, enhance, known, latency, memory, moved, production, quality, scan, ui

ALL = {
    "cluster": cluster.main,
    "corrupt": corrupt.main,
    "engine": engine.main,
    "enhance": enhance.main,
    "known": known.main,
    "latency": latency.main,
    "memory": memory.main,
    "moved": moved.main,
    "production": production.main,
    "quality": quality.main,
    "scan": scan.main,
    "ui": ui.main,
}


def main() -> None:
    """Run what was asked for."""
    names = sys.argv[1:] or list(ALL)
    unknown = [name for name in names if name not in ALL]
    if unknown:
        sys.exit(f"There is no benchmark {unknown[0]!r}; there are {', '.join(ALL)}.")
    for name in names:
        ALL[name]()


if __name__ == "__main__":
    main()
