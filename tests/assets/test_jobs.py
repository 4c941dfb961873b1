"""Runs that a person launches carry tags to filter by, as those of sensors do."""

from __future__ import annotations

import dagster as dg
from cheap_stages import cheap_stages
from lab import Lab

from mirror_realm_assets.definitions import build_defs
from mirror_realm_assets.resources.library import LibraryResource


def test_a_run_by_hand_is_tagged_with_its_source_and_lane_and_whoever_launches_otherwise_says_so(lab: Lab) -> None:
    lab.picture("a.png")
    (batch,) = lab.form(cheap_stages(lab.settings))
    library = LibraryResource(home=str(lab.home))
    defs = build_defs(resource_overrides={"library": library}, stages=cheap_stages)
    job = defs.resolve_job_def("media_batch_job")
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("media_batch", [batch.key])
        by_hand = job.execute_in_process(partition_key=batch.key, instance=instance).dagster_run.tags
        by_cli = job.execute_in_process(
            partition_key=batch.key, instance=instance, tags={"mirror-realm/by": "cli"}
        ).dagster_run.tags
    wanted = {"mirror-realm/source": "demo", "mirror-realm/lane": "search", "mirror-realm/by": "hand"}
    assert wanted.items() <= by_hand.items()
    assert by_cli["mirror-realm/by"] == "cli"
