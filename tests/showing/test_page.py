"""Pages of results: whatever a file is called or a person asks, it stays text, and the page loads nothing."""

from __future__ import annotations

import base64
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror_realm_assets.catalog.sources import display_path
from mirror_realm_assets.search.query import Hit
from mirror_realm_assets.showing.markup import visible
from mirror_realm_assets.showing.page import KINDS, MARK, Question, ResultPage
from mirror_realm_assets.showing.thumbnails import Thumbnail

AT = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
HOSTILE = (
    b"<img onerror=alert(1)>.jpg",
    b'"><script>alert(1)</script>.jpg',
    b"' onmouseover='alert(1).jpg",
    b"</style></title><svg onload=alert(1)>.jpg",
    b"&lt;b&gt;.jpg",
    b"[red].jpg",
    b"a\x1b[31mb.jpg",
    b"a\nb\rc\td.jpg",
    b"\xff\xfe.jpg",
    "photo\u202egpj.exe".encode(),
    "\u200fשלום\u200e.jpg".encode(),
    "镜界.jpg".encode(),
    b"-->.jpg",
)
VOID = {"meta", "img", "wbr"}
ATTRIBUTES = {
    "lang", "charset", "name", "content", "http-equiv", "class", "style", "src", "alt", "width", "height", "decoding",
    "role", "aria-label", "aria-hidden", "datetime",
}  # fmt: skip


