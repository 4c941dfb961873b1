"""The stage `enhanced_images`: each picture enlarged by a super-resolution model, in a lane of its own."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mirror_realm_assets.catalog.features import Finding
from mirror_realm_assets.catalog.items import Work
from mirror_realm_assets.catalog.policy import SourcePolicy
from mirror_realm_assets.catalog.wants import Recipe
from mirror_realm_assets.errors import Failed, Refused
from mirror_realm_assets.ingest.decoders import decoder
from mirror_realm_assets.ingest.opening import open_original
from mirror_realm_assets.stages.context import StageContext, Stopped
from mirror_realm_assets.stages.services import Services
from mirror_realm_assets.stages.stage import Result, Stage, finding_of
from mirror_realm_assets.store import keys
from mirror_realm_assets.weights.added import find
from mirror_realm_assets.weights.denoise import require_denoise
from mirror_realm_assets.weights.fetch import require
from mirror_realm_assets.weights.registry import FACE_DETECTOR, spec

if TYPE_CHECKING:
    from mirror_realm_assets.enhance.engines import Engine
    from mirror_realm_assets.enhance.faces import FaceRestorer
    from mirror_realm_assets.enhance.layers import Pixels

# 2: what the picture had besides eight bits of colour survives; 3: HEIF beyond 8 bits, EXIF in TIFF, wider halos,
# softer borders of faces
CODE_VERSION = "3"


def enhanced_images_stage(precision: str, models_dir: Path) -> Stage:
    """The stage.

    Args:
        precision: the precision setting; it changes results a little, so it is part of the recipe.
        models_dir: the models folder, which may come to hold models that no package carries; it is asked each time.
    """

    def recipe(policy: SourcePolicy) -> Recipe | None:
        if not policy.enhance:
            return None
        model = find(models_dir, policy.enhance_model, "enhance")
        if not model.weights_sha256:
            require(model, models_dir)  # says how to get them: a recipe names its weights
        params = {
            "model": model.name,
            "outscale": policy.enhance_outscale,
            "format": policy.enhance_format,
            "precision": precision,
        }
        if policy.enhance_quality is not None and policy.enhance_format in ("jpeg", "webp"):
            params["quality"] = policy.enhance_quality
        if policy.enhance_engine != "native":
            params["engine"] = policy.enhance_engine
        if policy.enhance_denoise_strength is not None:
            pair = find(models_dir, require_denoise(model, policy.enhance_denoise_strength), "enhance")
            require(pair, models_dir)
            params |= {"denoise_strength": policy.enhance_denoise_strength, "mixed_with": pair.weights_sha256}
        if policy.enhance_faces:
            faces = find(models_dir, policy.enhance_faces_model, "restore")
            if not faces.weights_sha256:
                require(faces, models_dir)
            params["faces"] = {
                "model": faces.name,
                "weights": faces.weights_sha256,
                "detector": spec(FACE_DETECTOR).weights_sha256,
                "weight": policy.enhance_faces_weight,
                "min_size": policy.enhance_faces_min_size,
            }
        return Recipe("enhanced_images", CODE_VERSION, params, model.weights_sha256, {"original": "1"})

    return Stage(
        name="enhanced_images",
        description="Each picture enlarged by Real-ESRGAN, from its original, in runs of low priority that give way to "
        "the search lane.",
        lane="enhance",
        needs=("raw_media",),
        recipe=recipe,
        run=run,
        max_pixels=lambda policy: policy.enhance_max_pixels,
        stills_only=True,
        resource="gpu",
        pool="enhance",
        group="enhancement",
        kinds=frozenset({"pytorch", "image"}),
    )


def upscaler(services: Services, policy: SourcePolicy) -> Engine:
    """The enhancement model of a policy in the hands of its engine, loaded once a process."""
    from mirror_realm_assets.enhance.engines import open_engine

    s = services.settings
    model = find(s.models_dir, policy.enhance_model, "enhance")
    engine, strength = policy.enhance_engine, policy.enhance_denoise_strength
    return services.held(
        # With the digest: weights can be replaced under their name while a process runs.
        f"upscaler/{engine}/{model.name}/{model.weights_sha256}/{strength}",
        lambda: open_engine(
            engine,
            model,
            s.models_dir,
            device=s.device,
            precision=s.precision,
            threads=s.threads,
            denoise_strength=strength,
        ),
    )


def restorer(services: Services, policy: SourcePolicy) -> FaceRestorer:
    """The face model of a policy, loaded once a process, at the first picture that asks for it."""
    from mirror_realm_assets.enhance.faces import open_restorer

    s = services.settings
    digest = find(s.models_dir, policy.enhance_faces_model, "restore").weights_sha256
    return services.held(
        f"restorer/{policy.enhance_faces_model}/{digest}",
        lambda: open_restorer(policy.enhance_faces_model, s.models_dir, device=s.device, threads=s.threads),
    )


def run(works: Iterable[Work], context: StageContext) -> Iterator[Result]:
    """One picture after the other; see `stages.stage.Run`."""
    model = upscaler(context.services, context.policy)
    context.used.update(model=model.name, device=model.device, precision=model.precision, pictures_at_once=1)
    for work in works:
        began = time.monotonic()
        try:
            yield _enhance(work, model, context, began)
        except Stopped:
            raise
        except Exception as error:
            yield Result(work, finding_of(error, seconds=time.monotonic() - began))


def _enhance(work: Work, model: Engine, context: StageContext, began: float) -> Result:
    from mirror_realm_assets.enhance.codec import SUFFIXES, Style, encode_rows, probe_file, small
    from mirror_realm_assets.enhance.faces import rows_with_faces

    if work.subject.digest is None or work.recipe is None:
        raise Failed("internal", "An unread picture was to be enhanced.")
    with open_original(context.services, work.subject.digest) as original:
        still = decoder(context.services).still(original.fd)
    if still.animated:
        raise Refused("unsupported", "It is an animation; only pictures that stand still are enhanced.")
    policy = context.policy
    style = Style(policy.enhance_format, policy.enhance_quality, still.icc, still.exif)
    height, width = model.output_size(still.pixels.shape[0], still.pixels.shape[1], policy.enhance_outscale)
    rows: Iterable[Pixels] = model.strips(
        still.pixels, outscale=policy.enhance_outscale, between_tiles=context.checkpoint
    )
    if policy.enhance_faces:
        rows = rows_with_faces(
            rows,
            restorer(context.services, policy),
            still.pixels,
            (height, width),
            weight=policy.enhance_faces_weight,
            min_size=policy.enhance_faces_min_size,
        )
    suffix = SUFFIXES[policy.enhance_format]
    key = keys.derived_key("enhanced_images", work.key.image_digest, work.subject.part, work.recipe.digest, suffix)
    folder = context.services.scratch()
    with tempfile.TemporaryFile(dir=folder) as file:
        encode_rows(rows, (height, width), style, file, folder)
        file.seek(0)
        stored, intents = context.publish_file(key, file)
    # Success is recorded only after the output was read back, whole and of the right size.
    with context.services.store.local_path(stored.key, stored.sha256) as path:
        found = probe_file(path)
        after = small(path)
    if (found.width, found.height) != (width, height):
        raise Failed("not_verified", f"The stored picture is {found.width}x{found.height}, not {width}x{height}.")
    output = {
        "key": stored.key,
        "sha256": stored.sha256,
        "bytes": stored.size,
        "width": width,
        "height": height,
        "model": model.name,
        "precision": model.precision,
        "device": model.device,
    }
    return Result(
        work,
        Finding("ok", output, seconds=time.monotonic() - began),
        [("enhanced", stored)],
        intents,
        pictures=(small(still.pixels), after),
    )
