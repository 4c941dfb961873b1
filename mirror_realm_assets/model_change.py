"""What giving sources another model takes, and doing it.

What belongs here: the estimate of such a change, and the change of the policies. What does not: the new work itself,
which the sensors ask for, and which index answers meanwhile (`catalog.switching`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mirror_realm_assets.catalog import changing, measured, sources
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.policy import SourcePolicy
from mirror_realm_assets.catalog.sources import Source
from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.estimate import BYTES_PER_PIXEL, EMBEDDING_BYTES, enhance_rate, runs_on
from mirror_realm_assets.pipeline import check_policy
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.stages.stage import Stage
from mirror_realm_assets.weights.added import find
from mirror_realm_assets.weights.fetch import state
from mirror_realm_assets.weights.registry import Model

Rate = Literal["measured", "table", "tried", "unknown"]
# The option that names the model, and the feature that is made by it.
_OPTIONS = {"embed": ("embedder", "embeddings"), "enhance": ("enhance.model", "enhanced_images")}
_TRIED = 32  # pictures


@dataclass(frozen=True)
class Change:
    """What another model means for a source.

    Attributes:
        source: its name.
        feature: what is made anew.
        before, after: models.
        pictures: that the source shows and its policy wants the feature of.
        there: of these, done with the new model before, so that nothing is computed.
        left: the others.
        megapixels: of the pictures that are left.
        seconds: that they take on one device, None when no speed is known.
        device, precision: of that.
        rate_from: `measured` on this library, from the `table` of other machines, `tried` just now, or `unknown`.
        bytes: that are stored for them; what was made before stays.
        wanted: False where the source's policy does not want the feature at all.
    """

    source: str
    feature: str
    before: str
    after: str
    pictures: int
    there: int
    left: int
    megapixels: float
    seconds: float | None
    device: str
    precision: str
    rate_from: Rate
    bytes: int
    wanted: bool = True

    def as_json(self) -> dict[str, Any]:
        """The form of `models switch --json`."""
        return asdict(self)


def chosen(settings: Settings, catalog: Catalog, name: str, names: Sequence[str]) -> list[Source]:
    """The sources that a change to the model `name` concerns: those called `names`, else all that have another.

    Raises:
        SetupError: `not_found` for a source or model, `invalid_argument` for a model that nobody chooses,
            `weights_missing` for one whose weights are not here.
    """
    model = _model(settings, name)
    with catalog.read() as conn:
        found = [sources.get(conn, each) for each in names] if names else sources.all_sources(conn)
    return [source for source in found if source.state != "removed" and _name_of(model, source.policy) != name]


def estimate(settings: Settings, catalog: Catalog, stages: Sequence[Stage], name: str, source: Source) -> Change:
    """What giving `source` the model `name` takes."""
    model = _model(settings, name)
    option, feature = _OPTIONS[model.purpose]
    policy = source.policy.merged({option: name})
    check_policy(settings, policy)
    rule = next(stage.rule for stage in stages if stage.feature == feature)
    recipe = rule.recipe(policy)
    device, precision = runs_on(settings)
    if recipe is None:
        return Change(
            source.name, feature, _name_of(model, source.policy), name, 0, 0, 0, 0.0, 0.0, device, precision,
            "unknown", 0, wanted=False,
        )  # fmt: skip
    with catalog.read() as conn:
        counts = changing.count(
            conn, source.id, feature, recipe.digest, max_pixels=rule.max_pixels(policy), stills_only=rule.stills_only
        )
    megapixels = counts.pixels / 1e6
    if model.purpose == "embed":
        each, rate_from = _embedding_rate(settings, catalog, model)
        seconds = None if each is None else each * counts.left
        stored = counts.left * EMBEDDING_BYTES
    else:
        rate, told = enhance_rate(name, device, precision, catalog)
        seconds, rate_from = rate * megapixels, "measured" if told == "measured" else "table"
        stored = round(counts.pixels * policy.enhance_outscale**2 * BYTES_PER_PIXEL[policy.enhance_format])
    return Change(
        source=source.name,
        feature=feature,
        before=_name_of(model, source.policy),
        after=name,
        pictures=counts.pictures,
        there=counts.pictures - counts.left,
        left=counts.left,
        megapixels=round(megapixels, 6),
        seconds=None if seconds is None else round(seconds, 3),
        device=device,
        precision=precision,
        rate_from=rate_from,
        bytes=stored,
    )


def switch(settings: Settings, catalog: Catalog, name: str, source: Source) -> None:
    """Give `source` the model `name`; what that makes wanted is asked for by the next tick."""
    option, _feature = _OPTIONS[_model(settings, name).purpose]
    check_policy(settings, source.policy.merged({option: name}))
    with catalog.write() as conn:
        sources.set_policy(conn, source.name, {option: name})


def _model(settings: Settings, name: str) -> Model:
    model = find(settings.models_dir, name)
    if model.purpose not in _OPTIONS:
        raise SetupError(
            "invalid_argument",
            f"{name} is a model that no source chooses.",
            remedy="Name one that embeds or enhances: `mirror-realm models list`.",
        )
    if state(model, settings.models_dir) == "missing":
        raise SetupError(
            "weights_missing", f"The weights of {name} are not here.", remedy=f"mirror-realm models fetch {name}"
        )
    return model


def _name_of(model: Model, policy: SourcePolicy) -> str:
    return policy.embedder if model.purpose == "embed" else policy.enhance_model


def _embedding_rate(settings: Settings, catalog: Catalog, model: Model) -> tuple[float | None, Rate]:
    """Seconds a picture, by what this library has seen, else by trying a few made-up pictures here."""
    with catalog.read() as conn:
        seen = measured.embedding_seconds(conn, model.weights_sha256)
    if seen is not None:
        return seen, "measured"
    if settings.on_cluster:
        return None, "unknown"  # this pod may have neither the GPU of a step nor its memory
    return _tried(settings, model.name), "tried"


def _tried(settings: Settings, name: str) -> float:
    """Seconds a picture for pictures as large as a proxy, after one call that nobody counts."""
    import numpy as np

    from mirror_realm_assets.understand.embedder import load_embedder

    model = load_embedder(
        name, settings.models_dir, device=settings.device, precision=settings.precision, threads=settings.threads
    )
    side = settings.proxy_long_side
    shape = (side * 3 // 4, side, 3)
    noise = np.frombuffer(os.urandom(shape[0] * shape[1] * 3), np.uint8).reshape(shape)
    model.embed([noise] * 2)
    began = time.perf_counter()
    model.embed([noise] * _TRIED)
    return (time.perf_counter() - began) / _TRIED


__all__ = ["Change", "chosen", "estimate", "switch"]
