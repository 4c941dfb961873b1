"""Every hard file of the test media through a real ingest: each ends as it should, and none costs more than it may.

The folder is named by `MIRROR_REALM_TEST_MEDIA`; without it nothing here runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fates import OK, Fate, ingest, ingest_cost, refused
from lab import Lab

MEDIA = os.environ.get("MIRROR_REALM_TEST_MEDIA")
pytestmark = [
    pytest.mark.skipif(not MEDIA, reason="MIRROR_REALM_TEST_MEDIA is not set"),
    pytest.mark.timeout(120),
]

MB = 1 << 20
DECODE_SECONDS = 30.0
DECODE_MEMORY = 2048 * MB
# Measured: 366 MB of a child, for a 20 megapixel AVIF of 10 bits, and 128 MB of the process that asks.
CHILD_PEAK = 768 * MB
OWN_GROWTH = 256 * MB

IGNORED = None
"""Not even looked at: the name is no picture's."""

# By folder, and by file where it differs. All of `hard/` was made or chosen to be this; its index says how.
HARD: dict[str, Fate | None] = {
    "bomb/": OK,  # of odd shapes: 1x1, 1x8000, 16000x16
    "bomb/bomb_30000x30000.png": refused("too_many_pixels"),
    "bomb/header_only_100000x100000.png": refused("too_many_pixels"),
    "bomb/ztxt_4MB_comment.png": OK,  # its text is harmless at this size
    "broken/bitflips.jpg": OK,  # twelve bytes: a JPEG shows them as spots, and nothing says that they are none
    "broken/crc_error.png": refused("corrupt"),
    "broken/nul_filled.jpg": refused("truncated"),
    "broken/pillow_broken.png": refused("corrupt"),
    "broken/pillow_broken_data_stream.png": refused("corrupt"),
    "broken/pillow_decompression_bomb.gif": refused("too_many_pixels"),
    "broken/pillow_decompression_bomb.ico": refused("unsupported"),
    "broken/pillow_exif_typeerror.jpg": OK,
    "broken/pillow_hopper_bad_exif.jpg": OK,
    "broken/pillow_junk_jpeg_header.jpg": OK,
    "broken/pillow_truncated_image.png": refused("truncated"),
    "broken/pillow_truncated_jpeg.jpg": refused("truncated"),
    "broken/pillow_png_decompression_dos.png": OK,  # much text, and none of it is too much
    "broken/polyglot_zip.jpg": OK,
    "broken/trailing_garbage.jpg": OK,
    "broken/trunc_half.jpg": refused("truncated"),
    "broken/trunc_half.png": refused("truncated"),
    "broken/trunc_header.jpg": refused("truncated"),
    "broken/trunc_last10.jpg": refused("truncated"),
    "broken/zero_byte.jpg": refused("empty_file"),
    "dates/": OK,
    "formats/": OK,
    "formats/pillow_hopper.ico": refused("unsupported"),
    "formats/pillow_hopper.psd": refused("unsupported"),
    "formats/pillow_hopper_16bit.pgm": refused("unsupported"),
    "formats/pillow_ultrahdr.jpg": refused("truncated"),  # its makers cut it for size
    "icc/": OK,
    "names/": OK,
    "names/._AppleDouble.jpg": IGNORED,
    "names/.hidden.jpg": IGNORED,
    "nas_junk/": IGNORED,
    "orientation/": OK,
    "sidecar/pair.jpg": OK,
    "sidecar/pair.xmp": IGNORED,
    "sidecar/iso-value-array.xmp": IGNORED,
    "wrong_ext/": OK,
    "wrong_ext/html_named.jpg": refused("unsupported"),
    "wrong_ext/random.tif": refused("unsupported"),
    "wrong_ext/script.svg": refused("unsupported"),
    "wrong_ext/text_named.heic": refused("unsupported"),
}

# Of what `make_extra.py` makes; the small ones are the first 2000 bytes of a JPEG.
EXTRA: dict[str, Fate | None] = {
    "big_24MP.png": OK,
    "big_24MP_q100.jpg": OK,
    "big_24MP_raw.tif": OK,
    "flat_400MP.jpg": OK,
    "sparse_5GB.jpg": refused("unsupported"),
    "names/": refused("truncated"),
    "names/dangling.jpg": Fate("ignored", "outside_root"),
    "names/fifo.jpg": Fate("ignored", "not_regular"),
    "names/loop": Fate("ignored", "not_regular"),
    "d00/": refused("truncated"),  # sixty folders deep
}
if os.geteuid() != 0:  # root may read everything
    EXTRA["names/unreadable.jpg"] = Fate("failed", "unreadable")

Ingested = Callable[[Path], dict[str, Fate]]


@pytest.fixture
def ingested(tmp_path: Path) -> Iterator[Ingested]:
    """Ingest a folder as it is, in bounded time and memory; tells the fate of each of its files."""
    labs: list[Lab] = []

    def run(folder: Path) -> dict[str, Fate]:
        limits = {"decode_seconds": DECODE_SECONDS, "decode_memory_bytes": DECODE_MEMORY}
        labs.append(Lab(tmp_path / "home", folder, extra=limits))
        with ingest_cost() as cost:
            found = ingest(labs[0])
        assert max(cost.seconds) < DECODE_SECONDS
        assert max(cost.peaks) < CHILD_PEAK
        assert cost.own_growth < OWN_GROWTH
        assert len(cost.children) == 1  # no file has cost its decoder
        return found

    yield run
    for lab in labs:
        lab.close()


def expected(folder: Path, table: dict[str, Fate | None]) -> dict[str, Fate]:
    """What the table says of every file that lies in the folder now; a file it does not speak of is an error."""
    found: dict[str, Fate] = {}
    for above, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(above, name))]  # noqa: PTH114, PTH118
        for name in names + links:
            path = os.path.relpath(os.path.join(above, name), folder)  # noqa: PTH118
            fate = table[path] if path in table else table[path.partition("/")[0] + "/"]
            if fate is not None:
                found[path] = fate
    return found


def test_every_hard_file_ends_as_it_should_and_costs_little(ingested: Ingested) -> None:
    hard = Path(MEDIA or "") / "hard"
    wanted = expected(hard, HARD)
    assert len(wanted) > 100
    assert set(HARD) <= set(wanted) | {path for path in HARD if path.endswith("/") or HARD[path] is None}
    assert ingested(hard) == wanted


def test_every_extra_file_ends_as_it_should_and_costs_little(ingested: Ingested, tmp_path: Path) -> None:
    extra = tmp_path / "extra"
    subprocess.run([sys.executable, str(Path(MEDIA or "") / "make_extra.py"), str(extra)], check=True, timeout=60)
    wanted = expected(extra, EXTRA)
    assert set(EXTRA) <= set(wanted) | {path for path in EXTRA if path.endswith("/")}
    assert ingested(extra) == wanted
