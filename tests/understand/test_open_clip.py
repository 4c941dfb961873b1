"""open_clip models with random weights of a person's own: as embedders, and as embedders of sources."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from cheap_stages import run_lane
from lab import Lab
from own_models import OTHER, PICTURES_ONLY, TOY, weights_file
from PIL import Image

from mirror_realm_assets.catalog import batches, index, sources
from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.finding import Answer, find_like
from mirror_realm_assets.ingest.batching import form_batches
from mirror_realm_assets.ingest.watch import FolderWatch
from mirror_realm_assets.pipeline import check_policy, standard_stages
from mirror_realm_assets.search.update import update_index
from mirror_realm_assets.understand.embedder import Embedder, load_embedder
from mirror_realm_assets.understand.open_clip_embedder import OpenClipEmbedder
from mirror_realm_assets.weights.added import added_models, find
from mirror_realm_assets.weights.adding import add

# With all tests that load weights: open_clip's import alone takes 8 s, and one process is enough to pay it.
pytestmark = pytest.mark.xdist_group("inference")

Picture = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with a model of each toy architecture, and a second one of the first with other weights."""
    folder = tmp_path_factory.mktemp("models")
    add(weights_file(TOY), TOY, folder, name="mine")
    add(weights_file(TOY, 1), TOY, folder, name="second")
    add(weights_file(OTHER), OTHER, folder, name="other")
    add(weights_file(PICTURES_ONLY), PICTURES_ONLY, folder, name="pictures-only")
    return folder


@pytest.fixture(scope="module", params=["mine", "other", "pictures-only"])
def embedder(request: pytest.FixtureRequest, models: Path) -> Iterator[OpenClipEmbedder]:
    loaded = load_embedder(request.param, models, device="cpu")
    assert isinstance(loaded, OpenClipEmbedder)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def mine(models: Path) -> Iterator[OpenClipEmbedder]:
    loaded = load_embedder("mine", models, device="cpu")
    assert isinstance(loaded, OpenClipEmbedder)
    yield loaded
    loaded.close()


def test_vectors_are_normalised_and_of_the_networks_length(
    embedder: OpenClipEmbedder, photos: dict[str, Picture]
) -> None:
    vectors = embedder.embed(list(photos.values()))
    assert vectors.shape == (3, embedder.dim)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert abs(vectors @ vectors.T - np.eye(3)).min() < 0.999  # different pictures have different vectors


def test_a_vector_is_the_same_each_time_and_does_not_depend_on_its_companions(
    embedder: OpenClipEmbedder, photos: dict[str, Picture]
) -> None:
    pictures = [*photos.values()] * 4
    together = embedder.embed(pictures)
    assert np.array_equal(together, embedder.embed(pictures))
    alone = np.concatenate([embedder.embed([picture]) for picture in pictures])
    assert abs(together - alone).max() < 1e-5


def test_vectors_are_those_that_open_clip_itself_gives(
    mine: OpenClipEmbedder, photos: dict[str, Picture], models: Path
) -> None:
    import open_clip
    import torch

    weights = str(models / "added" / "mine.safetensors")
    network, _train, transform = open_clip.create_model_and_transforms(TOY, pretrained=weights)
    picture = next(iter(photos.values()))
    with torch.inference_mode():
        theirs = network.eval().encode_image(transform(Image.fromarray(picture))[None], normalize=True)
        words = network.encode_text(open_clip.get_tokenizer(TOY)(["a red cat"]), normalize=True)
    assert mine.embed([picture]) == pytest.approx(theirs.numpy(), abs=1e-5)
    assert mine.embed_text(["a red cat"]) == pytest.approx(words.numpy(), abs=1e-5)


def test_words_get_vectors_in_the_same_space(mine: OpenClipEmbedder) -> None:
    texts = [f"picture {n}" for n in range(11)] + ["", "word " * 500, "日本 🐈 \x00"]
    vectors = mine.embed_text(texts)
    assert vectors.shape == (len(texts), mine.dim)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert abs(vectors - np.concatenate([mine.embed_text([text]) for text in texts])).max() < 1e-5
    assert mine.embed_text([]).shape == (0, mine.dim)


def test_a_model_whose_tokenizer_is_on_a_hub_says_that_it_embeds_pictures_only(models: Path) -> None:
    loaded = load_embedder("pictures-only", models, device="cpu")
    assert isinstance(loaded, OpenClipEmbedder)
    assert not loaded.reads_text
    with pytest.raises(SetupError, match="embeds pictures only"):
        loaded.embed_text(["a cat"])


@pytest.mark.parametrize("shape", [(1, 1, 3), (1440, 1, 3), (1, 1440, 3), (3, 1000, 3)])
def test_extreme_shapes_are_embedded(embedder: OpenClipEmbedder, shape: tuple[int, int, int]) -> None:
    assert np.isfinite(embedder.embed([np.full(shape, 77, np.uint8)])).all()


