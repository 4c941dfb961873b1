"""How the program `mirror-realm` itself starts: with what the C library reads only then."""

from __future__ import annotations

import os
import sys

import pytest

from mirror_realm_assets.cli import main as program
from mirror_realm_assets.weights.hardware import START_ENVIRONMENT


class _Restarted(Exception):
    pass


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the process would have become, in a shell that sets nothing."""
    found: list[list[str]] = []

    def execv(_path: str, arguments: list[str]) -> None:
        found.append(arguments)
        raise _Restarted

    monkeypatch.setattr(os, "execv", execv)
    for name in START_ENVIRONMENT:
        monkeypatch.setenv(name, "")  # so that its absence is what is restored in the end
        monkeypatch.delenv(name)
    return found


def _start(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["mirror-realm", *arguments])
    monkeypatch.setattr(sys, "orig_argv", ["python", "mirror-realm", *arguments])
    program.main()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_what_runs_networks_itself_starts_once_more_with_large_pages(
    starts: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(_Restarted):
        _start(monkeypatch, "enhance", "--help")
    assert starts == [[sys.executable, "mirror-realm", "enhance", "--help"]]
    assert {name: os.environ[name] for name in START_ENVIRONMENT} == START_ENVIRONMENT
    with pytest.raises(SystemExit) as left:  # as the process does that it has become
        _start(monkeypatch, "enhance", "--help")
    assert left.value.code == 0
    assert len(starts) == 1


def test_other_commands_only_hand_it_on(starts: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    with pytest.raises(SystemExit):
        _start(monkeypatch, "sources", "--help")
    assert starts == []
    assert os.environ["GLIBC_TUNABLES"] == START_ENVIRONMENT["GLIBC_TUNABLES"]
    assert os.environ["GOMP_SPINCOUNT"] == "7"  # what a person has set stays
