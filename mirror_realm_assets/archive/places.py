"""The two kinds of archive: a folder, and a bucket.

What belongs here: writing one file under one name so that it is there whole or not at all, never over another, and
reading back what was written. What does not: names (`template`), and what is archived (`stage`).

A name that is taken by other bytes is not an error: the file gets the first digits of its digest into its name. A name
that is taken by the same bytes is the file itself, archived before.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from mirror_realm_assets.archive.template import with_digest
from mirror_realm_assets.errors import Failed, MirrorRealmError, SetupError, clean_reason
from mirror_realm_assets.store import s3
from mirror_realm_assets.store.faults import CHUNK, chunks_of
from mirror_realm_assets.store.uploads import ONLY_IF_NEW, PART_BYTES, Upload, Uploads

MARKER = "mirror-realm-archive.json"
"""Stands in every archive that is a folder: without it the drive is not mounted, and nothing is written."""
_DRAFTS = ".mirror-realm-drafts"
_DIGEST = "sha256"
# File systems that have no hard links say one of these.
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


@dataclass(frozen=True)
class Facts:
    """One file to be archived.

    Attributes:
        sha256, size: of its bytes.
        mtime_ns: when the original was last written.
        mime: its type, if known.
        about: what is kept with it where there is a place for it; ASCII alone.
    """

    sha256: str
    size: int
    mtime_ns: int
    mime: str | None
    about: Mapping[str, str]


class Archive(Protocol):
    """Where files are archived."""

    def check(self) -> None:
        """See that it is there.

        Raises:
            SetupError: `archive_failed`: not mounted, not reachable, no right to it.
        """

    def keep(self, name: str, source: BinaryIO, facts: Facts) -> str:
        """Write a file, unless it is there, and read it back.

        Args:
            name: as `Template.name` makes it.
            source: its bytes, from where it stands; it must be seekable.
            facts: of it.

        Returns:
            The name under which it lies.

        Raises:
            Failed: `archive_failed`, `disk_full`; `not_verified` when what was written cannot be read back; whatever
                went wrong with the source. Nothing lies under the name then that was not there before.
        """

    def close(self) -> None:
        """Let go of it."""


class FolderArchive:
    """An archive in a folder, which `prepare` has marked."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self) -> None:
        """Make the folder and its marker.

        Raises:
            SetupError: `archive_failed`, when that is not possible.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError), (self.root / MARKER).open("x", encoding="utf-8") as file:
                json.dump({"layout": 1}, file)
        except OSError as error:
            raise SetupError("archive_failed", f"{self.root} cannot be an archive: {error.strerror}.") from error

    def check(self) -> None:
        """See `Archive.check`."""
        try:
            there = (self.root / MARKER).is_file()
        except OSError as error:
            raise SetupError("archive_failed", f"The archive {self.root} cannot be read: {error.strerror}.") from error
        if not there:
            raise SetupError(
                "archive_failed",
                f"The archive {self.root} has no {MARKER}: it is not mounted, or was never made.",
                remedy="Mount the drive. For a new folder run `mirror-realm sources set NAME --option archive=FOLDER`.",
            )

    def keep(self, name: str, source: BinaryIO, facts: Facts) -> str:
        """See `Archive.keep`; the file gets the original's time of last writing."""
        begin = source.tell()
        try:
            for candidate in _candidates(name, facts.sha256):
                target = self.root / candidate
                if os.path.lexists(target):
                    if _is_there(target, facts):
                        return candidate
                    continue
                source.seek(begin)
                if self._write(target, source, facts):
                    return candidate
        except OSError as error:
            raise _told(error) from error
        raise _taken(name)

    def close(self) -> None:
        """See `Archive.close`: nothing is held."""

    def _write(self, target: Path, source: BinaryIO, facts: Facts) -> bool:
        """Write a draft, read it back, and give it its name; False when the name was taken meanwhile."""
        drafts = self.root / _DRAFTS
        drafts.mkdir(exist_ok=True)
        draft = drafts / f"{secrets.token_hex(12)}.part"
        try:
            with draft.open("xb") as file:
                digest = hashlib.sha256()
                for chunk in chunks_of(source, "the archive"):
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
                # What is read back comes from the disk and not from memory, where the system can do that.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if digest.hexdigest() != facts.sha256:
                raise Failed("changed_while_reading", "What was to be archived changed while it was read.")
            if not _is_there(draft, facts):
                raise Failed("not_verified", "The archived file reads back other bytes than were written.")
            os.utime(draft, ns=(facts.mtime_ns, facts.mtime_ns))
            target.parent.mkdir(parents=True, exist_ok=True)
            if not rename_if_new(draft, target):
                return False
            for folder in [target.parent, *target.parent.parents]:
                _sync(folder)
                if folder == self.root:
                    break
            return True
        finally:
            draft.unlink(missing_ok=True)


