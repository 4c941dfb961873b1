"""The package `realesrgan` behind our interface, with the real weights, and our engine held against it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import skimage.data

from mirror_realm_assets.enhance.engines import open_engine
from mirror_realm_assets.enhance.legacy import PACKAGES
from mirror_realm_assets.enhance.progress import Tiles
from mirror_realm_assets.enhance.reference import ReferenceUpscaler
from mirror_realm_assets.enhance.upscale import Upscaler
from mirror_realm_assets.errors import Failed, SetupError
from mirror_realm_assets.weights.registry import MODELS

Picture = npt.NDArray[np.uint8]
SPEC = MODELS["realesrgan-x4plus"]


@pytest.fixture(scope="module")
def reference(models_dir: Path) -> Iterator[ReferenceUpscaler]:
    with ReferenceUpscaler(SPEC, models_dir, device="cpu", threads=2) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def native(models_dir: Path) -> Iterator[Upscaler]:
    with Upscaler(SPEC, models_dir, device="cpu", precision="fp32", threads=2) as loaded:
        yield loaded


@pytest.mark.parametrize(("name", "top", "left"), [("astronaut", 60, 190), ("chelsea", 90, 120), ("coffee", 160, 220)])
def test_ours_is_the_packages_within_a_grey_level(
    reference: ReferenceUpscaler, native: Upscaler, name: str, top: int, left: int
) -> None:
    photo = getattr(skimage.data, name)()[top : top + 40, left : left + 48]
    theirs, ours = reference.upscale(photo), native.upscale(photo, tile=48)
    assert theirs.shape == ours.shape == (160, 192, 3)
    assert np.abs(theirs.astype(int) - ours).max() <= 1


def test_they_agree_in_sixteen_bits_too(
    reference: ReferenceUpscaler, native: Upscaler, photos: dict[str, Picture]
) -> None:
    deep = photos["chelsea"][:24, :24].astype(np.uint16) * 257
    theirs, ours = reference.upscale(deep), native.upscale(deep)
    assert theirs.dtype == np.uint16
    assert np.abs(theirs.astype(int) - ours).max() <= 16  # of 65535
    with pytest.raises(Failed, match="native"):
        reference.upscale(deep // 512)


@pytest.mark.parametrize("outscale", [0.5, 2.0, 3.3])
def test_another_scale_has_the_size_that_was_told(
    reference: ReferenceUpscaler, photos: dict[str, Picture], outscale: float
) -> None:
    photo = photos["coffee"][:9, :13]
    assert reference.upscale(photo, outscale=outscale).shape[:2] == reference.output_size(9, 13, outscale)


def test_grey_and_transparency_come_back(reference: ReferenceUpscaler, photos: dict[str, Picture]) -> None:
    photo = photos["coffee"][:8, :8]
    assert reference.upscale(photo[..., 0]).shape == (32, 32)
    assert reference.upscale(np.dstack([photo, photo[..., :1]])).shape == (32, 32, 4)
    assert reference.upscale(photo[..., :2]).shape == (32, 32, 4)


def test_what_the_package_prints_does_not_get_into_json(
    reference: ReferenceUpscaler, photos: dict[str, Picture], capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[Tiles] = []
    reference.upscale(photos["coffee"][:16, :16], tile=8, on_progress=told.append)
    said = capsys.readouterr()
    assert said.out == "" and "Tile 4/4" in said.err
    assert [one.done for one in told] == [0, 1, 2, 3, 4] and told[-1].left == 0


def fail_from_second_pass(reference: ReferenceUpscaler, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    network = reference._runner.model.network
    forward, calls = network.forward, []

    def run(batch: object) -> object:
        calls.append(1)
        if len(calls) > 1:
            raise error
        return forward(batch)

    monkeypatch.setattr(network, "forward", run)


@pytest.mark.parametrize(
    ("error", "code"),
    [(RuntimeError("no kernel"), "model_failed"), (RuntimeError("can't allocate memory"), "out_of_memory")],
)
def test_a_failed_tile_fails_the_picture_and_is_not_the_one_before(
    reference: ReferenceUpscaler,
    photos: dict[str, Picture],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    code: str,
) -> None:
    """The package alone would print it and use the previous tile again."""
    fail_from_second_pass(reference, monkeypatch, error)
    with pytest.raises(Failed) as caught:
        reference.upscale(photos["coffee"][:16, :16], tile=8)
    assert caught.value.code == code


def test_raising_between_tiles_ends_the_work_unchanged(
    reference: ReferenceUpscaler, photos: dict[str, Picture]
) -> None:
    def cancel() -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        reference.upscale(photos["coffee"][:16, :16], tile=8, between_tiles=cancel)
    assert reference.upscale(photos["coffee"][:8, :8]).shape == (32, 32, 3)


def test_what_this_engine_does_not_have_is_said(models_dir: Path, tmp_path: Path) -> None:
    for precision in ("bf16", "fp16"):
        with pytest.raises(SetupError, match="native"):
            ReferenceUpscaler(SPEC, models_dir, device="cpu", precision=precision)  # type: ignore[arg-type]
    with pytest.raises(SetupError) as caught:
        ReferenceUpscaler(SPEC, tmp_path)
    assert caught.value.code == "weights_missing"
    with pytest.raises(SetupError, match="does not enhance"):
        ReferenceUpscaler(MODELS["efficientnet-lite0"], models_dir)


def test_engines_are_opened_by_name(models_dir: Path) -> None:
    with open_engine("realesrgan", SPEC, models_dir, device="cpu") as engine:
        assert isinstance(engine, ReferenceUpscaler)
        assert (engine.name, engine.precision, engine.device) == (SPEC.name, "fp32", "cpu")
    with pytest.raises(RuntimeError, match="closed"):
        engine.upscale(np.zeros((4, 4, 3), np.uint8))


def test_what_is_installed_is_what_is_named() -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text(encoding="utf-8")
    assert f"LEGACY := {' '.join(PACKAGES)}" in makefile
