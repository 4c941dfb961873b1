"""The stage `raw_media`: one read of the original, digests, sandboxed decode, proxy, metadata.

What belongs here: putting the pieces of `ingest` together for one file. What does not: the pieces.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from mirror_realm_assets.catalog import features
from mirror_realm_assets.catalog.features import FeatureKey, Finding
from mirror_realm_assets.catalog.items import Work
from mirror_realm_assets.catalog.media import Identified, Part
from mirror_realm_assets.catalog.wants import Recipe
from mirror_realm_assets.errors import Failed, Refused
from mirror_realm_assets.ingest.decoded import Decoded
from mirror_realm_assets.ingest.decoders import ASIDE, Decoders
from mirror_realm_assets.ingest.originals import Original, read_original
from mirror_realm_assets.ingest.pace import Pace
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.stages.context import StageContext
from mirror_realm_assets.stages.flow import read_ahead
from mirror_realm_assets.stages.services import Services
from mirror_realm_assets.stages.stage import MIB, PROCESS_BYTES, Memory, Result, Stage, finding_of
from mirror_realm_assets.store import keys
from mirror_realm_assets.store.interface import StoredObject

CODE_VERSION = "1"
_PROXY_VERSION = "1"
_ASIDE_SECONDS = 2.0
# Proxies that are stored at once. To a bucket each waits for an answer over the network, during which the next file is
# read and decoded.
_STORING = 4


def proxy_version(settings: Settings) -> str:
    """Version of the proxies: an input of every recipe that reads one."""
    return f"{_PROXY_VERSION}-{settings.proxy_long_side}"


def raw_media_stage(settings: Settings) -> Stage:
    """The stage, for a process with these settings."""
    recipe = Recipe("raw_media", CODE_VERSION, inputs={"proxy": proxy_version(settings)})
    return Stage(
        name="raw_media",
        description="Each file read once: identified by the digest of its bytes, decoded in a sandbox into an upright "
        "sRGB proxy, with metadata and a perceptual hash.",
        lane="search",
        needs=(),
        recipe=lambda _policy: recipe,
        run=run,
        of_bytes=True,
        group="ingest",
        kinds=frozenset({"python", "image"}),
        # Children decode, and hold a gigabyte together, but each may take so much and no more.
        memory=lambda: Memory(PROCESS_BYTES + 1024 * MIB, PROCESS_BYTES + (ASIDE + 1) * settings.decode_memory_bytes),
        pool="embed",  # a run of the search lane is one unit: it must not start what the next step has to wait for
    )


@dataclass
class _Read:
    """One original in memory until it is decoded."""

    original: Original
    closing: contextlib.ExitStack


@dataclass
class _Decoding:
    """One original that is being decoded."""

    work: Work
    read: _Read
    began: float
    future: Future[Decoded]
    stored_key: str | None
    objects: list[tuple[str, StoredObject]]
    intents: list[int]


def run(works: Iterable[Work], context: StageContext) -> Iterator[Result]:
    """Read ahead in a thread, decode in the sandbox, write proxies in others; see `stages.stage.Run`.

    A file that is not decoded after two seconds is put aside, and the others go on meanwhile.
    """
    rate = context.policy.budget_read_mb_s
    pace = Pace(rate) if rate is not None else None

    def read(work: Work) -> _Read:
        with contextlib.ExitStack() as stack:
            original = stack.enter_context(_original(work, context, pace))
            return _Read(original, stack.pop_all())

    aside: list[_Decoding] = []
    storing: deque[Future[Result]] = deque()
    with (
        contextlib.ExitStack() as unfinished,
        Decoders(context.services) as decoders,
        ThreadPoolExecutor(_STORING, "store") as pool,
    ):
        for work, found in read_ahead(works, read, threads=1):
            began = time.monotonic()
            if isinstance(found, Exception):
                yield Result(work, finding_of(found, default="io_error"))
                continue
            unfinished.push(found.closing)
            one = _begin(work, found, context, decoders, began)
            if isinstance(one, _Decoding):
                aside.append(one)
                wait([one.future], timeout=_ASIDE_SECONDS)
            else:
                found.closing.close()
                yield one
            for finished in [each for each in aside if each.future.done()] or aside[: max(0, len(aside) - ASIDE)]:
                aside.remove(finished)
                storing.append(pool.submit(_finish, finished, context))
            yield from _stored(storing, waiting=2 * _STORING)
        storing.extend(pool.submit(_finish, one, context) for one in aside)
        yield from _stored(storing, waiting=0)


def _stored(storing: deque[Future[Result]], *, waiting: int) -> Iterator[Result]:
    """What is stored, in order, until at most so many are being stored."""
    while storing and (storing[0].done() or len(storing) > waiting):
        yield storing.popleft().result()


def _original(work: Work, context: StageContext, pace: Pace | None) -> contextlib.AbstractContextManager[Original]:
    max_bytes = context.services.settings.max_file_bytes
    subject = work.subject
    if subject.path is not None:
        return read_original(subject.root, subject.path, max_bytes=max_bytes, pace=pace)
    from mirror_realm_assets.ingest.opening import open_original  # a media without a place of its own

    if subject.digest is None:
        raise Failed("file_gone", "Nothing is known about this file.")
    return open_original(context.services, subject.digest)


def _begin(work: Work, read: _Read, context: StageContext, decoders: Decoders, began: float) -> _Decoding | Result:
    """Begin to decode, unless the bytes are known."""
    original = read.original
    if _known(work, original.digest, context):
        # A move, or a second copy: nothing is decoded again.
        found = _bytes_of(original)
        return Result(work, Finding("ok", seconds=time.monotonic() - began), identified=found, known=True)
    objects: list[tuple[str, StoredObject]] = []
    intents: list[int] = []
    try:
        stored_key = _keep(original, context, objects, intents)
    except Exception as error:
        return _failed(work, original, context, error, began, objects, intents)
    future = decoders.begin(original.fd, long_side=context.services.settings.proxy_long_side)
    return _Decoding(work, read, began, future, stored_key, objects, intents)


def _finish(one: _Decoding, context: StageContext) -> Result:
    """What the bytes are, once they are decoded; a refusal by the decoder still identifies them."""
    work, original, objects, intents = one.work, one.read.original, one.objects, one.intents
    with one.read.closing:
        try:
            decoded = one.future.result()
            proxies = _write_proxies(work, decoded, context, objects, intents)
        except Exception as error:
            return _failed(work, original, context, error, one.began, objects, intents)
        return _identified(one, decoded, proxies)


def _failed(
    work: Work,
    original: Original,
    context: StageContext,
    error: Exception,
    began: float,
    objects: list[tuple[str, StoredObject]],
    intents: list[int],
) -> Result:
    finding = finding_of(error, seconds=time.monotonic() - began, default="internal")
    limits = _limits_of(finding, context.services) if isinstance(error, Refused) else None
    return Result(
        work,
        Finding(finding.status, code=finding.code, reason=finding.reason, limits=limits, seconds=finding.seconds),
        objects,
        intents,
        # A failure of ours must not stop the file from being known by its bytes either.
        _bytes_of(original),
    )


def _bytes_of(original: Original) -> Identified:
    return Identified(original.digest, original.size, original.stat.mtime_ns)


def _identified(one: _Decoding, decoded: Decoded, proxies: list[StoredObject]) -> Result:
    original = one.read.original
    first = decoded.first
    output = {
        "proxies": {
            str(part): {"key": proxy.key, "sha256": proxy.sha256, "bytes": proxy.size}
            for part, proxy in enumerate(proxies)
        },
        "proxy_size": [first.proxy_width, first.proxy_height],
        "frames": decoded.frames,
        "alpha": decoded.has_alpha,
        "icc": decoded.icc,
        "notes": list(decoded.notes),
    }
    if decoded.duration_s is not None:
        output["duration_s"] = decoded.duration_s
    return Result(
        one.work,
        Finding("ok", output, seconds=time.monotonic() - one.began),
        one.objects,
        one.intents,
        Identified(
            digest=original.digest,
            size=original.size,
            mtime_ns=original.stat.mtime_ns,
            mime=decoded.mime,
            stored_key=one.stored_key,
            exif=decoded.exif,
            taken_at=decoded.taken_at,
            phash=decoded.phash,
            parts=tuple(
                Part(number, part.kind, part.image_digest, part.width, part.height, part.time_s, part.page)
                for number, part in enumerate(decoded.parts)
            ),
        ),
        (first.proxy,),
    )


def _known(work: Work, digest: str, context: StageContext) -> bool:
    """Whether these bytes were read before, under the wanted recipe and with a kept copy where one is wanted."""
    if work.recipe is None or context.policy.originals == "copy":
        return False
    key = FeatureKey(digest, 0, "raw_media", work.recipe.digest)
    with context.services.catalog.read() as conn:
        return features.is_ok(conn, key)


def _limits_of(finding: Finding, services: Services) -> dict[str, float] | None:
    names = {
        "unsupported": "formats",
        "too_many_pixels": "max_pixels",
        "too_many_frames": "max_frames",
        "decoder_timeout": "decode_seconds",
        "decoder_memory": "decode_memory_bytes",
    }
    name = names.get(finding.code or "")
    return {name: services.limits()[name]} if name else None


def _keep(
    original: Original, context: StageContext, objects: list[tuple[str, StoredObject]], intents: list[int]
) -> str | None:
    """Copy the bytes into the store when the source's policy says so."""
    if context.policy.originals != "copy":
        return None
    key = keys.original_key(original.digest)
    with context.writer.writing([key]) as written, open(original.fd, "rb", closefd=False) as source:
        source.seek(0)
        stored = written.put_file(key, source)
        intents.extend(written.intent_ids)
    objects.append(("original", stored))
    return key


def _write_proxies(
    work: Work,
    decoded: Decoded,
    context: StageContext,
    objects: list[tuple[str, StoredObject]],
    intents: list[int],
) -> list[StoredObject]:
    if work.recipe is None:
        raise ValueError("raw_media is always wanted")
    proxies = []
    for number, part in enumerate(decoded.parts):
        key = keys.derived_key("raw_media", part.image_digest, number, work.recipe.digest, "jpg")
        stored, ids = context.publish_once(key, part.proxy)
        objects.append(("proxy", stored))
        intents.extend(ids)
        proxies.append(stored)
    return proxies
