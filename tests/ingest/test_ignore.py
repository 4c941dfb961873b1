"""Names that are never media, on whole path components."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror_realm_assets.ingest.ignore import DEFAULT_PATTERNS, Rules, ignored


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        (b".DS_Store", ".DS_Store"),
        (b"a/b/Thumbs.db", "Thumbs.db"),
        (b"a/THUMBS.DB", "Thumbs.db"),
        (b"desktop.ini", "desktop.ini"),
        (b"@eaDir/photo.jpg/SYNOPHOTO_THUMB_M.jpg", "@eaDir"),
        (b"a/#recycle/old.jpg", "#recycle"),
        (b".nfs000000012", ".nfs*"),
        (b"~$report.jpg", "~$*"),
        (b"upload.jpg.part", "*.part"),
        (b"x.tmp", "*.tmp"),
        (b"x.jpg.crdownload", "*.crdownload"),
        (b"._photo.jpg", "._*"),
        (b".hidden.jpg", ".*"),
        (b"a/.git/x.jpg", ".*"),
        (b"photo.xmp", "*.xmp"),
        (b"IMG_0001.AAE", "*.aae"),
        (b"photo.jpg.json", "*.json"),
        (b".\xff\xfe.jpg", ".*"),
    ],
)
def test_what_is_no_media_is_ignored_with_the_pattern_as_reason(path, pattern):
    assert ignored(path).endswith(f": {pattern}")


@pytest.mark.parametrize(
    "path",
    [
        b"photo.jpg",
        b"no_extension",
        b"my.DS_Store.jpg",
        b"xThumbs.db",
        b"party.partner.jpg",
        b"a~$b.jpg",
        b"recycle/a.jpg",
        b"eaDir/a.jpg",
        b"tmp/a.jpg",
        b"dots...many....jpg",
        b"\xff\xfe.jpg",
        b"two\nlines.jpg",
        b"./a.jpg",
        b"[red].jpg",
        b"-rf.jpg",
    ],
)
def test_everything_else_is_a_candidate(path):
    assert ignored(path) is None


@pytest.mark.parametrize("hidden_line", [b"a.jpg\n.tmp", b"a.tmp\n", b"x\n.DS_Store"])
def test_a_newline_in_a_name_does_not_begin_another_name(hidden_line):
    expected = hidden_line.endswith(b".tmp")
    assert (ignored(hidden_line) is not None) == expected


def test_the_source_adds_patterns_of_its_own():
    assert ignored(b"a/Exports/b.jpg", ["exports"]) == "pattern: exports"
    assert ignored(b"a/b_edited.jpg", ["*_edited.*"]) == "pattern: *_edited.*"
    assert ignored(b"a/b.jpg", ["b"]) is None
    assert ignored(b".DS_Store", ["*_edited.*"]) is not None


def test_a_pattern_with_a_slash_is_about_the_whole_path():
    assert ignored(b"2019/raw/a.jpg", ["2019/raw/*"]) == "pattern: 2019/raw/*"
    assert ignored(b"other/2019/raw/a.jpg", ["2019/raw/*"]) is None
    assert ignored(b"cache/a.jpg", ["cache/"]) == "pattern: cache"


def test_an_empty_pattern_ignores_nothing():
    assert ignored(b"a.jpg", ["", "/"]) is None


@pytest.mark.timeout(10)
def test_a_pattern_of_many_stars_does_not_take_for_ever():
    assert ignored(b"a" * 250 + b".jpg", ["*a" * 30 + "b"]) is None


@given(st.binary(max_size=60))
def test_any_name_has_an_answer_and_adding_a_hidden_folder_ignores_it(path):
    ignored(path, DEFAULT_PATTERNS)
    assert ignored(b".hidden/" + path) is not None
    os.fsdecode(path)


_NAME = st.text(st.sampled_from("aAé.~$_@#-*[?DSthumbspart"), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
)
_PATTERN = st.sampled_from(["*.gif", "raw", "a*", "[ab]?", "é*", "a/b*", "*/raw/*", "", "/", "A.*"])


@given(folders=st.lists(_NAME, max_size=2), name=_NAME, patterns=st.lists(_PATTERN, max_size=3))
def test_a_walk_s_rules_say_what_the_reasons_say(folders: list[str], name: str, patterns: list[str]) -> None:
    above = "/".join(folders)
    if above and ignored(above.encode(), patterns):
        return  # a walk does not come there
    path = f"{above}/{name}" if above else name
    assert Rules(patterns).exclude(name.encode(), path.encode()) == bool(ignored(path.encode(), patterns))


@pytest.mark.parametrize("name", [pattern.replace("*", "x") for pattern in DEFAULT_PATTERNS])
def test_every_built_in_pattern_is_a_rule_of_a_walk(name: str) -> None:
    assert Rules().exclude(name.encode(), name.encode())
    assert Rules().exclude(name.upper().encode(), name.upper().encode())
