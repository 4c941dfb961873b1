"""Key frames of videos at changes of scene, with FFmpeg: what runs inside the sandboxed child, and only there.

What belongs here: probing a video and choosing and decoding its frames. What does not: sound, and frames between key
frames. A video is looked at twice: small pictures of up to 256 key frames, spread evenly, show where scenes change;
then only the chosen frames are decoded at full size. So a film of two hours costs seconds, and memory for one frame.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, BinaryIO

from mirror_realm_assets.errors import Refused
from mirror_realm_assets.ingest.decoded import MAX_PARTS, Decoded, DecodedPart
from mirror_realm_assets.ingest.exif import Value, sanitised
from mirror_realm_assets.ingest.formats import Format
from mirror_realm_assets.ingest.phash import perceptual_hash
from mirror_realm_assets.ingest.proxies import part_of

if TYPE_CHECKING:
    import numpy as np
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream
    from PIL import Image

_MAX_LOOKS = 256  # key frames that are looked at
_LOOK_SECONDS = 1.0  # and not more than one a second
_SMALL = (32, 32)
# Mean difference of the small pictures, in grey levels, from which on two key frames show different scenes; and the
# deviation of grey levels below which a frame shows nothing: a fade, a black beginning.
_OTHER_SCENE, _EMPTY = 14.0, 4.0
_THREADS = 2
_MAX_BOXES = 10_000
_WITHOUT_INDEX = 600  # packets' worth of frames decoded in order where nothing can be sought
_ISO6709 = re.compile(r"([+-]\d+(?:\.\d+)?)([+-]\d+(?:\.\d+)?)")
_TIMES = ("com.apple.quicktime.creationdate", "creation_time", "date")


def describe(file: BinaryIO, format_: Format, long_side: int, *, max_pixels: int, seconds: float) -> Decoded:
    """The key frames that show its scenes, at most `MAX_PARTS`; the first of them stands for the video.

    Args:
        file: the video.
        format_: told by content; no other demuxer is tried, least of all one for lists of other files.
        long_side: of the proxies, in pixels.
        max_pixels: of a frame.
        seconds: no frame is begun after that time.

    Raises:
        Refused: `unsupported` without moving pictures or a decoder, `too_many_pixels`, `corrupt` when no frame decodes,
            `truncated` when that is because its end is missing.
    """
    import av

    cut = format_.name == "mov" and _ends_inside_a_box(file)
    try:
        shown = _describe(file, format_, long_side, max_pixels=max_pixels, end=time.monotonic() + seconds)
    except (Refused, av.FFmpegError) as error:
        if cut and not (isinstance(error, Refused) and error.code != "corrupt"):
            raise Refused("truncated", "Its end is missing.") from error
        raise
    return replace(shown, notes=(*shown.notes, "its end is missing")) if cut else shown


def _ends_inside_a_box(file: BinaryIO) -> bool:
    """Whether an ISO file (MP4, QuickTime) ends before the last of its outermost boxes does."""
    position, size = 0, file.seek(0, os.SEEK_END)
    for _box in range(_MAX_BOXES):
        if position >= size:
            break
        file.seek(position)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:  # a long one
            length = int.from_bytes(head[8:16], "big")
        if length < 8:
            break  # it goes on to the end of the file, or is no box: some programs append what they like
        position += length
    file.seek(0)
    return position > size


def _describe(file: BinaryIO, format_: Format, long_side: int, *, max_pixels: int, end: float) -> Decoded:
    import av

    with av.open(file, mode="r", format=format_.name, metadata_errors="replace") as container:
        stream = _stream(container, max_pixels)
        film = _Film(container, stream, end)
        chosen = _scenes(film.looks())
        if not chosen:
            raise Refused("corrupt", f"None of its frames can be decoded: {film.trouble or 'there are none'}.")
        parts, phash = _parts(film, chosen, long_side)
        values, taken_at = _metadata(container)
        return Decoded(
            format_.mime,
            parts,
            frames=max(stream.frames, len(parts)),
            phash=phash,
            exif=values,
            taken_at=taken_at,
            notes=tuple(film.notes),
            duration_s=film.duration or None,
        )


def _stream(container: InputContainer, max_pixels: int) -> VideoStream:
    import av

    streams = [one for one in container.streams.video if not one.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise Refused("unsupported", "It has no moving pictures: it may be sound alone.")
    stream = streams[0]
    if stream.codec_context is None:
        raise Refused("unsupported", "There is no decoder for its moving pictures.")
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > max_pixels:
        raise Refused("too_many_pixels", f"Its frames have {width} x {height} pixels; {max_pixels} are allowed.")
    stream.codec_context.thread_count = _THREADS
    stream.thread_type = "SLICE"  # threads that take a frame each hold frames back
    return stream


class _Film:
    """An open video, from which single key frames are taken."""

    def __init__(self, container: InputContainer, stream: VideoStream, end: float) -> None:
        self._container = container
        self._stream = stream
        self._end = end
        self._base = float(stream.time_base or 1)
        self._start = stream.start_time or 0
        self.notes: list[str] = []
        self.trouble = ""
        self.duration = self._duration()

    def _duration(self) -> float:
        if self._stream.duration:
            return max(0.0, float(self._stream.duration) * self._base)
        return max(0.0, (self._container.duration or 0) / 1_000_000)

    def looks(self) -> dict[int, np.ndarray]:
        """Small pictures of key frames, by time stamp, in order; as many as there is time for, evenly spread."""
        found: dict[int, np.ndarray] = {}
        for at in _evenly(self.duration):
            if found and time.monotonic() > self._end:
                self.notes.append("no time to look at more of it")
                break
            with self._noting():
                packet_time, frame = self._key_frame(at, found)
                if frame is not None and packet_time is not None:
                    found[packet_time] = _small(frame)
        if not found:
            found = self._in_order()
        return dict(sorted(found.items()))

    def _in_order(self) -> dict[int, np.ndarray]:
        """For what cannot be sought in: its first key frames, or frames at least."""
        found: dict[int, np.ndarray] = {}
        with self._noting():
            self._container.seek(0)
        last = -math.inf
        with self._noting():
            for count, frame in enumerate(self._container.decode(self._stream)):
                if count >= _WITHOUT_INDEX or (found and time.monotonic() > self._end):
                    break
                at = frame.pts if frame.pts is not None else count
                if self.seconds_of(at) - last >= _LOOK_SECONDS:
                    found[at] = _small(frame)
                    last = self.seconds_of(at)
        return found

    def pictures(self, stamps: Sequence[int]) -> Iterator[tuple[int, Image.Image]]:
        """The frames of these time stamps, upright, at full size."""
        missed = []
        for stamp in stamps:
            frame = None
            with self._noting():
                found, frame = self._key_frame(self.seconds_of(stamp), {})
                frame = frame if found == stamp else None
            if frame is None:
                missed.append(stamp)
            else:
                yield stamp, _upright(frame)
        if not missed:
            return
        with self._noting():
            self._container.seek(0)
        with self._noting():
            for count, frame in enumerate(self._container.decode(self._stream)):
                at = frame.pts if frame.pts is not None else count
                if at in missed:
                    missed.remove(at)
                    yield at, _upright(frame)
                if not missed or count >= _WITHOUT_INDEX:
                    break

    def seconds_of(self, stamp: int) -> float:
        """A time stamp in seconds since the beginning."""
        return max(0.0, round((stamp - self._start) * self._base, 3))

    def _key_frame(self, at: float, known: dict[int, Any]) -> tuple[int | None, VideoFrame | None]:
        """The key frame at or before a time, unless it is known already."""
        self._container.seek(self._start + round(at / self._base), stream=self._stream)
        for packet in self._container.demux(self._stream):
            if packet.pts is None:
                break  # the end
            if not packet.is_keyframe:
                continue
            if packet.pts in known:
                return packet.pts, None
            frames = packet.decode() or self._stream.codec_context.decode(None)
            return packet.pts, frames[0] if frames else None
        return None, None

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        """A frame that cannot be decoded costs that frame."""
        import av

        try:
            yield
        except (av.FFmpegError, EOFError, ValueError) as error:
            self.trouble = getattr(error, "strerror", None) or str(error)
            if not self.notes:
                self.notes.append("some of its frames cannot be decoded")


def _evenly(duration: float) -> Iterator[float]:
    """Times to look at, such that wherever it has to end they are spread over all of it."""
    count = min(_MAX_LOOKS, int(duration / _LOOK_SECONDS) + 1)
    bits = max(1, (count - 1).bit_length())
    for number in range(1 << bits):
        reverse = int(f"{number:0{bits}b}"[::-1], 2)
        if reverse < count:
            yield duration * reverse / count


def _small(frame: VideoFrame) -> np.ndarray:
    import numpy as np

    return frame.reformat(*_SMALL, format="rgb24").to_ndarray().astype(np.float32)


def _scenes(looks: dict[int, np.ndarray]) -> list[int]:
    """Time stamps of the frames that show something else than the ones before them."""
    full = {stamp: small for stamp, small in looks.items() if float(small.std()) >= _EMPTY}
    looks = full or dict(list(looks.items())[:1])
    kept: list[int] = []
    for stamp, small in looks.items():
        if not kept or _difference(looks[kept[-1]], small) >= _OTHER_SCENE:
            kept.append(stamp)
    while len(kept) > MAX_PARTS:  # those that resemble the one before go first
        changes = [_difference(looks[a], looks[b]) for a, b in pairwise(kept)]
        del kept[changes.index(min(changes)) + 1]
    return kept


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    import numpy as np

    return float(np.abs(one - other).mean())


def _parts(film: _Film, chosen: Sequence[int], long_side: int) -> tuple[tuple[DecodedPart, ...], str | None]:
    parts = {
        stamp: (part_of(picture, long_side, "frame", time_s=film.seconds_of(stamp)), perceptual_hash(picture))
        for stamp, picture in film.pictures(chosen)
    }
    if not parts:
        raise Refused("corrupt", f"None of its frames can be decoded: {film.trouble}.")
    ordered = [parts[stamp] for stamp in sorted(parts)]
    return tuple(part for part, _ in ordered), ordered[0][1]


def _upright(frame: VideoFrame) -> Image.Image:
    """The frame as a player shows it: with square pixels, turned as the camera was held."""
    from PIL import Image

    picture = frame.to_image()
    aspect = getattr(frame, "sample_aspect_ratio", None)
    if aspect and aspect > 0 and aspect != 1 and 0.1 < aspect < 10:
        picture = picture.resize((max(1, round(picture.width * float(aspect))), picture.height))
    turns = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
    turn = turns.get(round(frame.rotation) % 360)
    return picture if turn is None else picture.transpose(turn)


def _metadata(container: InputContainer) -> tuple[dict[str, Value], str | None]:
    said = {str(key).lower(): value for key, value in container.metadata.items()}
    values: dict[str, Value] = {}
    names = {
        "make": ("com.apple.quicktime.make", "make"),
        "model": ("com.apple.quicktime.model", "model"),
        "software": ("com.apple.quicktime.software", "encoder"),
        "description": ("title", "description", "comment"),
    }
    for name, keys in names.items():
        text = next((found for key in keys if (found := sanitised(said.get(key)))), None)
        if text:
            values[name] = text
    place = _ISO6709.match(said.get("com.apple.quicktime.location.iso6709") or said.get("location") or "")
    if place and abs(float(place[1])) <= 90 and abs(float(place[2])) <= 180:
        values["latitude"], values["longitude"] = float(place[1]), float(place[2])
    taken = next((found for key in _TIMES if (found := _iso(said.get(key)))), None)
    if taken:
        values["taken_at"] = taken
    return values, taken


def _iso(text: str | None) -> str | None:
    """A time as containers tell it; cameras whose clock was never set write 1904 or 1970, which is no time."""
    from datetime import datetime

    try:
        found = datetime.fromisoformat((text or "").strip())
    except ValueError:
        return None
    return found.isoformat(timespec="seconds") if found.year > 1970 else None
