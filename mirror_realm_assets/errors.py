"""Every way in which work can fail: ten classes with their retry policies, and the reasons we record.

What belongs here: the specification's error classes (7.1.1) and business codes (9.2), the table of reason codes that
stand in the ledger, and the exception types that carry them. What does not: deciding *whether* something failed
(domain packages), and storing it (`catalog`).

A **refusal** is the file's fault (corrupt, unsupported, too large): it never fails a run. A **failure** is ours or the
environment's; it is retried as its class says and counts towards the systemic check.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum


class ErrorClass(StrEnum):
    """The specification's ten error classes (7.1.1)."""

    TRANSIENT_ERROR = "TRANSIENT_ERROR"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    NOT_FOUND = "NOT_FOUND"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    INTERNAL_ERROR = "INTERNAL_ERROR"
    DATA_CORRUPTED = "DATA_CORRUPTED"
    DEPENDENCY_FAILURE = "DEPENDENCY_FAILURE"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"


class BusinessCode(StrEnum):
    """The codes that interfaces report (9.2.2); `HTTP_STATUS` gives their HTTP status."""

    TRANSIENT_ERROR = "TRANSIENT_ERROR"
    DEPENDENCY_FAILURE = "DEPENDENCY_FAILURE"
    DATA_CORRUPTED = "DATA_CORRUPTED"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    INVALID_WORKFLOW_DEFINITION = "INVALID_WORKFLOW_DEFINITION"
    NODE_EXECUTION_TIMEOUT = "NODE_EXECUTION_TIMEOUT"
    INSUFFICIENT_RESOURCES = "INSUFFICIENT_RESOURCES"
    UNSUPPORTED_FILE_TYPE = "UNSUPPORTED_FILE_TYPE"
    PROCESSING_CAPACITY_EXCEEDED = "PROCESSING_CAPACITY_EXCEEDED"
    COPYRIGHT_VIOLATION = "COPYRIGHT_VIOLATION"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    INTERNAL = "INTERNAL"


HTTP_STATUS: dict[BusinessCode, int] = {
    BusinessCode.TRANSIENT_ERROR: 500,
    BusinessCode.DEPENDENCY_FAILURE: 503,
    BusinessCode.DATA_CORRUPTED: 500,
    BusinessCode.QUOTA_EXCEEDED: 429,
    BusinessCode.INVALID_WORKFLOW_DEFINITION: 400,
    BusinessCode.NODE_EXECUTION_TIMEOUT: 504,
    BusinessCode.INSUFFICIENT_RESOURCES: 503,
    BusinessCode.UNSUPPORTED_FILE_TYPE: 400,
    BusinessCode.PROCESSING_CAPACITY_EXCEEDED: 503,
    BusinessCode.COPYRIGHT_VIOLATION: 403,
    BusinessCode.INVALID_ARGUMENT: 400,
    BusinessCode.NOT_FOUND: 404,
    BusinessCode.PERMISSION_DENIED: 403,
    BusinessCode.INTERNAL: 500,
}


@dataclass(frozen=True)
class RetryPolicy:
    """When failed work is tried again.

    Attributes:
        delays: seconds to wait after the first, second, ... failed attempt; the last one repeats.
        max_attempts: attempts in all; 1 means that the work is never retried by itself.
    """

    delays: tuple[float, ...] = ()
    max_attempts: int = 1

    @property
    def retryable(self) -> bool:
        """Whether there is a second attempt at all."""
        return self.max_attempts > 1

    def next_attempt(self, attempts: int, now: datetime) -> datetime | None:
        """Time of the next attempt after `attempts` failed ones, or None when there is none."""
        if attempts >= self.max_attempts or not self.delays:
            return None
        return now + timedelta(seconds=self.delays[min(attempts, len(self.delays)) - 1])


# Delays are the specification's (7.1.1); attempts its middleware's (7.1.3) plus the first one.
RETRY: dict[ErrorClass, RetryPolicy] = {
    ErrorClass.TRANSIENT_ERROR: RetryPolicy((1, 2, 4, 8), 5),
    ErrorClass.RESOURCE_EXHAUSTED: RetryPolicy((5, 10, 30), 6),
    ErrorClass.INVALID_ARGUMENT: RetryPolicy(),
    ErrorClass.PERMISSION_DENIED: RetryPolicy(),
    ErrorClass.NOT_FOUND: RetryPolicy(),
    ErrorClass.DEADLINE_EXCEEDED: RetryPolicy((5,), 3),
    ErrorClass.INTERNAL_ERROR: RetryPolicy((5, 10, 30), 4),
    ErrorClass.DATA_CORRUPTED: RetryPolicy(),
    ErrorClass.DEPENDENCY_FAILURE: RetryPolicy((10, 20, 40), 4),
    ErrorClass.QUOTA_EXCEEDED: RetryPolicy(),
}


