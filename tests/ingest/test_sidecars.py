"""Sidecars are read, follow their picture, never become media and are never written; some files are one stack (A11)."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from alembic import command
from cheap_stages import DIM, cheap_stages, run_lane
from hypothesis import given
from hypothesis import strategies as st
from lab import Lab
from media_makers import raw_photo, scene, video
from PIL import Image

from mirror_realm_assets.catalog import companions, listing, one_file, sidecars, sources, stacks
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog, alembic_config, now
from mirror_realm_assets.catalog.one_file import Found
from mirror_realm_assets.cli import file_view
from mirror_realm_assets.errors import Failed, Refused
from mirror_realm_assets.ingest import sidecar_watch
from mirror_realm_assets.ingest.folder_watch import FolderWatch
from mirror_realm_assets.ingest.ignore import Rules
from mirror_realm_assets.ingest.sidecars import MAX_BYTES, parse
from mirror_realm_assets.search.query import Caches, search

MEDIA = os.environ.get("MIRROR_REALM_TEST_MEDIA")


def xmp(attributes: str = "", elements: str = "") -> str:
    return f"""<?xpacket begin="\ufeff"?><x:xmpmeta xmlns:x="adobe:ns:meta/">
    <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:exif="http://ns.adobe.com/exif/1.0/" xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/"
    xmlns:lr="http://ns.adobe.com/lightroom/1.0/" xmlns:stRef="http://ns.adobe.com/xap/1.0/sType/ResourceRef#"
    xmlns:xmpMM="http://ns.adobe.com/xap/1.0/mm/" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmlns:mwg-rs="http://www.metadataworkinggroup.com/schemas/regions/"
    {attributes}>{elements}</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>""".replace("\ufeff", "\ufeff")


def takeout(**more: Any) -> str:
    found = {
        "title": "IMG_1.jpg",
        "description": "By the sea",
        "photoTakenTime": {"timestamp": "1500000000", "formatted": "14.07.2017, 02:40:00 UTC"},
        "geoData": {"latitude": 48.5, "longitude": -2.75, "altitude": 0.0},
        "people": [{"name": "Ann Other"}],
    }
    return json.dumps(found | more)


AAE = '<?xml version="1.0"?><!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "x"><plist version="1.0"></plist>'

# --- names ---


@pytest.mark.parametrize(
    ("sidecar", "picture"),
    [
        ("a.jpg.xmp", "a.jpg"),
        ("A.JPG.XMP", "a.jpg"),
        ("a.xmp", "a.jpg"),
        ("a.xmp", "a.CR2"),
        ("a.aae", "a.HEIC"),
        ("a.AAE", "a.jpg"),
        ("a.jpg.json", "a.jpg"),
        ("a.jpg.json", "a-edited.jpg"),
        ("a.jpg.json", "a-bearbeitet.jpg"),
        ("a.jpg.json", "a-modifie\u0301.jpg"),
        ("a.jpg(1).json", "a(1).jpg"),
        ("a.jpg(1).json", "a-edited(1).jpg"),
        ("a(1).jpg.json", "a(1).jpg"),
        ("a.jpg.supplemental-metadata.json", "a.jpg"),
        ("a.jpg.supplemental-metadata(2).json", "a(2).jpg"),
        ("a.jpg.supplemental-meta.json", "a.jpg"),
        ("a.jpg.s.json", "a.jpg"),
        ("e\u0301te\u0301.jpg.json", "été.jpg"),
        # Cut to 46 units of UTF-16.
        ("PXL_20230809_203449253.LONG_EXPOSURE-02.ORIGIN.json", "PXL_20230809_203449253.LONG_EXPOSURE-02.ORIGINA.jpg"),
        ("05yqt21kruxwwlhhgrwrdyb6chhwszi9bqmzu16w0 2.jp.json", "05yqt21kruxwwlhhgrwrdyb6chhwszi9bqmzu16w0 2.jpg"),
        ("x" * 46 + "(494).json", "x" * 47 + "(494).jpg"),
        ("😀" * 23 + ".json", "😀" * 24 + ".jpg"),
    ],
)
def test_case_a11_a_sidecars_name_says_whose_it_is(sidecar: str, picture: str) -> None:
    assert companions.belongs(f"sub/{sidecar}".encode(), f"sub/{picture}".encode())
    assert not companions.belongs(f"sub/{sidecar}".encode(), picture.encode())
    rules = Rules()
    assert rules.exclude(sidecar.encode(), sidecar.encode())
    assert rules.is_sidecar(sidecar.encode(), sidecar.encode())


@pytest.mark.parametrize(
    ("sidecar", "picture"),
    [
        ("a.jpg.xmp", "a.jpg.png"),
        ("a.jpg.xmp", "a.png"),
        ("a.xmp", "ab.jpg"),
        ("a.jpg.json", "a(1).jpg"),
        ("a.jpg(1).json", "a.jpg"),
        ("a.jpg(2).json", "a(1).jpg"),
        ("a.jpg.json", "b-edited.jpg"),
        ("x" * 46 + "(494).json", "x" * 47 + "(185).jpg"),
        ("x" * 45 + ".json", "x" * 47 + ".jpg"),
    ],
)
def test_case_a11_a_sidecar_of_another_picture_is_not_taken_for_ones_own(sidecar: str, picture: str) -> None:
    assert not companions.belongs(sidecar.encode(), picture.encode())


@pytest.mark.parametrize(
    "name", ["package.json", "metadata.json", "a.json", ".xmp", "a.xml", "a.jpg", "json", ".a.xmp"]
)
def test_what_is_no_sidecar(name: str) -> None:
    assert not Rules().is_sidecar(name.encode(), name.encode())


def test_a_sourcess_own_pattern_leaves_sidecars_out() -> None:
    assert not Rules(["*.xmp"]).is_sidecar(b"a.xmp", b"a.xmp")
    assert not Rules(["private/*"]).is_sidecar(b"a.xmp", b"private/a.xmp")
    assert Rules(["private/*"]).is_sidecar(b"a.xmp", b"public/a.xmp")


@given(st.binary(max_size=255), st.binary(max_size=255))
def test_any_bytes_are_a_name(sidecar: bytes, picture: bytes) -> None:
    companions.belongs(sidecar + b".json", picture)
    companions.belongs(picture + b".json", picture)
    companions.stem_key(b"a/" + picture)


@given(
    st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=60), st.sampled_from(["jpg", "HEIC", "mov"])
)
def test_whatever_a_picture_is_called_its_sidecar_is_found(stem: str, suffix: str) -> None:
    picture = f"{stem}.{suffix}".encode("utf-8", "surrogatepass")
    for ending in (b".xmp", b".aae", b".json", b".supplemental-metadata.json"):
        assert companions.belongs(picture + ending, picture)


# --- what they say ---


def test_case_a11_an_xmp_sidecar_is_read() -> None:
    text = xmp(
        'xmp:Rating="4" exif:GPSLatitude="40,14.07864N" exif:GPSLongitude="76,17,13.7W" '
        'xmp:CreateDate="2001-01-01T00:00:00" photoshop:DateCreated="2009-11-28T13:42:39.5+01:00"',
        """<dc:title><rdf:Alt><rdf:li xml:lang="de">Titel</rdf:li><rdf:li xml:lang="x-default">Title
        </rdf:li></rdf:Alt></dc:title>
        <dc:description><rdf:Alt><rdf:li>By &lt;the&gt; sea</rdf:li></rdf:Alt></dc:description>
        <dc:subject><rdf:Bag><rdf:li>sea</rdf:li><rdf:li>sea</rdf:li><rdf:li> </rdf:li><rdf:li>dunes</rdf:li></rdf:Bag>
        </dc:subject><xmpMM:DerivedFrom rdf:parseType="Resource"><dc:title>Another</dc:title></xmpMM:DerivedFrom>""",
    )
    expected = {
        "rating": 4,
        "title": "Title",
        "description": "By <the> sea",
        "keywords": ["sea", "dunes"],
        "taken_at": "2009-11-28T13:42:39+01:00",
        "latitude": 40.2346440,
        "longitude": -76.2871389,
    }
    for encoding in ("utf-8", "utf-16"):
        assert parse("xmp", text.encode(encoding)) == expected
    assert parse("xmp", text.encode() + b"\0\0") == expected


def test_properties_may_be_elements() -> None:
    text = xmp(elements="<xmp:Rating>5</xmp:Rating><exif:DateTimeOriginal>2020-02-30T10:00</exif:DateTimeOriginal>")
    assert parse("xmp", text.encode()) == {"rating": 5}  # there is no such day


def test_case_a11_names_of_people_are_never_taken() -> None:
    text = xmp(
        elements="""<dc:subject><rdf:Bag><rdf:li>sea</rdf:li><rdf:li>Ann Other</rdf:li><rdf:li>BOB</rdf:li>
        <rdf:li>Cy</rdf:li>
        </rdf:Bag></dc:subject><Iptc4xmpExt:PersonInImage><rdf:Bag><rdf:li>Ann Other</rdf:li></rdf:Bag>
        </Iptc4xmpExt:PersonInImage><lr:hierarchicalSubject><rdf:Bag><rdf:li>People|Family|Bob</rdf:li></rdf:Bag>
        </lr:hierarchicalSubject><mwg-rs:Regions rdf:parseType="Resource"><mwg-rs:RegionList><rdf:Bag>
        <rdf:li><rdf:Description mwg-rs:Name="Cy" mwg-rs:Type="Face"/></rdf:li></rdf:Bag></mwg-rs:RegionList>
        </mwg-rs:Regions>"""
    )
    assert parse("xmp", text.encode()) == {"keywords": ["sea"]}
    assert "Ann" not in json.dumps(parse("takeout", takeout().encode()))


def test_case_a11_a_takeout_sidecar_is_read() -> None:
    assert parse("takeout", takeout(favorited=True).encode()) == {
        "title": "IMG_1.jpg",
        "description": "By the sea",
        "taken_at": "2017-07-14T02:40:00+00:00",
        "favorited": True,
        "latitude": 48.5,
        "longitude": -2.75,
    }
    nowhere = {"latitude": 0.0, "longitude": 0.0}
    found = parse("takeout", takeout(geoData=nowhere, geoDataExif=nowhere, description="").encode())
    assert set(found) == {"title", "taken_at"}


def test_case_a11_of_an_aae_only_that_there_is_an_edit() -> None:
    assert parse("aae", AAE.encode()) == {"edited": True}


BOMB = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;&b;&b;">]>' + xmp(
    'xmp:Rating="4"', "<dc:title>&c;</dc:title>"
)
OUTSIDE = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>' + xmp(elements="<dc:title>&b;</dc:title>")


@pytest.mark.parametrize(
    ("kind", "data", "code"),
    [
        ("xmp", BOMB.encode(), "unsupported"),
        ("xmp", BOMB.encode("utf-16"), "unsupported"),
        ("xmp", OUTSIDE.encode(), "unsupported"),
        ("xmp", b'<!DOCTYPE a SYSTEM "http://127.0.0.1:1/a.dtd"><a/>', "unsupported"),
        ("xmp", b"<a>" * 300_000, "unsupported"),
        ("xmp", b"<a>" + b"<b/>" * 100_000 + b"</a>", "unsupported"),
        ("xmp", xmp(elements="<dc:title>&undeclared;</dc:title>").encode(), "corrupt"),
        ("xmp", xmp('xmp:Rating="4"').encode()[:500], "corrupt"),
        ("xmp", b'<?xml version="1.0" encoding="rot13"?><a/>', "corrupt"),
        ("xmp", b"\xff\xd8\xff\xe0", "corrupt"),
        ("xmp", b"", "empty_file"),
        ("xmp", b"\0" * 100, "empty_file"),
        ("xmp", b" " * (MAX_BYTES + 1), "too_many_bytes"),
        ("takeout", b"[" * 500_000, "corrupt"),
        ("takeout", b'{"photoTakenTime": {"timestamp": ' + b"9" * 100_000 + b"}}", "corrupt"),
        ("takeout", takeout().encode()[:-1], "corrupt"),
        ("takeout", b"\xff{}", "corrupt"),
        ("takeout", b'{"category": "danbooru"}', "unsupported"),
        ("takeout", b'["photoTakenTime"]', "unsupported"),
        ("takeout", b'{"photoTakenTime": "now"}', "unsupported"),
        ("aae", b"\0\1\2", "corrupt"),
    ],
)
def test_case_a11_a_hostile_or_broken_sidecar_is_refused_with_a_reason(kind: str, data: bytes, code: str) -> None:
    with pytest.raises(Refused) as caught:
        parse(kind, data)
    assert caught.value.code == code
    assert len(caught.value.message) > 10


@pytest.mark.parametrize("stamp", ["9" * 12, "-" + "9" * 12, "1e9", "", None, [], True, 1.5])
def test_an_impossible_time_is_no_time(stamp: object) -> None:
    assert "taken_at" not in parse("takeout", takeout(photoTakenTime={"timestamp": stamp}).encode())


def test_values_are_sanitised() -> None:
    text = xmp(elements=f"<dc:title>a\u202eb\nc{'d' * 300}</dc:title><dc:description>{'e' * 3000}</dc:description>")
    found = parse("xmp", text.encode())
    assert found["title"] == ("a b c" + "d" * 300)[:200]
    assert len(str(found["description"])) == 2000
    hostile = takeout(title="a\u0000b", description="\ud800x", geoData={"latitude": float("nan"), "longitude": 1e400})
    assert parse("takeout", hostile.encode()).keys() == {"title", "description", "taken_at"}


def _is_sound(values: dict[str, Any]) -> bool:
    json.dumps(values, allow_nan=False).encode()
    return all(len(str(value)) <= 25_000 and "\0" not in str(value) for value in values.values())


@given(st.sampled_from(["xmp", "takeout", "aae"]), st.binary(max_size=400))
def test_no_bytes_harm_the_reader(kind: str, data: bytes) -> None:
    try:
        assert _is_sound(parse(kind, data))
    except Refused as refused:
        assert refused.code in {"corrupt", "unsupported", "empty_file"}


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ("title", "description", "photoTakenTime", "geoData", "geoDataExif", "favorited")


@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, anything)),
    st.fixed_dictionaries({"timestamp": anything}),
    st.fixed_dictionaries({"latitude": anything, "longitude": anything}),
)
def test_no_takeout_harms_the_reader(found: dict[str, Any], taken: dict[str, Any], place: dict[str, Any]) -> None:
    found = {"photoTakenTime": taken, "geoData": place} | found
    try:
        assert _is_sound(parse("takeout", json.dumps(found).encode()))
    except Refused as refused:
        assert refused.code == "unsupported"


@given(
    st.text(st.characters(codec="utf-8"), max_size=60), st.sampled_from(["dc:title", "xmp:Rating", "exif:GPSLatitude"])
)
def test_no_xmp_harms_the_reader(text: str, name: str) -> None:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    try:
        assert _is_sound(parse("xmp", xmp(elements=f"<{name}>{escaped}</{name}>").encode()))
    except Refused as refused:
        assert refused.code == "corrupt"  # control characters are no XML


# --- in the ledger ---


class Library:
    """A lab, and what `file` says of its pictures."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.folder = lab.folder
        self.stages = cheap_stages(lab.settings)
        self.watch = FolderWatch(lab.catalog, lab.settings, lab.source)

    def work(self) -> int:
        """What the watcher and the daemon do; returns how many files were in batches."""
        self.watch.scan()
        formed = self.lab.form(self.stages)
        for batch in formed:
            run_lane(self.lab.services, self.stages, batch.key)
        return sum(batch.items for batch in formed)

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    def page(self, name: str) -> dict[str, Any]:
        rules = [stage.rule for stage in self.stages]
        with self.lab.catalog.read() as conn:
            found: list[Found] = one_file.by_path(
                conn, [self.lab.source], rules, self.lab.services.limits(), os.fsencode(self.folder / name)
            )
            body = file_view.page(self.lab.settings, conn, found, name).body
            file_view.page(self.lab.settings, conn, found, name).show()
        json.dumps(body, default=str)
        return body

    def said(self, name: str) -> list[dict[str, Any]]:
        """The values of a picture's sidecars."""
        return [sidecar["values"] for sidecar in self.page(name)["sidecars"]]

    def known(self) -> dict[str, str]:
        """The state of every known sidecar."""
        s = t.sidecars.c
        with self.lab.catalog.read() as conn:
            return {os.fsdecode(row[0]): row[1] for row in conn.execute(sa.select(s.path, s.state))}

    def stack(self, name: str) -> dict[str, str] | None:
        """Role by name, the primary first."""
        found = self.page(name)["stack"]
        if found is None:
            return None
        assert found["primary"] == found["members"][0]["media"]
        return {Path(member["paths"][0]).name: member["role"] for member in found["members"]}

    def counts(self) -> tuple[int, int, int]:
        """Media, locations, and recorded features."""
        with self.lab.catalog.read() as conn:
            tables = (t.media, t.locations, t.features)
            return tuple(conn.execute(sa.select(sa.func.count()).select_from(each)).scalar_one() for each in tables)  # type: ignore[return-value]


