"""Prepares what `make run` shows: a folder of twelve small photos, registered as the source `demo`.

The pictures are cut from scikit-image's own samples, which are in the public domain (CC0 or NASA); nothing is
downloaded. Running it again changes nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.sources import add, all_sources
from mirror_realm_assets.estimate import of_folder
from mirror_realm_assets.installation import write_atomically
from mirror_realm_assets.settings import Settings

# File name, scikit-image sample, and the box (left, top, right, bottom) that is cut out of it.
CROPS: tuple[tuple[str, str, tuple[int, int, int, int]], ...] = (
    ("astronaut-face.jpg", "astronaut", (120, 0, 320, 220)),
    ("astronaut-flag.jpg", "astronaut", (0, 100, 200, 300)),
    ("astronaut-shuttle.jpg", "astronaut", (330, 20, 512, 260)),
    ("astronaut-badges.jpg", "astronaut", (150, 250, 400, 430)),
    ("cat.jpg", "chelsea", (0, 0, 451, 300)),
    ("cat-eyes.jpg", "chelsea", (80, 40, 340, 200)),
    ("cat-nose.jpg", "chelsea", (150, 110, 310, 230)),
    ("coffee.jpg", "coffee", (0, 0, 600, 400)),
    ("coffee-cup.jpg", "coffee", (120, 40, 420, 260)),
    ("coffee-spoon.jpg", "coffee", (350, 180, 590, 360)),
    ("rocket.jpg", "rocket", (0, 0, 640, 427)),
    ("rocket-pad.jpg", "rocket", (220, 180, 440, 345)),
)
_SIDE = (160, 120)


def make_photos(folder: Path) -> int:
    """Write the photos that are not there yet; returns how many were written."""
    from io import BytesIO

    from PIL import Image
    from skimage import data

    folder.mkdir(parents=True, exist_ok=True)
    written = 0
    for name, sample, box in CROPS:
        target = folder / name
        if target.exists():
            continue
        picture = Image.fromarray(getattr(data, sample)()).convert("RGB").crop(box)
        picture.thumbnail(_SIDE)
        buffer = BytesIO()
        picture.save(buffer, "JPEG", quality=92)
        write_atomically(target, buffer.getvalue(), mode=0o644)
        written += 1
    return written


def main() -> None:
    """Make the photos, register the folder once, and say what will happen."""
    settings = Settings.read()
    folder = settings.home / "demo-photos"
    written = make_photos(folder)
    catalog = Catalog(settings.catalog_url)
    with catalog.write() as conn:
        known = {source.name: source for source in all_sources(conn)}
        source = known.get("demo") or add(conn, "demo", os.fsencode(folder), {})
    catalog.close()
    found = of_folder(settings, source)
    print(f"Demo: {written} photos written to {folder}, {found.files} there in all.")
    print(
        f"They are searchable in about half a minute, and enhanced in about {found.enhance_seconds:.0f} s after that."
    )
    print(f"Drop a photo into {folder}: it becomes searchable, then enhanced, by itself.")
    print("Elsewhere try: mirror-realm status · mirror-realm search --like FILE · mirror-realm files --json")


if __name__ == "__main__":
    main()
