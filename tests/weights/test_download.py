"""Downloading a file over https, from a server on the loopback."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from https_server import Answer, HttpsServer, https_server

from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.weights.download import download

CONTENT = bytes(range(256)) * 20_000  # five chunks


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpsServer]:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with https_server(tmp_path) as running:
        yield running


def refused(server: HttpsServer, url: str, path: Path, *, size: int = len(CONTENT)) -> str:
    with pytest.raises(SetupError) as caught:
        download(url, path, size=size, context=server.context)
    assert caught.value.code == "fetch_failed"
    assert url in str(caught.value)
    return str(caught.value)


def test_a_file_is_written_whole_and_its_digest_returned(server: HttpsServer, tmp_path: Path) -> None:
    path, said = tmp_path / "file", list[str]()
    url = server.serve("/file", CONTENT)
    digest = download(url, path, size=len(CONTENT), context=server.context, progress=said.append)
    assert digest == hashlib.sha256(CONTENT).hexdigest()
    assert path.read_bytes() == CONTENT
    assert said
    assert all(line.endswith(" of 5 MB") for line in said)


def test_a_redirect_to_https_is_followed(server: HttpsServer, tmp_path: Path) -> None:
    server.serve("/there", CONTENT)
    server.answers["/here"] = Answer(status=302, headers={"Location": "/there", "Content-Length": "0"})
    download(f"{server.url}/here", tmp_path / "file", size=len(CONTENT), context=server.context)
    assert server.asked == ["/here", "/there"]


@pytest.mark.parametrize("where", ["http://127.0.0.1:9/file", "file:///etc/passwd", "ftp://127.0.0.1/file"])
def test_a_redirect_away_from_https_is_refused(where: str, server: HttpsServer, tmp_path: Path) -> None:
    server.answers["/here"] = Answer(status=302, headers={"Location": where, "Content-Length": "0"})
    refused(server, f"{server.url}/here", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize("scheme", ["http", "file", "ftp"])
def test_an_address_that_is_not_https_is_refused(scheme: str, server: HttpsServer, tmp_path: Path) -> None:
    url = server.serve("/file", CONTENT).replace("https", scheme)
    assert "no https address" in refused(server, url, tmp_path / "file")
    assert server.asked == []


def test_a_file_that_ends_early_is_refused(server: HttpsServer, tmp_path: Path) -> None:
    url = server.serve("/file", CONTENT[:-1], Content_Length=str(len(CONTENT)))
    refused(server, url, tmp_path / "file")
    url = server.serve("/short", CONTENT[:-1])
    assert f"ended after {len(CONTENT) - 1} of" in refused(server, url, tmp_path / "file")


def test_a_file_that_says_it_is_too_large_is_not_read(server: HttpsServer, tmp_path: Path) -> None:
    url = server.serve("/file", CONTENT + b"x")
    assert "larger than" in refused(server, url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b""


def test_a_file_that_does_not_say_its_size_is_read_no_further_than_allowed(server: HttpsServer, tmp_path: Path) -> None:
    server.answers["/endless"] = Answer(CONTENT + bytes(10_000_000))
    assert "larger than" in refused(server, f"{server.url}/endless", tmp_path / "file")
    assert (tmp_path / "file").stat().st_size <= len(CONTENT)


def test_what_the_server_says_is_passed_on(server: HttpsServer, tmp_path: Path) -> None:
    assert "answered 404 Not Found" in refused(server, f"{server.url}/nowhere", tmp_path / "file")


def test_a_server_that_nobody_vouches_for_is_refused(server: HttpsServer, tmp_path: Path) -> None:
    url = server.serve("/file", CONTENT)
    with pytest.raises(SetupError, match="certificate"):
        download(url, tmp_path / "file", size=len(CONTENT))
    assert server.asked == []


def test_a_server_that_is_not_there_is_one_sentence(server: HttpsServer, tmp_path: Path) -> None:
    assert "refused" in refused(server, "https://127.0.0.1:9/file", tmp_path / "file")


def test_a_full_disk_is_not_blamed_on_the_network(server: HttpsServer) -> None:
    url = server.serve("/file", CONTENT)
    with pytest.raises(OSError, match="No space left"):
        download(url, Path("/dev/full"), size=len(CONTENT), context=server.context)
