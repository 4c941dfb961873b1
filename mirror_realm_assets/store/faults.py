"""What the system says, as our errors.

What belongs here: which `OSError` becomes which reason, and the comparison of digests. What does not: retrying.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from mirror_realm_assets.errors import Failed

CHUNK = 1024**2  # bytes read or written at once

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def reporting(key: str) -> Iterator[None]:
    """Raise what the system says as one of our errors, naming the object."""
    try:
        yield
    except OSError as error:
        code = "disk_full" if error.errno in _NO_SPACE else "store_failed"
        raise Failed(code, f"The store could not serve {key}: {error.strerror or error}.") from error


def chunks_of(source: BinaryIO, key: str) -> Iterator[bytes]:
    """What is left of `source`, to be stored as `key`, piece by piece."""
    while True:
        try:
            chunk = source.read(CHUNK)
        except OSError as error:
            raise unreadable(key, error) from error
        if not chunk:
            return
        yield chunk


def unreadable(key: str, error: OSError) -> Failed:
    """The failure of a source that was to be stored as `key`."""
    # The source's trouble, not the store's: it has another remedy.
    return Failed("io_error", f"What was to be stored as {key} cannot be read: {error.strerror or error}.")


def compare(key: str, wanted: str, found: str) -> None:
    """Raise `store_corrupt` unless the digest of the object `key` is the recorded one."""
    if found != wanted:
        raise Failed("store_corrupt", f"The object {key} has the digest {found[:12]}, recorded is {wanted[:12]}.")
