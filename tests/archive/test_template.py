"""Names in an archive: readable where they can be, safe always."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror_realm_assets.archive.template import FIELDS, Subject, Template, with_digest
from mirror_realm_assets.errors import SetupError

DIGEST = "ab" * 32
AT = datetime(2023, 6, 5, tzinfo=UTC)


def name(template: str, file: str = "IMG_1.JPG", enhanced: str | None = None) -> str:
    return Template(template).name(Subject(file, DIGEST, AT, enhanced))


def test_the_specifications_template() -> None:
    assert name("year={year}/month={month}/{filename}") == "year=2023/month=06/IMG_1.JPG"


def test_an_enhanced_picture_says_so_and_has_its_own_suffix() -> None:
    assert name("{filename}", enhanced="png") == "IMG_1.enhanced.png"
    assert name("{kind}/{stem}.{suffix}", enhanced="png") == "enhanced/IMG_1.png"


def test_every_field_can_be_used() -> None:
    text = "/".join(f"{{{field}}}" for field in FIELDS)
    assert name(text) == f"IMG_1.JPG/IMG_1/jpg/2023/06/05/originals/{DIGEST}"


def test_chinese_names_stay_as_they_are() -> None:
    assert name("{year}/{filename}", "照片 目录.jpg") == "2023/照片 目录.jpg"


@pytest.mark.parametrize(
    "template",
    [
        "", "/{filename}", "{filename}/", "a//{filename}", "../{filename}", "./{filename}", "{year}/{month}",
        "{filename", "{path}/{filename}", "{filename.__class__}", "{filename!r}", "{filename:>9}", "{}", "{0}",
        "a\\b/{filename}", "a:b/{filename}", "a\0/{filename}",
    ],
)  # fmt: skip
def test_a_template_that_cannot_be_used_is_refused(template: str) -> None:
    with pytest.raises(SetupError, match="cannot be used"):
        Template(template)


@pytest.mark.parametrize(
    ("file", "made"),
    [
        ("..", "_"), (".hidden", "_.hidden"), ("CON.jpg", "_CON.jpg"), ("a/b.jpg", "a_b.jpg"),
        ("a\\b:c.jpg", "a_b_c.jpg"),
        ("a\x1b[31m.jpg", "a_[31m.jpg"), ("bad\udcff.jpg", "bad_.jpg"), ("end. ", "end"), ("e\u0301.jpg", "é.jpg"),
    ],
)  # fmt: skip
def test_what_file_systems_do_not_take_is_replaced(file: str, made: str) -> None:
    assert name("{filename}", file) == made


@given(st.text(max_size=400), st.sampled_from(["{filename}", "a/{stem}/{filename}", "{year}/{stem}.{suffix}"]))
def test_no_name_leads_out_of_the_archive_or_is_too_long(file: str, template: str) -> None:
    made = Path(name(template, file))
    assert not made.is_absolute()
    assert ".." not in made.parts and "." not in made.parts
    assert len(str(made).encode()) <= 900
    for part in made.parts:
        assert 0 < len(part.encode()) <= 255 - len("-12345678")
        assert not set(part) & set('<>:"|?*\\\0\n') and not part.startswith(".") and part == part.rstrip(". ")


def test_long_names_keep_their_suffix() -> None:
    made = name("{filename}", "照" * 300 + ".jpeg")
    assert made.endswith("照.jpeg") and len(made.encode()) <= 200


def test_a_collision_puts_the_digest_before_the_suffix() -> None:
    assert with_digest("a.b/IMG.jpg", DIGEST) == "a.b/IMG-abababab.jpg"
    assert with_digest("a.b/README", DIGEST) == "a.b/README-abababab"
