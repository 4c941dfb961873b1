from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from mirror_realm_assets import pools
from mirror_realm_assets.installation import TEMPLATE
from mirror_realm_assets.pipeline import standard_stages
from mirror_realm_assets.settings import Settings


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster.yaml").write_bytes(TEMPLATE.read_bytes())
    with dg.DagsterInstance.from_config(str(tmp_path)) as made:
        yield made


def limits(instance: dg.DagsterInstance) -> dict[str, int]:
    storage = instance.event_log_storage
    return {key: storage.get_concurrency_info(key).slot_count for key in storage.get_concurrency_keys()}


def make_known(instance: dg.DagsterInstance, settings: Settings) -> None:
    pools.make_known(instance, standard_stages(settings), settings)


def test_every_pool_has_its_limit_before_the_first_run(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    assert limits(instance) == {}
    make_known(instance, Settings.at(tmp_path))
    assert limits(instance) == {"embed": 1, "enhance": 1, "index_writer": 1}


def test_a_limit_that_a_person_has_set_is_kept(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    instance.event_log_storage.set_concurrency_slots("enhance", 3)
    for _twice in range(2):
        make_known(instance, Settings.at(tmp_path))
    assert limits(instance) == {"embed": 1, "enhance": 3, "index_writer": 1}


def test_on_a_cluster_as_many_steps_start_as_there_are_gpus(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    for gpus in (2, 3):
        make_known(instance, Settings.at(tmp_path, launcher="kubernetes", gpus=gpus))
        assert limits(instance) == {"gpu": gpus, "index_writer": 1}


def test_on_a_cluster_without_gpus_the_lanes_have_their_pools(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    make_known(instance, Settings.at(tmp_path, launcher="kubernetes", gpus=0))
    assert limits(instance) == {"embed": 1, "enhance": 1, "index_writer": 1}
