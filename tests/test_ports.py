"""Where sockets can be."""

from __future__ import annotations

import shutil
import socket
import tempfile
from pathlib import Path

import pytest

from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.ports import socket_folder


def test_sockets_are_in_the_home_where_nobody_else_may_enter(tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.getbasetemp().parent / "h"  # short enough
    home.mkdir()
    try:
        with socket_folder(home) as folder:
            assert folder == home / "sockets"
            assert folder.stat().st_mode & 0o777 == 0o700
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(folder / "code"))
    finally:
        shutil.rmtree(home)


def test_a_home_whose_path_is_too_long_for_a_socket_gets_a_temporary_folder(tmp_path: Path) -> None:
    home = tmp_path / ("long" * 30)
    home.mkdir()
    with socket_folder(home) as folder:
        assert home not in folder.parents
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(folder / "code"))
    assert not folder.exists()


def test_where_no_socket_can_be_the_remedy_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / ("long" * 30)
    home.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(home))
    with pytest.raises(SetupError, match="TMPDIR"), socket_folder(home):
        pass
