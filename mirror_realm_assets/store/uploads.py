"""Sending bytes to a bucket: whole or in parts, with checksums, and only where nothing lies if so wished.

What belongs here: one object from bytes or a file. What does not: which objects there are (`s3`), and what they are
called elsewhere (`archive`).
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

from mirror_realm_assets.errors import Failed
from mirror_realm_assets.store.faults import chunks_of

PART_BYTES = 16 * 1024**2
"""Objects above this are sent in parts, of this size or, so that ten thousand are enough, larger ones."""
_MAX_PARTS = 10_000
_AT_ONCE = 4  # parts on their way, each in memory

ONLY_IF_NEW: Mapping[str, str] = {"IfNoneMatch": "*"}
"""The condition under which one of several writers wins."""


@dataclass(frozen=True)
class Upload:
    """What is to be sent.

    Attributes:
        name: in the bucket.
        told: what errors call it.
        sha256, size: of its bytes.
        metadata: kept with it; ASCII alone.
        headers: other arguments of the request (`ContentType`).
    """

    name: str
    told: str
    sha256: str
    size: int
    metadata: Mapping[str, str]
    headers: Mapping[str, str]


class Uploads:
    """Sends objects to one bucket.

    Args:
        client: a boto3 client of S3.
        bucket: its name.
        sending: what every request that makes an object says besides (`ServerSideEncryption`, ...).
        step: called with a step's name between any two steps.
    """

    def __init__(self, client: Any, bucket: str, sending: Mapping[str, str], step: Callable[[str], None]) -> None:
        self._client = client
        self._bucket = bucket
        self._sending = dict(sending)
        self._step = step

    def put(self, upload: Upload, data: bytes, condition: Mapping[str, str]) -> None:
        """Send bytes in one request; the service compares their checksum."""
        self._step("draft begun")
        self._client.put_object(
            Bucket=self._bucket,
            Key=upload.name,
            Body=data,
            ChecksumAlgorithm="SHA256",
            Metadata=dict(upload.metadata),
            **upload.headers,
            **self._sending,
            **condition,
        )

    def send(self, upload: Upload, file: BinaryIO, condition: Mapping[str, str]) -> None:
        """Send a file from where it stands; a large one in parts, which become an object at the end or not at all.

        Raises:
            Failed: `changed_while_reading` when its bytes are not those of `upload`; nothing was made then.
        """
        if upload.size <= PART_BYTES:
            data = b"".join(chunks_of(file, upload.told))
            if hashlib.sha256(data).hexdigest() != upload.sha256:
                raise changed(upload.told)
            self.put(upload, data, condition)
            return
        name = {"Bucket": self._bucket, "Key": upload.name}
        made = self._client.create_multipart_upload(
            **name, ChecksumAlgorithm="SHA256", Metadata=dict(upload.metadata), **upload.headers, **self._sending
        )
        mine = {**name, "UploadId": made["UploadId"]}
        try:
            self._step("draft begun")
            parts = self._send_parts(upload, file, mine)
            self._step("draft synced")
            self._client.complete_multipart_upload(**mine, MultipartUpload={"Parts": [*parts]}, **condition)
        except BaseException:
            self._abort(mine)
            raise

    def _send_parts(self, upload: Upload, file: BinaryIO, mine: Mapping[str, str]) -> Sequence[dict[str, Any]]:
        size = max(PART_BYTES, -(-upload.size // _MAX_PARTS))
        digest = hashlib.sha256()
        on_their_way: deque[Future[dict[str, Any]]] = deque()
        parts: deque[dict[str, Any]] = deque()
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="s3-part") as pool:
            try:
                for number, data in enumerate(_pieces(file, upload.told, size), start=1):
                    digest.update(data)
                    on_their_way.append(pool.submit(self._send_part, mine, number, data))
                    if len(on_their_way) >= _AT_ONCE:
                        parts.append(on_their_way.popleft().result())
                parts.extend(future.result() for future in on_their_way)
            finally:
                for future in on_their_way:
                    future.cancel()
        if digest.hexdigest() != upload.sha256:
            raise changed(upload.told)
        return tuple(parts)

    def _send_part(self, mine: Mapping[str, str], number: int, data: bytes) -> dict[str, Any]:
        sent = self._client.upload_part(**mine, PartNumber=number, Body=data, ChecksumAlgorithm="SHA256")
        self._step(f"part {number} sent")
        return {"PartNumber": number, "ETag": sent["ETag"], "ChecksumSHA256": sent.get("ChecksumSHA256", "")}

    def _abort(self, mine: Mapping[str, str]) -> None:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        with suppress(BotoCoreError, ClientError, Boto3Error):  # it is swept later; what went wrong before matters
            self._client.abort_multipart_upload(**mine)


def changed(told: str) -> Failed:
    """What is raised when bytes are not those that were announced."""
    return Failed("changed_while_reading", f"What was to be stored as {told} changed while it was read.")


def _pieces(file: BinaryIO, told: str, size: int) -> Iterator[bytes]:
    piece = bytearray()
    for chunk in chunks_of(file, told):
        piece += chunk
        while len(piece) >= size:
            yield bytes(piece[:size])
            del piece[:size]
    if piece:
        yield bytes(piece)
