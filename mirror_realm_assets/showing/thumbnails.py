"""Small pictures for pages, made from proxies.

What belongs here: reading a proxy of the store, shrinking it, and saying why there is none. What does not: pages.
Proxies are files of our own making; only the picture of a question comes from outside, and is decoded in the sandbox.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirror_realm_assets.catalog import features
from mirror_realm_assets.catalog.policy import SourcePolicy
from mirror_realm_assets.errors import MirrorRealmError
from mirror_realm_assets.ingest.decoders import decoder
from mirror_realm_assets.ingest.originals import read_original
from mirror_realm_assets.pipeline import standard_stages
from mirror_realm_assets.stages.services import Services

if TYPE_CHECKING:
    from PIL import Image

MIME = "image/webp"
Subject = tuple[str, int]
"""Digest of a content, and a part of it."""

UNDECODABLE = (OSError, ValueError, SyntaxError)
"""What Pillow raises for a damaged picture."""

_QUALITY = 82  # 10 to 20 kB for a photograph of 360 pixels


@dataclass(frozen=True)
class Thumbnail:
    """A small picture, or the reason why there is none.

    Attributes:
        data: a WebP file; empty where there is none.
        width, height: in pixels.
        missing: the reason, for people.
    """

    data: bytes = b""
    width: int = 0
    height: int = 0
    missing: str = ""


def of_subjects(services: Services, subjects: Sequence[Subject], *, side: int) -> dict[Subject, Thumbnail]:
    """A thumbnail of each subject whose longer side is `side` at most; one that cannot be read costs no other."""
    outputs = _raw_outputs(services, subjects)
    return {subject: _of_output(services, outputs.get((subject[0], 0)), subject[1], side) for subject in subjects}


def of_file(services: Services, path: Path, *, side: int) -> Thumbnail:
    """A thumbnail of any file, decoded in the sandbox."""
    full = path.expanduser().absolute()
    settings = services.settings
    try:
        folder, name = os.fsencode(full.parent), os.fsencode(full.name)
        with read_original(folder, name, max_bytes=settings.max_file_bytes) as original:
            return shrunk(
                decoder(services).proxy(original.fd, long_side=settings.proxy_long_side).first.proxy, side=side
            )
    except MirrorRealmError as error:
        return Thumbnail(missing=error.message)


def shrunk(picture: bytes, *, side: int) -> Thumbnail:
    """A thumbnail of an encoded picture of our own making."""
    try:
        image = opened(picture, near=side)
    except UNDECODABLE:
        return Thumbnail(missing="The stored preview cannot be decoded.")
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=_QUALITY, method=4)
    return Thumbnail(buffer.getvalue(), image.width, image.height)


def opened(picture: bytes, *, near: int) -> Image.Image:
    """An encoded picture of our own making, as RGB; a JPEG much larger than `near` is decoded at a fraction.

    Raises:
        OSError, ValueError, SyntaxError: it is not whole.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(picture), formats=["JPEG", "PNG", "WEBP"]) as image:
            image.draft("RGB", (2 * near, 2 * near))
            return image.convert("RGB")
    except Image.DecompressionBombError as error:  # an enhanced picture may be larger than Pillow's own limit
        raise ValueError(str(error)) from error


def proxy_of(services: Services, subject: Subject) -> bytes | None:
    """The proxy of a subject, or None where none is recorded.

    Raises:
        Failed: it cannot be read.
    """
    proxy = _proxy(_raw_outputs(services, [subject]).get((subject[0], 0)), subject[1])
    return None if proxy is None else services.store.read(proxy["key"], proxy["sha256"])


def _raw_outputs(services: Services, subjects: Sequence[Subject]) -> Mapping[Subject, Any]:
    # How a proxy is made depends on no source's policy.
    recipe = next(s for s in standard_stages(services.settings) if s.feature == "raw_media").recipe(SourcePolicy())
    if recipe is None:
        return {}
    with services.catalog.read() as conn:
        return features.outputs(conn, "raw_media", recipe.digest, [(digest, 0) for digest, _part in subjects])


def _of_output(services: Services, output: Mapping[str, Any] | None, part: int, side: int) -> Thumbnail:
    proxy = _proxy(output, part)
    if proxy is None:
        return Thumbnail(missing="There is no preview of it just now.")
    try:
        return shrunk(services.store.read(proxy["key"], proxy["sha256"]), side=side)
    except MirrorRealmError as error:
        return Thumbnail(missing=f"The stored preview cannot be read ({error.code}).")


def _proxy(output: Mapping[str, Any] | None, part: int) -> Mapping[str, Any] | None:
    found: Mapping[str, Any] | None = (output or {}).get("proxies", {}).get(str(part))
    return found
