"""The stage `embeddings`: one vector for each picture, from its proxy, kept in Parquet shards."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mirror_realm_assets.catalog.features import Finding
from mirror_realm_assets.catalog.items import Work
from mirror_realm_assets.catalog.policy import SourcePolicy
from mirror_realm_assets.catalog.wants import Recipe
from mirror_realm_assets.errors import Failed
from mirror_realm_assets.stages.context import StageContext
from mirror_realm_assets.stages.flow import decode_proxy, read_ahead
from mirror_realm_assets.stages.services import MODEL, Services
from mirror_realm_assets.stages.stage import MIB, PROCESS_BYTES, Memory, Result, Stage, finding_of
from mirror_realm_assets.store import keys
from mirror_realm_assets.weights.added import AddedModel, every_model, find
from mirror_realm_assets.weights.hardware import choose_device

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mirror_realm_assets.understand.embedder import Embedder

    _Row = tuple[Work, npt.NDArray[np.float32], float]  # what was embedded, its vector, seconds

CODE_VERSION = "1"
# A shard closes when it is this full or this old: big ones are cheap, but a vector is found only once it is published.
_SHARD_ROWS = 512
_SHARD_SECONDS = 2.0
_PICTURES_BYTES = 300 * MIB  # proxies read ahead, and the maps of those that are in the model
_AT_ONCE = 32  # pictures in one call of the model, which makes batches of them as it likes


def embeddings_stage(proxy: str, precision: str, models_dir: Path) -> Stage:
    """The stage.

    Args:
        proxy: version of the proxies it reads.
        precision: the precision setting; it changes vectors a little, so it is part of the recipe.
        models_dir: the models folder, which may hold models that a person added; it is asked each time, so that a
            process that runs knows one added later.
    """

    def recipe(policy: SourcePolicy) -> Recipe:
        model = find(models_dir, policy.embedder, "embed")
        params = {"model": model.name, "precision": precision, "storage": "float16"}
        if isinstance(model, AddedModel):
            params |= model.recipe_params()
        return Recipe("embeddings", CODE_VERSION, params, model.weights_sha256, {"proxy": proxy})

    def memory() -> Memory:
        # Of the largest there is: a source may choose another model any day. Loading builds a network in fp32 first.
        weights = max(model.bytes for model in every_model(models_dir) if model.purpose == "embed")
        usual = PROCESS_BYTES + 2 * weights + _PICTURES_BYTES
        return Memory(usual, usual * 3 // 2)

    return Stage(
        name="embeddings",
        description="One L2-normalised vector for each picture, from its proxy, kept in Parquet shards: what the "
        "search indexes are built from.",
        lane="search",
        needs=("raw_media",),
        recipe=recipe,
        run=run,
        resource="gpu",
        memory=memory,
        pool="embed",
        group="understanding",
        kinds=frozenset({"pytorch", "parquet"}),
    )


def embedder(services: Services, name: str) -> Embedder:
    """The embedding model called `name`, loaded once a process."""
    from mirror_realm_assets.understand.embedder import load_embedder

    s = services.settings
    # With the digest: weights can be replaced under their name while a process runs.
    digest = find(s.models_dir, name, "embed").weights_sha256
    return services.held(
        f"{MODEL}embedder/{name}/{digest}",
        lambda: load_embedder(name, s.models_dir, device=s.device, precision=s.precision, threads=s.threads),
    )


def run(works: Iterable[Work], context: StageContext) -> Iterator[Result]:
    """Read proxies ahead, embed, publish a shard, and only then report its rows; see `stages.stage.Run`."""
    name = context.policy.embedder
    model = embedder(context.services, name)
    device = choose_device(context.services.settings.device)
    context.used.update(model=model.name, device=device, precision=model.precision, pictures_at_once=_AT_ONCE)
    # On a GPU decoding is the longer work: with more cores more proxies are decoded at once.
    threads = max(2, context.services.settings.threads)
    loaded = read_ahead(
        works, lambda work: decode_proxy(context.read_proxy(work)), threads=threads, cost=lambda _work: 6_000_000
    )
    shard: list[_Row] = []
    opened = time.monotonic()
    for group in _grouped(loaded, _AT_ONCE):
        rows, failures = _embed(group, model)
        yield from failures
        if not shard:
            opened = time.monotonic()
        shard.extend(rows)
        if len(shard) >= _SHARD_ROWS or time.monotonic() - opened >= _SHARD_SECONDS:
            yield from _publish(shard, context, name)
            shard = []
    if shard:
        yield from _publish(shard, context, name)


def _grouped(
    loaded: Iterable[tuple[Work, npt.NDArray[np.uint8] | Exception]], size: int
) -> Iterator[list[tuple[Work, npt.NDArray[np.uint8] | Exception]]]:
    group: list[tuple[Work, npt.NDArray[np.uint8] | Exception]] = []
    for item in loaded:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _embed(
    group: list[tuple[Work, npt.NDArray[np.uint8] | Exception]], model: Embedder
) -> tuple[list[_Row], list[Result]]:
    """Embed a group at once; when that fails, one by one, so that a picture's failure stays its own."""
    began = time.monotonic()
    failures = [Result(work, finding_of(image)) for work, image in group if isinstance(image, Exception)]
    good = [(work, image) for work, image in group if not isinstance(image, Exception)]
    if not good:
        return [], failures
    try:
        vectors = model.embed([image for _work, image in good])
    except Failed as error:
        if len(good) == 1:
            return [], [*failures, Result(good[0][0], finding_of(error))]
        parts = [_embed([pair], model) for pair in good]
        return [row for rows, _ in parts for row in rows], failures + [r for _, bad in parts for r in bad]
    seconds = (time.monotonic() - began) / len(good)
    return [(work, vector, seconds) for (work, _image), vector in zip(good, vectors, strict=True)], failures


def _publish(shard: list[_Row], context: StageContext, model: str) -> Iterator[Result]:
    """Write one shard and report its rows; when it cannot be written, its pictures fail and nothing else."""
    from mirror_realm_assets.store.shards import ShardRow, decode_shard, encode_shard

    recipe = shard[0][0].recipe
    if recipe is None:
        raise ValueError("an unwanted embedding was computed")
    try:
        rows = [ShardRow(work.key.image_digest, work.subject.part, vector) for work, vector, _seconds in shard]
        data = encode_shard(rows, model=model, recipe=recipe.digest)
        key = keys.shard_key(hashlib.sha256(data).hexdigest())
        stored, intents = context.publish(key, data)
        # Success is recorded only after the output was read back.
        if len(decode_shard(context.services.store.read(stored.key, stored.sha256)).parts) != len(shard):
            raise Failed("not_verified", "A shard has not the rows that were written.")
    except Exception as error:
        for work, _vector, _seconds in shard:
            yield Result(work, finding_of(error, default="store_failed"))
        return
    for row, (work, vector, seconds) in enumerate(shard):
        output = {"shard": stored.key, "sha256": stored.sha256, "row": row, "dim": len(vector), "model": model}
        # The intents end with the last row: if recording is cut before, the object stays protected.
        last = row == len(shard) - 1
        yield Result(work, Finding("ok", output, seconds=seconds), [("shard", stored)], intents if last else ())
