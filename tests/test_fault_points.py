from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from mirror_realm_assets.fault_points import VARIABLE, point, points_of

processes = multiprocessing.get_context("forkserver")


def pass_by(folder: Path | None, *names: str) -> int | None:
    """The exit code of a process that passes these points."""
    one = processes.Process(target=_pass_by, args=(folder, names))
    one.start()
    one.join(30)
    return one.exitcode


def _pass_by(folder: Path | None, names: tuple[str, ...]) -> None:
    if folder is not None:
        os.environ[VARIABLE] = str(folder)
    for name in names:
        point(name)


def test_without_the_variable_nothing_happens(tmp_path: Path) -> None:
    (tmp_path / "form.before_commit").write_text("1")
    assert pass_by(None, "form.before_commit") == 0


def test_an_armed_point_kills_the_one_that_passes_it_so_many_times_and_nobody_after(tmp_path: Path) -> None:
    (tmp_path / "form.before_commit").write_text("2")
    assert pass_by(tmp_path, "form.before_commit", "form.after_commit") == 0, "once, and another one"
    assert pass_by(tmp_path, "form.before_commit", "form.before_commit") == -signal.SIGKILL
    assert pass_by(tmp_path, "form.before_commit", "form.before_commit") == 0
    (died,) = tmp_path.iterdir()
    assert died.name.startswith("form.before_commit.")


def test_the_steps_of_an_area_are_its_points(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    (tmp_path / "store.draft synced").write_text("1")
    died: list[int] = []
    monkeypatch.setattr("os.kill", lambda _pid, number: died.append(number))
    step = points_of("store")
    for name in ("draft begun", "draft synced", "draft synced"):
        step(name)
    assert died == [signal.SIGKILL]
