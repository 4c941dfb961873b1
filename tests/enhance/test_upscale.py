"""Upscaling with the real weights, in fp32, on pictures small enough for two cores."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import skimage.data
from PIL import Image

from mirror_realm_assets.enhance.networks import Network
from mirror_realm_assets.enhance.progress import Tiles
from mirror_realm_assets.enhance.upscale import Upscaler
from mirror_realm_assets.errors import Failed, SetupError
from mirror_realm_assets.weights.registry import MODELS

Picture = npt.NDArray[np.uint8]
SPEC = MODELS["realesrgan-x4plus"]


@pytest.fixture(scope="module")
def upscaler(models_dir: Path) -> Iterator[Upscaler]:
    with Upscaler(SPEC, models_dir, device="cpu", precision="fp32", threads=2) as loaded:
        yield loaded


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Replaces the network by a plain enlargement; gives the heights and widths of what it was asked for."""
    seen: list[tuple[int, int]] = []

    def run(self: Network, picture: Picture) -> Picture:
        seen.append((picture.shape[0], picture.shape[1]))
        return picture.repeat(4, axis=0).repeat(4, axis=1)

    monkeypatch.setattr(Network, "run", run)
    return seen


def noise(height: int, width: int) -> Picture:
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), np.uint8)


def gradient_energy(picture: Picture) -> float:
    grey = picture.astype(np.float32).mean(axis=2)
    return float(np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean())


def test_tiles_leave_no_visible_seam(upscaler: Upscaler) -> None:
    strip = skimage.data.astronaut()[60:92, 160:320]
    whole = upscaler.upscale(strip, tile=160)
    tiled = upscaler.upscale(strip, tile=80, halo=48)
    assert whole.shape == (128, 640, 3)
    assert np.abs(whole.astype(int) - tiled.astype(int)).max() <= 1


def test_details_are_crisper_than_bicubic_and_the_picture_stays_the_same(
    upscaler: Upscaler, photos: dict[str, Picture]
) -> None:
    small = photos["chelsea"][:64, :64]
    enlarged = upscaler.upscale(small)
    bicubic = np.asarray(Image.fromarray(small).resize((256, 256), Image.Resampling.BICUBIC))
    assert enlarged.shape == (256, 256, 3)
    assert enlarged.dtype == np.uint8
    assert gradient_energy(enlarged) > 1.15 * gradient_energy(bicubic)
    back = np.asarray(Image.fromarray(enlarged).resize((64, 64), Image.Resampling.BOX), np.float32)
    assert 10 * np.log10(255**2 / np.mean((back - small) ** 2)) > 25


def test_one_pixel_can_be_enlarged(upscaler: Upscaler) -> None:
    assert upscaler.upscale(np.array([[[128, 128, 129]]], np.uint8)).shape == (4, 4, 3)


def test_the_model_and_its_precision_are_known_by_digest_and_name(upscaler: Upscaler) -> None:
    assert (upscaler.name, upscaler.scale, upscaler.precision) == ("realesrgan-x4plus", 4, "fp32")
    assert upscaler.digest == SPEC.weights_sha256


def test_tiles_are_assembled_in_their_places(upscaler: Upscaler, shapes: list[tuple[int, int]]) -> None:
    picture = noise(70, 130)
    assert np.array_equal(upscaler.upscale(picture, tile=32, halo=8), picture.repeat(4, axis=0).repeat(4, axis=1))
    assert len(shapes) == 15


def test_a_given_tile_is_respected(upscaler: Upscaler, shapes: list[tuple[int, int]]) -> None:
    upscaler.upscale(noise(96, 96), tile=32, halo=0)
    assert shapes == [(32, 32)] * 9


