"""Batches on a cluster are large enough for the pods that they start."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from mirror_realm_assets.catalog.forming import Candidate, cut
from mirror_realm_assets.ingest.batching import limits_of, search_seconds
from mirror_realm_assets.settings import Settings

_SETTINGS = Path(__file__).resolve().parents[2] / "deploy" / "base" / "settings.yaml"
_POD_START_SECONDS, _PODS = 18.0, 3  # of the run, and of each of its steps, which wait for each other
_SHARE = 0.05


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """As pods have them."""
    for name, value in yaml.safe_load(_SETTINGS.read_text())["data"].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MIRROR_REALM_HOME", str(tmp_path))
    return Settings.read()


@pytest.mark.parametrize("size", [1_000, 60_000, 800_000, 4_000_000, 25_000_000])
def test_pod_starts_are_less_than_a_twentieth_of_a_full_batch(settings: Settings, size: int) -> None:
    long_ago = datetime(2026, 1, 1, tzinfo=UTC)
    # Items and bytes cut before seconds only if they are set too low for files of this size.
    count = min(settings.batch_items, int(settings.batch_seconds / search_seconds(size)) + 1)
    files = [Candidate(number, size, search_seconds(size), long_ago) for number in range(2 * count)]
    (full, *_) = cut(files, limits_of(settings), long_ago, busy=True)
    work = sum(one.seconds for one in full)
    assert _PODS * _POD_START_SECONDS / work < _SHARE