@dataclass
class Parsed(HTMLParser):
    """A page as a browser reads it: which tags there are, their attributes, and the text of each element."""

    tags: Counter[str] = field(default_factory=Counter)
    attributes: list[tuple[str, str, str]] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
    odd: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._open: list[tuple[str, str, list[str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append((tag, dict(attrs).get("class") or "", []))

    def handle_endtag(self, tag: str) -> None:
        opened, style, text = self._open.pop()
        assert opened == tag
        self.texts.setdefault(style or tag, []).append("".join(text))

    def handle_data(self, data: str) -> None:
        for _tag, _style, text in self._open:
            text.append(data)

    def handle_comment(self, data: str) -> None:
        self.odd.append(data)

    def handle_pi(self, data: str) -> None:
        self.odd.append(data)

    def values(self, name: str) -> list[str]:
        return [value for _tag, attribute, value in self.attributes if attribute == name]


def hit(rank: int, *paths: bytes, score: float = 0.5, **more: object) -> Hit:
    found = {"digest": f"{rank:064x}", "media": "m", "part": 0, "time_s": None, "page": None, "model": "toy", **more}
    return Hit(rank=rank, score=score, paths=list(paths), source="demo", **found)  # type: ignore[arg-type]


def parsed(page: ResultPage) -> Parsed:
    data = page.render()
    assert not any((c < 32 and c != 10) or c == 127 for c in data)
    found = Parsed()
    found.feed(data.decode("utf-8"))
    found.close()
    assert not found._open
    return found


def page(question: Question, *hits: Hit, notes: tuple[str, ...] = (), kind: str = "like") -> ResultPage:
    return ResultPage(question, kind, list(hits), notes, AT)


names = st.one_of(
    st.sampled_from([name.replace(b"/", b"") for name in HOSTILE]),
    st.binary(min_size=1, max_size=30).map(lambda name: name.replace(b"/", b"").replace(b"\0", b"") or b"x"),
    st.text(min_size=1, max_size=20).map(
        lambda name: name.replace("/", "").replace("\0", "").encode("utf-8", "surrogatepass") or b"x"
    ),
)
words = st.one_of(st.sampled_from([name.decode("utf-8", "surrogateescape") for name in HOSTILE]), st.text(max_size=40))


@settings(max_examples=60)
@given(names, words, words)
def test_names_questions_and_notes_stay_text(name: bytes, asked: str, note: str) -> None:
    path = b"/photos/" + name
    found = parsed(page(Question(asked, source=asked), hit(1, path), notes=(note,), kind="label"))
    plain = parsed(page(Question("cat", source="demo"), hit(1, b"/photos/a.jpg"), notes=("note",), kind="label"))
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        plain.tags["span"] += 1  # the bytes in base64
    assert found.tags == plain.tags
    assert not found.odd
    assert {attribute for _tag, attribute, _value in found.attributes} <= ATTRIBUTES
    assert found.texts["name"] == [visible(display_path(name))]
    assert found.texts["path"][0].startswith(visible(display_path(path)))
    assert found.texts["h1"] == [visible(f"“{asked}”")]
    assert found.texts["notes"] == [visible(note)]


@settings(max_examples=40)
@given(names)
def test_the_name_of_the_asked_picture_stays_text(name: bytes) -> None:
    found = parsed(page(Question(picture=b"/photos/" + name, thumbnail=Thumbnail(missing="none")), hit(1, b"/a.jpg")))
    assert found.texts["h1"] == [f"Pictures like {visible(display_path(name))}"]
    assert set(found.tags) <= {
        "html", "head", "meta", "title", "style", "body", "header", "main", "footer", "h1", "p", "div", "span", "bdi",
        "wbr", "dl", "dt", "dd", "ol", "ul", "li", "i", "code", "time",
    }  # fmt: skip


def test_bytes_that_are_no_text_are_given_losslessly_as_well() -> None:
    found = parsed(page(Question("cat"), hit(1, b"/photos/\xff.jpg")))
    (shown,) = found.texts["path"]
    assert shown.startswith("/photos/\\udcff.jpg")
    assert base64.b64encode(b"/photos/\xff.jpg").decode() in shown


def test_the_page_runs_and_loads_nothing() -> None:
    found = parsed(page(Question("cat"), hit(1, b"/a.jpg")))
    policies = [value for _tag, name, value in found.attributes if name == "content" and "default-src" in value]
    assert policies == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    ]
    text = page(Question("cat"), hit(1, b"/a.jpg")).render().decode()
    assert not {"script", "link", "iframe", "a", "form", "object"} & set(found.tags)
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    assert found.values("lang")[0] == "en"
    assert MARK in page(Question("cat")).render()[:1024]


@pytest.mark.parametrize(("kind", "name"), [(kind, words[0]) for kind, words in KINDS.items()])
def test_it_says_which_kind_of_search_answered(kind: str, name: str) -> None:
    assert parsed(page(Question("cat"), hit(1, b"/a.jpg"), kind=kind)).texts["chip"] == [name]


def test_scores_ranks_places_models_and_positions_are_there() -> None:
    places = [b"/disk/%d/a.jpg" % n for n in range(5)]
    found = parsed(
        page(
            Question("cat", source="demo"),
            hit(1, *places, score=0.98765),
            hit(2, b"/b.mp4", score=-0.2, time_s=12.5, model="other"),
            hit(3, b"/c.pdf", score=float("nan"), page=4),
        )
    )
    assert found.texts["rank"] == ["1", "2", "3"]
    assert found.texts["score"] == ["0.988", "-0.200", "nan"]
    assert [text for text in found.texts["path"] if text.startswith("/disk")] == [p.decode() for p in places]
    assert found.texts["summary"] == ["2 more places"]
    assert "at 0:12" in found.texts["tag"]
    assert "page 4" in found.texts["tag"]
    assert found.texts["tag"].count("toy") == 2
    assert "toy" in found.texts["facts"][0]
    assert "other" in found.texts["facts"][0]
    assert "the source demo" in found.texts["facts"][0]


def test_a_picture_is_part_of_the_page_and_a_missing_one_says_why() -> None:
    shown = page(Question("cat"), hit(1, b"/a.jpg"), hit(2, b"/b.jpg"), hit(3, b"/c.jpg"))
    good, bad = Thumbnail(b"webp", 40, 30), Thumbnail(missing="It cannot be <read>.")
    thumbnails = {(f"{1:064x}", 0): good, (f"{2:064x}", 0): bad}
    found = parsed(replace(shown, thumbnails=thumbnails))
    assert found.values("src") == [f"data:image/webp;base64,{base64.b64encode(b'webp').decode()}"]
    assert found.values("alt") == ["a.jpg"]
    assert found.texts["thumb none"] == ["It cannot be <read>.", "There is no preview."]


def test_nothing_found_says_where_to_look() -> None:
    assert "mirror-realm status" in parsed(page(Question("cat"))).texts["nothing"][0]
