"""Cases of names and content that users of such systems suffer from, each through real scans, batches and reads.

All input is made here. What is known to go wrong in the wild lies in the test media (`test_hard_media`).
"""

from __future__ import annotations

import io
import os
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL, SIGSTOP
from typing import Any

import numpy as np
import numpy.typing as npt
import pillow_heif
import pytest
import sqlalchemy as sa
from fates import OK, Fate, form, ingest, ingest_cost, read, refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lab import Lab
from PIL import Image

from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.errors import REASONS
from mirror_realm_assets.ingest.sandbox import Child

pytestmark = pytest.mark.timeout(120)
pillow_heif.register_heif_opener()

MB = 1 << 20
Photos = dict[str, npt.NDArray[np.uint8]]

# Pillow's name, options, and what the ledger calls it.
FORMATS: dict[str, tuple[str, dict[str, Any], str]] = {
    "jpg": ("JPEG", {}, "image/jpeg"),
    "mpo": ("MPO", {}, "image/jpeg"),
    "png": ("PNG", {}, "image/png"),
    "gif": ("GIF", {}, "image/gif"),
    "webp": ("WEBP", {}, "image/webp"),
    "tif": ("TIFF", {"compression": "tiff_lzw"}, "image/tiff"),
    "bmp": ("BMP", {}, "image/bmp"),
    "jp2": ("JPEG2000", {}, "image/jp2"),
    "avif": ("AVIF", {}, "image/avif"),
    "heic": ("HEIF", {}, "image/heic"),
}


def encoded(image: Image.Image, pillow: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, pillow, **options)
    return file.getvalue()


