"""The S3 form of the store: objects of one bucket under one prefix.

What belongs here: publishing, reading and trashing objects, and what S3 says as our errors. What does not: making the
client (`resources`), which keys are in use (`gc`), whose store this is (`opening`), local copies (`cache`).

S3 publishes an object whole or not at all, so a write needs no draft; `If-None-Match` lets one of several writers of
the same bytes win, and the others see that it is done. What S3 has not is a lock: between "nobody needs this" and "it
is gone" a writer may find the object, and count on it. So the trash keeps what is taken away, `trash` asks once more
after it has moved an object, and whoever misses an object looks into the trash before saying that it is lost.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

from mirror_realm_assets.errors import Failed
from mirror_realm_assets.store import faults, keys
from mirror_realm_assets.store.cache import DiskCache
from mirror_realm_assets.store.faults import CHUNK, chunks_of, compare, unreadable
from mirror_realm_assets.store.interface import Entry, StoredObject, Swept
from mirror_realm_assets.store.local import TRASH, no_step
from mirror_realm_assets.store.uploads import ONLY_IF_NEW, PART_BYTES, Upload, Uploads, changed

_MAX_COPY_BYTES = 5 * 1024**3  # what S3 copies in one request
_DIGEST = "sha256"  # name of our metadata
_MISSING = frozenset({"404", "NoSuchKey", "NotFound"})
# Somebody else was first, or is at it now.
_TAKEN = frozenset({"412", "PreconditionFailed", "409", "ConditionalRequestConflict"})


class S3Store:
    """A `Store` in a bucket; `opening.open_s3_store` makes it.

    Safe to use from several threads and processes at once.

    Args:
        client: a boto3 client of S3.
        bucket: its name.
        prefix: of all names in it, empty or ending with a slash.
        id: identity of the store.
        cache: copies of what is read.
        sending: what every request that makes an object says besides (`ServerSideEncryption`, ...).
        step: called with a step's name between any two steps of a write; for fault tests.
    """

    def __init__(
        self,
        client: Any,
        bucket: str,
        prefix: str,
        id: str,
        *,
        cache: DiskCache,
        sending: Mapping[str, str] | None = None,
        step: Callable[[str], None] = no_step,
    ) -> None:
        self.client = client
        self.bucket = bucket
        self.prefix = prefix
        self._id = id
        self._cache = cache
        self._sending = dict(sending or {})
        self._step = step
        self._uploads = Uploads(client, bucket, self._sending, step)

    @property
    def id(self) -> str:
        """Identity of this store."""
        return self._id

    def put(self, key: str, data: bytes, *, soon_read: bool = False) -> StoredObject:
        """See `Store.put`."""
        made = StoredObject(key, hashlib.sha256(data).hexdigest(), len(data))
        if keys.content_digest(key) not in (None, made.sha256):
            raise ValueError(f"the bytes do not have the digest in their key: {key}")
        with reporting(key):
            # One request where the object is new, as nearly always: the service itself refuses to replace one, and
            # compares the checksum of what it took.
            self._publish(made, lambda condition: self._uploads.put(self._upload(made), data, condition))
            self._step("durable")
        if soon_read:
            self._cache.keep(made.sha256, data)
        return made

    def put_file(self, key: str, source: Path | BinaryIO) -> StoredObject:
        """See `Store.put_file`; the source is read twice, the first time for its digest."""
        wanted = keys.content_digest(key)
        if isinstance(source, Path):
            try:
                opened = source.open("rb")
            except OSError as error:
                raise unreadable(key, error) from error
            with opened:
                return self.put_file(key, opened)
        with _seekable(source, key) as file, reporting(key):
            begin = file.tell()
            digest, size = hashlib.sha256(), 0
            for chunk in chunks_of(file, key):
                digest.update(chunk)
                size += len(chunk)
            made = StoredObject(key, digest.hexdigest(), size)
            if wanted not in (None, made.sha256):
                raise changed(key)
            if size <= PART_BYTES or not self._holds(made):  # nothing large is sent in vain
                self._publish(made, lambda condition: self._send(made, file, begin, condition))
                self._step("durable")
            return made

    def read(self, key: str, sha256: str) -> bytes:
        """See `Store.read`; from this machine's copy when there is one."""
        with self.open(key, sha256) as file:
            return file.read()

    @contextmanager
    def open(self, key: str, sha256: str) -> Iterator[BinaryIO]:
        """See `Store.open`; the file is this machine's copy."""
        keys.parse(key)
        with ExitStack() as stack:
            with faults.reporting(key):  # this machine's disk may be full
                file = stack.enter_context(self._copy(key, sha256))
            yield file

    @contextmanager
    def local_path(self, key: str, sha256: str) -> Iterator[Path]:
        """See `Store.local_path`; it is this machine's copy, which stays as long as it is used."""
        with self.open(key, sha256):
            yield self._cache.path(sha256)

    def exists(self, key: str) -> bool:
        """See `Store.exists`."""
        return self.head(key) is not None

    def head(self, key: str) -> Entry | None:
        """See `Store.head`."""
        keys.parse(key)
        with reporting(key):
            found = self._head(self._name(key))
        return None if found is None else Entry(key, found["ContentLength"], found["LastModified"].astimezone(UTC))

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """See `Store.list`; in order of key."""
        keys.check_prefix(prefix)
        with reporting(prefix or "listing"):
            for area in keys.AREAS:
                area = f"{area}/"
                if not (area.startswith(prefix) or prefix.startswith(area)):
                    continue
                for key, found in self._listed("", prefix if prefix.startswith(area) else area):
                    if keys.is_key(key):
                        yield Entry(key, found["Size"], found["LastModified"].astimezone(UTC))

    def trash(self, key: str, *, unless: Callable[[str], bool] | None = None) -> bool:
        """See `Store.trash`; what `unless` says the moment after the move brings the object back."""
        keys.parse(key)
        with reporting(key):
            if self._head(self._name(key)) is None or (unless is not None and unless(key)):
                return False
            self._copy_object(self._name(key), self._name(f"{TRASH}/{key}"))
            self._step("copied to the trash")
            self._delete(self._name(key))
            self._step("moved to the trash")
            if unless is not None and unless(key):
                self._restore(key)
                return False
            return True

    def empty_trash(
        self, older_than: timedelta, *, dry_run: bool = False, needed: Callable[[str], bool] | None = None
    ) -> Swept:
        """See `Store.empty_trash`."""
        before = self.clock() - older_than
        count = size = 0
        with reporting(TRASH):
            for key, found in self._listed(f"{TRASH}/", ""):
                if not keys.is_key(key) or found["LastModified"].astimezone(UTC) >= before:
                    continue
                if needed is not None and needed(key):
                    if not dry_run and self._head(self._name(key)) is None:
                        self._restore(key)
                    continue
                if not dry_run:
                    self._delete(self._name(f"{TRASH}/{key}"))
                count += 1
                size += found["Size"]
        return Swept(count, size)

    def sweep_unfinished(self, older_than: timedelta, *, dry_run: bool = False) -> Swept:
        """See `Store.sweep_unfinished`: parts that were sent and never put together."""
        before = self.clock() - older_than
        count = size = 0
        with reporting("unfinished uploads"):
            for page in self._pages("list_multipart_uploads", Prefix=self.prefix):
                for upload in page.get("Uploads", ()):
                    if upload["Initiated"].astimezone(UTC) >= before:
                        continue
                    mine = {"Bucket": self.bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
                    for parts in self._pages("list_parts", Key=upload["Key"], UploadId=upload["UploadId"]):
                        size += sum(part["Size"] for part in parts.get("Parts", ()))
                    if not dry_run:
                        self.client.abort_multipart_upload(**mine)
                    count += 1
        return Swept(count, size)

    def clock(self) -> datetime:
        """See `Store.clock`: the time of the service's answer, in whole seconds."""
        with reporting("the clock"):
            answer = self.client.head_bucket(Bucket=self.bucket)
            said = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        if not said:
            raise Failed("store_failed", "The store does not say what time it is.")
        return parsedate_to_datetime(said).astimezone(UTC)

    def free_bytes(self) -> int | None:
        """None: a bucket has no such limit."""
        return None

    # --- writing ---

    def _holds(self, wanted: StoredObject) -> bool:
        """Whether these very bytes were published already."""
        found = self._head(self._name(wanted.key))
        return found is not None and _is(found, wanted)

    def _publish(self, made: StoredObject, send: Callable[[Mapping[str, str]], None]) -> None:
        """Send what is not there; of several who send the same bytes at once one makes the object."""
        try:
            send(ONLY_IF_NEW)
        except Exception as error:
            if not is_taken(error):
                raise
            if not self._holds(made):
                send({})  # under this name there is something else: older, or damaged

    def _send(self, made: StoredObject, file: BinaryIO, begin: int, condition: Mapping[str, str]) -> None:
        file.seek(begin)
        self._uploads.send(self._upload(made), file, condition)

    def _upload(self, made: StoredObject) -> Upload:
        return Upload(self._name(made.key), made.key, made.sha256, made.size, {_DIGEST: made.sha256}, {})

    # --- reading ---

    def _copy(self, key: str, sha256: str) -> AbstractContextManager[BinaryIO]:
        def fetch(file: BinaryIO) -> None:
            with reporting(key):
                digest = hashlib.sha256()
                body = self._body(key)
                for chunk in body.iter_chunks(CHUNK):
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
            compare(key, sha256, digest.hexdigest())

        return self._cache.lend(sha256, fetch)

    def _body(self, key: str) -> Any:
        for _try in range(2):
            try:
                return self.client.get_object(Bucket=self.bucket, Key=self._name(key))["Body"]
            except Exception as error:
                if not is_missing(error):
                    raise
            if not self._restore(key):
                break
        raise Failed("store_failed", f"The object {key} is missing from the store.")

    # --- the trash ---

    def _restore(self, key: str) -> bool:
        """Bring an object back from the trash; what is there by then is not touched."""
        if self._head(self._name(f"{TRASH}/{key}")) is None:
            return False
        if self._head(self._name(key)) is None:
            self._copy_object(self._name(f"{TRASH}/{key}"), self._name(key))
        return True

    def _copy_object(self, source: str, target: str) -> None:
        found = self._head(source)
        if found is None:
            return  # it went meanwhile: somebody else moved it
        place = {"Bucket": self.bucket, "Key": source}
        if found["ContentLength"] <= _MAX_COPY_BYTES:
            self.client.copy_object(CopySource=place, Bucket=self.bucket, Key=target, **self._sending)
        else:
            extra = {**self._sending, "Metadata": found["Metadata"]}  # a copy in parts does not take it along
            self.client.copy(place, self.bucket, target, ExtraArgs=extra)

    def _delete(self, name: str) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=name)

    # --- requests ---

    def _name(self, key: str) -> str:
        return f"{self.prefix}{key}"

    def _head(self, name: str) -> dict[str, Any] | None:
        try:
            return cast(dict[str, Any], self.client.head_object(Bucket=self.bucket, Key=name))
        except Exception as error:
            if is_missing(error):
                return None
            raise

    def _listed(self, area: str, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Keys below `area` that begin with `prefix`, with what the listing says of each."""
        begin = f"{self.prefix}{area}"
        for page in self._pages("list_objects_v2", Prefix=f"{begin}{prefix}"):
            for found in page.get("Contents", ()):
                yield found["Key"].removeprefix(begin), found

    def _pages(self, what: str, **arguments: str) -> Iterator[dict[str, Any]]:
        yield from self.client.get_paginator(what).paginate(Bucket=self.bucket, **arguments)


@contextmanager
def reporting(key: str) -> Iterator[None]:
    """Raise what S3 says, or that it cannot be reached, as `store_failed`, naming the object."""
    try:
        yield
    except Exception as error:
        if not is_of_s3(error):
            raise
        raise Failed("store_failed", f"The store could not serve {key}: {said(error)}.") from error


def is_of_s3(error: BaseException) -> bool:
    """Whether an exception comes from the service or the way to it."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    return isinstance(error, BotoCoreError | ClientError | Boto3Error)


def is_missing(error: BaseException) -> bool:
    """Whether an exception says that there is no such object."""
    return _code(error) in _MISSING


def is_taken(error: BaseException) -> bool:
    """Whether an exception says that somebody else was first."""
    return _code(error) in _TAKEN


def said(error: BaseException) -> str:
    """What an exception of S3 says, without addresses: they may carry signatures."""
    found = getattr(error, "response", {}).get("Error", {})
    if found:
        return f"{found.get('Code', 'an error')}: {str(found.get('Message', '')).rstrip('.')}"
    return type(error).__name__


def _code(error: BaseException) -> str:
    return str(getattr(error, "response", {}).get("Error", {}).get("Code", ""))


def _is(found: Mapping[str, Any], wanted: StoredObject) -> bool:
    return bool(found["ContentLength"] == wanted.size and found["Metadata"].get(_DIGEST) == wanted.sha256)


@contextmanager
def _seekable(source: BinaryIO, key: str) -> Iterator[BinaryIO]:
    if source.seekable():
        yield source
        return
    with tempfile.TemporaryFile() as file:
        for chunk in chunks_of(source, key):
            file.write(chunk)
        file.seek(0)
        yield cast(BinaryIO, file)
