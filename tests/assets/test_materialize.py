"""Assets through Dagster: what a materialization shows, and a sixth stage in ten lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import dagster as dg
import pytest
from lab import Lab

from mirror_realm_assets.assets.factory import stage_asset
from mirror_realm_assets.catalog.wants import Recipe
from mirror_realm_assets.errors import REASONS
from mirror_realm_assets.ingest.stage import raw_media_stage
from mirror_realm_assets.resources.library import LibraryResource
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.stages.flow import each_proxy
from mirror_realm_assets.stages.services import MODEL
from mirror_realm_assets.stages.stage import Stage


def pipeline(settings: Settings) -> tuple[Stage, ...]:
    """raw_media, and a stage in ten lines."""
    sharpness = Stage(
        name="sharpness",
        description="Variance of the picture.",
        lane="search",
        needs=("raw_media",),
        recipe=lambda _policy: Recipe("sharpness", "1", inputs={"proxy": "1"}),
        run=each_proxy(lambda image: {"variance": float(image.var())}),
    )
    return (raw_media_stage(settings), sharpness)


@pytest.fixture
def instance() -> dg.DagsterInstance:
    return dg.DagsterInstance.ephemeral()


def materialize(lab: Lab, instance: dg.DagsterInstance, key: str) -> dg.ExecuteInProcessResult:
    stages = pipeline(lab.settings)
    assets = [stage_asset(stage, lambda _settings: stages, lab.settings) for stage in stages]
    instance.add_dynamic_partitions("media_batch", [key])
    resources = {"library": LibraryResource(home=str(lab.home))}
    return dg.materialize(assets, partition_key=key, instance=instance, resources=resources)


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> Mapping[str, dg.MetadataValue]:
    (event,) = result.asset_materializations_for_node(asset)
    return event.metadata


def version(result: dg.ExecuteInProcessResult) -> str:
    (event,) = result.asset_materializations_for_node("raw_media")
    return (event.tags or {})["dagster/data_version"]


def test_a_sixth_stage_in_ten_lines_runs_and_records(lab: Lab, instance: dg.DagsterInstance) -> None:
    for number in range(4):
        lab.picture(f"{number}.png", number, size=(160, 120))
    (batch,) = lab.form(pipeline(lab.settings))
    result = materialize(lab, instance, batch.key)
    assert result.success
    counts = metadata(result, "sharpness")["counts"].value
    assert {name: count for name, count in counts.items() if count} == {"ok": 4, "items": 4}
    repeated = materialize(lab, instance, batch.key)
    assert version(repeated) == version(result), "nothing changed, so nothing that depends on it is out of step"
    again = metadata(repeated, "sharpness")
    assert (again["counts"].value["ok"], again["counts"].value["already_done"]) == (0, 4)
    assert str(again["summary"].value).startswith("Nothing was left to do: all 4 files were done before.")
    assert "pictures_per_second" not in again, "a rate of nothing would draw as a fall to 0"


def test_a_step_that_ends_lets_its_models_go_and_nothing_else(lab: Lab, instance: dg.DagsterInstance) -> None:
    class Held:
        closed = False

        def close(self) -> None:
            self.closed = True

    model, other = Held(), Held()
    services = LibraryResource(home=str(lab.home)).services
    services.held(f"{MODEL}upscaler/any", lambda: model)
    services.held("other", lambda: other)
    lab.picture("1.png", 1)
    (batch,) = lab.form(pipeline(lab.settings))
    assert materialize(lab, instance, batch.key).success
    assert model.closed and not other.closed


def test_numbers_are_numbers_so_that_the_ui_draws_them(lab: Lab, instance: dg.DagsterInstance) -> None:
    lab.picture("a.png", 1, size=(200, 100))
    (batch,) = lab.form(pipeline(lab.settings))
    found = metadata(materialize(lab, instance, batch.key), "raw_media")
    drawn = {name for name, value in found.items() if isinstance(value, dg.FloatMetadataValue | dg.IntMetadataValue)}
    assert drawn >= {"seconds", "pictures_per_second", "seconds_per_picture", "files", "files_ok", "bytes_written"}
    assert found["megapixels"].value == 0.02
    assert found["recipe"].value == next(iter(found["recipes"].value))[:12]


def test_a_batch_links_to_its_runs_and_to_its_source(lab: Lab, instance: dg.DagsterInstance) -> None:
    lab.picture("a.png")
    (batch,) = lab.form(pipeline(lab.settings))
    links = str(metadata(materialize(lab, instance, batch.key), "raw_media")["links"].value)
    assert f"tag%3Adagster%2Fpartition%3D{batch.key}" in links
    assert "tag%3Amirror-realm%2Fsource%3Ddemo" in links


def test_previews_fit_the_event_budget_and_name_no_file(lab: Lab, instance: dg.DagsterInstance) -> None:
    for number in range(12):
        lab.picture(f"secret-person-{number}.png", number, size=(1200, 800))
    (batch,) = lab.form(pipeline(lab.settings))
    found = metadata(materialize(lab, instance, batch.key), "raw_media")
    glance, preview = str(found["glance"].value), str(found["preview"].value)
    assert glance.startswith("![") and "data:image/webp;base64," in glance
    assert len(glance) < 1000  # longer Markdown is shown as a link
    assert len(preview) <= 24 * 1024
    everything = json.dumps({name: str(value.value) for name, value in found.items()})
    assert "secret-person" not in everything
    assert str(lab.folder) not in everything


def test_reasons_of_refusals_are_a_table_of_harmless_text(lab: Lab, instance: dg.DagsterInstance) -> None:
    lab.picture("good.png")
    (lab.folder / "<img onerror=alert(1)>.jpg").write_bytes(b"<script>alert(1)</script>")
    (batch,) = lab.form(pipeline(lab.settings))
    found = metadata(materialize(lab, instance, batch.key), "raw_media")
    (record,) = found["refused"].records  # type: ignore[attr-defined]
    assert record.data["code"] == "unsupported"
    assert record.data["files"] == 1
    assert record.data["retried"] == "no"
    assert record.data["remedy"] == REASONS["unsupported"].remedy
    assert "<" not in json.dumps(record.data)
    columns = [column.name for column in found["refused"].schema.columns]  # type: ignore[attr-defined]
    assert columns == list(record.data)


def test_an_unknown_batch_fails_with_one_clear_sentence(lab: Lab, instance: dg.DagsterInstance) -> None:
    with pytest.raises(Exception, match="There is no batch"):
        materialize(lab, instance, "demo.20260101T000000.9999")


def test_assets_of_a_workflow_stand_under_their_own_prefix(lab: Lab) -> None:
    stages = pipeline(lab.settings)
    asset = stage_asset(stages[1], lambda _settings: stages, lab.settings, key_prefix=["workflow"])
    assert asset.key == dg.AssetKey(["workflow", "sharpness"])
    assert asset.dependency_keys == {dg.AssetKey(["workflow", "raw_media"])}


def test_the_original_is_opened_once_for_everything_but_enhancement(
    lab: Lab, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = lab.picture("a.png", size=(300, 200))
    (batch,) = lab.form(pipeline(lab.settings))
    with _OpenCounter(lab.folder) as opened:
        assert materialize(lab, instance, batch.key).success
    assert opened.count(picture.name) == 1


class _OpenCounter:
    """Counts opens of files in a folder, as the kernel sees them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> _OpenCounter:
        import ctypes
        import os

        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._fd >= 0
        assert libc.inotify_add_watch(self._fd, os.fsencode(self._folder), 0x20) >= 0  # IN_OPEN
        return self

    def __exit__(self, *_: object) -> None:
        import os
        import struct

        self._names: list[str] = []
        try:
            data = os.read(self._fd, 1 << 20)
        except BlockingIOError:
            data = b""
        while data:
            _watch, _mask, _cookie, length = struct.unpack_from("iIII", data)
            self._names.append(data[16 : 16 + length].rstrip(b"\0").decode())
            data = data[16 + length :]
        os.close(self._fd)

    def count(self, name: str) -> int:
        return self._names.count(name)
