from __future__ import annotations

import json
import multiprocessing
import secrets
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.store import open_store

processes = multiprocessing.get_context("forkserver")


def test_a_store_keeps_its_identity(tmp_path: Path) -> None:
    first = open_store(str(tmp_path / "a" / "store"), "mine")
    again = open_store((tmp_path / "a" / "store").as_uri(), "mine")
    assert first.id == again.id
    assert open_store(str(tmp_path / "b"), "mine").id != first.id
    assert json.loads((tmp_path / "b" / "store.json").read_text()).keys() == {"id", "catalog", "layout"}


def test_the_store_of_another_catalog_is_refused(tmp_path: Path) -> None:
    open_store(str(tmp_path), "mine")
    before = (tmp_path / "store.json").read_bytes()
    with pytest.raises(SetupError) as caught:
        open_store(str(tmp_path), "yours")
    assert caught.value.code == "store_mismatch"
    assert (tmp_path / "store.json").read_bytes() == before


@pytest.mark.parametrize(
    "content",
    ["", "no json", "[]", '{"layout": 1}', '{"id": "x", "catalog": "mine", "layout": 2}', '{"id": 1, "layout": 1}'],
)
def test_an_identity_that_we_do_not_know_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "store.json").write_text(content)
    with pytest.raises(SetupError) as caught:
        open_store(str(tmp_path), "mine")
    assert caught.value.code == "store_mismatch"


def test_a_folder_with_other_things_does_not_become_a_store(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(SetupError, match=r"photo\.jpg") as caught:
        open_store(str(tmp_path), "mine")
    assert caught.value.code == "store_mismatch"
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


@pytest.mark.parametrize("url", ["s3://bucket/prefix", "https://host/x", "file://host/x"])
def test_a_url_that_we_cannot_open_is_refused(url: str) -> None:
    with pytest.raises(SetupError) as caught:
        open_store(url, "mine")
    assert caught.value.code == "invalid_argument"


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SetupError) as caught:
        open_store(str(tmp_path / "file"), "mine")
    assert caught.value.code == "store_failed"


def _open(path: Path) -> str:
    return open_store(str(path), "mine", step=lambda _: time.sleep(secrets.randbelow(6) / 1000)).id


def test_processes_that_open_a_new_store_at_once_agree(tmp_path: Path) -> None:
    # Not a `Pool`, which ends its workers by SIGTERM and once waited for one for ever.
    with ProcessPoolExecutor(4, mp_context=processes) as pool:
        for n in range(5):
            path = tmp_path / str(n)
            ids = list(pool.map(_open, [path] * 4, chunksize=1))
            assert set(ids) == {open_store(str(path), "mine").id}
            assert not list((path / "tmp").iterdir())