@dataclass(frozen=True)
class Reason:
    """One recorded reason.

    Attributes:
        code: snake_case, stable: it stands in the ledger and in `files --json`.
        error_class: decides the retry policy.
        business: what interfaces report.
        refusal: True when the file is at fault.
        remedy: what a person can do.
    """

    code: str
    error_class: ErrorClass
    business: BusinessCode
    refusal: bool
    remedy: str

    @property
    def retry(self) -> RetryPolicy:
        """The retry policy of the reason's class."""
        return RETRY[self.error_class]


def _reasons(*rows: tuple[str, ErrorClass, BusinessCode, bool, str]) -> dict[str, Reason]:
    return {row[0]: Reason(*row) for row in rows}


_E, _B = ErrorClass, BusinessCode
REASONS: dict[str, Reason] = _reasons(
    # The file's fault.
    ("empty_file", _E.DATA_CORRUPTED, _B.DATA_CORRUPTED, True, "Copy the file again; it has 0 bytes."),
    ("truncated", _E.DATA_CORRUPTED, _B.DATA_CORRUPTED, True, "Copy the file again; its end is missing."),
    ("corrupt", _E.DATA_CORRUPTED, _B.DATA_CORRUPTED, True, "Restore the file from a good copy."),
    ("unsupported", _E.INVALID_ARGUMENT, _B.UNSUPPORTED_FILE_TYPE, True, "Convert it to a supported format."),
    ("too_many_pixels", _E.INVALID_ARGUMENT, _B.QUOTA_EXCEEDED, True, "Raise MIRROR_REALM_MAX_PIXELS."),
    ("too_many_frames", _E.INVALID_ARGUMENT, _B.QUOTA_EXCEEDED, True, "Raise MIRROR_REALM_MAX_FRAMES."),
    ("too_many_bytes", _E.INVALID_ARGUMENT, _B.QUOTA_EXCEEDED, True, "Raise MIRROR_REALM_MAX_FILE_BYTES."),
    ("decoder_crashed", _E.DATA_CORRUPTED, _B.DATA_CORRUPTED, True, "The decoder died on this file; restore it from a good copy."),
    ("decoder_timeout", _E.DATA_CORRUPTED, _B.NODE_EXECUTION_TIMEOUT, True, "Raise MIRROR_REALM_DECODE_SECONDS or restore the file."),
    ("decoder_memory", _E.DATA_CORRUPTED, _B.INSUFFICIENT_RESOURCES, True, "Raise MIRROR_REALM_DECODE_MEMORY_BYTES."),
    # The location's fault: recorded on the location, the file may be fine elsewhere.
    ("outside_root", _E.PERMISSION_DENIED, _B.PERMISSION_DENIED, True, "Links that lead out of the folder are not followed; add the target as a source."),
    ("not_regular", _E.INVALID_ARGUMENT, _B.UNSUPPORTED_FILE_TYPE, True, "Only regular files are read."),
    ("unreadable", _E.TRANSIENT_ERROR, _B.PERMISSION_DENIED, False, "Give the user that runs Mirror Realm the right to read the file."),
    ("io_error", _E.TRANSIENT_ERROR, _B.TRANSIENT_ERROR, False, "Check the drive or the network share."),
    ("file_gone", _E.NOT_FOUND, _B.NOT_FOUND, False, "The file vanished before it was read; it is taken when it returns."),
    ("changed_while_reading", _E.TRANSIENT_ERROR, _B.TRANSIENT_ERROR, False, "The file is still being written; it is taken when it rests."),
    ("original_changed", _E.DATA_CORRUPTED, _B.DATA_CORRUPTED, False, "The bytes at every known place differ from the recorded digest; scan the source."),
    ("original_gone", _E.NOT_FOUND, _B.NOT_FOUND, False, "No known place holds the original any more; bring it back and run `mirror-realm retry`."),
    # Ours or the environment's.
    ("crashed_worker", _E.INTERNAL_ERROR, _B.INTERNAL, False, "The picture ended its worker twice; look at it, then `mirror-realm retry`."),
    ("out_of_memory", _E.RESOURCE_EXHAUSTED, _B.INSUFFICIENT_RESOURCES, False, "Free memory or set a smaller tile."),
    ("disk_full", _E.RESOURCE_EXHAUSTED, _B.INSUFFICIENT_RESOURCES, False, "Free space on the store's disk; the work goes on by itself."),
    ("store_failed", _E.DEPENDENCY_FAILURE, _B.DEPENDENCY_FAILURE, False, "Check the store with `mirror-realm doctor`."),
    ("store_corrupt", _E.DATA_CORRUPTED, _B.DATA_CORRUPTED, False, "A stored object differs from its digest; vectors are made again by themselves, for all else run `mirror-realm retry`."),
    ("catalog_failed", _E.DEPENDENCY_FAILURE, _B.DEPENDENCY_FAILURE, False, "Check the database with `mirror-realm doctor`."),
    ("archive_failed", _E.DEPENDENCY_FAILURE, _B.DEPENDENCY_FAILURE, False, "Check that the archive can be reached and written to; the work goes on by itself."),
    ("enhancement_failed", _E.INVALID_ARGUMENT, _B.DEPENDENCY_FAILURE, False, "The original is archived; see why its enhancement failed, then `mirror-realm retry`."),
    ("export_failed", _E.DEPENDENCY_FAILURE, _B.DEPENDENCY_FAILURE, False, "Check that the folder can be written to, then run `mirror-realm export` again; it goes on where it stopped."),
    ("name_taken", _E.INVALID_ARGUMENT, _B.INVALID_ARGUMENT, False, "Move away what has the name, or choose another --template."),
    ("not_verified", _E.INTERNAL_ERROR, _B.INTERNAL, False, "The written result could not be read back; see the run's log."),
    ("model_failed", _E.INTERNAL_ERROR, _B.INTERNAL, False, "See the run's log; then `mirror-realm retry`."),
    ("deadline_exceeded", _E.DEADLINE_EXCEEDED, _B.NODE_EXECUTION_TIMEOUT, False, "Ask again with a later deadline."),
    ("cancelled", _E.INVALID_ARGUMENT, _B.INVALID_ARGUMENT, False, "It was cancelled; ask again if it is wanted."),
    ("systemic", _E.INTERNAL_ERROR, _B.INTERNAL, False, "Mend the cause named here, then `mirror-realm sources resume NAME`."),
    ("lease_lost", _E.TRANSIENT_ERROR, _B.TRANSIENT_ERROR, False, "Another worker took over; nothing is lost."),
    # Set-up.
    ("weights_missing", _E.NOT_FOUND, _B.DEPENDENCY_FAILURE, False, "Run `mirror-realm models fetch`."),
    ("weights_altered", _E.DATA_CORRUPTED, _B.DATA_CORRUPTED, False, "Delete the file and run `mirror-realm models fetch`."),
    ("fetch_failed", _E.DEPENDENCY_FAILURE, _B.DEPENDENCY_FAILURE, False, "Check the network or the package index, then run `mirror-realm models fetch`."),
    ("home_unusable", _E.PERMISSION_DENIED, _B.PERMISSION_DENIED, False, "Set MIRROR_REALM_HOME to a folder you may write to."),
    ("sqlite_on_network", _E.INVALID_ARGUMENT, _B.INVALID_ARGUMENT, False, "Put MIRROR_REALM_HOME on a local disk, or set MIRROR_REALM_CATALOG_URL to a PostgreSQL database."),
    ("store_mismatch", _E.INVALID_ARGUMENT, _B.INVALID_ARGUMENT, False, "Use the store that belongs to this catalog, or an empty one."),
    ("not_initialised", _E.NOT_FOUND, _B.NOT_FOUND, False, "Run `mirror-realm init`."),
    ("folder_missing", _E.NOT_FOUND, _B.NOT_FOUND, False, "Check the path; mount the drive if it is on one."),
    ("port_taken", _E.INVALID_ARGUMENT, _B.INVALID_ARGUMENT, False, "Choose another port with --port."),
    ("address_refused", _E.PERMISSION_DENIED, _B.PERMISSION_DENIED, False, "If the host is one of your own, list it among the source's internal hosts."),
    ("already_running", _E.INVALID_ARGUMENT, _B.INVALID_ARGUMENT, False, "Stop the other `mirror-realm up` of this home first."),
    ("not_found", _E.NOT_FOUND, _B.NOT_FOUND, False, "Check the name with `mirror-realm sources list`."),
    ("already_exists", _E.INVALID_ARGUMENT, _B.INVALID_ARGUMENT, False, "Choose another name."),
    ("invalid_argument", _E.INVALID_ARGUMENT, _B.INVALID_ARGUMENT, False, "Correct the value."),
    ("internal", _E.INTERNAL_ERROR, _B.INTERNAL, False, "See the log."),
)  # fmt: skip