class BucketArchive:
    """An archive in a bucket under a prefix.

    Args:
        client: a boto3 client of S3.
        bucket: its name.
        prefix: of all names, empty or ending with a slash.
        sending: what every request that makes an object says besides (`ServerSideEncryption`, ...).
        step: called with a step's name between any two steps of a write; for fault tests.
    """

    def __init__(
        self,
        client: Any,
        bucket: str,
        prefix: str,
        sending: Mapping[str, str],
        step: Callable[[str], None] = lambda _name: None,
    ) -> None:
        self._client = client
        self.bucket = bucket
        self.prefix = prefix
        self._uploads = Uploads(client, bucket, sending, step)

    def check(self) -> None:
        """See `Archive.check`."""
        try:
            self._client.head_bucket(Bucket=self.bucket)
        except Exception as error:
            if not s3.is_of_s3(error):
                raise
            raise SetupError(
                "archive_failed", f"The archive s3://{self.bucket} cannot be used: {s3.said(error)}."
            ) from error

    def keep(self, name: str, source: BinaryIO, facts: Facts) -> str:
        """See `Archive.keep`; the object says its digest, its type and what `facts.about` says."""
        begin = source.tell()
        try:
            for candidate in _candidates(name, facts.sha256):
                found = self._head(candidate)
                if found is None:
                    source.seek(begin)
                    found = self._send(candidate, source, facts)
                if found is not None and self._is(candidate, found, facts):
                    return candidate
        except MirrorRealmError:
            raise
        except Exception as error:
            if not s3.is_of_s3(error):
                raise
            raise Failed("archive_failed", f"The archive could not take the file: {s3.said(error)}.") from error
        raise _taken(name)

    def close(self) -> None:
        """See `Archive.close`."""
        self._client.close()

    def _send(self, name: str, source: BinaryIO, facts: Facts) -> dict[str, Any] | None:
        """Write the object; what lies there afterwards, which somebody else may have written."""
        upload = Upload(
            f"{self.prefix}{name}",
            "the archive",
            facts.sha256,
            facts.size,
            {_DIGEST: facts.sha256, **facts.about},
            {"ContentType": facts.mime} if facts.mime else {},
        )
        try:
            self._uploads.send(upload, source, ONLY_IF_NEW)
        except Exception as error:
            if not s3.is_taken(error):
                raise
            return self._head(name)
        found = self._head(name)
        if found is None or not self._is(name, found, facts):
            raise Failed("not_verified", "The archived object reads back other bytes than were written.")
        return found

    def _head(self, name: str) -> dict[str, Any] | None:
        try:
            answer: dict[str, Any] = self._client.head_object(
                Bucket=self.bucket, Key=f"{self.prefix}{name}", ChecksumMode="ENABLED"
            )
        except Exception as error:
            if s3.is_missing(error):
                return None
            raise
        return answer

    def _is(self, name: str, found: Mapping[str, Any], facts: Facts) -> bool:
        """Whether these bytes lie there: by the service's own checksum, or read back where it has none of the whole."""
        if found["ContentLength"] != facts.size:
            return False
        checksum = found.get("ChecksumSHA256")
        if checksum and facts.size <= PART_BYTES:  # what was sent in parts has a checksum of theirs
            return bool(checksum == base64.b64encode(bytes.fromhex(facts.sha256)).decode())
        body = self._client.get_object(Bucket=self.bucket, Key=f"{self.prefix}{name}")["Body"]
        digest = hashlib.sha256()
        for chunk in body.iter_chunks(CHUNK):
            digest.update(chunk)
        return digest.hexdigest() == facts.sha256


def _candidates(name: str, sha256: str) -> Iterator[str]:
    yield name
    yield with_digest(name, sha256)


def _taken(name: str) -> Failed:
    return Failed("archive_failed", f"Other files lie in the archive under both names this one could have: {name}.")


def _is_there(path: Path, facts: Facts) -> bool:
    """Whether a regular file of these bytes lies at `path`."""
    if not stat.S_ISREG(path.lstat().st_mode):
        return False
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        if os.fstat(file.fileno()).st_size != facts.size:
            return False
        return hashlib.file_digest(file, "sha256").hexdigest() == facts.sha256


def rename_if_new(draft: Path, target: Path) -> bool:
    """Give a draft its name; where there are no hard links somebody could take it in the moment after the look."""
    try:
        os.link(draft, target, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(target):
            return False
        draft.rename(target)
    return True


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _told(error: OSError) -> Failed:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failed("disk_full", "There is no space left in the archive.")
    return Failed("archive_failed", clean_reason(f"The archive could not take the file: {error.strerror or error}."))
