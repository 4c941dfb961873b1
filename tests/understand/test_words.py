"""Words before any model sees them: what is refused, how Chinese is read, and the tables behind it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import Lab
from own_models import PICTURES_ONLY, TOY, weights_file

from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.understand import minilm
from mirror_realm_assets.understand.chinese import translate
from mirror_realm_assets.understand.label_search import label_vectors
from mirror_realm_assets.understand.labels import labels, table
from mirror_realm_assets.understand.stage import embedder
from mirror_realm_assets.understand.words import MAX_CHARACTERS, NoWordsError, TextEmbedder, query_of, understood
from mirror_realm_assets.weights.adding import add
from mirror_realm_assets.weights.registry import MODELS

HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")

# --- The tables. ---


@pytest.mark.xdist_group("inference")  # importing torchvision takes 3 s; the process that loads models has done so
def test_the_labels_are_the_published_ones_in_their_order() -> None:
    from torchvision.models import ResNet50_Weights

    assert [label.name for label in labels()] == ResNet50_Weights.DEFAULT.meta["categories"]
    assert [label.index for label in labels()] == list(range(1000))


def test_every_label_has_chinese_names_of_its_own() -> None:
    names = [name for label in labels() for name in label.chinese]
    assert all(label.chinese and all(map(HAN.search, label.chinese)) for label in labels())
    assert len(names) == len(set(names))


def test_labels_with_one_english_word_for_two_things_are_told_apart() -> None:
    phrases = [label.phrase.casefold() for label in labels()]
    assert len(set(phrases)) == 1000
    assert labels()[517].phrase == "crane, construction machine"
    assert "bird" in labels()[134].phrase
    assert labels()[264].phrase == "Cardigan, dog"
    assert labels()[474].phrase == "cardigan, knitted jacket"


def test_everyday_words_are_in_one_table_once_and_have_english() -> None:
    rows = table("chinese_words.tsv")
    words = [chinese for chinese, _english in rows]
    assert sum(bool(english) for _chinese, english in rows) > 500
    assert all(map(HAN.search, words))
    assert len(words) == len(set(words))
    assert not set(words) & {name for label in labels() for name in label.chinese}
    assert all(english.isascii() and english == english.strip() for _chinese, english in rows)


def test_traditional_characters_lead_to_simplified_ones_that_need_no_further_step() -> None:
    pairs = dict(table("chinese_traditional.tsv"))
    assert not set(pairs) & set(pairs.values())
    tables = [name for label in labels() for name in label.chinese] + [row[0] for row in table("chinese_words.tsv")]
    assert not set(pairs) & set("".join(tables)), "a table's word in traditional characters would never be found"


# --- Reading Chinese. ---


@pytest.mark.parametrize(
    ("chinese", "english"),
    [
        ("猫", "cat"),
        ("狗", "dog"),
        ("杯子", "cup, coffee or tea cup"),
        ("海滩", "beach"),
        ("热饮", "hot drink, coffee or tea"),
        ("热狗", "hotdog"),  # neither "hot" nor "dog"
        ("火箭发射", "rocket launch"),
        ("起重机", "crane, construction machine"),
        ("戴头盔的人", "wearing helmet person"),
        ("一只小猫在沙发上睡觉", "kitten sofa sleeping"),
        ("马克杯里的热饮", "coffee mug hot drink, coffee or tea"),
        ("红色car", "red car"),
        ("女人", "woman, woman in a gown"),
        ("一个女人的照片", "woman, woman in a gown"),
        ("戴帽子的女人", "wearing hat woman"),  # what she wears is said
        ("男人和狗", "man dog"),
        ("我的CD播放器", "CD player"),
        ("墙上的钟，早餐", "wall clock breakfast"),
        ("小貓", "kitten"),
        ("熱氣球", "balloon, hot-air balloon"),
        ("火箭發射", "rocket launch"),
    ],
)
def test_chinese_is_cut_into_words_and_read_in_english(chinese: str, english: str) -> None:
    found = translate(chinese)
    assert (found.english, found.unknown) == (english, ())


def test_what_no_table_holds_is_named_as_it_was_written() -> None:
    assert translate("量子力學和貓以及鑒賞猫").unknown == ("量子力學", "鑒賞")
    words, notes = understood("量子力学和猫")
    assert words == "cat"
    assert notes == ("Read as: cat.", "Not understood and left out: 量子力学.")


# --- What are no words. ---


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "nothing to search for"),
        (" \t\n\u3000", "nothing to search for"),
        ("\u200b\ufeff", "nothing to search for"),
        ("cat " * 200, "800 characters"),
        ("cat\x1b[31m", "control characters"),
        ("cat\x00", "control characters"),
        ("cat\udcff", "control characters"),
        ("?!…", "no words"),
        ("🐱", "no words"),
        ("кошка", "no words"),
        ("量子力学", "None of these Chinese words"),
        ("的", "None of these Chinese words"),
    ],
)
def test_a_text_without_words_we_know_is_refused_with_a_remedy(text: str, said: str) -> None:
    with pytest.raises(SetupError, match=said) as caught:
        understood(text)
    assert caught.value.code == "invalid_argument"
    assert caught.value.remedy


def test_words_are_taken_as_they_are_but_for_their_form() -> None:
    assert understood("  ｃａｔ\n on  a\u00a0sofa ") == ("cat on a sofa", ())
    assert understood("x" * MAX_CHARACTERS)[0] == "x" * MAX_CHARACTERS


@given(st.one_of(st.text(), st.text("猫狗的在热饮量子 aT恤—'’-_é\u0301", max_size=30)))
def test_any_text_is_understood_or_refused(text: str) -> None:
    try:
        words, _notes = understood(text)
    except SetupError as error:
        assert error.code == "invalid_argument"
    else:
        assert words.strip() == words != ""


# --- Models that read words themselves, with random weights. ---


def test_a_model_with_a_text_tower_reads_the_words_itself_and_as_a_caption(lab: Lab) -> None:
    add(weights_file(TOY), TOY, lab.settings.models_dir, name="mine")
    found = query_of("一只猫", services=lab.services, embedder_name="mine")
    assert (found.kind, found.labels, found.notes) == ("text", (), ("Read as: cat.",))
    model = embedder(lab.services, "mine")
    assert isinstance(model, TextEmbedder)
    mean = model.embed_text(["cat", "a photo of cat"]).mean(axis=0)
    assert found.vector == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)
    assert found.vector.dtype == np.float32


def test_a_model_without_one_says_what_to_do(lab: Lab) -> None:
    add(weights_file(PICTURES_ONLY), PICTURES_ONLY, lab.settings.models_dir, name="pictures-only")
    with pytest.raises(NoWordsError, match=r"pictures-only knows pictures only.*--like"):
        query_of("cat", services=lab.services, embedder_name="pictures-only")


def test_label_search_without_the_encoder_says_what_to_fetch(lab: Lab) -> None:
    with pytest.raises(SetupError) as caught:
        query_of("cat", services=lab.services, embedder_name="efficientnet-lite0")
    assert caught.value.code == "weights_missing"


# --- The text encoder, with the real weights. ---


@pytest.fixture(scope="module")
def encoder(models_dir: Path) -> minilm.SentenceEncoder:
    return minilm.SentenceEncoder(MODELS["all-minilm-l6-v2"], models_dir)


def test_sentences_of_one_meaning_lie_together(encoder: minilm.SentenceEncoder) -> None:
    # The model card's own example, and its published similarities.
    vectors: npt.NDArray[np.float32] = encoder.encode(
        ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]
    )
    assert vectors.shape == (4, 384)
    assert (vectors[0] @ vectors[1:].T).tolist() == pytest.approx([0.695, 0.943, 0.257], abs=5e-3)


def test_a_text_does_not_depend_on_its_companions_and_long_ones_are_cut(encoder: minilm.SentenceEncoder) -> None:
    texts = ["cat", "word " * 200, "a photo of a very small cat on a sofa", "word " * 250]
    together = encoder.encode(texts)
    assert together == pytest.approx(np.concatenate([encoder.encode([text]) for text in texts]), abs=1e-5)
    assert together[1] == pytest.approx(together[3], abs=1e-6)
    assert encoder.encode([]).shape == (0, 384)


def test_a_closed_encoder_says_so(models_dir: Path) -> None:
    closed = minilm.SentenceEncoder(MODELS["all-minilm-l6-v2"], models_dir)
    closed.close()
    closed.close()
    with pytest.raises(RuntimeError, match="closed"):
        closed.encode(["cat"])
    with pytest.raises(SetupError, match="reads no text"):
        minilm.SentenceEncoder(MODELS["efficientnet-lite0"], models_dir)


# --- The labels' vectors, with an encoder that takes no time. ---


class LengthEncoder:
    """Vectors of two numbers that depend on the length of a text; counts what it is asked."""

    dim = 2

    def __init__(self) -> None:
        self.asked = 0

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        self.asked += len(texts)
        angles = np.array([len(text) / 100 for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    def close(self) -> None:
        """Holds nothing."""


@pytest.mark.parametrize("damage", ["cut", "empty", "other numbers", "an object", "gone"])
def test_the_labels_vectors_are_made_once_and_again_when_they_are_damaged(tmp_path: Path, damage: str) -> None:
    encoder, folder = LengthEncoder(), tmp_path / "cache"
    made = label_vectors(encoder, folder)
    assert np.array_equal(label_vectors(encoder, folder), made)
    assert encoder.asked == 1000
    (kept,) = folder.iterdir()
    if damage == "cut":
        kept.write_bytes(kept.read_bytes()[:1000])
    elif damage == "empty":
        kept.write_bytes(b"")
    elif damage == "other numbers":
        np.save(kept, np.full((1000, 2), 7, np.float32))
    elif damage == "an object":
        np.save(kept, np.array([{}], object), allow_pickle=True)
    else:
        kept.unlink()
    assert np.array_equal(label_vectors(encoder, folder), made)
    assert encoder.asked == 2000
    assert np.array_equal(np.load(kept, allow_pickle=False), made)


def test_a_home_that_cannot_be_written_to_costs_time_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"a file where the folder would be")
    assert label_vectors(LengthEncoder(), tmp_path / "cache").shape == (1000, 2)
