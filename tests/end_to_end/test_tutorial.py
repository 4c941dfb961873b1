"""The tutorial, typed as it stands: every command of it runs on a folder of photos, in order."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from running_home import RunningHome

TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "tutorial" / "your-own-photos.md"
_TYPED = re.compile(r"^\$ (?:\.venv/bin/)?mirror-realm (.*)$", re.MULTILINE)


@pytest.mark.timeout(500)  # other tests share the cores
def test_every_command_of_the_tutorial_runs_and_does_what_it_says(
    new_home: Callable[..., RunningHome], drop: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = tmp_path / "person" / "Pictures"
    pictures.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(pictures.parent))
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("beach.jpg", "old.jpg", "third.jpg")):
        drop(pictures, number, name=name)
    (pictures / "broken.jpg").write_bytes(b"no picture")
    home = new_home(HOME=str(pictures.parent))
    typed = _TYPED.findall(TUTORIAL.read_text(encoding="utf-8"))
    assert len(typed) > 8

    said = {}
    for line in typed:
        words = [os.path.expanduser(word) for word in shlex.split(line)]  # noqa: PTH111
        if words[:2] == ["status", "--watch"]:
            home.run("ingest", "family")  # what the service does meanwhile in the tutorial
            words.remove("--watch")
        said[line] = home.run(*words).stdout

    counts = next(out for line, out in said.items() if line.startswith("status"))
    assert "family" in counts
    assert "broken.jpg" in next(out for line, out in said.items() if "--status refused" in line)
    assert "beach.jpg" in (tmp_path / "found.html").read_text(encoding="utf-8")
    assert "<img" in (tmp_path / "words.html").read_text(encoding="utf-8")
    with Image.open(tmp_path / "enhanced.png") as enhanced, Image.open(pictures / "old.jpg") as old:
        assert enhanced.size == (old.width * 4, old.height * 4)
    assert sorted(path.name for path in pictures.iterdir()) == ["beach.jpg", "broken.jpg", "old.jpg", "third.jpg"]
    left = json.loads(home.run("sources", "list", "--json").stdout.splitlines()[0])
    assert left["name"] != "family"