def photo(photos: Photos, number: int = 0, size: tuple[int, int] = (96, 96)) -> Image.Image:
    """A photograph, a different one for every number."""
    image = Image.fromarray(photos[sorted(photos)[number % len(photos)]]).resize(size)
    image.putpixel((number % size[0], number // size[0]), (255, 0, number % 256))
    return image


def png_chunk(kind: bytes, payload: bytes, *, length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    return struct.pack(">I", size) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def plain_png(width: int, height: int, *, bits: int = 8, colour: int = 0, rows: int | None = None) -> bytes:
    """A black PNG of any size in few bytes; `rows` says how many of them are really there."""
    channels = {0: 1, 2: 3}[colour]
    row = 1 + (width * bits * channels + 7) // 8
    deflate = zlib.compressobj(1)
    data = b"".join(deflate.compress(bytes(row)) for _ in range(height if rows is None else rows)) + deflate.flush()
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def endless_jpeg(side: int = 6000, scans: int = 2000) -> bytes:
    """A small progressive JPEG that says of every pixel thousands of times that nothing changes: minutes of work."""
    whole = encoded(Image.new("L", (side, side), 90), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * scans + b"\xff\xd9"


def put(lab: Lab, name: str | bytes, content: bytes) -> Path:
    path = Path(os.fsdecode(os.fsencode(lab.folder) + b"/" + os.fsencode(name)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def told_by_content(lab: Lab) -> dict[str, tuple[str, int, int]]:
    """Type, width and height of every file that was read."""
    query = (
        sa.select(t.locations.c.path, t.contents.c.mime, t.parts.c.width, t.parts.c.height)
        .join(t.media, t.media.c.id == t.locations.c.media_id)
        .join(t.contents, t.contents.c.id == t.media.c.content_id)
        .join(t.parts, sa.and_(t.parts.c.content_id == t.contents.c.id, t.parts.c.part == 0))
    )
    with lab.catalog.read() as conn:
        return {os.fsdecode(row[0]): (row[1], row[2], row[3]) for row in conn.execute(query)}


# --- C1: corruption. ---


def truncations(data: bytes) -> Iterator[tuple[str, bytes]]:
    for kept in (0, 1, 3, 11, 40, len(data) // 10, len(data) // 3, len(data) // 2, len(data) * 4 // 5):
        yield f"cut at {kept}", data[:kept]
    yield "cut before the last tenth", data[: len(data) * 9 // 10]


def damages(data: bytes) -> Iterator[tuple[str, bytes]]:
    middle, end = len(data) // 2, len(data)
    yield "zeros from the middle", data[:middle] + bytes(end - middle)
    yield "zeros in the middle", data[:middle] + bytes(end // 8) + data[middle + end // 8 :]
    yield "zeros after the beginning", data[:16] + bytes(end - 16)
    yield "nothing but zeros", bytes(end)
    yield "ones in the middle", data[:middle] + b"\xff" * (end // 8) + data[middle + end // 8 :]
    yield "twice", data + data
    yield "halves exchanged", data[middle:] + data[:middle]
    yield "a block is missing", data[: end // 3] + data[end // 3 + 64 :]
    for at in (2, 8, 20, 24, end // 4, middle, end - 9):
        yield f"a bit at {at}", data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def wrong_lengths(by_kind: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    png, jpeg, gif, webp, tiff, bmp = (by_kind[kind] for kind in ("png", "jpg", "gif", "webp", "tif", "bmp"))
    for name, length in (("none", 0), ("all", 0xFFFFFFFF), ("negative", 0x80000000), ("one more", 14)):
        yield f"IHDR of {name}.png", png[:8] + struct.pack(">I", length) + png[12:]
        yield f"IDAT of {name}.png", png[:33] + struct.pack(">I", length) + png[37:]
    for length in (0, 1, 2, 0xFFFF):
        yield f"APP0 of {length}.jpg", jpeg[:4] + struct.pack(">H", length) + jpeg[6:]
        frame = jpeg.index(b"\xff\xc0")
        yield f"SOF of {length}.jpg", jpeg[: frame + 2] + struct.pack(">H", length) + jpeg[frame + 4 :]
        yield f"{length} rows.jpg", jpeg[: frame + 5] + struct.pack(">H", length) + jpeg[frame + 7 :]
    for length in (0, 4, 0xFFFFFFFF):
        yield f"RIFF of {length}.webp", webp[:4] + struct.pack("<I", length) + webp[8:]
        yield f"VP8 of {length}.webp", webp[:16] + struct.pack("<I", length) + webp[20:]
        yield f"directory at {length}.tif", tiff[:4] + struct.pack("<I", length) + tiff[8:]
        yield f"pixels at {length}.bmp", bmp[:10] + struct.pack("<I", length) + bmp[14:]
        yield f"{length} rows.bmp", bmp[:22] + struct.pack("<I", length) + bmp[26:]
    yield "no size.gif", gif[:6] + bytes(4) + gif[10:]
    directory = struct.unpack_from("<I", tiff, 4)[0]
    entries = struct.unpack_from("<H", tiff, directory)[0]
    following = directory + 2 + 12 * entries
    yield "endless directories.tif", tiff[:following] + struct.pack("<I", directory) + tiff[following + 4 :]
    yield "65535 entries.tif", tiff[:directory] + b"\xff\xff" + tiff[directory + 2 :]
    for kind in ("avif", "heic", "jp2"):
        for box in (0, 1, 7, 0xFFFFFFFF):
            yield f"box of {box}.{kind}", struct.pack(">I", box) + by_kind[kind][4:]
            at = by_kind[kind].index(b"mdat" if kind != "jp2" else b"jp2c") - 4
            yield f"data of {box}.{kind}", by_kind[kind][:at] + struct.pack(">I", box) + by_kind[kind][at + 4 :]


def good_files(photos: Photos, count: int, first: int = 0) -> dict[str, bytes]:
    kinds = list(FORMATS)
    found = {}
    for n in range(count):
        pillow, options, _mime = FORMATS[kinds[n % len(kinds)]]
        found[f"good {n}.{kinds[n % len(kinds)]}"] = encoded(photo(photos, first + n), pillow, **options)
    return found


def put_mixed(lab: Lab, good: dict[str, bytes], bad: dict[str, bytes], folder: str = "") -> None:
    """The good ones lie evenly among the bad ones in the order in which they are read: of their times."""
    step = max(1, len(bad) // max(1, len(good)))
    names = list(bad)
    for n, name in enumerate(good):
        names.insert(n * (step + 1), name)
    for n, name in enumerate(names):
        path = put(lab, folder + name, good[name] if name in good else bad[name])
        os.utime(path, ns=(n * 10**9, n * 10**9))


def is_the_files_own_fault(fate: Fate) -> bool:
    return fate.end == "refused" and fate.code is not None and REASONS[fate.code].refusal


def test_case_c1_one_corrupt_file_never_halts_its_batch(lab: Lab, photos: Photos) -> None:
    good = good_files(photos, 20)
    whole = {
        kind: encoded(photo(photos, 99, (160, 120)), pillow, **options)
        for kind, (pillow, options, _mime) in FORMATS.items()
    }
    cut = {f"{kind} {what}": data for kind in whole for what, data in truncations(whole[kind])}
    hit = {f"{kind} {what}": data for kind in whole for what, data in damages(whole[kind])}
    hit |= dict(wrong_lengths(whole))
    told = {"png zeros from the middle", "png a bit at 20", "tif zeros from the middle", "gif zeros from the middle"}
    assert len(cut) + len(hit) > 300
    put_mixed(lab, good, cut | hit)
    with ingest_cost() as cost:
        found = ingest(lab)
    assert set(found) == {*good, *cut, *hit}
    assert {name: found[name] for name in good} == dict.fromkeys(good, OK)
    assert [(name, found[name]) for name in hit if found[name] != OK and not is_the_files_own_fault(found[name])] == []
    assert {name: found[name].end for name in told} == dict.fromkeys(told, "refused")  # no noise for a picture
    allowed = {refused(code) for code in ("empty_file", "truncated", "corrupt", "unsupported")}
    assert [(name, found[name]) for name in cut if found[name] not in allowed] == []
    assert max(cost.seconds) < 10
    assert max(cost.peaks) < 512 * MB


_KINDS = tuple(FORMATS)


@st.composite
def damaged(draw: st.DrawFn, whole: dict[str, bytes]) -> bytes:
    """A picture with a few bytes changed, most of them in its header, cut, or with bytes put in; or no picture."""
    if not draw(st.integers(0, 9)):
        return draw(st.binary(min_size=1, max_size=200))
    content = bytearray(whole[draw(st.sampled_from(_KINDS))])
    for at, byte in draw(st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=6)):
        content[at % (len(content) if at % 2 else min(len(content), 400))] = byte
    for at, more in draw(st.lists(st.tuples(st.integers(0, 2**16), st.binary(max_size=9)), max_size=1)):
        content[at % len(content) : at % len(content)] = more
    return bytes(content[: draw(st.integers(1, len(content)))]) if draw(st.booleans()) else bytes(content)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_case_c1_no_damage_whatever_reaches_the_good_files_of_its_batch(
    lab: Lab, photos: Photos, data: st.DataObject
) -> None:
    whole = {
        kind: encoded(photo(photos, size=(48, 40)), pillow, **options)
        for kind, (pillow, options, _mime) in FORMATS.items()
    }
    bad = {f"bad {n}": data.draw(damaged(whole)) for n in range(40)}
    examples = len(list(lab.folder.iterdir()))
    good = good_files(photos, 20, first=20 * examples)  # never those of another example: known bytes are not read
    put_mixed(lab, good, bad, f"{examples}/")
    found = {path: fate for path, fate in ingest(lab).items() if path.startswith(f"{examples}/")}
    assert {name: found[f"{examples}/{name}"] for name in good} == dict.fromkeys(good, OK)
    for name in bad:
        fate = found[f"{examples}/{name}"]
        assert fate == OK or is_the_files_own_fault(fate), (name, fate)


def test_case_c1_a_file_that_hangs_bloats_or_kills_its_decoder_costs_just_itself(
    tmp_path: Path, photos: Photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"decode_seconds": 2.0, "decode_memory_bytes": 700 * MB}
    lab = Lab(tmp_path / "home", tmp_path / "photos", extra=limits)
    bad = {
        "hangs.jpg": endless_jpeg(),
        "bloats.png": plain_png(20_000, 20_000, colour=2, rows=1),
        "kills.png": plain_png(333, 444),
    }
    good = good_files(photos, 20)
    put_mixed(lab, good, bad)
    ask = Child.ask

    def killing(child: Child, message: dict[str, Any], fds: Any, **options: Any) -> Any:
        """As the kernel does it when memory runs out, or a decoder that writes where it must not."""
        if os.pread(fds[0], 24, 0)[16:24] == struct.pack(">II", 333, 444) and child.pid is not None:
            os.kill(child.pid, SIGSTOP)
            threading.Timer(0.1, os.kill, (child.pid, SIGKILL)).start()
        return ask(child, message, fds, **options)

    monkeypatch.setattr(Child, "ask", killing)
    with ingest_cost() as cost:
        found = ingest(lab)
    assert {name: found[name] for name in bad} == {
        "hangs.jpg": refused("decoder_timeout"),
        "bloats.png": refused("decoder_memory"),
        "kills.png": refused("decoder_crashed"),
    }
    assert {name: found[name] for name in good} == dict.fromkeys(good, OK)
    assert max(cost.seconds) < 12
    lab.close()


# --- C2: size. ---


def declared(kind: str, width: int, height: int) -> bytes:
    """A picture of 64x64 whose header says that it is far larger."""
    small = Image.new("L", (64, 64), 77)
    if kind == "jpg":
        data = bytearray(encoded(small, "JPEG"))
        struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, height, width)
    elif kind == "gif":
        data = bytearray(encoded(small, "GIF"))
        struct.pack_into("<HH", data, 6, width, height)
        struct.pack_into("<HH", data, data.rindex(b",\0\0\0\0") + 5, width, height)
    elif kind == "bmp":
        data = bytearray(encoded(small, "BMP"))
        struct.pack_into("<ii", data, 18, width, height)
    elif kind == "tif":
        data = bytearray(encoded(small, "TIFF"))
        for tag, value in ((256, width), (257, height)):
            at = data.index(struct.pack("<H", tag), struct.unpack_from("<I", data, 4)[0])
            struct.pack_into("<HII", data, at + 2, 4, 1, value)
    elif kind == "jp2":
        data = bytearray(encoded(small, "JPEG2000"))
        struct.pack_into(">II", data, data.index(b"ihdr") + 4, height, width)
        struct.pack_into(">II", data, data.index(b"\xff\x51") + 6, width, height)
    else:
        data = bytearray(encoded(small.convert("RGB"), FORMATS[kind][0]))
        struct.pack_into(">II", data, data.index(b"ispe") + 8, width, height)
    return bytes(data)


def many_frames(count: int) -> bytes:
    """A GIF of 1x1 in 20 bytes a frame."""
    frame = b",\0\0\0\0\1\0\1\0\0\2\2\x44\1\0"
    return b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff" + frame * count + b";"


def test_case_c2_huge_but_legitimate_pictures_are_read_in_bounded_memory(lab: Lab) -> None:
    """200 megapixels each, as scans, maps and stitched panoramas have them."""
    grey = Image.new("L", (20_000, 10_000), 128)
    files = {
        "grey.jpg": encoded(grey, "JPEG", quality=50),
        "progressive.jpg": encoded(grey, "JPEG", quality=50, progressive=True),
        "colours.jpg": encoded(Image.merge("RGB", (grey, grey, grey)), "JPEG", quality=50),
        "grey.png": plain_png(20_000, 10_000),
        "one bit.png": plain_png(20_000, 10_000, bits=1),
        "fax.tif": encoded(Image.new("1", (20_000, 10_000)), "TIFF", compression="group4"),
    }
    del grey
    for name, content in files.items():
        assert len(content) < 4 * MB
        put(lab, name, content)
    with ingest_cost() as cost:
        found = ingest(lab)
    assert found == dict.fromkeys(files, OK)
    assert {name: told[1:] for name, told in told_by_content(lab).items()} == dict.fromkeys(files, (20_000, 10_000))
    # Measured: 65 MB for a baseline JPEG, 440 MB (2.2 bytes a pixel) at most.
    assert max(cost.peaks) < 600 * MB
    assert cost.own_growth < 64 * MB


def test_case_c2_bombs_are_refused_with_a_reason_before_they_cost_anything(lab: Lab, photos: Photos) -> None:
    bombs = {f"bomb.{kind}": declared(kind, 40_000, 30_000) for kind in ("jpg", "gif", "bmp", "tif", "jp2", "heic")}
    bombs["whole.png"] = plain_png(30_000, 30_000, bits=1)  # 113 MB of rows that are really there
    bombs["header alone.png"] = plain_png(100_000, 100_000, rows=0)
    for name, data in bombs.items():
        assert len(data) < MB // 2
        put(lab, name, data)
    put(lab, "frames.gif", many_frames(10_001))
    put(lab, "bomb.avif", declared("avif", 40_000, 30_000))
    put(lab, "good.jpg", encoded(photo(photos), "JPEG"))
    with ingest_cost() as cost:
        found = ingest(lab)
    assert found == dict.fromkeys(bombs, refused("too_many_pixels")) | {
        "frames.gif": refused("too_many_frames"),
        "bomb.avif": refused("corrupt"),  # libavif's own limit is 268 megapixels, and it does not say that it is one
        "good.jpg": OK,
    }
    assert max(cost.peaks) < 256 * MB
    assert len(cost.children) == 1


# --- C7: formats. ---


def deep_png(photos: Photos) -> bytes:
    """16 bits a channel, which Pillow reads and does not write."""
    rgb = np.asarray(photo(photos)).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in rgb)
    header = struct.pack(">IIBBBBB", rgb.shape[1], rgb.shape[0], 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )


def every_format(photos: Photos) -> list[tuple[bytes, str]]:
    """Each format and its odd relatives, with the type that the content tells."""
    image = photo(photos)
    grey16 = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    frames = {"save_all": True, "append_images": [image.rotate(90), image.rotate(180)]}
    found = [(encoded(image, pillow, **options), mime) for pillow, options, mime in FORMATS.values()]
    odd: list[tuple[Image.Image, str, dict[str, Any], str]] = [
        (image, "JPEG", {"progressive": True}, "image/jpeg"),
        (image, "JPEG", {"subsampling": 0, "restart_marker_blocks": 4, "comment": "no EXIF"}, "image/jpeg"),
        (image.convert("CMYK"), "JPEG", {}, "image/jpeg"),
        (image.convert("L"), "JPEG", {}, "image/jpeg"),
        (grey16, "PNG", {}, "image/png"),
        (image.convert("1"), "PNG", {}, "image/png"),
        (image.convert("P"), "PNG", {}, "image/png"),
        (image.convert("RGBA"), "PNG", {}, "image/png"),
        (image, "PNG", frames, "image/png"),
        (image, "GIF", frames, "image/gif"),
        (image, "WEBP", {"lossless": True}, "image/webp"),
        (image, "WEBP", frames, "image/webp"),
        (image.convert("RGBA"), "WEBP", {}, "image/webp"),
        (image, "TIFF", {"big_tiff": True}, "image/tiff"),
        (image, "TIFF", {"compression": "jpeg"}, "image/tiff"),
        (image, "TIFF", frames, "image/tiff"),
        (image.convert("CMYK"), "TIFF", {}, "image/tiff"),
        (image.convert("LAB"), "TIFF", {}, "image/tiff"),
        (grey16, "TIFF", {}, "image/tiff"),
        (image.convert("1"), "TIFF", {"compression": "group4"}, "image/tiff"),
        (image.convert("P"), "BMP", {}, "image/bmp"),
        (image, "JPEG2000", {"no_jp2": True}, "image/jp2"),
        (image.convert("RGBA"), "AVIF", {}, "image/avif"),
        (image, "HEIF", {"quality": -1}, "image/heic"),
    ]
    found += [(encoded(picture, pillow, **options), mime) for picture, pillow, options, mime in odd]
    return [*found, (deep_png(photos), "image/png")]


WRONG = (
    "jpg",
    "PNG",
    "tif",
    "heic",
    "gif",
    "webp",
    "avif",
    "bmp",
    "jp2",
    "mp4",
    "pdf",
    "txt",
    "dng",
    "exe",
    "jpg_",
    "",
)


def test_case_c7_wrong_extensions_are_told_by_content(lab: Lab, photos: Photos) -> None:
    wanted = {}
    for n, (content, mime) in enumerate(every_format(photos)):
        # Of the names in turn, so that each format meets names of all kinds in some run of the list.
        for extension in (WRONG[n % len(WRONG)], WRONG[(n + 5) % len(WRONG)]):
            name = f"{n}-{extension or 'none'}" + (f".{extension}" if extension else "")
            put(lab, name, content)
            wanted[name] = (mime, 96, 96)
    assert ingest(lab) == dict.fromkeys(wanted, OK)
    assert told_by_content(lab) == wanted


def test_case_c7_a_picture_with_a_letter_where_a_films_packets_begin_is_a_picture(lab: Lab, photos: Photos) -> None:
    """Packets of a transport stream begin with a "G" every 188 or 192 bytes."""
    gif = bytearray(encoded(photo(photos).convert("P"), "GIF"))
    gif[188] = 0x47  # in its palette
    jpeg = encoded(photo(photos), "JPEG")
    comment = b"\xff\xfe\x47\x02" + b"G" * 0x4700
    put(lab, "a.gif", bytes(gif))
    put(lab, "b.jpg", jpeg[:2] + comment + jpeg[2:])
    assert ingest(lab) == {"a.gif": OK, "b.jpg": OK}
    assert {told[0] for told in told_by_content(lab).values()} == {"image/gif", "image/jpeg"}


def test_case_c7_what_only_calls_itself_a_picture_is_unsupported(lab: Lab) -> None:
    files = {
        "page.jpg": b"<!doctype html><img src=x onerror=alert(1)>",
        "text.heic": b"not a picture at all",
        "archive.png": b"PK\3\4" + bytes(60),
        "program.gif": b"\x7fELF\2\1\1" + bytes(60),
        "picture.svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "letters.bmp": b"BMW is a car, and this is a text that begins like a bitmap.",
        "post.webp": b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) (r) file",
        "sound.tif": b"RIFF\x24\0\0\0WAVEfmt " + bytes(40),
        "song.avif": b"\0\0\0\x18ftypM4A \0\0\0\0M4A mp42" + bytes(40),
    }
    for name, content in files.items():
        put(lab, name, content)
    assert ingest(lab) == dict.fromkeys(files, refused("unsupported"))


# --- A8: names, and what is no file. ---


def test_case_a8_odd_names_are_read_and_what_is_no_file_is_not(
    lab: Lab, photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = [
        b"\xff\xfe\xe9.jpg",
        b"new\nline.jpg",
        b"\x01bell\x07 esc\x1b[2J.jpg",
        b"x" * 251 + b".jpg",
        "😀🏖️.jpg".encode(),
        b'quote\'d "double" `sub` $(id);&|.jpg',
        b"-rf.jpg",
        b"--help",
        b" ",
        b"~",
        b"%2e%2e%2fetc%2fpasswd",
        b"two dots..jpg..",
        b"back\\slash\\..\\..\\a.jpg",
        b"[red]<img onerror>.jpg",
        "\u202egpj.exe".encode(),
        "e\u0301".encode() + b".jpg",
        b"/".join([b"d%02d" % n for n in range(60)]) + b"/deep.jpg",
        b"/".join([b"y" * 200] * 15) + b"/long.jpg",
        b"caf\xe9/\xff/inside.jpg",
    ]
    for n, name in enumerate(odd):
        put(lab, name, encoded(photo(photos, n), "JPEG"))
    (tmp_path / "outside.jpg").write_bytes(encoded(photo(photos, 99), "JPEG"))
    (tmp_path / "photos too").mkdir()
    inside = os.fsdecode(odd[5])
    links = {
        "loop": ".",
        "up": "..",
        "d00/loop": "../d00",
        "itself": "itself",
        "dangling.jpg": "nothing.jpg",
        "dangling far.jpg": "/nonexistent/nothing.jpg",
        "inside.jpg": inside,
        "outside.jpg": "../outside.jpg",
        "neighbour": str(tmp_path / "photos too"),  # its path begins as the folder's does
        "passwd.jpg": "/etc/passwd",
        "zero.jpg": "/dev/zero",
        "memory.jpg": "/proc/self/mem",
    }
    for link, target in links.items():
        (lab.folder / link).symlink_to(target)
    os.mkfifo(lab.folder / "pipe.jpg")
    monkeypatch.chdir(lab.folder)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.jpg")
        found = ingest(lab)
    not_regular = ("loop", "d00/loop", "itself", "dangling.jpg", "inside.jpg", "pipe.jpg", "socket.jpg")
    outside = ("up", "dangling far.jpg", "outside.jpg", "neighbour", "passwd.jpg", "zero.jpg", "memory.jpg")
    assert found == {
        **dict.fromkeys(map(os.fsdecode, odd), OK),
        **dict.fromkeys(not_regular, Fate("ignored", "not_regular")),
        **dict.fromkeys(outside, Fate("ignored", "outside_root")),
    }


@pytest.mark.parametrize("part", ["the file", "its folder"])
def test_case_a8_a_link_swapped_in_between_check_and_open_is_refused(
    lab: Lab, photos: Photos, tmp_path: Path, part: str
) -> None:
    secret = encoded(photo(photos, 1), "JPEG")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a.jpg").write_bytes(secret)
    inside = put(lab, "sub/a.jpg", encoded(photo(photos, 2), "JPEG"))
    put(lab, "good.jpg", encoded(photo(photos, 3), "JPEG"))
    formed = form(lab)
    if part == "the file":
        inside.unlink()
        inside.symlink_to(tmp_path / "outside" / "a.jpg")
    else:
        (lab.folder / "sub").rename(tmp_path / "aside")
        (lab.folder / "sub").symlink_to(tmp_path / "outside")
    assert read(lab, formed) == {"sub/a.jpg": refused("outside_root"), "good.jpg": OK}
    assert set(told_by_content(lab)) == {"good.jpg"}


def test_case_a8_a_pipe_or_nothing_swapped_in_between_check_and_open_hangs_nothing(lab: Lab, photos: Photos) -> None:
    for n, name in enumerate(("pipe.jpg", "folder.jpg", "gone.jpg", "good.jpg")):
        put(lab, name, encoded(photo(photos, n), "JPEG"))
    formed = form(lab)
    for name in ("pipe.jpg", "folder.jpg", "gone.jpg"):
        (lab.folder / name).unlink()
    os.mkfifo(lab.folder / "pipe.jpg")
    (lab.folder / "folder.jpg").mkdir()
    assert read(lab, formed) == {
        "pipe.jpg": refused("not_regular"),
        "folder.jpg": refused("not_regular"),
        "gone.jpg": Fate("failed", "file_gone"),
        "good.jpg": OK,
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_case_a8_what_may_not_be_read_is_told_and_read_when_it_may_be(lab: Lab, photos: Photos) -> None:
    for n, name in enumerate(("closed.jpg", "good.jpg", "sub/a.jpg")):
        put(lab, name, encoded(photo(photos, n), "JPEG"))
    (lab.folder / "closed.jpg").chmod(0)
    (lab.folder / "sub").chmod(0)
    try:
        assert ingest(lab) == {"closed.jpg": Fate("failed", "unreadable"), "good.jpg": OK}
    finally:
        (lab.folder / "sub").chmod(0o700)
    assert ingest(lab)["sub/a.jpg"] == OK


# --- A9: junk. ---

JUNK = (
    ".DS_Store",
    "sub/.DS_Store",
    "Thumbs.db",
    "THUMBS.DB",
    "desktop.ini",
    "@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg",
    "sub/@eaDir/b.jpg",
    "#recycle/old.jpg",
    "~$report.jpg",
    "~$x",
    "upload.jpg.part",
    "half.jpg.PART",
    "saved.tmp",
    "loading.jpg.crdownload",
    "._a.jpg",
    "sub/._a.jpg",
    "folder.part/a.jpg",
    "folder.tmp/a.jpg",
    ".nfs0000001",
    ".Trashes/501/a.jpg",
    ".Spotlight-V100/a.jpg",
)
NO_JUNK = (
    "my.part.jpg",
    "my.tmp.jpg",
    "part.jpg",
    "tmp/ok.jpg",
    "part/ok.jpg",
    "eaDir/ok.jpg",
    "my@eaDir/ok.jpg",
    "@eaDir.jpg",
    "recycle/ok.jpg",
    "#recycle.jpg",
    "Thumbs.db.jpg",
    "my.DS_Store",
    "DS_Store/ok.jpg",
    "x~$a.jpg",
    "~a.jpg",
    "_.a.jpg",
    "a._b.jpg",
    "a.partial.jpg",
    "upload.jpg.part2",
)


def test_case_a9_junk_is_ignored_on_whole_components(lab: Lab, photos: Photos) -> None:
    for n, name in enumerate([*JUNK, *NO_JUNK]):
        put(lab, name, encoded(photo(photos, n), "JPEG"))  # pictures, so that nothing but the name keeps them out
    assert ingest(lab) == dict.fromkeys(NO_JUNK, OK)


# --- A5: our own outputs. ---


@pytest.mark.parametrize("way", ["inside", "inside, watched by a link", "the source within the home"])
def test_case_a5_our_own_outputs_are_never_inputs(tmp_path: Path, photos: Photos, way: str) -> None:
    folder = tmp_path / "photos"
    watched = folder
    if way == "inside, watched by a link":
        folder.mkdir()
        watched = tmp_path / "link"
        watched.symlink_to(folder)
    home = folder / "deep" / "home"
    if way == "the source within the home":
        home, watched = tmp_path / "home", tmp_path / "home" / "my photos"
    store = watched / "our store"
    lab = Lab(home, watched, {"originals": "copy"}, {"configured_store_url": str(store)})
    mine = [f"{n}.jpg" for n in range(6)]
    for n, name in enumerate(mine):
        put(lab, name, encoded(photo(photos, n, (200, 150)), "JPEG"))
    assert ingest(lab) == dict.fromkeys(mine, OK)
    made = [path for path in store.rglob("*") if path.is_file() and path.read_bytes()[:3] == b"\xff\xd8\xff"]
    assert len(made) >= 2 * len(mine)  # proxies and copies, which would be pictures like any other
    for _ in range(2):
        assert form(lab) == []
    lab.close()
