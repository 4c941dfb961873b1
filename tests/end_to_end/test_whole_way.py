"""From a file in a folder to a search hit and an enhanced picture, through the real programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from running_home import RunningHome, all_ok

FEATURES = ("raw_media", "embeddings", "enhanced_images")


def test_ingest_without_a_daemon_makes_photos_searchable_and_enhanced(
    new_home: Callable[..., RunningHome], drop: Callable[..., Path]
) -> None:
    home = new_home()
    wanted = [drop(home.folder, number) for number in range(3)]
    (home.folder / "broken.jpg").write_bytes(wanted[0].read_bytes()[:300])
    (home.folder / "empty.jpg").write_bytes(b"")

    strict = home.run("ingest", "demo", "--strict", check=False)
    assert strict.returncode == 3, strict.stderr

    found = home.status()
    assert found["features"]["raw_media"]["ok"] == 3
    assert found["features"]["raw_media"]["refused"] == 2
    assert found["features"]["embeddings"]["ok"] == 3
    assert found["features"]["enhanced_images"]["ok"] == 3
    assert found["index"]["vectors"] == 3
    hits = home.search(wanted[1])
    assert hits[0]["paths"] == [str(wanted[1])]
    assert hits[0]["score"] == pytest.approx(1.0, abs=0.01)
    for row in home.files():
        output = row["features"]["enhanced_images"]["output"]
        if output is not None:
            with Image.open(home.home / "store" / output["key"]) as enhanced:
                assert enhanced.size == (row["width"] * 4, row["height"] * 4)

    again = home.run("ingest", "demo")
    assert home.status()["batches"] == found["batches"], again.stderr


@pytest.mark.timeout(500)  # other tests share the cores
def test_a_dropped_photo_becomes_searchable_and_enhanced_by_itself(
    new_home: Callable[..., RunningHome], drop: Callable[..., Path]
) -> None:
    home = new_home()
    first = drop(home.folder, 0)
    home.up()
    home.wait_for(all_ok(1, "raw_media", "embeddings"), 180, what="the photo that was there is searchable")
    second = drop(home.folder, 1)
    home.wait_for(lambda s: all_ok(2, *FEATURES)(s) and s["index"]["vectors"] == 2, 240, what="all is done and indexed")
    assert home.search(first)[0]["paths"] == [str(first)]
    assert home.search(second)[0]["paths"] == [str(second)]
    assert home.stop() == 0
    runs = home.dagster_runs()
    assert {status for _job, status, _key in runs} == {"SUCCESS"}
    assert all(row["features"]["embeddings"]["attempts"] == 1 for row in home.files())