OF_CHANGE = frozenset({"file_gone", "changed_while_reading", "original_changed", "original_gone"})
"""Failures of files that were moved, deleted or written meanwhile: however many, they say nothing of the machine."""

NOT_SYSTEMIC = OF_CHANGE | {"enhancement_failed"}
"""Failures that are no reason to pause a source, however many: those, and what another stage has judged already."""

# Object addresses and temporary names differ from run to run and would make equal reasons look different.
_NOISE = re.compile(r" at 0x[0-9a-fA-F]+|<_io\.[A-Za-z]+[^>]*>")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_MAX_REASON = 300


def clean_reason(text: str) -> str:
    """`text` as one line of at most 300 characters without control characters and object addresses.

    Bytes of a name that are no UTF-8 become escapes: no database takes half a surrogate pair.
    """
    line = _CONTROL.sub(" ", text.encode("utf-8", "backslashreplace").decode("utf-8"))
    while (shorter := _NOISE.sub("", line)) != line:  # taking one address out can make another
        line = shorter
    return line.strip()[:_MAX_REASON].strip()


class MirrorRealmError(Exception):
    """Base of all our errors: a reason code, one clear sentence, and the remedy.

    Args:
        code: a key of `REASONS`.
        message: what happened, naming the file, model or setting concerned.
        remedy: replaces the reason's own remedy where something better is known.
    """

    def __init__(self, code: str, message: str, *, remedy: str | None = None) -> None:
        self.reason = REASONS[code]
        self.code = code
        self.message = clean_reason(message)
        self.remedy = remedy or self.reason.remedy
        super().__init__(f"{self.message} {self.remedy}".strip())

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword arguments are lost by the default; errors cross process borders.
        return _rebuild, (type(self), self.code, self.message, self.remedy)