@pytest.fixture
def library(lab: Lab) -> Library:
    return Library(lab)


RATED = {"rating": 4}


def test_case_a11_sidecars_are_read_and_never_become_media(library: Library) -> None:
    for n, name in enumerate(("a.png", "b.png", "c.png")):
        library.lab.picture(name, n)
    library.write("a.png.xmp", xmp('xmp:Rating="4"'))
    library.write("b.png.json", takeout())
    library.write("c.AAE", AAE)
    library.write("other.json", "{}")
    assert library.work() == 3
    assert library.said("a.png") == [RATED]
    assert library.said("b.png")[0]["taken_at"] == "2017-07-14T02:40:00+00:00"
    assert library.said("c.png") == [{"edited": True}]
    assert library.counts()[:2] == (3, 3)
    assert set(library.known()) == {"a.png.xmp", "b.png.json", "c.AAE"}
    (sidecar,) = library.page("a.png")["sidecars"]
    assert sidecar["paths"] == [str(library.folder / "a.png.xmp")]
    assert (sidecar["kind"], sidecar["state"], sidecar["code"]) == ("xmp", "read", None)


@pytest.mark.parametrize("order", ["before", "with", "after"])
def test_case_a11_whatever_comes_first_a_sidecar_finds_its_picture(library: Library, order: str) -> None:
    (library.folder / "sub").mkdir()
    if order != "after":
        library.write("sub/a.xmp", xmp('xmp:Rating="4"'))
    if order == "before":
        assert library.work() == 0
        assert library.known() == {"sub/a.xmp": "read"}
    library.lab.picture("sub/a.png")
    assert library.work() == 1
    if order == "after":
        assert library.said("sub/a.png") == []
        library.write("sub/a.xmp", xmp('xmp:Rating="4"'))
        assert library.work() == 0
    assert library.said("sub/a.png") == [RATED]


