"""Finding pictures by words and like others, in a real small library with the real weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from cheap_stages import run_lane
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lab import Lab
from own_models import PICTURES_ONLY, TOY, weights_file
from PIL import Image

from mirror_realm_assets.catalog import sources
from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.finding import Answer, find_like, find_text
from mirror_realm_assets.ingest.batching import form_batches
from mirror_realm_assets.ingest.watch import FolderWatch
from mirror_realm_assets.pipeline import standard_stages
from mirror_realm_assets.search.update import update_index
from mirror_realm_assets.understand.label_search import label_search
from mirror_realm_assets.understand.labels import labels
from mirror_realm_assets.weights.adding import add

PICTURES = ("astronaut", "camera", "chelsea", "coffee", "coins", "page", "rocket", "brick")


@pytest.fixture(scope="module")
def library(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Eight photographs of 256 pixels, embedded and indexed; models can be added to its home."""
    home = tmp_path_factory.mktemp("home")
    (home / "models").mkdir()
    for weights in models_dir.glob("*.safetensors"):
        (home / "models" / weights.name).symlink_to(weights)
    opened = Lab(home, tmp_path_factory.mktemp("photos"), {"enhance": False}, {"device": "cpu"})
    for name in PICTURES:
        photo = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        photo.thumbnail((256, 256))
        photo.save(opened.folder / f"{name}.jpg", quality=90)
    work(opened, "demo")
    yield opened
    opened.close()


def work(lab: Lab, name: str) -> None:
    """What the daemon does until nothing of a source is left."""
    stages = standard_stages(lab.settings)
    with lab.catalog.read() as conn:
        source = sources.get(conn, name)
    FolderWatch(lab.catalog, lab.settings, source).scan()
    for key in form_batches(lab.catalog, lab.settings, stages, "test", now_or_never=True).keys:
        run_lane(lab.services, stages, key)
    update_index(lab.services, stages, name)


def names(answer: Answer) -> list[str]:
    return [Path(os.fsdecode(hit.paths[0])).stem for hit in answer.hits]


@pytest.fixture
def ask(library: Lab) -> Callable[..., Answer]:
    def asked(text: str, **options: object) -> Answer:
        return find_text(library.settings, library.services, text, **options)  # type: ignore[arg-type]

    return asked


@pytest.mark.parametrize(
    ("words", "picture"),
    [
        ("kitten", "chelsea"),
        ("hot drink in a mug", "coffee"),
        ("breakfast", "coffee"),
        ("spacecraft launch", "rocket"),
        ("person wearing a helmet", "astronaut"),
        ("photographer with a camera on a tripod", "camera"),
        ("a printed page of text", "page"),
        ("小猫", "chelsea"),
        ("猫咪", "chelsea"),
        ("马克杯里的热饮", "coffee"),
        ("热饮", "coffee"),
        ("火箭发射", "rocket"),
        ("火箭發射", "rocket"),
        ("戴头盔的人", "astronaut"),
        ("三脚架上的相机", "camera"),
    ],
)
def test_words_find_the_picture_that_shows_what_they_say(
    ask: Callable[..., Answer], library: Lab, words: str, picture: str
) -> None:
    answer = ask(words)
    assert names(answer)[0] == picture
    assert answer.kind == "label"
    assert sorted(names(answer)) == sorted(PICTURES)
    assert [hit.rank for hit in answer.hits] == list(range(1, 9))
    assert answer.hits[0].model == "efficientnet-lite0"
    assert answer.hits[0].paths == [os.fsencode(library.folder / f"{picture}.jpg")]


def test_the_notes_name_the_labels_that_were_used(ask: Callable[..., Answer]) -> None:
    assert ask("killer whale").notes == ("Nearest of the 1000 things that label search knows: killer whale.",)
    read, nearest = ask("一杯浓缩咖啡").notes
    assert read == "Read as: espresso, espresso coffee."
    assert "espresso" in nearest