def test_without_a_tile_little_memory_means_small_tiles(
    upscaler: Upscaler, shapes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = noise(300, 300)
    upscaler.upscale(picture)
    assert shapes == [(300, 300)]
    shapes.clear()
    monkeypatch.setattr("mirror_realm_assets.enhance.upscale.free_memory", lambda device: 1_500_000_000)
    upscaler.upscale(picture)
    assert len(shapes) > 1
    assert max(height * width for height, width in shapes) <= 1_500_000_000 * 0.4 / 8_192


def test_between_tiles_is_called_between_tiles(upscaler: Upscaler, shapes: list[tuple[int, int]]) -> None:
    calls: list[int] = []
    upscaler.upscale(noise(64, 64), tile=32, halo=8, between_tiles=lambda: calls.append(len(shapes)))
    assert calls == [1, 2, 3]


def test_raising_between_tiles_ends_the_work_unchanged(upscaler: Upscaler, shapes: list[tuple[int, int]]) -> None:
    def cancel() -> None:
        raise Failed("cancelled", "Cancelled.")

    with pytest.raises(Failed) as caught:
        upscaler.upscale(noise(64, 64), tile=32, halo=8, between_tiles=cancel)
    assert caught.value.code == "cancelled"
    assert len(shapes) == 1


def fail_from_second_tile(monkeypatch: pytest.MonkeyPatch, error: Exception) -> list[int]:
    """Let the network's own pass fail from its second call on; gives the heights it was called with."""
    heights: list[int] = []

    def run(self: Network, descriptor: object, picture: Picture) -> Picture:
        heights.append(picture.shape[0])
        if len(heights) > 1:
            raise error
        return picture.repeat(4, axis=0).repeat(4, axis=1)

    monkeypatch.setattr(Network, "_run", run)
    return heights


def test_a_failed_tile_fails_the_picture(upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_from_second_tile(monkeypatch, RuntimeError("no kernel"))
    with pytest.raises(Failed, match="no kernel") as caught:
        upscaler.upscale(noise(64, 64), tile=32)
    assert caught.value.code == "model_failed"


def test_a_given_tile_is_not_shrunk_when_memory_runs_out(upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch) -> None:
    heights = fail_from_second_tile(monkeypatch, MemoryError())
    with pytest.raises(Failed) as caught:
        upscaler.upscale(noise(256, 256), tile=128)
    assert caught.value.code == "out_of_memory"
    assert len(heights) == 2


def test_a_chosen_tile_is_halved_when_memory_runs_out(upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = noise(256, 256)

    def run(self: Network, descriptor: object, part: Picture) -> Picture:
        if part.shape[0] > 210:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return part.repeat(4, axis=0).repeat(4, axis=1)

    monkeypatch.setattr(Network, "_run", run)
    assert np.array_equal(upscaler.upscale(picture), picture.repeat(4, axis=0).repeat(4, axis=1))


def test_memory_that_never_suffices_fails_the_picture(upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: Network, descriptor: object, picture: Picture) -> Picture:
        raise MemoryError

    monkeypatch.setattr(Network, "_run", run)
    with pytest.raises(Failed) as caught:
        upscaler.upscale(noise(256, 256))
    assert caught.value.code == "out_of_memory"


def test_numbers_that_are_not_finite_fail_the_picture(models_dir: Path) -> None:
    import torch

    with Upscaler(SPEC, models_dir, device="cpu", precision="fp32") as broken:
        descriptor = broken._network._descriptor
        assert descriptor is not None
        with torch.no_grad():
            next(descriptor.model.parameters()).fill_(float("nan"))
        with pytest.raises(Failed, match="not finite") as caught:
            broken.upscale(noise(4, 4))
    assert caught.value.code == "model_failed"


@pytest.mark.parametrize(("outscale", "expected"), [(2.0, (40, 60)), (1.5, (30, 45)), (4.0, (80, 120)), (0.01, (1, 1))])
def test_another_scale_is_reached_by_a_final_resize(
    upscaler: Upscaler, shapes: list[tuple[int, int]], outscale: float, expected: tuple[int, int]
) -> None:
    assert upscaler.upscale(noise(20, 30), outscale=outscale).shape == (*expected, 3)


@pytest.mark.parametrize("picture", [np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)])
def test_an_array_that_is_no_picture_is_refused(upscaler: Upscaler, picture: npt.NDArray[np.generic]) -> None:
    with pytest.raises(ValueError, match="expected"):
        upscaler.upscale(picture)  # type: ignore[arg-type]


def test_true_grey_stays_grey(upscaler: Upscaler, photos: dict[str, Picture]) -> None:
    grey = photos["chelsea"][:24, :24, 1]
    single, triple = upscaler.upscale(grey), upscaler.upscale(np.repeat(grey[..., None], 3, axis=2))
    assert single.shape == triple.shape == (96, 96) and np.array_equal(single, triple)
    back = np.asarray(Image.fromarray(single).resize((24, 24), Image.Resampling.BOX), np.float32)
    assert np.abs(back - grey).mean() < 8


def test_sixteen_bits_come_out_as_sixteen_and_agree_with_eight(upscaler: Upscaler, photos: dict[str, Picture]) -> None:
    photo = photos["chelsea"][:24, :24]
    eight, sixteen = upscaler.upscale(photo), upscaler.upscale(photo.astype(np.uint16) * 257)
    assert sixteen.dtype == np.uint16
    assert np.abs(sixteen / 257 - eight).max() <= 0.51  # what eight bits round away
    assert len(np.unique(sixteen)) > 256


def test_transparency_is_resized_beside_the_network(upscaler: Upscaler, shapes: list[tuple[int, int]]) -> None:
    picture = np.dstack([noise(40, 30), np.repeat(np.linspace(0, 255, 40).astype(np.uint8)[:, None], 30, axis=1)])
    enlarged = upscaler.upscale(picture)
    assert enlarged.shape == (160, 120, 4) and shapes == [(40, 30)]
    expected = Image.fromarray(picture[..., 3]).resize((120, 160), Image.Resampling.LANCZOS)
    assert np.abs(enlarged[..., 3].astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize("outscale", [None, 0.5, 2.0, 3.3, 8.0])
@pytest.mark.parametrize("kind", ["grey", "colour", "transparent"])
def test_strips_are_the_whole_picture(
    upscaler: Upscaler, shapes: list[tuple[int, int]], outscale: float | None, kind: str
) -> None:
    picture = noise(150, 40)
    picture = {"grey": picture[..., 0], "colour": picture, "transparent": np.dstack([picture, picture[..., 0]])}[kind]
    whole = upscaler.upscale(picture, tile=150, outscale=outscale)
    strips = list(upscaler.strips(picture, tile=40, halo=8, outscale=outscale))
    assert len(strips) > 1
    assert whole.shape[:2] == upscaler.output_size(150, 40, outscale)
    assert np.abs(np.concatenate(strips).astype(int) - whole).max() <= 1


def test_progress_goes_from_nothing_to_everything(upscaler: Upscaler, shapes: list[tuple[int, int]]) -> None:
    told: list[Tiles] = []
    upscaler.upscale(noise(64, 64), tile=32, halo=8, on_progress=told.append)
    assert [(one.done, one.total) for one in told] == [(count, 4) for count in range(5)]
    left = [one.left for one in told]
    assert left[0] == 1 and left[-1] == 0 and left == sorted(left, reverse=True)


def test_what_was_done_before_memory_ran_out_is_not_done_again(
    upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = noise(700, 64)
    seen: list[int] = []
    told: list[Tiles] = []

    def run(self: Network, descriptor: object, part: Picture) -> Picture:
        if len(seen) >= 2 and part.shape[0] > 200:
            raise MemoryError
        seen.append(part.shape[0])
        return part.repeat(4, axis=0).repeat(4, axis=1)

    monkeypatch.setattr(Network, "_run", run)
    monkeypatch.setattr("mirror_realm_assets.enhance.upscale.free_memory", lambda device: 1_000_000_000)
    enlarged = upscaler.upscale(picture, on_progress=told.append)
    assert np.array_equal(enlarged, picture.repeat(4, axis=0).repeat(4, axis=1))
    assert seen[0] > 200 and sum(height > 200 for height in seen) == 2
    assert told[-1].done == told[-1].total == len(seen) and told[-1].left == 0


def test_altered_weights_are_never_loaded(models_dir: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(models_dir / SPEC.filename, tmp_path))
    with copy.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(SetupError) as caught:
        Upscaler(SPEC, tmp_path, device="cpu")
    assert caught.value.code == "weights_altered"


def test_a_model_for_another_purpose_is_refused(models_dir: Path) -> None:
    with pytest.raises(SetupError, match="does not enhance"):
        Upscaler(MODELS["efficientnet-lite0"], models_dir)


def test_a_closed_upscaler_says_so(models_dir: Path) -> None:
    upscaler = Upscaler(SPEC, models_dir, device="cpu", precision="fp32")
    upscaler.close()
    upscaler.close()
    with pytest.raises(RuntimeError, match="closed"):
        upscaler.upscale(noise(4, 4))