def test_case_a11_a_changed_sidecar_costs_no_batch_and_no_model_call(library: Library) -> None:
    library.lab.picture("a.png")
    sidecar = library.write("a.xmp", xmp('xmp:Rating="4"'))
    library.work()
    before = library.counts()
    sidecar.write_text(xmp('xmp:Rating="2"'))
    found = library.watch.scan()
    assert (found.sidecars, found.taken) == (1, 0)
    assert "sidecars" in found.changes
    assert library.said("a.png") == [{"rating": 2}]
    assert library.work() == 0
    assert library.counts() == before
    assert library.watch.scan().sidecars == 0


def test_case_a11_a_picture_that_changes_keeps_its_sidecar(library: Library) -> None:
    library.lab.picture("a.png")
    library.write("a.xmp", xmp('xmp:Rating="4"'))
    library.work()
    library.lab.picture("a.png", 7)
    assert library.work() == 1
    assert library.said("a.png") == [RATED]


def test_case_a11_picture_and_sidecar_that_move_together_stay_together(library: Library) -> None:
    (library.folder / "sub").mkdir()
    library.lab.picture("sub/a.png")
    library.lab.picture("b.png", 2)
    library.write("sub/a.png.xmp", xmp('xmp:Rating="4"'))
    library.work()
    media = library.page("sub/a.png")["media"]
    (library.folder / "sub").rename(library.folder / "moved")
    assert library.work() == 0
    assert library.said("moved/a.png") == [RATED]
    for old, new in (("moved/a.png", "z.png"), ("moved/a.png.xmp", "z.png.xmp")):
        (library.folder / old).rename(library.folder / new)
    assert library.work() == 0
    assert library.said("z.png") == [RATED]
    assert library.page("z.png")["media"] == media
    assert library.known() == {"z.png.xmp": "read"}


