"""Faces are restored by the network as the package would, and put back where they were.

No package carries GFPGAN's weights, so the network has random ones: that it is the same network is what can be shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import skimage.data

from mirror_realm_assets.enhance.faces import FaceRestorer, RestoredFace, with_faces
from mirror_realm_assets.enhance.legacy import load
from mirror_realm_assets.errors import Failed, SetupError
from mirror_realm_assets.faces.alignment import SIDE, aligned, inverse, to_aligned
from mirror_realm_assets.faces.mtcnn import Face, FaceDetector
from mirror_realm_assets.weights.fetch import sha256_of
from mirror_realm_assets.weights.registry import MODELS, RELEASED, ReleasedModel

Picture = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory, models_dir: Path) -> tuple[Path, ReleasedModel]:
    """A models folder with a GFPGAN of random weights, and the detector's real ones."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("models")
    (folder / "mtcnn.safetensors").symlink_to(models_dir / "mtcnn.safetensors")
    torch.manual_seed(4)
    network = load("gfpgan.archs.gfpganv1_clean_arch").GFPGANv1Clean(
        out_size=512, num_style_feat=512, channel_multiplier=2, decoder_load_path=None, fix_decoder=False, num_mlp=8,
        input_is_latent=True, different_w=True, narrow=1, sft_half=True,
    )  # fmt: skip
    model = RELEASED["gfpgan-v1.4"]
    path = folder / model.filename
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)
    record = {"form": 1, "source_sha256": model.source_sha256, "weights_sha256": sha256_of(path)}
    (folder / f"{model.name}.json").write_text(json.dumps(record | {"bytes": path.stat().st_size}))
    return folder, replace(model, weights_sha256=record["weights_sha256"], bytes=path.stat().st_size)


@pytest.fixture(scope="module")
def restorer(random_weights: tuple[Path, ReleasedModel]) -> Iterator[FaceRestorer]:
    folder, model = random_weights
    with (
        FaceDetector(MODELS["mtcnn"], folder, device="cpu") as detector,
        FaceRestorer(model, detector, folder, device="cpu") as loaded,
    ):
        yield loaded


def test_the_network_is_the_packages(restorer: FaceRestorer, random_weights: tuple[Path, ReleasedModel]) -> None:
    import torch
    from safetensors.torch import load_file

    folder, model = random_weights
    theirs = load("gfpgan.archs.gfpganv1_clean_arch").GFPGANv1Clean(
        out_size=512, num_style_feat=512, channel_multiplier=2, decoder_load_path=None, fix_decoder=False, num_mlp=8,
        input_is_latent=True, different_w=True, narrow=1, sft_half=True,
    )  # fmt: skip
    theirs.load_state_dict(load_file(folder / model.filename), strict=True)
    theirs.eval()
    matrix = to_aligned(np.array([[209, 111], [246, 110], [231, 130], [213, 146], [243, 146]], np.float32))
    assert matrix is not None
    face = aligned(skimage.data.astronaut(), matrix)
    with torch.inference_mode():
        batch = torch.tensor(face).permute(2, 0, 1)[None].float() / 127.5 - 1
        expected = theirs(batch, return_rgb=False, randomize_noise=False)[0][0]
        got = restorer._network(batch, return_rgb=False, randomize_noise=False)[0][0]
    assert torch.equal(expected, got)
    levels = np.rint((expected.clamp(-1, 1).numpy().transpose(1, 2, 0) + 1) * 127.5).astype(int)
    first = restorer.run(face)
    assert np.abs(first - levels).max() <= 1
    assert np.array_equal(first, restorer.run(face))  # no noise of its own


def test_a_face_is_found_and_mixed_by_its_weight(restorer: FaceRestorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FaceRestorer, "run", lambda _self, face: np.full_like(face, 200))
    photo = skimage.data.astronaut()
    before, half, after = (restorer.restored(photo, weight=weight)[0].pixels.astype(int) for weight in (0, 0.5, 1))
    assert (after == 200).all() and np.abs(half - (before + after) / 2).max() <= 0.5
    assert len(restorer.restored(photo.astype(np.uint16) * 257)) == 1
    with pytest.raises(ValueError, match="weight"):
        restorer.restored(photo, weight=1.5)


