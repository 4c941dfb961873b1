"""Opening a store: which form a URL means, and whether the store belongs to this catalog.

What belongs here: opening each form, and the file `store.json`. What does not: objects. In a folder the file is made
under the root's lock, in a bucket by a conditional put: of two processes that open a new store at once, one makes it
and both use it.
"""

from __future__ import annotations

import json
import os
import secrets
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mirror_realm_assets import fault_points
from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.store.cache import DiskCache
from mirror_realm_assets.store.folders import FILE_MODE, LOCK, Root, Step, descend, locked
from mirror_realm_assets.store.interface import Store
from mirror_realm_assets.store.local import TEMPORARY, LocalStore

LAYOUT = 1
IDENTITY = "store.json"

# What may stand in a folder that becomes a store: what a store that was begun left, and what a new file system has.
_BEGINNINGS = frozenset({TEMPORARY, LOCK, "lost+found"})
_MAX_IDENTITY_BYTES = 10_000


def open_store(url: str, catalog_uuid: str, *, step: Step | None = None) -> Store:
    """The store at `url`, made when there is none.

    Args:
        url: a folder, or `file:///folder`.
        catalog_uuid: identity of the catalog whose objects it keeps.
        step: called between any two steps of a write, for fault tests; by default they are fault points.

    Raises:
        SetupError: `store_mismatch` when it belongs to another catalog, has a layout that this version does not know,
            or the folder holds other things; `invalid_argument` for a URL that we cannot open; `store_failed` when the
            folder cannot be used.
    """
    path = _folder(url)
    step = step or fault_points.points_of("store")
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        root = Root.of(path)
        return LocalStore(root, _identify(root, catalog_uuid, step), step=step)
    except OSError as error:
        raise SetupError("store_failed", f"The store {path} cannot be used: {error.strerror or error}.") from error


def open_s3_store(
    client: Any,
    bucket: str,
    prefix: str,
    catalog_uuid: str,
    *,
    cache: DiskCache,
    sending: Mapping[str, str] | None = None,
    make: bool = True,
    step: Step | None = None,
) -> Store:
    """The store in a bucket, made when there is nothing under its prefix.

    Args:
        client: a boto3 client of S3.
        bucket: its name; it is never created here.
        prefix: of all names, without slashes at its ends; empty for the whole bucket.
        catalog_uuid: identity of the catalog whose objects it keeps.
        cache: copies of what is read.
        sending: what every request that makes an object says besides, for encryption.
        make: whether a store is made where there is none.
        step: as for `open_store`.

    Raises:
        SetupError: as `open_store`; `not_initialised` where there is none and none is to be made.
    """
    from mirror_realm_assets.store import s3

    begin = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    place = f"s3://{bucket}/{begin}"
    try:
        name = f"{begin}{IDENTITY}"
        found = _s3_identity(client, bucket, name)
        if found is None and not make:
            raise SetupError("not_initialised", f"There is no store in {place}.")
        if found is None:
            foreign = client.list_objects_v2(Bucket=bucket, Prefix=begin, MaxKeys=1).get("Contents", ())
            if foreign and _s3_identity(client, bucket, name) is None:
                raise SetupError("store_mismatch", f"{place} is no store and not empty: {foreign[0]['Key']}.")
            _make_s3_identity(client, bucket, name, _new_identity(catalog_uuid), sending or {})
            found = _s3_identity(client, bucket, name)
    except Exception as error:
        if not s3.is_of_s3(error):
            raise
        raise SetupError("store_failed", f"The store {place} cannot be used: {s3.said(error)}.") from error
    identity = _checked(found or b"", place, catalog_uuid)
    step = step or fault_points.points_of("store")
    return s3.S3Store(client, bucket, begin, identity, cache=cache, sending=sending, step=step)


def _s3_identity(client: Any, bucket: str, name: str) -> bytes | None:
    from mirror_realm_assets.store import s3

    try:
        answer = client.get_object(Bucket=bucket, Key=name)
    except Exception as error:
        if s3.is_missing(error):
            return None
        raise
    return bytes(answer["Body"].read(_MAX_IDENTITY_BYTES))


def _make_s3_identity(
    client: Any, bucket: str, name: str, identity: Mapping[str, str | int], sending: Mapping[str, str]
) -> None:
    from mirror_realm_assets.store import s3

    try:
        client.put_object(Bucket=bucket, Key=name, Body=json.dumps(identity).encode(), IfNoneMatch="*", **sending)
    except Exception as error:
        if not s3.is_taken(error):
            raise
        # Another process made it meanwhile, and its one counts.


def _folder(url: str) -> Path:
    if "://" not in url:
        return Path(url).expanduser().absolute()
    parts = urlsplit(url)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise SetupError("invalid_argument", f"A store cannot be opened by the URL scheme {parts.scheme}.")
    return Path(unquote(parts.path)).absolute()


def _identify(root: Root, catalog_uuid: str, step: Step) -> str:
    """The store's id, from its identity file, which is made in a folder that is still empty."""
    foreign = sorted({path.name for path in root.path.iterdir()} - _BEGINNINGS)
    if IDENTITY not in foreign:
        # Listed before the look at the file: what a faster opener wrote since then is not foreign.
        if foreign and not (root.path / IDENTITY).exists():
            raise SetupError("store_mismatch", f"{root.path} is not empty and no store: it contains {foreign[0]}.")
        _make_identity(root, _new_identity(catalog_uuid), step)
    return _checked(_read_identity(root), str(root.path), catalog_uuid)


def _new_identity(catalog_uuid: str) -> dict[str, str | int]:
    return {"id": str(uuid.uuid4()), "catalog": catalog_uuid, "layout": LAYOUT}


def _checked(text: bytes, place: str, catalog_uuid: str) -> str:
    """The store's id, if what its identity file says is ours and of this catalog."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("id"), str):
        raise SetupError("store_mismatch", f"The file {IDENTITY} in {place} is not one of ours.")
    if found.get("layout") != LAYOUT:
        raise SetupError("store_mismatch", f"The store {place} has the unknown layout {found.get('layout')!r}.")
    if found.get("catalog") != catalog_uuid:
        raise SetupError("store_mismatch", f"The store {place} belongs to the catalog {found.get('catalog')}.")
    return str(found["id"])


def _make_identity(root: Root, identity: dict[str, str | int], step: Step) -> None:
    draft = f"{secrets.token_hex(12)}.part"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with descend(root, [TEMPORARY], make=True, step=step) as (top, temporary), locked(top, alone=True):
        step("lock taken")
        if (root.path / IDENTITY).exists():
            return  # another process made it while we waited, and its one counts
        with os.fdopen(os.open(draft, flags, FILE_MODE, dir_fd=temporary), "w", encoding="utf-8") as file:
            step("identity begun")
            json.dump(identity, file)
            file.flush()
            os.fsync(file.fileno())
        step("identity written")
        os.rename(draft, IDENTITY, src_dir_fd=temporary, dst_dir_fd=top)
        step("identity renamed")
        os.fsync(top)


def _read_identity(root: Root) -> bytes:
    with descend(root, []) as (top,):
        fd = os.open(IDENTITY, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
        with os.fdopen(fd, "rb") as file:
            return file.read(_MAX_IDENTITY_BYTES)
