"""Several sandboxed decoders, so that a file that takes long does not hold up the others.

What belongs here: which decoder is free, and which file is being waited for. What does not: what a decoder does
(`decoder`), and what is done with its answer (`stage`).
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from mirror_realm_assets.ingest.decoded import Decoded
from mirror_realm_assets.ingest.decoder import Decoder
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.stages.services import Services

ASIDE = 2
"""So many files may take long at once; the next one is waited for."""


def decoder(services: Services, number: int = 0) -> Decoder:
    """One of this process's sandboxed decoders, with the limits of its settings."""
    return services.held("decoder" if number == 0 else f"decoder/{number}", lambda: _new(services.settings))


def _new(s: Settings) -> Decoder:
    return Decoder(
        seconds=s.decode_seconds,
        memory_bytes=s.decode_memory_bytes,
        max_pixels=s.max_pixels,
        max_frames=s.max_frames,
    )


class Decoders:
    """Decodes in threads, each with a decoder of its own; leaving it ends what is still being decoded.

    Args:
        services: hold the decoders, so that the next batch of this process finds them started.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._pool = ThreadPoolExecutor(ASIDE + 1, thread_name_prefix="decode")
        self._busy: dict[int, Future[Decoded]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for number, future in self._busy.items():
            if not future.done():
                decoder(self._services, number).interrupt()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def begin(self, fd: int, *, long_side: int) -> Future[Decoded]:
        """Decode the file `fd`, which has to stay open until the future is done; see `Decoder.proxy`."""
        self._busy = {number: future for number, future in self._busy.items() if not future.done()}
        number = next(number for number in range(ASIDE + 1) if number not in self._busy)
        one = decoder(self._services, number)  # made here: what holds it is not for threads
        future = self._pool.submit(one.proxy, fd, long_side=long_side)
        self._busy[number] = future
        return future
