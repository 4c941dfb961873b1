"""Streaming building blocks for stages: read ahead in threads, bounded by bytes; one function for each picture.

What belongs here: small generators with one job. What does not: models, and recording.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from mirror_realm_assets.catalog.features import Finding
from mirror_realm_assets.catalog.items import Work
from mirror_realm_assets.errors import Failed
from mirror_realm_assets.stages.stage import Result, Run, finding_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mirror_realm_assets.stages.context import StageContext

T = TypeVar("T")

_AHEAD_BYTES = 256 * 1024**2
# What is read ahead is marked running first, and so is under suspicion after a crash.
_AHEAD_ITEMS = 16


def read_ahead(
    works: Iterable[Work],
    load: Callable[[Work], T],
    *,
    threads: int = 2,
    cost: Callable[[Work], int] = lambda work: work.subject.size,
    max_bytes: int = _AHEAD_BYTES,
    items: int = _AHEAD_ITEMS,
) -> Iterator[tuple[Work, T | Exception]]:
    """Load each piece of work in threads, ahead of its use and in order.

    Args:
        works: pulled one by one, as room allows.
        load: called in a thread; its exception is handed over as a value, for its own piece of work alone.
        threads: how many load at once.
        cost: bytes that a loaded piece is expected to hold.
        max_bytes: loaded or loading bytes at most; a single larger piece is loaded alone.
        items: likewise, pieces at most.
    """
    source = iter(works)
    ahead: deque[tuple[Work, Future[T]]] = deque()
    held = 0
    pool = ThreadPoolExecutor(threads, thread_name_prefix="read-ahead")
    try:
        more = True
        while more or ahead:
            while more and len(ahead) < items and (held < max_bytes or not ahead):
                work = next(source, None)
                if work is None:
                    more = False
                    break
                ahead.append((work, pool.submit(load, work)))
                held += cost(work)
            if not ahead:
                break
            work, future = ahead.popleft()
            error = future.exception()
            held -= cost(work)
            if error is not None and not isinstance(error, Exception):
                raise error
            yield work, future.result() if error is None else error
    finally:
        for _work, future in ahead:
            future.cancel()
        pool.shutdown(wait=True, cancel_futures=True)


def decode_proxy(data: bytes) -> npt.NDArray[np.uint8]:
    """A proxy (a JPEG of our own making) as `HxWx3 uint8` RGB.

    Raises:
        Failed: `store_corrupt` when it cannot be decoded.
    """
    import cv2
    import numpy as np

    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise Failed("store_corrupt", "A proxy cannot be decoded.")
    return np.asarray(image, dtype=np.uint8)


def each_proxy(
    function: Callable[[npt.NDArray[np.uint8]], Mapping[str, Any] | None],
) -> Run:
    """A stage's `run` from a function of one picture.

    Args:
        function: takes a proxy (`HxWx3 uint8` sRGB, upright) and returns what is recorded (small, JSON-safe), or None
            for an empty result.
    """

    def run(works: Iterable[Work], context: StageContext) -> Iterator[Result]:
        loaded = read_ahead(works, lambda work: decode_proxy(context.read_proxy(work)), cost=lambda _work: 6_000_000)
        for work, image in loaded:
            began = time.monotonic()
            try:
                if isinstance(image, Exception):
                    raise image
                output = function(image)
                finding = Finding("ok" if output is not None else "empty", output, seconds=time.monotonic() - began)
            except Exception as error:
                finding = finding_of(error)
            yield Result(work, finding)

    return run
