"""What sidecars said is said again, in XMP that we and others read."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from mirror_realm_assets.export.xmp import merged, packet
from mirror_realm_assets.ingest.exif import sanitised
from mirror_realm_assets.ingest.sidecars import parse

words = st.text(max_size=30).map(sanitised).filter(bool)
values = st.fixed_dictionaries(
    {},
    optional={
        "title": words,
        "description": words,
        "keywords": st.lists(words, min_size=1, max_size=5, unique=True),
        "rating": st.integers(-1, 5),
        "taken_at": st.sampled_from(["2020-01-02T03:04:05", "2020-01-02T03:04:05+00:00", "1999-12-31T23:59:59-05:00"]),
        "place": st.tuples(st.floats(-90, 90), st.floats(-180, 180)),
    },
)


@given(values)
def test_what_is_written_is_read_again(said: dict[str, Any]) -> None:
    if place := said.pop("place", None):
        said |= {"latitude": round(place[0], 7), "longitude": round(place[1], 7)}
    if said:
        assert parse("xmp", packet(said)) == said


def test_markup_and_what_xml_cannot_hold_is_only_text() -> None:
    said = {"title": '</x:xmpmeta><b> & "', "keywords": ["a\x00b", "\ud800"]}
    root = ET.fromstring(packet(said))  # noqa: S314 - our own
    assert [item.text for item in root.iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li")] == [
        said["title"], "a\ufffdb", "\ufffd",
    ]  # fmt: skip


def test_a_persons_sidecar_counts_before_googles_and_positions_are_not_mixed() -> None:
    google = {"title": "IMG_1.jpg", "latitude": 1.0, "longitude": 2.0, "favorited": True}
    xmp = {"title": "Mine", "rating": 5, "latitude": 3.0}
    assert merged([("takeout", google), ("xmp", xmp)]) == {
        "title": "Mine", "rating": 5, "latitude": 1.0, "longitude": 2.0,
    }  # fmt: skip
    assert merged([("aae", {"edited": True})]) is None
