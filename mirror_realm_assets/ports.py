"""The address a server of ours listens on: whether it is free, and whether the server answers there.

What belongs here: questions about an address of this machine, and where sockets can be. What does not: requests to
other machines.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from mirror_realm_assets.errors import SetupError

_PAUSE = 0.2


def free_port(host: str, port: int) -> bool:
    """Whether a server can listen on `host`:`port` now.

    Raises:
        SetupError: `invalid_argument` if `host` is no address of this machine or the port needs rights we lack.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in addresses:
            with socket.socket(family, kind, protocol) as server:
                # As uvicorn does: connections of a server that has just ended do not count as taken.
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                server.bind(address)
                server.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        raise SetupError("invalid_argument", f"{host}:{port} cannot be used: {error.strerror}.") from error
    return True


def require_port(host: str, port: int) -> None:
    """Makes sure that `host`:`port` is free.

    Raises:
        SetupError: `port_taken`, or what `free_port` raises.
    """
    if not free_port(host, port):
        other = port + 1 if port < 65_535 else 3000
        raise SetupError(
            "port_taken",
            f"Port {port} on {host} is taken by another program.",
            remedy=f"Stop that program, or choose another port: `mirror-realm up --port {other}`.",
        )


def wait_ready(url: str, seconds: float) -> bool:
    """Waits until the webserver at `url` answers `/server_info`; `False` if it does not within `seconds`."""
    address = urlsplit(url)
    end = time.monotonic() + seconds
    while not _answers(address.hostname or "", address.port or 80):
        if time.monotonic() + _PAUSE > end:
            return False
        time.sleep(_PAUSE)
    return True


def _answers(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=2.0)
    try:
        connection.request("GET", "/server_info")
        answer = connection.getresponse()
        return answer.status == 200 and "dagster_webserver_version" in json.loads(answer.read(65_536))
    except (OSError, http.client.HTTPException, ValueError, TypeError):
        return False  # not yet, or not dagster's webserver
    finally:
        connection.close()


@contextlib.contextmanager
def socket_folder(home: Path) -> Iterator[Path]:
    """A folder for sockets that only its owner can enter: in the home, or a temporary one where that cannot be.

    The system gives the path of a socket about a hundred bytes, and some file systems know no sockets.

    Raises:
        SetupError: `home_unusable` if neither can hold one.
    """
    fixed = home / "sockets"
    if _why_not(fixed) is None:
        yield fixed
        return
    with tempfile.TemporaryDirectory(prefix="mirror-realm-", ignore_cleanup_errors=True) as made:
        if error := _why_not(Path(made)):
            raise SetupError(
                "home_unusable",
                f"There can be no socket in {fixed}, nor in {made}: {error}.",
                remedy="Set TMPDIR to a folder with a short path on a local disk.",
            )
        yield Path(made)


def _why_not(folder: Path) -> OSError | None:
    """What keeps a socket from being in a folder, which is made if it is not there."""
    path = folder / "trial"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
        path.unlink()
    except OSError as error:
        return error
    return None
