"""Errors: the specification's classes and delays, clean reasons, and crossing process borders whole."""

from __future__ import annotations

import copy
import errno
import multiprocessing
import pickle
import re
import unicodedata
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mirror_realm_assets.errors import (
    HTTP_STATUS,
    REASONS,
    RETRY,
    BusinessCode,
    ErrorClass,
    Failed,
    LeaseLost,
    MirrorRealmError,
    Refused,
    SetupError,
    SystemicFailure,
    as_error,
    clean_reason,
)

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
# 7.1.1: the delay before each further attempt.
SPECIFIED_DELAYS = {
    "TRANSIENT_ERROR": (1, 2, 4, 8),
    "RESOURCE_EXHAUSTED": (5, 10, 30),
    "INVALID_ARGUMENT": (),
    "PERMISSION_DENIED": (),
    "NOT_FOUND": (),
    "DEADLINE_EXCEEDED": (5,),
    "INTERNAL_ERROR": (5, 10, 30),
    "DATA_CORRUPTED": (),
    "DEPENDENCY_FAILURE": (10, 20, 40),
    "QUOTA_EXCEEDED": (),
}


def test_the_ten_classes_have_the_specifications_delays() -> None:
    assert {kind.value: policy.delays for kind, policy in RETRY.items()} == SPECIFIED_DELAYS
    assert set(RETRY) == set(ErrorClass)
    assert all(policy.retryable == bool(policy.delays) for policy in RETRY.values())


@pytest.mark.parametrize("kind", list(ErrorClass))
def test_attempts_wait_as_specified_the_last_delay_repeats_and_then_they_end(kind: ErrorClass) -> None:
    policy = RETRY[kind]
    waits = []
    for attempts in range(1, policy.max_attempts):
        due = policy.next_attempt(attempts, NOW)
        assert due is not None
        waits.append((due - NOW) / timedelta(seconds=1))
    repeated = [*policy.delays, *policy.delays[-1:] * 10]
    assert waits == repeated[: len(waits)]
    assert policy.next_attempt(policy.max_attempts, NOW) is None


def test_every_reason_is_whole() -> None:
    for code, reason in REASONS.items():
        assert reason.code == code
        assert re.fullmatch(r"[a-z][a-z_]{1,39}", code)  # the ledger's column has 40 characters
        assert reason.error_class in RETRY
        assert reason.business in HTTP_STATUS
        assert reason.remedy.endswith(".")
        assert not (reason.refusal and reason.retry.retryable)  # a file's own fault does not pass by waiting
    assert set(HTTP_STATUS) == set(BusinessCode)


NOISE = [" at 0x7f3a", " at 0", "x7f", "<_io.BytesIO object>", "<_io.", "BytesIO>", "\n", "\x00", " at", "0xab"]
pieces = st.lists(st.sampled_from(NOISE) | st.text(max_size=6), max_size=12).map("".join)


@given(pieces | st.text(min_size=295, max_size=320))
@example("cannot read <_io.BytesIO object at 0x7f3a2c> now")
@example("x at 0 at 0x1x12")  # taking one address out must not make another
@example("x at\n0x12")
@example("a" * 299 + " b")
def test_a_clean_reason_is_one_line_without_control_characters_and_addresses(text: str) -> None:
    cleaned = clean_reason(text)
    assert len(cleaned) <= 300
    assert not [sign for sign in cleaned if unicodedata.category(sign) == "Cc"]
    assert not re.search(r" at 0x[0-9a-fA-F]", cleaned)
    assert not re.search(r"<_io\.[A-Za-z]+[^>]*>", cleaned)
    assert clean_reason(cleaned) == cleaned


def test_a_reason_with_bytes_of_a_name_that_are_no_text_can_be_stored() -> None:
    error = as_error(OSError(errno.ENOSPC, "No space left on device", "/mnt/\udcff.jpg"))
    assert error.code == "disk_full"
    assert str(error).encode("utf-8")


ERRORS = [
    MirrorRealmError("internal", "It broke."),
    Refused("corrupt", "The picture ends early."),
    Failed("out_of_memory", "2 GB are not enough.", remedy="Set a tile of 128."),
    SetupError("port_taken", "Port 3000 is in use."),
    LeaseLost("The lease x was lost."),
    LeaseLost("The batch was cancelled.", code="cancelled", remedy="Ask again."),
    SystemicFailure("systemic", "21 of 40 items failed."),
]


def _facts(error: MirrorRealmError) -> tuple[object, ...]:
    return type(error), error.code, error.message, error.remedy, str(error), error.reason


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: f"{type(error).__name__}-{error.code}")
def test_errors_are_the_same_after_copying_and_pickling(error: MirrorRealmError) -> None:
    for other in (copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):  # noqa: S301
        assert _facts(other) == _facts(error)


def _raise(number: int) -> None:
    raise ERRORS[number]


def test_errors_cross_a_process_border_whole() -> None:
    # Not a `Pool`, which ends its workers by SIGTERM and once waited for one for ever.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver")) as pool:
        for number, error in enumerate(ERRORS):
            with pytest.raises(type(error)) as caught:
                pool.submit(_raise, number).result()
            assert _facts(caught.value) == _facts(error)


def test_an_error_says_what_happened_and_what_to_do() -> None:
    assert str(Failed("io_error", "The share is gone.")) == "The share is gone. Check the drive or the network share."
    assert str(Failed("io_error", "Gone.", remedy="Mount it.")) == "Gone. Mount it."
    with pytest.raises(KeyError):
        Failed("no_such_code", "x")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), "out_of_memory"),
        (OSError(errno.ENOSPC, "No space left on device", "/store/x"), "disk_full"),
        (OSError(errno.EDQUOT, "Quota exceeded"), "disk_full"),
        (OSError(errno.EIO, "Input/output error"), "io_error"),
        (ValueError("odd"), "io_error"),
    ],
)
def test_any_exception_has_a_typed_error(error: Exception, code: str) -> None:
    assert as_error(error, default="io_error").code == code


def test_our_own_errors_stay_as_they_are() -> None:
    error = Refused("corrupt", "It is broken.")
    assert as_error(error) is error
