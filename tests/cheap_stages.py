"""A pipeline with the standard names and without weights: real reading, a toy embedding, a toy enhancement."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from mirror_realm_assets.archive.stage import archived_media_stage
from mirror_realm_assets.catalog.features import Finding
from mirror_realm_assets.catalog.items import Work
from mirror_realm_assets.catalog.policy import SourcePolicy
from mirror_realm_assets.catalog.wants import Recipe
from mirror_realm_assets.enhance.codec import encode
from mirror_realm_assets.ingest.stage import raw_media_stage
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.stages.context import StageContext
from mirror_realm_assets.stages.engine import run_stage
from mirror_realm_assets.stages.flow import decode_proxy
from mirror_realm_assets.stages.services import Services
from mirror_realm_assets.stages.stage import Result, Stage
from mirror_realm_assets.store import keys
from mirror_realm_assets.store.shards import ShardRow, encode_shard

DIM = 12


def _embed(works: Iterable[Work], context: StageContext) -> Iterator[Result]:
    """One shard a batch: the picture's colours in four corners, at length 1."""
    rows, mine = [], []
    for work in works:
        image = decode_proxy(context.read_proxy(work)).astype(np.float32) + 1
        h, w = image.shape[0] // 2, image.shape[1] // 2
        corners = (image[:h, :w], image[:h, w:], image[h:, :w], image[h:, w:])
        vector = np.concatenate([corner.mean(axis=(0, 1)) for corner in corners])
        rows.append(ShardRow(work.key.image_digest, work.subject.part, vector / np.linalg.norm(vector)))
        mine.append(work)
    if not mine:
        return
    data = encode_shard(rows, model="toy", recipe=mine[0].key.recipe)
    stored, intents = context.publish(keys.shard_key(hashlib.sha256(data).hexdigest()), data)
    for n, work in enumerate(mine):
        output = {"shard": stored.key, "sha256": stored.sha256, "row": n, "dim": DIM}
        yield Result(work, Finding("ok", output), [("shard", stored)], intents if n == len(mine) - 1 else ())


def _enlarge(works: Iterable[Work], context: StageContext) -> Iterator[Result]:
    """The proxy turned upside down, as a JPEG in the store."""
    for work in works:
        image = np.ascontiguousarray(decode_proxy(context.read_proxy(work))[::-1])
        data = encode(image, "jpeg")
        key = keys.derived_key("enhanced_images", work.key.image_digest, work.subject.part, work.key.recipe, "jpg")
        stored, intents = context.publish(key, data)
        output = {"key": stored.key, "sha256": stored.sha256, "bytes": stored.size, "model": "toy"}
        output |= {"width": image.shape[1], "height": image.shape[0], "pixels": image.shape[0] * image.shape[1]}
        yield Result(work, Finding("ok", output), [("enhanced", stored)], intents)


def embeddings() -> Stage:
    return Stage(
        name="embeddings",
        description="Colours of four corners.",
        lane="search",
        needs=("raw_media",),
        recipe=lambda policy: Recipe("embeddings", "1", {"model": policy.embedder}),
        run=_embed,
    )


def enhanced_images() -> Stage:
    def recipe(policy: SourcePolicy) -> Recipe | None:
        return Recipe("enhanced_images", "1") if policy.enhance else None

    return Stage(
        name="enhanced_images",
        description="Turned upside down.",
        lane="enhance",
        needs=("raw_media",),
        recipe=recipe,
        run=_enlarge,
        max_pixels=lambda policy: policy.enhance_max_pixels,
    )


def cheap_stages(settings: Settings) -> tuple[Stage, ...]:
    """raw_media, embeddings, enhanced_images and archived_media, the two in the middle in milliseconds."""
    enhanced = enhanced_images()
    return (raw_media_stage(settings), embeddings(), enhanced, archived_media_stage(enhanced))


def run_lane(services: Services, stages: Sequence[Stage], key: str, lane: str = "search") -> None:
    """What a run of a lane's job does to a batch."""
    for stage in stages:
        if stage.lane == lane:
            run_stage(stage, key, services, stages)
