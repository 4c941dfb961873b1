"""Decoding hostile pictures: the parent's side, and the main program of the child.

What belongs here: asking the sandboxed child and turning its fate into a reason for one file. What does not: decoding
itself (`ingest.decoding`, which only the child imports) and the child's limits (`ingest.sandbox`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any, Self

from mirror_realm_assets.errors import REASONS, Failed, Refused
from mirror_realm_assets.ingest.decoded import Decoded
from mirror_realm_assets.ingest.sandbox import (
    Child,
    ChildDied,
    ChildTimeout,
    enter_sandbox,
    receive_message,
    send_message,
)
from mirror_realm_assets.ingest.still import MAX_BYTES_PER_SAMPLE, MAX_CHANNELS, Still, StillFacts

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Decoded", "Decoder"]

_MODULE = "mirror_realm_assets.ingest.decoder"
# Decoders leak and fragment; a new child costs 0.3 s, which is nothing over this many pictures.
_FILES_PER_CHILD = 2000
_MAX_FDS = 2  # the original, and where to write pixels


class Decoder:
    """Decodes one picture at a time in one long-lived, sandboxed child process.

    Use it as a context manager. It may be shared by threads, which then wait for each other; for pictures side by side
    use several decoders. A file that crashes, hangs or bloats the child costs just that file.

    Args:
        seconds: wall-clock limit of one picture.
        memory_bytes: limit of the child's address space, of which about 0.3 GB are the child's own.
        max_pixels: larger pictures are refused by their declared size, before they are decoded.
        max_frames: pictures with more frames or pages are refused.
    """

    def __init__(self, *, seconds: float, memory_bytes: int, max_pixels: int, max_frames: int) -> None:
        self._seconds = seconds
        self._max_pixels = max_pixels
        self._limits = {"max_pixels": max_pixels, "max_frames": max_frames, "seconds": seconds}
        self._child = Child(_MODULE, memory_bytes=memory_bytes)
        self._asked = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the child; None while none is running."""
        return self._child.pid

    def close(self) -> None:
        """End the child. A later call starts another."""
        with self._lock:
            self._child.close()

    def interrupt(self) -> None:
        """End what another thread is decoding: it is refused there as `decoder_crashed`, which is nobody's verdict."""
        pid = self._child.pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def proxy(self, fd: int, *, long_side: int) -> Decoded:
        """Decode the picture, video or document in the file `fd` and make the proxies of its parts.

        Args:
            fd: of a memory file with the original's bytes (`Original.fd`); its offset is left alone.
            long_side: of a proxy in pixels; smaller pictures are not enlarged.

        Raises:
            Refused: the file is at fault.
            Failed: `internal` when no child can be started.
        """
        reply, blob = self._ask({"do": "proxy", "long_side": long_side}, [fd])
        try:
            return Decoded.from_reply(reply, blob)
        except ValueError as error:
            raise self._nonsense(str(error)) from error

    def pixels(self, fd: int) -> np.ndarray:
        """The picture in the file `fd` at full size: HxWx3 uint8 sRGB 0-255, upright, transparency on white.

        Args:
            fd: of a memory file with the original's bytes (`Original.fd`); its offset is left alone.

        Returns:
            A writable array of the caller's own.

        Raises:
            Refused: the file is at fault.
            Failed: `internal` when no child can be started, `out_of_memory` when there is no room for the array.
        """
        # We make the file, at its largest and sealed, so that the child may not: it can write to no file at all, and
        # cannot shrink this one under our hands. Memory is taken only by the pages that are written.
        with _SharedMemory(self._max_pixels * 3) as memory:
            reply, _ = self._ask({"do": "pixels"}, [fd, memory.fd])
            height, width = (_side(reply.get(name)) for name in ("height", "width"))
            if not 0 < height * width <= self._max_pixels:
                raise self._nonsense("an impossible size")
            return memory.array((height, width, 3))

    def still(self, fd: int) -> Still:
        """The still in the file `fd` at full size as the file holds it, turned upright.

        Args:
            fd: of a memory file with the original's bytes (`Original.fd`); its offset is left alone.

        Returns:
            Pixels of the caller's own, with the file's depth, colours, transparency, profile and EXIF.

        Raises:
            Refused: the file is at fault.
            Failed: `internal` when no child can be started, `out_of_memory` when there is no room for the array.
        """
        with _SharedMemory(self._max_pixels * MAX_CHANNELS * MAX_BYTES_PER_SAMPLE) as memory:
            reply, blob = self._ask({"do": "still"}, [fd, memory.fd])
            try:
                facts = StillFacts.from_reply(reply, blob, self._max_pixels)
            except ValueError as error:
                raise self._nonsense(str(error)) from error
            pixels = memory.array(facts.shape, deep=facts.depth == 16)
        return Still(pixels, facts.icc, facts.exif, facts.animated)

    def _ask(self, request: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], bytes]:
        with self._lock:
            if self._asked >= _FILES_PER_CHILD:
                self._child.stop()
                self._asked = 0
            self._asked += 1
            try:
                reply, blob = self._child.ask(request | self._limits, fds, seconds=self._seconds)
            except ChildTimeout as error:
                raise Refused("decoder_timeout", f"Decoding took longer than {self._seconds:g} s.") from error
            except ChildDied as error:
                raise Refused("decoder_crashed", f"The decoder ended while it read the file: {error}.") from error
            code = reply.get("refused")
            if code is None:
                return reply, blob
            if code == "decoder_memory":
                self._child.stop()  # what is left of a failed allocation is not worth finding out
        if not isinstance(code, str) or code not in REASONS or not REASONS[code].refusal:
            raise self._nonsense("an unknown reason")
        raise Refused(code, str(reply.get("message", ""))[:300])

    def _nonsense(self, what: str) -> Refused:
        self._child.stop()
        return Refused("decoder_crashed", f"The decoder answered {what}.")


