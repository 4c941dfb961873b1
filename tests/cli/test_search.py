"""search: by words and by a picture, for people, for scripts, and as a page."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from cli_home import HOSTILE, Home, run, run_json, run_lines
from lab import Lab
from media_makers import document, raw_photo, scene, video
from PIL import Image

from mirror_realm_assets.pipeline import standard_stages
from mirror_realm_assets.resources.library import open_services
from mirror_realm_assets.stages.engine import run_stage

KEYS = {"rank", "score", "search", "model", "digest", "part", "media", "source", "paths"}


@pytest.fixture
def home(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("MIRROR_REALM_HOME", str(lab.home))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return Home(lab)


class Texts(HTMLParser):
    """The text of a page, and its tags."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.mark.parametrize("arguments", [(), ("  ",), ("cats", "--like", "a.png"), ("cats", "-k", "0")])
def test_what_cannot_be_asked_is_a_usage_error_that_says_how_to_ask(home: Home, arguments: tuple[str, ...]) -> None:
    result = run("search", *arguments)
    assert result.exit_code == 2
    assert "--like" in result.stderr or "-k" in result.stderr
    assert result.stdout == ""


def test_a_picture_that_cannot_be_read_is_an_error(home: Home, tmp_path: Path) -> None:
    missing = run("search", "--like", str(tmp_path / "[red]none.png"))
    assert missing.exit_code == 1
    assert "Traceback" not in missing.output
    words = tmp_path / "words.png"
    words.write_text("no picture")
    assert run("search", "--like", str(words)).exit_code == 1


def test_a_page_never_takes_the_place_of_an_original(home: Home, tmp_path: Path) -> None:
    picture = home.lab.picture("a.png")
    before = picture.read_bytes()
    for target in (picture, home.lab.folder / "found.html", tmp_path / "nowhere" / "found.html"):
        result = run("search", "--like", str(picture), "--html", str(target))
        assert result.exit_code == 1
        assert result.stdout == ""
    assert picture.read_bytes() == before
    assert [path.name for path in home.lab.folder.iterdir()] == ["a.png"]


@pytest.fixture
def library(home: Home, models_dir: Path, photos: dict[str, object]) -> Iterator[Home]:
    """Three photographs under ordinary and hostile names, read and embedded with the real weights."""
    for weights in models_dir.glob("*.safetensors"):
        os.link(weights, home.lab.home / "models" / weights.name)
    for number, name in enumerate((*HOSTILE, b"coffee.jpg", b"astronaut.jpg")):
        pixels = photos[sorted(photos)[number % 2] if number < len(HOSTILE) else name.decode()[:-4]]
        with Path(os.fsdecode(os.fsencode(home.lab.folder) + b"/" + name)).open("wb") as file:
            Image.fromarray(pixels).rotate(5 * number).save(file, "JPEG")  # type: ignore[arg-type]
    stages = standard_stages(home.lab.settings)
    home.lab.services = open_services(home.lab.settings)
    (batch,) = home.lab.form(stages)
    for stage in stages[:2]:
        run_stage(stage, batch.key, home.lab.services, stages)
    yield home


def test_by_picture_and_by_words_for_scripts_people_and_as_a_page(library: Home, tmp_path: Path) -> None:
    asked = library.lab.folder / "coffee.jpg"
    page = tmp_path / "found.html"
    hits = run_json("search", "--like", str(asked), "--html", str(page))
    assert [hit["rank"] for hit in hits] == list(range(1, len(HOSTILE) + 3))
    assert hits[0]["paths"] == [str(asked)]
    assert all(set(hit) - {"paths_b64"} == KEYS and hit["search"] == "like" for hit in hits)
    seen = Texts(page)
    assert not {"script", "svg", "iframe", "a"} & set(seen.tags)
    assert seen.tags.count("img") == len(hits) + 1
    shown = "\n".join(seen.texts)
    for name in ("<img onerror=alert(1)>.jpg", "[red].jpg", "a\\x1b[31mb.jpg", "\\udcff\\udcfe.jpg", ":smile:.jpg"):
        assert name in shown
    assert "search by picture" in shown
    assert hits[0]["model"] in shown

    first = page.read_bytes()
    people = run("search", "a cup of coffee", "-k", "2", "--html", str(page))
    assert people.exit_code == 0, people.stderr
    assert "Search by label" in people.stdout
    assert hits[0]["model"] in people.stdout
    assert str(page) in people.stderr
    assert page.read_bytes() != first
    assert "“a cup of coffee”" in "".join(Texts(page).texts)

    result = run("search", "a cup of coffee", "-k", "1", "--json")
    (best,) = json.loads(result.stdout)
    assert best["search"] == "label"
    assert best["paths"] == [str(asked)]
    assert result.stderr.strip(), "what the words were taken for is said on stderr"


