"""The pools of our steps, made known to Dagster before the first run asks for one.

What belongs here: only that. Which step is in which pool stands at its stage, how large a pool is in `dagster.yaml`.

Dagster makes a pool when the first run asks for it. Of runs that are waiting in the queue together at that moment it
starts all, whatever the pool's limit: two processes with a network each on two cores.
"""

from __future__ import annotations

from collections.abc import Iterable

import dagster as dg

from mirror_realm_assets import op_tags
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.stages.stage import Stage

__all__ = ["make_known"]


def make_known(instance: dg.DagsterInstance, stages: Iterable[Stage], settings: Settings) -> None:
    """Give each pool of these stages, and that of the index, the default limit; one that is known keeps its own.

    On a cluster the pool of steps that want a GPU is as large as `MIRROR_REALM_GPUS` says, each time.
    """
    storage = instance.event_log_storage
    pools = {op_tags.pool_of(stage, settings) for stage in stages} | {op_tags.POOL_INDEX}
    wanted = {pool for pool in pools if pool}
    if op_tags.POOL_GPU in wanted:
        storage.set_concurrency_slots(op_tags.POOL_GPU, settings.gpus)
    for pool in sorted(wanted - set(storage.get_concurrency_keys())):
        storage.initialize_concurrency_limit_to_default(pool)