def _side(value: object) -> int:
    return value if type(value) is int and value > 0 else 0


class _SharedMemory:
    """An anonymous file of a fixed size, for the child to write into."""

    def __init__(self, size: int) -> None:
        import fcntl

        self.size = size
        self.fd = os.memfd_create("pixels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, size)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        except BaseException:
            os.close(self.fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def array(self, shape: tuple[int, ...], *, deep: bool = False) -> np.ndarray:
        """The file's beginning as an array of the caller's own."""
        import numpy as np

        try:
            result = np.empty(shape, dtype=np.uint16 if deep else np.uint8)
        except MemoryError as error:
            raise Failed("out_of_memory", "No memory left for the pixels of the picture.") from error
        rest, offset = memoryview(result.data).cast("B"), 0
        while rest:
            # Read, not mapped: the child may still hold the file.
            count = os.preadv(self.fd, [rest], offset)
            rest, offset = rest[count:], offset + count
        return result


def main(arguments: list[str]) -> int:
    """The child: enter the sandbox, then answer until the parent goes.

    Args:
        arguments: descriptor of the socket, process id of the parent, bytes of memory.
    """
    descriptor, parent, memory_bytes = (int(argument) for argument in arguments)
    channel = socket.socket(fileno=descriptor)
    try:
        enter_sandbox(parent, memory_bytes)
        from mirror_realm_assets.ingest import decoding

        decoding.load_plugins()
    except Exception as error:
        send_message(channel, {"failed": f"{type(error).__name__}: {error}"})
        return 1
    send_message(channel, {"ready": True})
    while (received := receive_message(channel, max_fds=_MAX_FDS)) is not None:
        request, _, fds = received
        try:
            reply, blob = decoding.answer(request, fds)
        finally:
            for fd in fds:
                os.close(fd)
        send_message(channel, reply, blob)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
