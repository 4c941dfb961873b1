"""What the tour will do, how long it takes here and how much disk: said before anything starts.

What belongs here: measured figures and plain arithmetic. What does not: doing any of it (`tour`).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from telling import Teller

from mirror_realm_assets.cli.output import human_bytes, safe
from mirror_realm_assets.enhance.estimate import seconds_per_megapixel
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.weights.fetch import state
from mirror_realm_assets.weights.hardware import Device, choose_precision, cpu_flags
from mirror_realm_assets.weights.registry import NEEDED, ModelSpec

# Measured on two cores with the photos of `demo`, and rounded up.
_START_SECONDS = 10.0  # the home, and from `up` to an answer of the UI
_SEARCH_SECONDS = 10.0  # from there to twelve searchable photos
_RUN_SECONDS = 7.0  # of an enhancement run besides the pictures
_SHOW_SECONDS = 10.0  # two searches and a sheet
_PICTURE_OVERHEAD = 1.5  # a small picture is computed with a margin that is not much smaller than itself
_FETCH_BYTES_A_SECOND = 2_000_000.0  # of a slow line
_PACKAGES_BYTES = 7_000_000_000
_HOME_BYTES = 30_000_000  # catalog, Dagster's databases, proxies and enhanced pictures


def announce(teller: Teller, settings: Settings, *, photos: int, side: int, again: bool) -> None:
    """Say what will happen.

    Args:
        teller: prints.
        settings: of this process.
        photos: how many.
        side: their width in pixels.
        again: whether the tour has been through here.
    """
    say, s = teller.say, settings
    missing = [spec for spec in NEEDED if state(spec, s.models_dir) != "ok"]
    enhance = enhance_seconds(s, photos, side)
    seconds = _START_SECONDS + sum(spec.download_bytes for spec in missing) / _FETCH_BYTES_A_SECOND
    say("[bold]Mirror Realm: a guided tour[/]")
    say()
    if again:
        say("You have been here: what is there already takes no time. It will")
    else:
        precision = choose_precision(s.precision, _device(s), cpu_flags())
        where = f"this machine ({_cores()} cores, {precision})"
        say(f"In about {_words(seconds + _SEARCH_SECONDS + enhance + _SHOW_SECONDS)} on {where} it will")
    say(f"  1. make a home          {safe(str(s.home))}")
    say(f"  2. fetch the weights    {_download(missing)}")
    say(f"  3. make {photos} small photos, and watch their folder")
    say("  4. start the service    UI, daemon and watcher")
    say("  5. make the photos searchable")
    say(f"  6. enhance them         {'here already' if again else f'about {_words(enhance)}'}")
    say("  7. show what came of it: a contact sheet, and two searches with their pictures")
    say()
    _say_disk(teller, s, missing)
    say("Your pictures stay on this machine. Ctrl-C ends everything, at any time; `make run` goes on from there.")


def enhance_seconds(settings: Settings, photos: int, side: int) -> float:
    """Seconds that enhancing so many photos of that width takes here, by our rates for two cores."""
    precision = choose_precision(settings.precision, _device(settings), cpu_flags())
    rate = seconds_per_megapixel("realesrgan-x4plus", precision, _device(settings), cpu_flags())
    return _RUN_SECONDS + photos * (side * side * 3 / 4 / 1e6 * rate * _PICTURE_OVERHEAD + 0.5)


def _say_disk(teller: Teller, settings: Settings, missing: list[ModelSpec]) -> None:
    weights = sum(spec.bytes for spec in NEEDED)
    free = shutil.disk_usage(_existing(settings.home)).free
    teller.say(
        f"Disk: about {human_bytes(_PACKAGES_BYTES)} of packages (installed), {human_bytes(weights)} of weights, "
        f"about {human_bytes(_HOME_BYTES)} for the rest; {human_bytes(free)} are free."
    )
    if free < settings.low_space_bytes + _HOME_BYTES + sum(spec.download_bytes + spec.bytes for spec in missing):
        teller.trouble(
            f"Only {human_bytes(free)} are free.",
            f"Enhancement waits below {human_bytes(settings.low_space_bytes)}: free some space, or set "
            "MIRROR_REALM_HOME to a folder on another disk.",
        )


def _download(missing: list[ModelSpec]) -> str:
    if not missing:
        return "here already"
    return f"{human_bytes(sum(spec.download_bytes for spec in missing))} to download"


def _device(settings: Settings) -> Device:
    # Without loading torch, which takes seconds: a GPU that `auto` finds only makes it faster.
    return "cuda" if settings.device == "cuda" else "cpu"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _existing(folder: Path) -> Path:
    """The nearest folder above that is there already."""
    return next(parent for parent in (folder, *folder.parents) if parent.is_dir())


def _words(seconds: float) -> str:
    return f"{max(10, round(seconds, -1)):.0f} s" if seconds < 90 else f"{round(seconds / 60)} minutes"