def test_a_path_that_leads_to_no_file_is_said_of_the_path(home: Home, tmp_path: Path) -> None:
    result = run("search", "--like", str(tmp_path / "nowhere.jpg"))
    assert result.exit_code == 1
    assert f"There is no file {tmp_path / 'nowhere.jpg'}" in " ".join(result.stderr.split()).replace(" ", " ")
    assert "is a folder" in run("search", "--like", str(tmp_path)).stderr


@pytest.fixture
def mixed(home: Home, models_dir: Path, photos: dict[str, object]) -> Iterator[Home]:
    """A film, a document, a raw file and a photograph, read and embedded with the real weights, nothing enhanced."""
    for weights in models_dir.glob("*.safetensors"):
        os.link(weights, home.lab.home / "models" / weights.name)
    coffee, astronaut = (np.asarray(photos[name]) for name in ("coffee", "astronaut"))
    shapes = [Image.fromarray(pixels).resize((320, 240)) for pixels in (coffee, astronaut)]
    folder = home.lab.folder
    (folder / "film.mp4").write_bytes(video([shapes[0], shapes[1]], seconds=70, rate=2, key_every=4))
    (folder / "report.pdf").write_bytes(document([scene(1, 320, 240), scene(2, 320, 240), shapes[0]]))
    even = coffee[: coffee.shape[0] // 2 * 2, : coffee.shape[1] // 2 * 2]
    (folder / "shot.dng").write_bytes(raw_photo(even, preview=Image.fromarray(even)))
    scene(3, 320, 240).save(folder / "other.png")
    stages = standard_stages(home.lab.settings)
    home.lab.services = open_services(home.lab.settings)
    (batch,) = home.lab.form(stages)
    for stage in stages[:2]:
        run_stage(stage, batch.key, home.lab.services, stages)
    yield home


def test_films_documents_and_raw_files_are_found_like_pictures_with_time_and_page(
    mixed: Home, photos: dict[str, object], tmp_path: Path
) -> None:
    asked = tmp_path / "asked.png"
    Image.fromarray(np.asarray(photos["coffee"])).save(asked)
    hits = {Path(hit["paths"][0]).name: hit for hit in run_json("search", "--like", str(asked))}
    assert set(list(hits)[:3]) == {"film.mp4", "report.pdf", "shot.dng"}
    assert (hits["film.mp4"]["part"], hits["film.mp4"]["time_s"]) == (0, 0)
    assert (hits["report.pdf"]["part"], hits["report.pdf"]["page"]) == (2, 3)
    assert not {"time_s", "page"} & set(hits["shot.dng"])
    Image.fromarray(np.asarray(photos["astronaut"])).save(asked)
    (best, *_) = run_json("search", "--like", str(asked))
    assert best["time_s"] == pytest.approx(70, abs=2)
    page = tmp_path / "found.html"
    people = run("search", "--like", str(asked), "--html", str(page))
    assert "film.mp4 (at 1:10)" in " ".join(people.stdout.split())
    assert {"at 1:10", "page 1"} & set(Texts(page).texts)

    lines = run_lines("files")
    of = {Path(one["paths"][0]).name: [two for two in lines if two["paths"] == one["paths"]] for one in lines}
    assert [len(of[name]) for name in ("film.mp4", "report.pdf", "shot.dng")] == [2, 3, 1]
    for line in of["film.mp4"] + of["report.pdf"]:
        assert line["features"]["embeddings"]["status"] == "ok"
        assert line["features"]["enhanced_images"]["status"] == "not_wanted"
        assert "of stills alone" in line["features"]["enhanced_images"]["reason"]
    assert run_json("status")["sources"]["demo"]["features"]["enhanced_images"].get("not_wanted") == 5
