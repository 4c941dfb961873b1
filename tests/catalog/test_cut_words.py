"""Cutting texts into words: the same for what is kept and what is asked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror_realm_assets.catalog.words import Term, terms_of, words_of


def found(kept: str, asked: str) -> bool:
    """Whether a text is found by what is asked, as both databases look it up."""
    words, terms = words_of(kept), terms_of(asked)
    return bool(terms) and all(
        any(word.startswith(term.word) if term.begins else word == term.word for word in words) for term in terms
    )


def test_chinese_is_cut_into_pairs() -> None:
    assert words_of("照片目录") == ["照片", "片目", "目录", "录"]
    assert terms_of("目录") == [Term("目录", begins=False)]
    assert terms_of("录") == [Term("录", begins=True)]


@pytest.mark.parametrize(
    ("kept", "asked"),
    [
        ("我的照片/2019年", "照片"), ("自动处理.jpg", "处理"), ("自动处理.jpg", "自动处理"), ("目录", "录"),
        ("目录", "目"),
        ("2019/IMG_20190704_101112.JPG", "img"), ("IMG_20190704.jpg", "2019"), ("DSC00123.NEF", "123"),
        ("Café à la Plage.jpg", "cafe plage"), ("CAFE", "café"), ("Grüße", "grusse"), ("ＡＢＣ", "abc"),
        ("東京タワー", "タワー"), ("서울 여행", "여행"), ("photos/holiday at sea", "hol sea"), ("a_b-c.d", "b d"),
        ("Ελλάδα", "ελλαδα"), ("ﬁsh", "fish"),
    ],
)  # fmt: skip
def test_what_people_ask_for_is_found(kept: str, asked: str) -> None:
    assert found(kept, asked)


@pytest.mark.parametrize(
    ("kept", "asked"), [("照片", "片照"), ("beach", "each"), ("2019", "019"), ("a b", "c"), ("x", "!?")]
)
def test_what_is_not_there_is_not_found(kept: str, asked: str) -> None:
    assert not found(kept, asked)


@given(st.text(max_size=80))
def test_every_text_is_found_by_itself_and_words_are_letters_and_digits_alone(text: str) -> None:
    assert all(term.word.isalnum() or term.word for term in terms_of(text))
    for word in (*words_of(text), *(term.word for term in terms_of(text))):
        assert not set(word) & set("'\"\\ :*&|!()<>-\n\t") and 0 < len(word) <= 40
    if terms_of(text):
        assert found(text, text)


def test_long_texts_and_words_have_an_end() -> None:
    assert len(words_of("x" * 10_000)) == 1
    assert len(words_of(" ".join(str(number) for number in range(10_000)))) <= 2002
