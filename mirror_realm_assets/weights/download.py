"""Downloading one file of known size over https.

What belongs here: the transfer, with its limits. What does not: which file it is and whether it is the right one
(`release`), packages (`fetch`, through pip).

Nothing but https is spoken, also after a redirect: an address that leads elsewhere is refused. A proxy is taken from
the environment, as pip does.
"""

from __future__ import annotations

import hashlib
import http.client
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib import request
from urllib.error import HTTPError
from urllib.parse import urlsplit

from mirror_realm_assets.errors import SetupError

_CHUNK = 1024 * 1024
_SILENCE_SECONDS = 60.0
# A slow line of 100 kB/s needs an hour for the largest file.
_DOWNLOAD_SECONDS = 3600.0


def download(
    url: str,
    path: Path,
    *,
    size: int,
    context: ssl.SSLContext | None = None,
    progress: Callable[[str], None] | None = None,
) -> str:
    """Download a file.

    Args:
        url: its address, https.
        path: where to write it; anything there is replaced. What was written before an error is left there.
        size: its size; more is not read, and less is an error.
        context: whom to trust; by default the authorities that this machine trusts.
        progress: called with one line for people at every tenth.

    Returns:
        sha256 of what was written.

    Raises:
        SetupError: `fetch_failed` when it cannot be had, is of another size, or leads away from https.
        OSError: the file cannot be written.
    """
    digest, done, tenth = hashlib.sha256(), 0, 1
    with path.open("wb") as file:
        for chunk in _chunks(url, size, context):
            file.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            while progress and tenth * size <= done * 10 and tenth < 10:
                progress(f"{done / 1e6:.0f} of {size / 1e6:.0f} MB")
                tenth = done * 10 // size + 1
    if done != size:
        raise _failed(url, f"it ended after {done} of {size} bytes")
    return digest.hexdigest()


def _chunks(url: str, size: int, context: ssl.SSLContext | None) -> Iterator[bytes]:
    """The file's content, up to `size` bytes."""
    deadline, left = time.monotonic() + _DOWNLOAD_SECONDS, size
    try:
        with _opened(url, context) as response:
            if int(response.headers.get("Content-Length") or size) > size:
                raise _failed(url, f"it is larger than {size} bytes")
            while chunk := response.read(_CHUNK):
                left -= len(chunk)
                if left < 0:
                    raise _failed(url, f"it is larger than {size} bytes")
                if time.monotonic() > deadline:
                    raise _failed(url, f"it took longer than {_DOWNLOAD_SECONDS:.0f} s")
                yield chunk
    except HTTPError as error:
        raise _failed(url, f"the server answered {error.code} {error.reason}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _failed(url, str(getattr(error, "reason", error)) or type(error).__name__) from error


def _opened(url: str, context: ssl.SSLContext | None) -> Any:
    """The server's answer. The opener knows https alone: no other scheme can be spoken by mistake."""
    if urlsplit(url).scheme != "https":
        raise _failed(url, "it is no https address")
    opener = request.OpenerDirector()
    handlers = (
        request.ProxyHandler(),
        request.HTTPSHandler(context=context or ssl.create_default_context()),
        request.HTTPDefaultErrorHandler(),
        request.HTTPErrorProcessor(),
        _HttpsRedirects(),
    )
    for handler in handlers:
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", "mirror-realm")]
    return opener.open(url, timeout=_SILENCE_SECONDS)


class _HttpsRedirects(request.HTTPRedirectHandler):
    """Follows a redirect to https and refuses any other."""

    def redirect_request(
        self, req: request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> request.Request | None:
        if urlsplit(newurl).scheme != "https":
            raise _failed(req.full_url, "it leads to an address that is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _failed(url: str, why: str) -> SetupError:
    return SetupError("fetch_failed", f"Downloading {url} failed: {why}.", remedy="Check the network, then try again.")
