"""The stage `enhanced_images`: each picture enlarged by a super-resolution model, in a lane of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mirror_realm_assets.catalog.items import Work
from mirror_realm_assets.catalog.policy import SourcePolicy
from mirror_realm_assets.catalog.wants import Recipe
from mirror_realm_assets.enhance.steps import Steps
from mirror_realm_assets.stages.context import StageContext, Stopped
from mirror_realm_assets.stages.services import MODEL, Services
from mirror_realm_assets.stages.stage import Memory, Result, Stage
from mirror_realm_assets.weights.added import every_model, find
from mirror_realm_assets.weights.denoise import require_denoise
from mirror_realm_assets.weights.fetch import require
from mirror_realm_assets.weights.registry import FACE_DETECTOR, spec

if TYPE_CHECKING:
    from mirror_realm_assets.enhance.engines import Engine
    from mirror_realm_assets.enhance.faces import FaceRestorer
    from mirror_realm_assets.weights.hardware import Device, Precision, PrecisionSetting

# 2: what the picture had besides eight bits of colour survives; 3: HEIF beyond 8 bits, EXIF in TIFF, wider halos,
# softer borders of faces
CODE_VERSION = "3"
OVERLAPPING: set[Device] = {"cuda"}
"""Where several pictures are on their way at once (see `overlap`).

Not on a CPU, whose cores the network takes anyway: twelve pictures of 160x120 in animevideov3 took 4.1 s of CPU time
instead of 2.6 (bf16, two cores, medians of eight interleaved rounds), and 5.4 s instead of 4.3 by the clock; when the
machine had much else to do, 6.4 s instead of 8.4.
"""


def enhanced_images_stage(precision: PrecisionSetting, models_dir: Path, device: Device = "cpu") -> Stage:
    """The stage.

    Args:
        precision: the precision setting; it changes results a little, so it is part of the recipe.
        models_dir: the models folder, which may come to hold models that no package carries; it is asked each time.
        device: where it will run, for what it needs of main memory.
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

    def memory() -> Memory:
        from mirror_realm_assets.enhance.memory import for_step

        policy = SourcePolicy()  # of a source that says nothing else; the tile shrinks to what a larger picture leaves
        fixed: Precision = "fp32" if precision == "auto" else precision  # the larger one
        usual = max(
            for_step(
                model, fixed, max_pixels=policy.enhance_max_pixels, device=device, outscale=policy.enhance_outscale
            )
            for model in every_model(models_dir)
            if model.purpose == "enhance"
        )
        return Memory(usual, usual * 5 // 4)  # the estimate is good for a quarter

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
        memory=memory,
        pool="enhance",
        group="enhancement",
        kinds=frozenset({"pytorch", "image"}),
    )


def upscaler(services: Services, policy: SourcePolicy) -> Engine:
    """The enhancement model of a policy in the hands of its engine, loaded once a process."""
    from mirror_realm_assets.enhance.engines import open_engine
    from mirror_realm_assets.enhance.remembered import RememberedTiles

    s = services.settings
    model = find(s.models_dir, policy.enhance_model, "enhance")
    engine, strength = policy.enhance_engine, policy.enhance_denoise_strength
    return services.held(
        # With the digest: weights can be replaced under their name while a process runs.
        f"{MODEL}upscaler/{engine}/{model.name}/{model.weights_sha256}/{strength}",
        lambda: open_engine(
            engine,
            model,
            s.models_dir,
            device=s.device,
            precision=s.precision,
            threads=s.threads,
            denoise_strength=strength,
            remembered=RememberedTiles(s.tiles_file),
        ),
    )


def restorer(services: Services, policy: SourcePolicy) -> FaceRestorer:
    """The face model of a policy, loaded once a process, at the first picture that asks for it."""
    from mirror_realm_assets.enhance.faces import open_restorer

    s = services.settings
    digest = find(s.models_dir, policy.enhance_faces_model, "restore").weights_sha256
    return services.held(
        f"{MODEL}restorer/{policy.enhance_faces_model}/{digest}",
        lambda: open_restorer(policy.enhance_faces_model, s.models_dir, device=s.device, threads=s.threads),
    )


def run(works: Iterable[Work], context: StageContext) -> Iterator[Result]:
    """Pictures in their order; see `stages.stage.Run`."""
    model = upscaler(context.services, context.policy)
    context.used.update(model=model.name, device=model.device, precision=model.precision, pictures_at_once=1)
    steps = Steps(context, model, lambda: restorer(context.services, context.policy))
    if model.device in OVERLAPPING:
        from mirror_realm_assets.enhance.overlap import overlapping

        return overlapping(works, steps)
    return _one_by_one(works, steps)


def _one_by_one(works: Iterable[Work], steps: Steps) -> Iterator[Result]:
    for work in works:
        try:
            result = _enhance(work, steps)
        except Stopped:
            raise
        except Exception as error:
            result = steps.failed(work, error)
        yield result


def _enhance(work: Work, steps: Steps) -> Result:
    context = steps.context
    picture = steps.read(work)
    steps.restore_faces(picture)
    (rows,) = steps.model.enlarged([picture.prepared], between_tiles=context.checkpoint)
    with tempfile.TemporaryFile(dir=context.services.scratch()) as file:
        steps.encode(picture, rows, file)
        stored, intents = context.publish_file(picture.key, file)
    return steps.done(picture, stored, intents, steps.verify(picture, stored))
