"""Programs that the tests of `deploy/` run."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path


def program(name: str) -> str:
    """Where `kubectl` or `hadolint` is: beside this Python, where `make install` puts it on Linux, or in PATH."""
    found = Path(sys.executable).with_name(name)
    path = str(found) if found.exists() else shutil.which(name)
    if path is None:
        raise RuntimeError(f"there is no {name}: `make install` brings it on Linux (x86-64), elsewhere install it")
    return path