def test_an_array_that_is_no_rgb_picture_is_refused(mine: OpenClipEmbedder) -> None:
    with pytest.raises(ValueError, match="uint8"):
        mine.embed([np.zeros((4, 4), np.uint8)])
    assert mine.embed([]).shape == (0, 16)


def test_the_model_is_known_by_name_digest_and_number_format(models: Path, mine: Embedder) -> None:
    digest = next(model.weights_sha256 for model in added_models(models) if model.name == "mine")
    assert (mine.name, mine.digest, mine.precision) == ("mine", digest, "fp32")


def test_bf16_gives_nearly_the_same_vectors(models: Path, photos: dict[str, Picture], mine: Embedder) -> None:
    rough = load_embedder("mine", models, device="cpu", precision="bf16")
    assert rough.precision == "bf16"
    same = (rough.embed(list(photos.values())) * mine.embed(list(photos.values()))).sum(axis=1)
    assert same.min() > 0.99
    assert isinstance(rough, OpenClipEmbedder)
    assert (rough.embed_text(["a cat"]) * mine.embed_text(["a cat"])).sum() > 0.99  # type: ignore[attr-defined]


def test_a_closed_embedder_says_so(models: Path) -> None:
    loaded = load_embedder("mine", models, device="cpu")
    loaded.close()
    loaded.close()
    with pytest.raises(RuntimeError, match="closed"):
        loaded.embed([])


