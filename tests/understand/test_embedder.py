"""Embeddings with the real weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.understand.embedder import Embedder, load_embedder
from mirror_realm_assets.weights.registry import MODELS

Picture = npt.NDArray[np.uint8]
NAME = "efficientnet-lite0"


@pytest.fixture(scope="module")
def embedder(models_dir: Path) -> Iterator[Embedder]:
    loaded = load_embedder(NAME, models_dir, device="cpu", threads=2)
    yield loaded
    loaded.close()


def test_vectors_are_normalised_and_of_the_declared_length(embedder: Embedder, photos: dict[str, Picture]) -> None:
    vectors = embedder.embed(list(photos.values()))
    assert vectors.shape == (3, 1280) == (len(photos), embedder.dim)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("change", ["flipped", "half size", "grey", "re-encoded"])
def test_a_changed_picture_is_nearest_to_its_own_original(
    embedder: Embedder, photos: dict[str, Picture], change: str, tmp_path: Path
) -> None:
    changed = [altered(photo, change, tmp_path) for photo in photos.values()]
    similarity = embedder.embed(changed) @ embedder.embed(list(photos.values())).T
    assert similarity.argmax(axis=1).tolist() == [0, 1, 2]
    assert similarity.diagonal().min() > 0.7


def altered(photo: Picture, change: str, folder: Path) -> Picture:
    picture = Image.fromarray(photo)
    if change == "flipped":
        return photo[:, ::-1]
    if change == "half size":
        return np.asarray(picture.resize((48, 48), Image.Resampling.LANCZOS))
    if change == "grey":
        return np.asarray(picture.convert("L").convert("RGB"))
    picture.save(folder / "again.jpg", quality=50)
    return np.asarray(Image.open(folder / "again.jpg"))


def test_a_vector_does_not_depend_on_its_companions(embedder: Embedder, photos: dict[str, Picture]) -> None:
    together = embedder.embed([*photos.values(), *photos.values()])
    alone = np.concatenate([embedder.embed([photo]) for photo in photos.values()])
    assert np.abs(together[:3] - alone).max() < 1e-5
    assert np.abs(together[3:] - alone).max() < 1e-5


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 20_000, 3), (20_000, 1, 3), (2, 3, 3)])
def test_extreme_shapes_are_embedded(embedder: Embedder, shape: tuple[int, int, int]) -> None:
    assert np.isfinite(embedder.embed([np.full(shape, 77, np.uint8)])).all()


def test_a_black_picture_has_a_direction_too(embedder: Embedder) -> None:
    assert np.linalg.norm(embedder.embed([np.zeros((32, 32, 3), np.uint8)])) == pytest.approx(1.0, abs=1e-5)


def test_no_pictures_give_no_vectors(embedder: Embedder) -> None:
    assert embedder.embed([]).shape == (0, 1280)


def test_the_model_is_known_by_name_and_digest(embedder: Embedder) -> None:
    assert (embedder.name, embedder.digest, embedder.precision) == (NAME, MODELS[NAME].weights_sha256, "fp32")


def test_an_array_that_is_no_rgb_picture_is_refused(embedder: Embedder) -> None:
    with pytest.raises(ValueError, match="expected HxWx3 uint8"):
        embedder.embed([np.zeros((4, 4), np.uint8)])


def test_missing_weights_and_other_models_are_refused(models_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupError) as caught:
        load_embedder(NAME, tmp_path)
    assert caught.value.code == "weights_missing"
    with pytest.raises(SetupError, match="makes no embeddings"):
        load_embedder("realesrgan-x4plus", models_dir)


def test_a_closed_embedder_says_so(models_dir: Path, photos: dict[str, Picture]) -> None:
    embedder = load_embedder(NAME, models_dir, device="cpu")
    embedder.close()
    embedder.close()
    with pytest.raises(RuntimeError, match="closed"):
        embedder.embed(list(photos.values()))
