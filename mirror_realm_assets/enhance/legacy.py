"""Importing the packages `realesrgan`, `gfpgan`, `basicsr` and `facexlib`, which are unchanged since 2022.

What belongs here: the one shim that lets them be imported, and saying what to do when they are not installed. What does
not: running them (`reference`).

`basicsr` imports `torchvision.transforms.functional_tensor`, which torchvision dropped in 0.17; all it takes from there
is a function that has moved. The packages are installed without what they declare: that would bring `tb-nightly` and
the OpenCV that needs a display, whose folder overwrites the headless one's.
"""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from types import ModuleType

from mirror_realm_assets.errors import SetupError

PACKAGES = ("basicsr==1.4.2", "facexlib==0.3.0", "gfpgan==1.3.8", "realesrgan==0.3.0")
"""What is installed, with `pip install --no-deps --no-build-isolation`."""

_DROPPED = "torchvision.transforms.functional_tensor"


def load(name: str) -> ModuleType:
    """One of the packages, or a module of one, imported.

    Raises:
        SetupError: `not_found` when it is not installed.
    """
    _restore()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # their use of what scipy and torchvision will drop one day
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise SetupError(
            "not_found",
            f"The package {name.partition('.')[0]} cannot be imported: {error}.",
            remedy=f"Install it: pip install cython && pip install --no-deps --no-build-isolation {' '.join(PACKAGES)}",
        ) from error


def _restore() -> None:
    if _DROPPED in sys.modules:
        return
    from torchvision.transforms import functional

    module = types.ModuleType(_DROPPED)
    module.rgb_to_grayscale = functional.rgb_to_grayscale  # type: ignore[attr-defined]
    sys.modules[_DROPPED] = module
