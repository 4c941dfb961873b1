"""Opening the store that the settings name.

What belongs here: making the client of a store in a bucket, with `S3Resource`, and saying how its objects are
encrypted. What does not: what a store does (`store`).
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote, urlsplit

from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.store import opening
from mirror_realm_assets.store.cache import DiskCache
from mirror_realm_assets.store.interface import Store

# With pauses between them that grow and differ from client to client.
_ATTEMPTS = 8


def open_store(settings: Settings, catalog_uuid: str, *, make: bool = True) -> Store:
    """The store of these settings; see `opening.open_store` and `opening.open_s3_store`.

    Args:
        settings: where it is.
        catalog_uuid: whose it is.
        make: whether one in a bucket is made where there is none; a folder is always made.
    """
    parts = urlsplit(settings.store_url)
    if parts.scheme != "s3":
        return opening.open_store(settings.store_url, catalog_uuid)
    if not parts.netloc:
        raise SetupError("invalid_argument", f"The store {settings.store_url} names no bucket.")
    return opening.open_s3_store(
        bucket_client(settings),
        parts.netloc,
        unquote(parts.path),
        catalog_uuid,
        cache=DiskCache(settings.cache_dir, settings.cache_bytes),
        sending=encryption(settings),
        make=make,
    )


def bucket_client(settings: Settings) -> Any:
    """A boto3 client of S3, made by `S3Resource`; credentials come from where every client looks for them."""
    from dagster_aws.s3 import S3Resource  # a second, for those who have a bucket

    return S3Resource(
        endpoint_url=settings.s3_endpoint_url, region_name=settings.s3_region, max_attempts=_ATTEMPTS
    ).get_client()


def encryption(settings: Settings) -> dict[str, str]:
    """What requests that make objects say about their encryption."""
    if settings.s3_encryption == "none":
        return {}
    sending: dict[str, str] = {"ServerSideEncryption": settings.s3_encryption}
    if settings.s3_kms_key_id and settings.s3_encryption == "aws:kms":
        sending["SSEKMSKeyId"] = settings.s3_kms_key_id
    return sending