def test_loading_and_embedding_open_no_connection(
    models: Path, photos: dict[str, Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("it opened a connection"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("it looked up a host"))
    for name in ("mine", "pictures-only"):
        load_embedder(name, models, device="cpu").embed(list(photos.values()))


def test_weights_altered_after_they_were_added_are_not_run(tmp_path: Path) -> None:
    model = add(weights_file(TOY), TOY, tmp_path, name="mine").model
    with (tmp_path / model.filename).open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\1\2\3")
    with pytest.raises(SetupError) as caught:
        load_embedder("mine", tmp_path, device="cpu")
    assert caught.value.code == "weights_altered"


# --- As embedders of sources: through the real stages, indexes and search. ---


class Gallery:
    """A home with sources; `work` does what the daemon does until nothing is left."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.stages = standard_stages(lab.settings)
        self.folders = {"demo": lab.folder}
        self.left: list[str] = []

    def source(self, name: str, embedder: str) -> Path:
        folder = self.lab.home.parent / name
        folder.mkdir()
        self.folders[name] = folder
        with self.lab.catalog.write() as conn:
            sources.add(conn, name, os.fsencode(folder), {"enhance": False, "embedder": embedder})
        return folder

    def switch(self, embedder: str) -> None:
        """`sources set demo --option embedder=...`"""
        with self.lab.catalog.write() as conn:
            check_policy(self.lab.settings, sources.get(conn, "demo").policy.merged({"embedder": embedder}))
            sources.set_policy(conn, "demo", {"embedder": embedder, "enhance": False})

    def work(self, name: str = "demo") -> list[str]:
        """Returns the kinds of the batches that were formed."""
        kinds = []
        for key in self.form(name):
            run_lane(self.lab.services, self.stages, key)
            with self.lab.catalog.read() as conn:
                batch = batches.get(conn, key)
            assert batch is not None
            kinds.append(batch.kind)
        update_index(self.lab.services, self.stages, name)
        return kinds

    def form(self, name: str) -> list[str]:
        """Returns the batches of all sources that were formed, and those that `embed_only` left."""
        lab = self.lab
        with lab.catalog.read() as conn:
            source = sources.get(conn, name)
        FolderWatch(lab.catalog, lab.settings, source).scan()
        left, self.left = self.left, []
        return left + list(form_batches(lab.catalog, lab.settings, self.stages, "test", now_or_never=True).keys)

    def embed_only(self, picture: Path) -> None:
        """Another source with the same embedder has the picture too: its vector is there before the source's own batch
        has run."""
        (self.source("elsewhere", "second") / "a.png").write_bytes(picture.read_bytes())
        keys = self.form("elsewhere")
        self.left = [key for key in keys if not key.startswith("elsewhere.")]
        for key in keys:
            if key not in self.left:
                run_lane(self.lab.services, self.stages, key)

    def answer(self, picture: Path, source: str | None = "demo") -> Answer:
        return find_like(self.lab.settings, self.lab.services, picture, source_name=source)

    def like(self, picture: Path, source: str | None = None) -> list[tuple[str, str, float]]:
        """Model, path and score of every hit."""
        hits = self.answer(picture, source).hits
        return [(hit.model, os.fsdecode(path), round(hit.score, 2)) for hit in hits for path in hit.paths]

    def indexes(self, name: str = "demo") -> dict[str, tuple[int, int]]:
        """Vectors and their length, by model, of every index that the source had under these models' recipes."""
        embeddings = next(stage for stage in self.stages if stage.feature == "embeddings")
        found = {}
        with self.lab.catalog.read() as conn:
            source = sources.get(conn, name)
            for model in added_models(self.lab.settings.models_dir):
                recipe = embeddings.recipe(source.policy.merged({"embedder": model.name}))
                assert recipe is not None
                manifest = index.manifest(conn, source.id, recipe.digest)
                if manifest is not None:
                    assert manifest.model == model.name
                    found[model.name] = (manifest.vectors, manifest.dim)
        return found


@pytest.fixture
def gallery(lab: Lab) -> Gallery:
    opened = Gallery(lab)
    models_dir = lab.settings.models_dir
    add(weights_file(TOY), TOY, models_dir, name="first")
    add(weights_file(TOY, 1), TOY, models_dir, name="second")
    return opened


def test_a_source_that_is_switched_is_embedded_anew_and_never_mixed(gallery: Gallery) -> None:
    pictures = [gallery.lab.picture(f"{n}.png", n) for n in range(3)]
    gallery.switch("first")
    assert gallery.work() == ["ingest"]
    assert gallery.like(pictures[1])[0] == ("first", str(pictures[1]), 1.0)

    with pytest.raises(SetupError, match="There is no model 'late'"):
        gallery.switch("late")
    add(weights_file(OTHER), OTHER, gallery.lab.settings.models_dir, name="late")  # while this process runs
    gallery.switch("late")
    assert gallery.work() == ["recompute"]
    found = gallery.like(pictures[1])
    assert found[0] == ("late", str(pictures[1]), 1.0)
    assert {model for model, _path, _score in found} == {"late"}
    assert gallery.indexes() == {"late": (3, 24)}

    gallery.switch("first")
    assert gallery.work() == []  # its vectors were kept
    assert gallery.like(pictures[1])[0] == ("first", str(pictures[1]), 1.0)
    assert gallery.indexes() == {"first": (3, 16)}


def test_the_embedder_of_before_answers_until_the_new_vectors_are_complete(gallery: Gallery) -> None:
    pictures = [gallery.lab.picture(f"{n}.png", n) for n in range(3)]
    gallery.switch("first")
    gallery.work()
    gallery.switch("second")
    newer = gallery.lab.picture("newer.png", 7)

    answer = gallery.answer(pictures[1])
    assert [hit.model for hit in answer.hits] == ["first"] * 3
    assert answer.hits[0].paths == [os.fsencode(pictures[1])]
    assert answer.notes == (
        "The embedder of demo was changed to second. Until all its pictures are embedded anew, those of before are "
        "found by first, and newer pictures are not found yet: see `mirror-realm status`.",
    )
    gallery.embed_only(pictures[0])  # a part of the new vectors is no reason to change
    assert [hit.model for hit in gallery.answer(pictures[0], "elsewhere").hits] == ["second"]
    assert {hit.model for hit in gallery.answer(pictures[1]).hits} == {"first"}
    gallery.work()
    answer = gallery.answer(newer)
    assert {hit.model for hit in answer.hits} == {"second"}
    assert (answer.hits[0].paths, len(answer.hits), answer.notes) == ([os.fsencode(newer)], 4, ())


def test_an_embedder_of_before_whose_weights_are_gone_does_not_answer(gallery: Gallery) -> None:
    picture = gallery.lab.picture("a.png", 1)
    gallery.switch("first")
    gallery.work()
    gallery.switch("second")
    (gallery.lab.settings.models_dir / find(gallery.lab.settings.models_dir, "first").filename).unlink()
    assert gallery.like(picture) == []
    gallery.work()
    assert gallery.like(picture) == [("second", str(picture), 1.0)]


def test_two_sources_with_models_of_one_architecture_find_each_only_its_own(gallery: Gallery) -> None:
    gallery.switch("first")
    mine = gallery.lab.picture("a.png", 1)
    folder = gallery.source("other", "second")
    theirs = folder / "b.png"
    theirs.write_bytes(gallery.lab.picture("b.png", 2).read_bytes())
    (gallery.lab.folder / "b.png").unlink()
    gallery.work("demo")
    gallery.work("other")
    assert gallery.like(mine, "demo") == [("first", str(mine), 1.0)]
    assert gallery.like(theirs, "other") == [("second", str(theirs), 1.0)]
    # The same picture in both: one vector each, made by its own model, in its own index.
    (folder / "a.png").write_bytes(mine.read_bytes())
    gallery.work("other")
    assert gallery.indexes("demo") == {"first": (1, 16)}
    assert gallery.indexes("other") == {"second": (2, 16)}
    assert gallery.like(mine, "other")[0] == ("second", str(folder / "a.png"), 1.0)
