from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path

import pytest

from mirror_realm_assets.fault_points import VARIABLE, point, points_of

processes = multiprocessing.get_context("fork")


def pass_by(*names: str) -> int | None:
    """The exit code of a process that passes these points."""

    def go() -> None:
        for name in names:
            point(name)

    one = processes.Process(target=go)
    one.start()
    one.join(30)
    return one.exitcode


def test_without_the_variable_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert pass_by("form.before_commit") == 0


def test_an_armed_point_kills_the_one_that_passes_it_so_many_times_and_nobody_after(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    (tmp_path / "form.before_commit").write_text("2")
    assert pass_by("form.before_commit", "form.after_commit") == 0, "once, and another one"
    assert pass_by("form.before_commit", "form.before_commit") == -signal.SIGKILL
    assert pass_by("form.before_commit", "form.before_commit") == 0
    (died,) = tmp_path.iterdir()
    assert died.name.startswith("form.before_commit.")


def test_the_steps_of_an_area_are_its_points(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    (tmp_path / "store.draft synced").write_text("1")
    step = points_of("store")
    step("draft begun")
    with pytest.MonkeyPatch.context() as patched:
        died: list[int] = []
        patched.setattr("os.kill", lambda _pid, number: died.append(number))
        step("draft synced")
        step("draft synced")
    assert died == [signal.SIGKILL]