def test_case_a11_a_sidecar_that_is_left_behind_is_about_nobody(library: Library) -> None:
    library.lab.picture("a.png")
    library.write("a.xmp", xmp('xmp:Rating="4"'))
    library.work()
    (library.folder / "a.png").rename(library.folder / "z.png")
    assert library.work() == 0
    assert library.said("z.png") == []
    assert library.known() == {"a.xmp": "read"}


def test_case_a11_what_a_deleted_sidecar_said_is_dropped(library: Library) -> None:
    for name in ("one", "two"):
        (library.folder / name).mkdir()
        library.lab.picture(f"{name}/a.png", len(name) + ord(name[0]))
        library.write(f"{name}/a.xmp", xmp('xmp:Rating="4"'))
    library.write("alone.xmp", xmp())
    library.lab.picture("b.png", 5)
    library.work()
    assert len(library.known()) == 3
    (library.folder / "one/a.xmp").unlink()
    assert library.work() == 0
    assert library.said("one/a.png") == []
    assert library.said("two/a.png") == [RATED]
    (library.folder / "two/a.xmp").unlink()
    (library.folder / "two/a.png").unlink()
    (library.folder / "two").rmdir()
    (library.folder / "alone.xmp").unlink()
    library.work()
    assert library.known() == {}


def test_case_a11_a_share_that_lists_nothing_drops_nothing(library: Library, tmp_path: Path) -> None:
    library.lab.picture("a.png")
    library.write("a.xmp", xmp('xmp:Rating="4"'))
    library.work()
    away = tmp_path / "away"
    library.folder.rename(away)
    library.folder.mkdir()
    library.watch.scan()
    library.watch.scan()
    assert library.known() == {"a.xmp": "read"}
    library.folder.rmdir()
    away.rename(library.folder)
    assert library.watch.scan().sidecars == 0
    assert library.said("a.png") == [RATED]


