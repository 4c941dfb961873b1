"""Opening a known original again, for the few stages that read more than its proxy.

What belongs here: trying every place where a content is known to be. What does not: reading itself (`originals`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from mirror_realm_assets.catalog import media
from mirror_realm_assets.errors import Failed, MirrorRealmError
from mirror_realm_assets.ingest.originals import FileStat, Original, read_verified
from mirror_realm_assets.stages.services import Services


@contextmanager
def open_original(services: Services, digest: str) -> Iterator[Original]:
    """The original with this digest, from the first known place that still holds exactly these bytes.

    Raises:
        Failed: `original_changed` when places exist and none holds these bytes any more; `original_gone` when there is
            no place left; `unreadable` or `io_error` when that is all that went wrong.
    """
    with services.catalog.read() as conn:
        places, stored_key = media.places(conn, digest)
    errors: list[MirrorRealmError] = []
    with ExitStack() as stack:
        original = None
        for place in places:
            reading = read_verified(place.root, place.path, digest, max_bytes=services.settings.max_file_bytes)
            try:
                original = stack.enter_context(reading)
                break
            except MirrorRealmError as error:
                errors.append(error)
        if original is None and stored_key is not None:
            original = _stored(services, stored_key, digest, stack)
        if original is None:
            raise _worst(errors)
        yield original


def _stored(services: Services, key: str, digest: str, stack: ExitStack) -> Original:
    file = stack.enter_context(services.store.open(key, digest))
    found = os.fstat(file.fileno())
    return Original(digest, FileStat.of(file.fileno()), found.st_size, file.fileno())


def _worst(errors: list[MirrorRealmError]) -> MirrorRealmError:
    """One error for all places: a changed original outranks an unreadable one, and that one a missing one."""
    if any(error.code in ("empty_file", "too_many_bytes") for error in errors):
        return Failed("original_changed", "The file's bytes are not those that were recorded.")
    for code in ("original_changed", "unreadable", "io_error", "changed_while_reading", "out_of_memory"):
        for error in errors:
            if error.code == code:
                return error
    return Failed("original_gone", "The original is at none of its known places.")
