"""Where the UI of a home is."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirror_realm_assets import address
from mirror_realm_assets.liveness import HomeLock
from mirror_realm_assets.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.at(tmp_path, port=3456)


def test_it_is_where_the_running_up_has_written_down(settings: Settings) -> None:
    with HomeLock(settings.home / "up.lock"):
        assert address.url(settings) == "http://127.0.0.1:3456"  # nothing is written down yet
        address.write(settings.home, "127.0.0.2", 4000)
        assert address.of(settings) == ("127.0.0.2", 4000)
        assert address.url(settings) == "http://127.0.0.2:4000"


def test_what_an_ended_up_has_left_counts_for_nothing(settings: Settings) -> None:
    address.write(settings.home, "127.0.0.2", 4000)
    assert address.of(settings) == ("127.0.0.1", 3456)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"host": "h", "port": "x"}', b"\xff"])
def test_a_damaged_note_counts_for_nothing(settings: Settings, content: bytes) -> None:
    with HomeLock(settings.home / "up.lock"):
        (settings.home / "up.address.json").write_bytes(content)
        assert address.of(settings) == ("127.0.0.1", 3456)


def test_an_address_with_colons_is_bracketed(settings: Settings) -> None:
    with HomeLock(settings.home / "up.lock"):
        address.write(settings.home, "::1", 4000)
        assert address.url(settings) == "http://[::1]:4000"
