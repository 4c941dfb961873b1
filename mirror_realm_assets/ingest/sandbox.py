"""One child process with hard limits, for code that reads hostile bytes.

What belongs here: starting, limiting, asking and ending the child, and the messages between the two. What does not:
what is asked (`ingest.decoder` asks, `ingest.decoding` answers).

A message is two lengths, JSON, and raw bytes; files travel as descriptors. Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mirror_realm_assets
from mirror_realm_assets.errors import Failed

_LENGTHS = struct.Struct("!II")
_MAX_JSON_BYTES = 1 << 20
_MAX_BLOB_BYTES = 256 << 20  # a proxy; a child that is taken over must not make us fill our memory
_START_SECONDS = 60.0  # 0.3 s on an idle machine, but many start at once after a power cut
_OPEN_FILES = 64
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38


class ChildTimeout(Exception):
    """The child did not answer in time and was killed."""


class ChildDied(Exception):
    """The child ended, or answered what it should not, and is gone."""


def enter_sandbox(parent: int, memory_bytes: int) -> None:
    """Limit the calling process for good; the child calls it before it imports a decoder.

    Args:
        parent: process that it must not outlive.
        memory_bytes: bound of its address space.
    """
    import resource

    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        # When the machine runs out of memory the kernel should take the decoder, not who uses it.
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")
    if os.getppid() != parent:
        sys.exit(0)  # the parent died before its death could be signalled
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),  # no byte can be written to any file; sockets and shared memory are not files
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_AS, memory_bytes),
    ):
        _, hard = resource.getrlimit(limit)
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (bound, bound))


def send_message(channel: socket.socket, message: dict[str, Any], blob: bytes = b"", fds: Sequence[int] = ()) -> None:
    """Send `message`, `blob` and `fds` as one message."""
    text = json.dumps(message, allow_nan=False).encode()
    frame = _LENGTHS.pack(len(text), len(blob)) + text
    sent = socket.send_fds(channel, [frame], fds) if fds else 0
    channel.sendall(frame[sent:])
    channel.sendall(blob)


def receive_message(
    channel: socket.socket, *, seconds: float | None = None, max_fds: int = 0
) -> tuple[dict[str, Any], bytes, list[int]] | None:
    """The next message with its blob and descriptors, or None when the other side has gone.

    Args:
        channel: to the other side.
        seconds: how long to wait for the whole message; None for as long as it takes.
        max_fds: descriptors to accept; the kernel closes any others.

    Raises:
        TimeoutError: when it is not complete within `seconds`.
        ValueError: when it is no message.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    _set_timeout(channel, deadline)
    fds: list[int] = []
    if max_fds:
        start, fds, _, _ = socket.recv_fds(channel, _LENGTHS.size, max_fds)
    else:
        start = channel.recv(_LENGTHS.size)
    if not start:
        return None
    head = start + (_receive(channel, _LENGTHS.size - len(start), deadline) or b"")
    if len(head) < _LENGTHS.size:
        return None
    text_bytes, blob_bytes = _LENGTHS.unpack(head)
    if text_bytes > _MAX_JSON_BYTES or blob_bytes > _MAX_BLOB_BYTES:
        raise ValueError("the message is too long")
    text = _receive(channel, text_bytes, deadline)
    blob = _receive(channel, blob_bytes, deadline)
    if text is None or blob is None:
        return None
    try:
        message = json.loads(text, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("the message is nested too deeply") from error
    if not isinstance(message, dict):
        raise ValueError("the message is no object")
    return message, blob, list(fds)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _receive(channel: socket.socket, count: int, deadline: float | None) -> bytes | None:
    result = bytearray(count)
    view = memoryview(result)
    while view:
        _set_timeout(channel, deadline)
        got = channel.recv_into(view)
        if not got:
            return None
        view = view[got:]
    return bytes(result)


def _set_timeout(channel: socket.socket, deadline: float | None) -> None:
    if deadline is None:
        channel.settimeout(None)
        return
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    channel.settimeout(left)


class Child:
    """A child process that runs one of our modules in a sandbox and answers one message at a time.

    It is started by the first `ask`, and again after it ended. Not thread-safe: the owner locks.

    Args:
        module: is run as `python -m module FD PARENT MEMORY_BYTES`.
        memory_bytes: bound of the child's address space.
    """

    def __init__(self, module: str, *, memory_bytes: int) -> None:
        self._module = module
        self._memory_bytes = memory_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        # The kernel signals the death of the *thread* that started a child. A thread of our own lives as long as we do,
        # the one that happens to ask first may end while another one waits for its picture.
        self._starter: ThreadPoolExecutor | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the running child, or None."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def ask(self, message: dict[str, Any], fds: Sequence[int], *, seconds: float) -> tuple[dict[str, Any], bytes]:
        """The child's answer to `message`.

        Raises:
            ChildTimeout: it took longer than `seconds` (the start of a child not counted).
            ChildDied: it ended, or did not answer properly.
            Failed: `internal` when no child can be started.
        """
        if self.pid is None:  # also when it was killed while idle: that is not this message's fault
            self.stop()
            self._start()
        with self._ending_on_trouble() as channel:
            send_message(channel, message, fds=fds)
            answer = receive_message(channel, seconds=seconds)
            if answer is None:
                raise ChildDied(self._last_words())
        return answer[0], answer[1]

    @contextlib.contextmanager
    def _ending_on_trouble(self) -> Iterator[socket.socket]:
        """Whatever interrupts an exchange, the next one must not meet this one's answer: the child ends."""
        channel = self._channel
        if channel is None:
            raise ChildDied("it is not running")
        try:
            yield channel
        except TimeoutError as error:
            self.stop()
            raise ChildTimeout from error
        except (OSError, ValueError) as error:
            words = self._last_words()
            self.stop()
            raise ChildDied(words) from error
        except BaseException:
            self.stop()
            raise

    def _last_words(self) -> str:
        process = self._process
        if process is None:
            return "it is not running"
        try:
            code = process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return "it answered nonsense"
        if code >= 0:
            return f"it ended with code {code}"
        return f"signal {signal.Signals(-code).name if -code in list(signal.Signals) else -code}"

    def _start(self) -> None:
        if self._starter is None:
            self._starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sandbox-starter")
        ours, theirs = socket.socketpair()
        try:
            self._process = self._starter.submit(self._spawn, theirs.fileno()).result()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._channel = ours
        try:
            with self._ending_on_trouble() as channel:
                hello = receive_message(channel, seconds=_START_SECONDS)
                if hello is None or hello[0] != {"ready": True}:
                    raise ChildDied(str((hello or ({},))[0].get("failed") or self._last_words()))
        except (ChildDied, ChildTimeout) as error:
            raise Failed("internal", f"The sandboxed child {self._module} did not start: {error}.") from error

    def _spawn(self, channel: int) -> subprocess.Popen[bytes]:
        package_root = Path(mirror_realm_assets.__file__).resolve().parent.parent
        return subprocess.Popen(  # noqa: S603 - our own interpreter and module
            # -P: a working folder full of pictures may hold a PIL.py. -B: nothing is written.
            [sys.executable, "-P", "-B", "-W", "ignore", "-m", self._module]
            + [str(number) for number in (channel, os.getpid(), self._memory_bytes)],
            env={
                "PYTHONPATH": str(package_root),
                "PYTHONUTF8": "1",
                # Address space is limited, and both reserve some for every core of the machine.
                "MALLOC_ARENA_MAX": "2",
                "OPENBLAS_NUM_THREADS": "1",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[channel],
            start_new_session=True,  # Ctrl-C in a terminal is for us: the picture in work is not to blame
        )

    def stop(self) -> None:
        """End the child at once; the next `ask` starts another."""
        process, channel, self._process, self._channel = self._process, self._channel, None, None
        if channel is not None:
            channel.close()
        if process is not None:
            process.kill()
            process.wait()

    def close(self) -> None:
        """End the child and the thread that started it."""
        self.stop()
        if self._starter is not None:
            self._starter.shutdown()
            self._starter = None
