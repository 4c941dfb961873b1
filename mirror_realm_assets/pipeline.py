"""The standard pipeline: which stages there are, in dependency order.

What belongs here: the list. What does not: the stages themselves; they live with their domain.
"""

from __future__ import annotations

from mirror_realm_assets.enhance.stage import enhanced_images_stage
from mirror_realm_assets.ingest.stage import proxy_version, raw_media_stage
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.stages.stage import Stage
from mirror_realm_assets.understand.stage import embeddings_stage


def standard_stages(settings: Settings) -> tuple[Stage, ...]:
    """All stages of a process with these settings, in dependency order."""
    return (
        raw_media_stage(settings),
        embeddings_stage(proxy_version(settings), settings.precision),
        enhanced_images_stage(settings.precision),
    )