def _rebuild(kind: type[MirrorRealmError], code: str, message: str, remedy: str) -> MirrorRealmError:
    return kind(code, message, remedy=remedy)


class Refused(MirrorRealmError):
    """The file is at fault: it is recorded as `refused` and the rest goes on."""


class Failed(MirrorRealmError):
    """We or the environment are at fault: recorded as `failed`, retried as its class says."""


class SetupError(MirrorRealmError):
    """Something has to be mended by a person before any work makes sense (weights, home, store, port)."""


class LeaseLost(MirrorRealmError):
    """Another worker holds what we thought was ours: stop at once and write nothing more."""

    def __init__(self, message: str, *, code: str = "lease_lost", remedy: str | None = None) -> None:
        super().__init__(code, message, remedy=remedy)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_lease_lost, (self.message, self.code, self.remedy)


def _rebuild_lease_lost(message: str, code: str, remedy: str) -> LeaseLost:
    return LeaseLost(message, code=code, remedy=remedy)


class SystemicFailure(MirrorRealmError):
    """More than half of at least 20 items failed with one code: the run stops, items stay pending."""


def as_error(error: BaseException, *, default: str = "internal") -> MirrorRealmError:
    """The typed error for any exception: ours unchanged, well-known system errors by kind, else `default`."""
    if isinstance(error, MirrorRealmError):
        return error
    if isinstance(error, MemoryError):
        return Failed("out_of_memory", "Memory ran out.")
    if isinstance(error, OSError) and error.errno in (28, 122):  # ENOSPC, EDQUOT
        return Failed("disk_full", f"No space left for {error.filename or 'the store'}.")
    return Failed(default, f"{type(error).__name__}: {error}")