def test_a_picture_without_faces_or_with_small_ones_costs_no_pass(
    restorer: FaceRestorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(_self: FaceRestorer, _face: Picture) -> Picture:
        raise AssertionError

    monkeypatch.setattr(FaceRestorer, "run", never)
    assert restorer.restored(skimage.data.chelsea()) == []
    assert restorer.restored(skimage.data.astronaut(), min_size=300) == []


def test_landmarks_that_make_no_face_are_passed_over(restorer: FaceRestorer, monkeypatch: pytest.MonkeyPatch) -> None:
    nonsense = Face((0, 0, 50, 50), 0.99, np.zeros((5, 2), np.float32))
    monkeypatch.setattr(FaceDetector, "detect", lambda *_, **__: [nonsense])
    assert restorer.restored(skimage.data.astronaut()) == []


@pytest.mark.parametrize("outscale", [1, 2.0, 4])
@pytest.mark.parametrize("kind", ["colour", "grey", "transparent", "deep"])
def test_what_was_not_changed_comes_back_to_its_place(kind: str, outscale: float) -> None:
    """The face as it was, put into the same picture made larger: nothing moves."""
    photo = skimage.data.astronaut()[40:232, 150:342]
    landmarks = np.array([[209, 111], [246, 110], [231, 130], [213, 146], [243, 146]], np.float32) - (150, 40)
    matrix = to_aligned(landmarks.astype(np.float32))
    assert matrix is not None
    picture: npt.NDArray[np.generic] = photo
    if kind == "grey":
        picture = photo.mean(axis=2).round().astype(np.uint8)
        photo = np.repeat(picture[..., None], 3, axis=2)
    elif kind == "transparent":
        picture = np.dstack([photo, photo[..., :1]])
    elif kind == "deep":
        picture = photo.astype(np.uint16) * 257
    size = (round(192 * outscale), round(192 * outscale))
    import cv2

    large = cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)
    face = RestoredFace(aligned(photo, matrix), inverse(matrix))
    strips = [large[top : top + 50] for top in range(0, size[0], 50)]
    made = np.concatenate(list(with_faces(strips, [face], (192, 192), size)))
    assert made.shape == large.shape and made.dtype == large.dtype
    unit = 257 if kind == "deep" else 1
    difference = np.abs(made.astype(int) - large).astype(float) / unit
    assert difference.mean() < 1.5 and np.percentile(difference, 99) < 16
    if kind == "transparent":
        assert np.array_equal(made[..., 3], large[..., 3])


def test_a_face_fades_into_the_picture_and_changes_nothing_outside_and_strips_do_not_matter() -> None:
    picture = np.zeros((300, 300, 3), np.uint8)
    white = RestoredFace(np.full((SIDE, SIDE, 3), 255, np.uint8), np.array([[0.25, 0, 100.0], [0, 0.25, 80.0]]))
    whole = next(with_faces([picture], [white], (300, 300), (300, 300)))
    assert whole[80 + 64, 100 + 64].min() == 255
    assert whole[:80].max() == whole[80 + 129 :].max() == whole[:, :100].max() == whole[:, 100 + 129 :].max() == 0
    assert whole[80:84, 100:228].max() < 20  # its border does not show
    for height in (1, 7, 111):
        strips = [picture[top : top + height] for top in range(0, 300, height)]
        assert np.array_equal(np.concatenate(list(with_faces(strips, [white], (300, 300), (300, 300)))), whole)
    assert picture.max() == 0


def test_a_face_that_reaches_out_of_the_picture_is_cut() -> None:
    picture = np.zeros((60, 60, 3), np.uint8)
    for x, y in ((-60.0, 0.0), (40.0, -70.0), (500.0, 500.0)):
        face = RestoredFace(np.full((SIDE, SIDE, 3), 255, np.uint8), np.array([[0.25, 0, x], [0, 0.25, y]]))
        (made,) = with_faces([picture], [face], (60, 60), (60, 60))
        assert made.shape == (60, 60, 3)


def test_numbers_that_are_not_finite_fail_the_picture(restorer: FaceRestorer, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    class Broken(torch.nn.Module):
        def forward(self, batch: torch.Tensor, **_: object) -> tuple[torch.Tensor, list[object]]:
            return batch * float("nan"), []

    monkeypatch.setattr(restorer, "_network", Broken())
    with pytest.raises(Failed, match="not finite"):
        restorer.run(np.zeros((SIDE, SIDE, 3), np.uint8))


def test_a_model_for_another_purpose_is_refused(models_dir: Path, restorer: FaceRestorer) -> None:
    with pytest.raises(SetupError, match="does not restore"):
        FaceRestorer(MODELS["realesrgan-x4plus"], restorer._detector, models_dir)