def test_case_a11_sidecars_that_are_left_out_by_the_policy_are_forgotten(library: Library) -> None:
    library.lab.picture("a.png")
    library.write("a.xmp", xmp('xmp:Rating="4"'))
    library.work()
    with library.lab.catalog.write() as conn:
        sources.set_policy(conn, "demo", {"ignore": ["*.xmp"]})
    library.watch = FolderWatch(library.lab.catalog, library.lab.settings, library.lab.source)
    library.work()
    assert library.known() == {}


def test_case_a11_a_bad_sidecar_is_recorded_with_its_reason(library: Library) -> None:
    library.lab.picture("a.png")
    bad = library.write("a.xmp", BOMB)
    assert library.work() == 1
    (sidecar,) = library.page("a.png")["sidecars"]
    assert (sidecar["state"], sidecar["code"], sidecar["values"]) == ("refused", "unsupported", {})
    assert "document type" in sidecar["reason"]
    bad.write_text(xmp('xmp:Rating="4"'))
    library.work()
    (sidecar,) = library.page("a.png")["sidecars"]
    assert (sidecar["state"], sidecar["code"], sidecar["values"]) == ("read", None, RATED)


def test_case_a11_a_sidecar_that_cannot_be_read_now_is_tried_again(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.lab.picture("a.png")
    library.write("a.xmp", xmp('xmp:Rating="4"'))

    def broken(*_place: object) -> None:
        raise Failed("io_error", "The drive hums.")

    with monkeypatch.context() as patched:
        patched.setattr(sidecar_watch.sidecars, "read", broken)
        library.work()
    (sidecar,) = library.page("a.png")["sidecars"]
    assert (sidecar["state"], sidecar["code"], sidecar["reason"]) == ("waiting", "io_error", "The drive hums.")
    assert library.watch.scan().sidecars == 0  # not before its time
    with library.lab.catalog.write() as conn:
        conn.execute(t.sidecars.update().values(next_attempt_at=now(conn)))
    assert library.watch.scan().sidecars == 1
    (sidecar,) = library.page("a.png")["sidecars"]
    assert (sidecar["state"], sidecar["code"], sidecar["values"]) == ("read", None, RATED)


def test_case_a11_a_sidecar_that_is_a_link_is_not_read(library: Library, tmp_path: Path) -> None:
    library.lab.picture("a.png")
    sidecar = library.write("a.xmp", xmp('xmp:Rating="4"'))
    library.work()
    sidecar.rename(tmp_path / "outside.xmp")
    sidecar.symlink_to(tmp_path / "outside.xmp")
    library.work()
    assert library.said("a.png") == []
    with pytest.raises(Refused) as caught:  # swapped in between the walk and the reading
        sidecar_watch.sidecars.read(os.fsencode(library.folder), b"a.xmp", "xmp")
    assert caught.value.code == "outside_root"


def test_case_a11_names_that_are_no_utf_8(library: Library) -> None:
    name = b"\xff\xfe.png"
    Path(os.fsdecode(os.fsencode(library.folder) + b"/" + name)).write_bytes(library.lab.picture("a.png").read_bytes())
    Path(os.fsdecode(os.fsencode(library.folder) + b"/" + name + b".xmp")).write_text(xmp('xmp:Rating="4"'))
    library.work()
    (sidecar,) = library.page(os.fsdecode(name))["sidecars"]
    assert sidecar["values"] == RATED
    assert sidecar["paths_b64"]


def test_case_a11_many_sidecars_are_compared_a_piece_at_a_time(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sidecar_watch, "_COMPARE_NAMES", 3)
    monkeypatch.setattr(sidecar_watch, "_READ_AT_ONCE", 2)
    library.lab.picture("p.png")
    for folder in "abc":
        (library.folder / folder).mkdir()
        for n in range(4):
            library.write(f"{folder}/{n}.xmp", xmp(f'xmp:Rating="{n}"'))
    assert library.watch.scan().sidecars == 12
    assert set(library.known().values()) == {"read"}
    again = FolderWatch(library.lab.catalog, library.lab.settings, library.lab.source)
    assert again.scan().sidecars == 0
    (library.folder / "b/0.xmp").unlink()
    assert again.scan().sidecars == 1
    assert len(library.known()) == 11


def test_case_a11_nothing_in_a_source_is_ever_written(library: Library) -> None:
    library.lab.picture("a.png")
    for name, text in (("a.xmp", xmp('xmp:Rating="4"')), ("a.png.json", takeout()), ("a.AAE", AAE), ("b.xmp", BOMB)):
        library.write(name, text)

    def state() -> dict[str, tuple[int, ...]]:
        found = {}
        for path in [library.folder, *library.folder.rglob("*")]:
            seen = path.lstat()
            times = (seen.st_mtime_ns, seen.st_ctime_ns)
            found[str(path)] = (seen.st_mode, seen.st_ino, seen.st_size, seen.st_nlink, *times)
        return found

    before = state()
    library.work()
    library.work()
    assert len(library.said("a.png")) == 3
    assert state() == before


# --- stacks ---


def _still(number: int) -> Image.Image:
    return scene(number, 160, 120)


def _camera_raw(number: int) -> bytes:
    return raw_photo(np.asarray(_still(number).resize((64, 48))))


def test_case_a11_a_live_photo_is_one_stack(library: Library, tmp_path: Path) -> None:
    _still(1).save(library.folder / "IMG_1.jpg")
    film = video([_still(2), _still(3)])
    (library.folder / "img_1.MOV").write_bytes(film)
    _still(4).save(library.folder / "IMG_2.jpg")
    library.work()
    roles = {"IMG_1.jpg": "still", "img_1.MOV": "live_video"}
    assert library.stack("IMG_1.jpg") == library.stack("img_1.MOV") == roles
    assert list(library.stack("img_1.MOV") or ()) == ["IMG_1.jpg", "img_1.MOV"]
    assert library.stack("IMG_2.jpg") is None
    rules = [stage.rule for stage in library.stages]
    with library.lab.catalog.read() as conn:
        rows = list(listing.of_source(conn, library.lab.source, rules, library.lab.services.limits()))
    stacked = {(os.fsdecode(row.paths[0]), row.stack) for row in rows}
    primary = library.page("IMG_1.jpg")["media"]
    assert stacked == {("IMG_1.jpg", primary), ("img_1.MOV", primary), ("IMG_2.jpg", None)}
    (library.folder / "sub").mkdir()
    (library.folder / "img_1.MOV").rename(library.folder / "sub/img_1.MOV")
    library.work()
    assert library.stack("IMG_1.jpg") is None
    (library.folder / "IMG_1.jpg").rename(library.folder / "sub/IMG_1.jpg")
    assert library.work() == 0
    assert library.stack("sub/IMG_1.jpg") == roles


def test_case_a11_a_raw_file_and_its_jpeg_are_one_stack(library: Library) -> None:
    (library.folder / "a.DNG").write_bytes(_camera_raw(1))
    _still(1).save(library.folder / "a.JPG")
    library.write("a.xmp", xmp('xmp:Rating="4"'))
    library.work()
    assert library.stack("a.JPG") == {"a.JPG": "jpeg", "a.DNG": "raw"}
    assert library.said("a.JPG") == library.said("a.DNG") == [RATED]


def test_case_a11_an_edited_copy_is_in_the_stack_of_its_original(library: Library) -> None:
    _still(1).save(library.folder / "a.jpg")
    _still(2).save(library.folder / "a-edited.jpg")
    library.write("a.jpg.json", takeout())
    library.work()
    assert library.stack("a-edited.jpg") == {"a.jpg": "still", "a-edited.jpg": "edited"}
    assert library.said("a-edited.jpg") == library.said("a.jpg") != []


def test_case_a11_a_search_shows_a_stack_once(library: Library) -> None:
    (library.folder / "a.DNG").write_bytes(_camera_raw(1))
    _still(1).save(library.folder / "a.JPG")
    _still(2).save(library.folder / "b.JPG")
    library.work()
    lab = library.lab
    recipe = library.stages[1].recipe(lab.source.policy)
    assert recipe is not None
    query = np.full(DIM, 1 / DIM**0.5, np.float32)
    hits = search(lab.catalog, lab.services.store, query, recipe=recipe.digest, model="toy", caches=Caches())
    names = [os.fsdecode(hit.paths[0]) for hit in hits]
    assert len(names) == 2
    assert "b.JPG" in names
    assert [hit.rank for hit in hits] == [1, 2]


def test_two_of_a_kind_are_no_stack(library: Library) -> None:
    _still(1).save(library.folder / "a.jpg")
    _still(2).save(library.folder / "a.png")
    (library.folder / "a.mov").write_bytes(video([_still(3)]))
    library.work()
    assert library.stack("a.mov") is None


def test_what_is_gone_is_in_no_stack(library: Library) -> None:
    (library.folder / "a.DNG").write_bytes(_camera_raw(1))
    _still(1).save(library.folder / "a.JPG")
    library.lab.picture("b.png")
    library.work()
    assert library.stack("a.JPG")
    (library.folder / "a.DNG").unlink()
    library.work()
    assert library.stack("a.JPG") is None


ROWS = [
    ("1", "d1", "image/heic", b"IMG_1.HEIC"),
    ("2", "d2", "video/quicktime", b"IMG_1.MOV"),
    ("3", "d3", "image/heic", b"IMG_E1.HEIC"),
    ("1", "d1", "image/heic", b"img_1.heic"),
    ("4", "d4", "application/pdf", b"IMG_1.pdf"),
]


def test_the_same_media_twice_is_one_member_and_a_document_is_none() -> None:
    found = stacks.stacked([*ROWS[:2], *ROWS[3:]])
    assert found is not None
    assert [(member.media, member.role) for member in found.members] == [("1", "still"), ("2", "live_video")]
    assert stacks.stacked(ROWS[:1]) is None
    assert stacks.stacked([ROWS[0], ROWS[3]]) is None


def test_apples_edited_copies_have_the_stem_of_the_original() -> None:
    assert companions.stem_of(b"IMG_E1234.HEIC") == ("img_1234", True)
    assert companions.stem_of(b"IMG_1234.MOV") == ("img_1234", False)
    assert companions.stem_of(b"IMG_EXTRA.HEIC") == ("img_extra", False)
    assert companions.stem_of(b"README") is None


# --- the ledger, on both databases ---


def test_rows_of_sidecars_on_both_databases(catalog: Catalog) -> None:
    with catalog.write() as conn:
        mine = sources.add(conn, "demo", b"/photos", {}).id
        seen = [sidecars.Seen(b"a/\xff.jpg.xmp", 10, 2**60), sidecars.Seen(b"a/b.aae", 10, 1)]
        sidecars.note(conn, mine, seen)
    with catalog.write() as conn:
        assert sidecars.folders(conn, mine) == {b"a/"}
        first, second = sidecars.waiting(conn, mine, 10)
        assert (first.path, second.kind) == (seen[0].path, "aae")
        sidecars.record(
            conn,
            [
                sidecars.Reading(first.id, "read", 10, 2**60, {"rating": 4}),
                sidecars.Reading(second.id, "waiting", code="io_error", reason="The drive hums."),
            ],
        )
    with catalog.write() as conn:
        assert sidecars.waiting(conn, mine, 10) == []
        (found,) = sidecars.of_pictures(conn, mine, [b"a/\xff.jpg", b"\xff.jpg", b"a/c.jpg"])
        assert found.values == {"rating": 4}
        sidecars.note(conn, mine, [sidecars.Seen(b"a/\xff.jpg.xmp", 11, 5)])
        (again,) = sidecars.waiting(conn, mine, 10)
        assert again.id == first.id
        (found,) = sidecars.of_pictures(conn, mine, [b"a/\xff.jpg"])
        assert found.values == {"rating": 4}  # until the new one is read
        assert sidecars.in_folders(conn, mine, [b"a/"])[b"a/\xff.jpg.xmp"][2:] == (11, 5)
        assert sidecars.forget(conn, [first.id, second.id]) == 2
        assert sidecars.folders(conn, mine) == set()


def test_places_of_an_older_catalog_are_given_their_stem(tmp_path: Path) -> None:
    catalog = Catalog(f"sqlite:///{tmp_path / 'old.sqlite'}")
    config = alembic_config()
    with catalog.write() as conn:
        config.attributes["connection"] = conn
        command.upgrade(config, "0003")
        tables = sa.MetaData()
        tables.reflect(conn)
        old, at = tables.tables, datetime(2026, 1, 1, tzinfo=UTC)
        for table in ("users", "projects"):
            conn.execute(old[table].insert().values(id=1, uuid="u", name="other", created_at=at))
        conn.execute(old["sources"].insert().values(
            id=1, uuid="s", name="demo", project_id=1, owner_id=1, kind="folder", root=b"/", root_display="/",
            policy={}, state="active", scan_generation=1, next_seq=1, index_attempts=0, created_at=at, updated_at=at,
        ))  # fmt: skip
        conn.execute(old["locations"].insert().values(
            source_id=1, display="a", size=1, mtime_ns=1, generation=1, state="present", attempts=0,
            first_seen_at=at, changed_at=at, last_seen_at=at,
        ), [{"path": b"sub/IMG_1.JPG"}, {"path": b"README"}])  # fmt: skip
    catalog.migrate()
    with catalog.read() as conn:
        found = dict(conn.execute(sa.select(t.locations.c.path, t.locations.c.stem_key)).all())
    assert found == {b"sub/IMG_1.JPG": companions.key(b"sub/", "img_1"), b"README": None}
    catalog.close()


# --- real ones ---


@pytest.mark.skipif(not MEDIA, reason="MIRROR_REALM_TEST_MEDIA is not set")
def test_case_a11_real_sidecars(library: Library) -> None:
    for path in (Path(MEDIA or "") / "hard" / "sidecar").iterdir():
        (library.folder / path.name).write_bytes(path.read_bytes())
    library.lab.picture("iso-value-array.png")
    assert library.work() == 2
    assert library.said("pair.jpg") == [{"rating": 4, "title": "Sidecar title dev"}]
    (canon,) = library.said("iso-value-array.png")
    assert canon == {"taken_at": "2009-11-28T13:42:39", "latitude": 40.2346441, "longitude": -76.2871415}
