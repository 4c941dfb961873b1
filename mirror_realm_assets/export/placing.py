"""Making one exported file: linked, cloned, or copied; there whole and verified, or not at all.

What belongs here: where its bytes come from and how. What does not: names and folders (`folder`), and what is to be
done with which (`decisions`).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Literal

from mirror_realm_assets.catalog import media
from mirror_realm_assets.errors import Failed, MirrorRealmError
from mirror_realm_assets.export import xmp
from mirror_realm_assets.export.entries import ORIGINAL, SIDECAR, Entry, Wanted
from mirror_realm_assets.export.folder import WORK, Folder, digest_of, told
from mirror_realm_assets.ingest.beneath import open_beneath
from mirror_realm_assets.ingest.opening import open_original
from mirror_realm_assets.stages.services import Services
from mirror_realm_assets.store.faults import chunks_of
from mirror_realm_assets.store.local import LocalStore

Link = Literal["auto", "copy", "hard"]
_CLONE = getattr(fcntl, "FICLONE", 0x40049409)  # Python names it from 3.12 on


class Placer:
    """Writes wanted files.

    Args:
        services: catalog and store.
        folder: where to.
        link: how files get their bytes: `auto` shares blocks with the store or the original where the file system can
            do that and copies elsewhere, `copy` always copies, `hard` makes the store's objects and the exported files
            one. A user's own original is never linked.
    """

    def __init__(self, services: Services, folder: Folder, link: Link) -> None:
        self._services = services
        self._folder = folder
        self._link = link
        self._no_clones: set[int] = set()  # devices from which the folder cannot share blocks
        self._umask = os.umask(0)
        os.umask(self._umask)

    def place(self, wanted: Wanted, old: Entry | None) -> Entry:
        """Put a file in its place, whole and verified.

        Args:
            wanted: the file.
            old: of the file that it replaces.

        Returns:
            Its entry.

        Raises:
            MirrorRealmError: `name_taken`, `disk_full`, `export_failed`, `not_verified`; whatever is wrong with the
                original or the stored object. What was there before is there still.
        """
        draft = self._folder.root / WORK / f"{secrets.token_hex(12)}.part"
        try:
            link = self._write(draft, wanted)
            if link != "hard":
                os.utime(draft, ns=(wanted.entry.mtime_ns, wanted.entry.mtime_ns))
            self._folder.put(draft, wanted.entry.name, old)
            found = (self._folder.root / wanted.entry.name).lstat()
            return replace(wanted.entry, mtime_ns=found.st_mtime_ns, link=link)
        except OSError as error:
            raise told(error) from error
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)

    def _write(self, draft: Path, wanted: Wanted) -> str:
        if wanted.entry.kind == SIDECAR:
            with draft.open("xb") as file:
                file.write(xmp.packet(wanted.said or {}))
                _flush(file)
            return "copy"
        if wanted.entry.kind == ORIGINAL:
            return self._original(draft, wanted.entry)
        assert wanted.key is not None  # noqa: S101 - an enhanced picture is an object
        return self._object(draft, wanted.entry, wanted.key)

    def _object(self, draft: Path, entry: Entry, key: str) -> str:
        store = self._services.store
        if self._link == "hard" and isinstance(store, LocalStore) and self._linked(draft, store.local_path, entry, key):
            return "hard"
        with store.open(key, entry.sha256) as file:
            if self._cloned(draft, file.fileno(), entry.sha256):
                return "clone"
            _copy(draft, file, entry.sha256)
        return "copy"

    def _original(self, draft: Path, entry: Entry) -> str:
        if self._link != "copy" and self._original_cloned(draft, entry.digest):
            return "clone"
        with open_original(self._services, entry.digest) as original, os.fdopen(os.dup(original.fd), "rb") as file:
            file.seek(0)
            _copy(draft, file, entry.digest)
        return "copy"

    def _original_cloned(self, draft: Path, digest: str) -> bool:
        """Whether the original itself could be cloned: reading verified makes a private copy."""
        with self._services.catalog.read() as conn:
            places, _stored = media.places(conn, digest)
        for place in places:
            try:
                fd = open_beneath(place.root, place.path)
            except (MirrorRealmError, OSError):
                continue
            try:
                if self._cloned(draft, fd, digest):
                    return True
            finally:
                os.close(fd)
        return False

    def _linked(
        self,
        draft: Path,
        local_path: Callable[[str, str], AbstractContextManager[Path]],
        entry: Entry,
        key: str,
    ) -> bool:
        with local_path(key, entry.sha256) as path:
            try:
                os.link(path, draft, follow_symlinks=False)
            except OSError:
                return False  # another file system, or one without links
        # One file now: without the right to write, most programs do not change the store's bytes by mistake.
        draft.chmod(0o444 & ~self._umask)
        return True

    def _cloned(self, draft: Path, source: int, sha256: str) -> bool:
        device = os.fstat(source).st_dev
        if self._link == "copy" or device in self._no_clones:
            return False
        with draft.open("xb") as file:
            try:
                fcntl.ioctl(file.fileno(), _CLONE, source)
            except OSError:
                self._no_clones.add(device)
                draft.unlink()
                return False
            _flush(file)
        if digest_of(draft) == sha256:
            return True
        draft.unlink()  # it is being written just now: reading it verified says what is wrong
        return False


def _copy(draft: Path, source: BinaryIO, sha256: str) -> None:
    digest = hashlib.sha256()
    with draft.open("xb") as file:
        for chunk in chunks_of(source, "the export"):
            digest.update(chunk)
            file.write(chunk)
        _flush(file)
    if digest.hexdigest() != sha256:
        raise Failed("not_verified", "What was read for the export has other bytes than are recorded.")


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
