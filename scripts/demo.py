"""The photos that `make run` shows: small ones in a folder of the home, registered as a source.

The pictures are cut from scikit-image's own samples, which are in the public domain (CC0 or NASA); nothing is
downloaded. Making them again changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.sources import Source, add, all_sources
from mirror_realm_assets.installation import write_atomically
from mirror_realm_assets.settings import Settings


@dataclass(frozen=True)
class Photo:
    """One photo: its file's name, the sample it is cut from, and the box (left, top, right, bottom)."""

    name: str
    sample: str
    box: tuple[int, int, int, int]


PHOTOS = (
    Photo("astronaut-face.jpg", "astronaut", (120, 0, 320, 220)),
    Photo("astronaut-flag.jpg", "astronaut", (0, 100, 200, 300)),
    Photo("astronaut-shuttle.jpg", "astronaut", (330, 20, 512, 260)),
    Photo("astronaut-badges.jpg", "astronaut", (150, 250, 400, 430)),
    Photo("cat.jpg", "chelsea", (0, 0, 451, 300)),
    Photo("cat-eyes.jpg", "chelsea", (80, 40, 340, 200)),
    Photo("cat-nose.jpg", "chelsea", (150, 110, 310, 230)),
    Photo("coffee.jpg", "coffee", (0, 0, 600, 400)),
    Photo("coffee-cup.jpg", "coffee", (120, 40, 420, 260)),
    Photo("coffee-spoon.jpg", "coffee", (350, 180, 590, 360)),
    Photo("rocket.jpg", "rocket", (0, 0, 640, 427)),
    Photo("rocket-pad.jpg", "rocket", (220, 180, 440, 345)),
)
SIDE = 160
"""Width in pixels, at most: so small that two cores enhance all of them in a minute or two."""

FOLDER = "demo-photos"
_NAMES = ("demo", "demo-photos")


def chosen(count: int) -> tuple[Photo, ...]:
    """`count` photos, of as many different samples as possible."""
    count = min(count, len(PHOTOS))
    return tuple(PHOTOS[number * len(PHOTOS) // count] for number in range(count))


def make_photos(folder: Path, photos: Sequence[Photo] = PHOTOS, *, side: int = SIDE) -> int:
    """Write the photos that are not there yet, at most `side` pixels wide; returns how many were written."""
    from io import BytesIO

    from PIL import Image
    from skimage import data

    folder.mkdir(parents=True, exist_ok=True)
    written = 0
    for photo in photos:
        target = folder / photo.name
        if target.exists():
            continue
        picture = Image.fromarray(getattr(data, photo.sample)()).convert("RGB").crop(photo.box)
        picture.thumbnail((side, side * 3 // 4))
        buffer = BytesIO()
        picture.save(buffer, "JPEG", quality=92)
        write_atomically(target, buffer.getvalue(), mode=0o644)
        written += 1
    return written


def register(settings: Settings) -> Source:
    """The source of the photos' folder; registered unless it is, under a name that no other folder has."""
    root = os.fsencode(settings.home / FOLDER)
    catalog = Catalog(settings.catalog_url)
    try:
        with catalog.write() as conn:
            known = {source.name: source for source in all_sources(conn)}
            for source in known.values():
                if source.root == root:
                    return source
            name = next((name for name in _NAMES if name not in known), f"{_NAMES[0]}-{len(known)}")
            return add(conn, name, root, {})
    finally:
        catalog.close()


def main() -> None:
    """Make all photos and register their folder, without a tour."""
    settings = Settings.read()
    folder = settings.home / FOLDER
    written = make_photos(folder)
    print(f"{written} photos were written to {folder}; they are the source {register(settings).name}.")


if __name__ == "__main__":
    main()
