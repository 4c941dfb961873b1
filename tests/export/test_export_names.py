"""Who gets which name: readable, of one file alone, and whatever came first."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror_realm_assets.archive.template import FIELDS, PLACE_FIELDS, Subject, Template, when
from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.export.naming import Claim, key_of, settle
from mirror_realm_assets.export.sorting import Scratch

ALL = {**FIELDS, **PLACE_FIELDS}
DIGESTS = [hashlib.sha256(bytes([n])).hexdigest() for n in range(6)]
# Two that have the first eight digits in common.
DIGESTS.append(DIGESTS[0][:8] + DIGESTS[1][8:])
short = [f"a-{digest[:8]}.jpg" for digest in DIGESTS]
whole = [f"{digest}.jpg" for digest in DIGESTS]
names = st.sampled_from(
    ["a.jpg", "A.jpg", "A.JPG", "b.jpg", "a.jpg/b.jpg", "x/a.jpg", "X", "é", "e\u0301", *short, *whole]
)
claims = st.lists(
    st.builds(Claim, names, st.sampled_from(DIGESTS), st.sampled_from("pqr"), st.sampled_from("123")), max_size=14
)


def settled(wanted: list[Claim], taken: list[str] | None = None, records: int = 1000) -> list[Claim]:
    scratch = Scratch(Path("/tmp"), records)  # noqa: S108 - unnamed files
    return sorted(settle(wanted, taken or [], scratch), key=lambda claim: (claim.name or "", claim))


def name(template: str, folders: tuple[str, ...] = ("2020", "a:b")) -> str:
    subject = Subject("IMG.JPG", DIGESTS[0], when(None, 0), "png", "demo", folders)
    return Template(template, ALL).name(subject)


def test_folders_of_the_source_are_kept_and_made_safe() -> None:
    assert name("{source}/{folder}/{filename}") == "demo/2020/a_b/IMG.enhanced.png"
    assert name("{source}/{folder}/{filename}", ()) == "demo/IMG.enhanced.png"
    assert name("{folder}/{year}-{source}/{stem}.{suffix}", ("..", ".x")) == "_/_.x/1970-demo/IMG.png"


@pytest.mark.parametrize("template", ["{folder}", "{filename}/{folder}", "x{folder}/{filename}", "{folder}{filename}"])
def test_folders_stand_in_a_part_of_their_own(template: str) -> None:
    with pytest.raises(SetupError, match="cannot be used"):
        Template(template, ALL)


def test_an_archives_template_knows_no_places() -> None:
    with pytest.raises(SetupError, match="is no field"):
        Template("{folder}/{filename}")


def test_a_name_that_two_want_goes_to_neither() -> None:
    one, two = Claim("x/a.jpg", DIGESTS[0], "p", "1"), Claim("x/A.jpg", DIGESTS[1], "q", "2")
    assert [claim.name for claim in settled([one, two])] == [f"x/A-{DIGESTS[1][:8]}.jpg", f"x/a-{DIGESTS[0][:8]}.jpg"]
    assert [claim.name for claim in settled([one])] == ["x/a.jpg"]


def test_equal_bytes_under_one_name_are_one_file() -> None:
    one, two = Claim("a.jpg", DIGESTS[0], "p", "1"), Claim("a.jpg", DIGESTS[0], "q", "2")
    assert settled([two, one]) == [one]


def test_digests_that_begin_alike_stand_in_full() -> None:
    one, two = Claim("a.jpg", DIGESTS[0], "p", "1"), Claim("a.jpg", DIGESTS[6], "q", "2")
    assert {claim.name for claim in settled([one, two])} == {f"{DIGESTS[0]}.jpg", f"{DIGESTS[6]}.jpg"}


def test_what_has_a_name_already_keeps_it() -> None:
    assert settled([Claim("a.jpg", DIGESTS[0], "p", "1")], ["A.jpg/x"])[0].name == f"a-{DIGESTS[0][:8]}.jpg"


@given(claims, st.lists(names, max_size=3), st.randoms(use_true_random=False))
def test_names_are_of_one_file_each_and_the_same_in_any_order(
    wanted: list[Claim], taken: list[str], dice: random.Random
) -> None:
    found = settled(wanted, taken)
    given_away = [key_of(claim.name) for claim in found if claim.name]
    folders = {"/".join(key.split("/")[:n]) for key in given_away for n in range(1, key.count("/") + 1)}
    assert len(set(given_away)) == len(given_away)
    assert not {key_of(each) for each in taken} & set(given_away)
    assert not folders & set(given_away)
    assert {claim.sha256 for claim in found} == {claim.sha256 for claim in wanted}  # nobody is forgotten
    shuffled = dice.sample(wanted, len(wanted))
    assert settled(shuffled, taken, records=3) == found


@given(st.lists(st.tuples(st.text("abc", max_size=3), st.text("xyz\u2028", max_size=3)), max_size=40))
def test_sorting_in_pieces_is_sorting(records: list[tuple[str, str]]) -> None:
    assert list(Scratch(Path("/tmp"), 7).sorted(records)) == sorted(records)  # noqa: S108