@pytest.mark.parametrize("words", ["tax return", "the meaning of life", "giraffe"])
def test_words_far_from_every_label_are_answered_with_a_warning(ask: Callable[..., Answer], words: str) -> None:
    answer = ask(words)
    assert len(answer.hits) == len(PICTURES)
    assert "far from all of the 1000 things" in answer.notes[-1]


def test_a_label_in_chinese_is_that_label(library: Lab) -> None:
    """Every label's Chinese name leads to the label itself, and not only to its neighbourhood."""
    search = label_search(library.services)
    chosen = [labels()[n] for n in (8, 134, 207, 281, 388, 517, 673, 724, 897, 985)]
    for label in chosen:
        found = search.query(label.phrase)
        assert found.labels[0] == label.name
        assert not found.far
        assert np.linalg.norm(found.vector) == pytest.approx(1.0, abs=1e-5)


def test_fewer_hits_can_be_asked_for_and_one_source_only(ask: Callable[..., Answer]) -> None:
    assert names(ask("cat", count=1, source_name="demo")) == ["chelsea"]
    with pytest.raises(SetupError) as caught:
        ask("cat", source_name="nosuch")
    assert caught.value.code == "not_found"


def test_a_picture_finds_itself_first(library: Lab) -> None:
    answer = find_like(library.settings, library.services, library.folder / "coins.jpg", count=3)
    assert (answer.kind, names(answer)[0], len(answer.hits), answer.notes) == ("like", "coins", 3, ())
    assert answer.hits[0].score == pytest.approx(1.0, abs=2e-3)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(st.text(max_size=40), st.text("cat dog 猫狗的热饮—\x00é", max_size=20)))
def test_any_text_is_answered_or_refused(ask: Callable[..., Answer], text: str) -> None:
    try:
        answer = ask(text, count=3)
    except SetupError as error:
        assert error.code == "invalid_argument"
    else:
        assert len(answer.hits) == 3
        assert answer.notes


def test_the_labels_vectors_are_kept_in_the_home(library: Lab, ask: Callable[..., Answer]) -> None:
    first = ask("cat")
    (kept,) = (library.settings.home / "cache").iterdir()
    made = kept.stat().st_mtime_ns
    library.services.let_go("label_search")
    assert ask("cat") == first
    assert kept.stat().st_mtime_ns == made
    assert np.load(kept, allow_pickle=False).shape == (1000, 384)


def test_sources_with_other_models_are_asked_in_their_own_way(library: Lab, tmp_path: Path) -> None:
    add(weights_file(TOY), TOY, library.settings.models_dir, name="reads-words")
    add(weights_file(PICTURES_ONLY), PICTURES_ONLY, library.settings.models_dir, name="pictures-only")
    for name, model in (("tower", "reads-words"), ("mute", "pictures-only")):
        (tmp_path / name).mkdir()
        for picture in ("coffee", "rocket"):
            (tmp_path / name / f"{picture}.jpg").write_bytes((library.folder / f"{picture}.jpg").read_bytes())
        with library.catalog.write() as conn:
            options = {"enhance": False, "embedder": model}
            sources.add(conn, name, os.fsencode(tmp_path / name), options)
        work(library, name)
    try:
        answer = find_text(library.settings, library.services, "hot drink in a mug")
        assert answer.kind == "label"
        assert names(answer)[0] == "coffee"
        assert [hit.model for hit in answer.hits] == ["efficientnet-lite0"] * 8 + ["reads-words"] * 2
        assert any("Models of two kinds answered" in note for note in answer.notes)
        assert any("pictures-only knows pictures only" in note for note in answer.notes)

        alone = find_text(library.settings, library.services, "cup", source_name="tower")
        assert (alone.kind, alone.notes, len(alone.hits)) == ("text", (), 2)
        with pytest.raises(SetupError, match="pictures-only knows pictures only"):
            find_text(library.settings, library.services, "cup", source_name="mute")
        like = find_like(library.settings, library.services, library.folder / "rocket.jpg", source_name="mute")
        assert (like.kind, names(like)[0]) == ("like", "rocket")
    finally:
        with library.catalog.write() as conn:
            for name in ("tower", "mute"):
                sources.set_state(conn, name, "removed")
