"""The stage `archived_media`: originals and enhanced pictures under names that people choose, in a lane of its own."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import sqlalchemy as sa

from mirror_realm_assets.archive.places import Archive, BucketArchive, Facts, FolderArchive
from mirror_realm_assets.archive.template import Subject, Template, when
from mirror_realm_assets.catalog import features, media
from mirror_realm_assets.catalog.features import FeatureKey, Finding
from mirror_realm_assets.catalog.items import Work
from mirror_realm_assets.catalog.policy import SourcePolicy
from mirror_realm_assets.catalog.wants import PartFacts, Recipe, wanted
from mirror_realm_assets.errors import Failed, MirrorRealmError, SetupError
from mirror_realm_assets.ingest.opening import open_original
from mirror_realm_assets.stages.context import StageContext, Stopped
from mirror_realm_assets.stages.services import Services
from mirror_realm_assets.stages.stage import Result, Stage, finding_of

CODE_VERSION = "1"
_ENHANCED = "enhanced_images"
_MIME = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp", "tif": "image/tiff"}


def archived_media_stage(enhanced: Stage) -> Stage:
    """The stage; `enhanced` is the one whose pictures it archives too."""

    def recipe(policy: SourcePolicy) -> Recipe | None:
        template = Template(policy.archive_template)
        if policy.archive is None:
            return None
        place = address(policy.archive)
        params: dict[str, Any] = {
            # Where exactly is nobody's business who sees a recipe.
            "archive": hashlib.sha256(place.encode()).hexdigest()[:16],
            "template": template.text,
            "what": policy.archive_what,
        }
        inputs = {"original": "1"}
        of_enhanced = enhanced.recipe(policy) if policy.archive_what != "originals" else None
        if of_enhanced is not None:
            inputs["enhanced"] = of_enhanced.digest
            # No limit of this stage: what is enhanced under a raised one is to be archived then.
            params["enhanced_up_to"] = policy.enhance_max_pixels
        return Recipe("archived_media", CODE_VERSION, params, None, inputs)

    return Stage(
        name="archived_media",
        description="Originals and enhanced pictures, copied to the source's archive under names made by its template, "
        "and read back.",
        lane="archive",
        needs=("raw_media",),
        recipe=recipe,
        run=run,
        of_bytes=True,
        after=lambda policy: () if policy.archive is None or policy.archive_what == "originals" else (_ENHANCED,),
        reads=(_ENHANCED,),
        group="archive",
        kinds=frozenset({"python", "file"}),
    )


def address(text: str) -> str:
    """An archive's address, checked: an absolute folder, or `s3://bucket/prefix`.

    Raises:
        SetupError: `invalid_argument`.
    """
    parts = urlsplit(text)
    if "://" not in text:
        folder = Path(text)
        if not folder.is_absolute() or ".." in folder.parts:
            raise SetupError("invalid_argument", f"The archive {text!r} is no absolute path and no s3://bucket/prefix.")
        return str(folder)
    if parts.scheme != "s3" or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise SetupError("invalid_argument", "An archive is a folder or s3://bucket/prefix, without anything else.")
    return text.rstrip("/")


def open_archive(services: Services, text: str) -> Archive:
    """The archive at an address; one of a process, and not looked at yet."""
    place = address(text)

    def make() -> Archive:
        if "://" not in place:
            return FolderArchive(Path(place))
        parts = urlsplit(place)
        prefix = unquote(parts.path).strip("/")
        return BucketArchive(
            services.bucket_client(), parts.netloc, f"{prefix}/" if prefix else "", services.bucket_sending
        )

    return services.held(f"archive/{place}", make)


def run(works: Iterable[Work], context: StageContext) -> Iterator[Result]:
    """One file after the other; see `stages.stage.Run`.

    Raises:
        SetupError: `archive_failed` when the archive is not there, or full; what is not archived stays pending.
    """
    if context.policy.archive is None:
        return
    archive = open_archive(context.services, context.policy.archive)
    archive.check()
    template = Template(context.policy.archive_template)
    for work in works:
        began = time.monotonic()
        try:
            finding = _archive(work, context, archive, template)
        except Stopped:
            raise
        except Exception as error:
            code = error.code if isinstance(error, MirrorRealmError) else None
            if code == "disk_full":  # nor is there room for the next one
                raise SetupError("archive_failed", str(error)) from error
            if code == "archive_failed":
                archive.check()  # unmounted meanwhile: then it is not about this file
            finding = finding_of(error, default="archive_failed")
        yield Result(work, _timed(finding, time.monotonic() - began))


def _timed(finding: Finding, seconds: float) -> Finding:
    return Finding(finding.status, finding.output, finding.code, finding.reason, finding.limits, seconds)


def _archive(work: Work, context: StageContext, archive: Archive, template: Template) -> Finding:
    digest = work.subject.digest
    if digest is None:
        raise Failed("internal", "An unread file was to be archived.")
    services, policy = context.services, context.policy
    with services.catalog.read() as conn:
        path, mtime_ns = _place(conn, work, digest)
        mime, taken_at = media.facts(conn, digest)
        enhanced = _enhanced(conn, work, context) if policy.archive_what != "originals" else None
    subject = Subject(os.fsdecode(path.rpartition(b"/")[2]), digest, when(taken_at, mtime_ns))
    output: dict[str, Any] = {}
    about = {"processed-by": "mirror-realm"}
    if taken_at:
        about["taken-at"] = taken_at.encode("ascii", "replace").decode()
    if policy.archive_what != "enhanced":
        with open_original(services, digest) as original, os.fdopen(os.dup(original.fd), "rb") as file:
            file.seek(0)
            facts = Facts(digest, original.size, mtime_ns, mime, about | {"kind": "original"})
            output["original"] = _kept(archive, template.name(subject), file, facts)
    if isinstance(enhanced, Mapping):
        key, sha256 = str(enhanced["key"]), str(enhanced["sha256"])
        suffix = key.rpartition(".")[2]
        facts = Facts(
            sha256,
            int(enhanced["bytes"]),
            mtime_ns,
            _MIME.get(suffix),
            about | {"kind": "enhanced", "model": str(enhanced["model"]), "original-sha256": digest},
        )
        name = template.name(Subject(subject.name, digest, subject.at, enhanced=suffix))
        with services.store.open(key, sha256) as file:
            output["enhanced"] = _kept(archive, name, file, facts)
    elif isinstance(enhanced, str):
        return Finding("failed", code="enhancement_failed", reason=enhanced)
    return Finding("ok" if output else "empty", output)


def _kept(archive: Archive, name: str, file: BinaryIO, facts: Facts) -> dict[str, Any]:
    return {"name": archive.keep(name, file, facts), "sha256": facts.sha256, "bytes": facts.size}


def _enhanced(conn: sa.Connection, work: Work, context: StageContext) -> Mapping[str, Any] | str | None:
    """The enhanced picture's output; the reason why its enhancement failed; None where none is to be expected."""
    subject = work.subject
    if subject.image_digest is None or subject.kind is None:
        return None
    rules = [stage.rule for stage in context.stages]
    want = wanted(rules, context.policy, PartFacts(subject.width, subject.height, subject.kind)).get(_ENHANCED)
    if want is None or want.recipe is None:
        return None
    key = FeatureKey(subject.image_digest, subject.part, _ENHANCED, want.recipe.digest)
    record = features.records(conn, [key]).get(key)
    if record is None or record.status in ("refused", "empty"):
        return None
    if record.status == "failed":
        return f"The original is archived; its enhancement failed: {record.code}."
    found: Mapping[str, Any] = features.outputs(conn, _ENHANCED, key.recipe, [(key.image_digest, key.part)])[
        (key.image_digest, key.part)
    ]
    return found


def _place(conn: sa.Connection, work: Work, digest: str) -> tuple[bytes, int]:
    """The path that names the file, and when it was last written."""
    if work.subject.path is not None:
        return work.subject.path, work.subject.mtime_ns
    places, _stored = media.places(conn, digest)
    return (places[0].path if places else digest.encode()), 0
