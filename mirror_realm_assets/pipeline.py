"""The standard pipeline: which stages there are, in dependency order.

What belongs here: the list. What does not: the stages themselves; they live with their domain.
"""

from __future__ import annotations

from mirror_realm_assets.archive.stage import archived_media_stage
from mirror_realm_assets.catalog.policy import SourcePolicy
from mirror_realm_assets.enhance.stage import enhanced_images_stage
from mirror_realm_assets.ingest.stage import proxy_version, raw_media_stage
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.stages.stage import Stage
from mirror_realm_assets.understand.stage import embeddings_stage


def check_policy(settings: Settings, policy: SourcePolicy) -> None:
    """Make sure that every stage can carry out a policy.

    Raises:
        SetupError: `not_found` or `invalid_argument` for a model that is unknown or made for something else.
    """
    for stage in standard_stages(settings):
        stage.recipe(policy)


def standard_stages(settings: Settings) -> tuple[Stage, ...]:
    """All stages of a process with these settings, in dependency order."""
    enhanced = enhanced_images_stage(
        settings.precision, settings.models_dir, "cuda" if settings.on_cluster and settings.gpus else "cpu"
    )
    return (
        raw_media_stage(settings),
        embeddings_stage(proxy_version(settings), settings.precision, settings.models_dir),
        enhanced,
        archived_media_stage(enhanced),
    )
