"""Exporting: what is there afterwards, what a second run does, and what is never touched."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cheap_stages
import pytest
from export_lab import counts, delete, manifest, put, run, stats, there, work
from lab import Lab
from PIL import Image

from mirror_realm_assets.catalog import sources
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.wants import Recipe
from mirror_realm_assets.enhance.codec import encode
from mirror_realm_assets.errors import MirrorRealmError, SetupError
from mirror_realm_assets.export import exporting, placing
from mirror_realm_assets.export.folder import WORK, Folder
from mirror_realm_assets.export.manifest import MANIFEST, Manifest
from mirror_realm_assets.export.placing import Placer
from mirror_realm_assets.ingest.sidecars import parse


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "export"


def change(lab: Lab, **options: Any) -> None:
    with lab.catalog.write() as conn:
        sources.set_policy(conn, "demo", options)


def is_true(folder: Path) -> None:
    """The manifest names what is there, with its bytes."""
    for name, line in manifest(folder).items():
        data = (folder / name).read_bytes()
        assert line.get("edited") or (line["bytes"], line["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_enhanced_pictures_lie_below_the_sources_folders(lab: Lab, to: Path) -> None:
    (lab.folder / "2020" / "sea").mkdir(parents=True)
    original = lab.picture("2020/sea/a.png", 1)
    os.utime(original, (1_600_000_000, 1_600_000_000))
    lab.picture("b.png", 2)
    work(lab)
    assert put(run(lab, to)) == 2
    assert there(to) == {"demo/2020/sea/a.enhanced.jpg", "demo/b.enhanced.jpg"}
    line = manifest(to)["demo/2020/sea/a.enhanced.jpg"]
    assert line["source"] == "demo" and line["path"] == "2020/sea/a.png" and line["kind"] == "enhanced"
    assert line["digest"] == hashlib.sha256(original.read_bytes()).hexdigest()
    assert line["model"] == "toy" and len(line["recipe"]) == 64
    exported = to / "demo/2020/sea/a.enhanced.jpg"
    assert Image.open(exported).size == (32, 24) and exported.stat().st_mtime == 1_600_000_000
    is_true(to)


def test_a_second_run_changes_nothing_at_all(lab: Lab, to: Path) -> None:
    lab.picture("a.png", 1)
    work(lab)
    run(lab, to, kinds=("enhanced", "original"))
    before, head = stats(to), (to / MANIFEST).stat()
    folder = to.stat().st_mtime_ns
    assert counts(run(lab, to, kinds=("enhanced", "original"))) == {"unchanged": 2}
    assert stats(to) == before and (to / MANIFEST).stat() == head and to.stat().st_mtime_ns == folder


def test_a_new_file_is_added_and_a_deleted_one_removed_with_its_folder(lab: Lab, to: Path) -> None:
    (lab.folder / "old").mkdir()
    lab.picture("old/a.png", 1)
    lab.picture("b.png", 2)
    work(lab)
    run(lab, to)
    kept = stats(to)["demo/b.enhanced.jpg"]
    delete(lab, "old/a.png")
    lab.picture("c.png", 3)
    work(lab)
    outcome = run(lab, to)
    assert (put(outcome), outcome.removed, outcome.unchanged) == (1, 1, 1)
    assert there(to) == {"demo/b.enhanced.jpg", "demo/c.enhanced.jpg"} and not (to / "demo/old").exists()
    assert stats(to)["demo/b.enhanced.jpg"] == kept
    is_true(to)


def test_a_file_that_is_only_missing_keeps_its_export(lab: Lab, to: Path) -> None:
    lab.picture("a.png", 1)
    work(lab)
    run(lab, to)
    with lab.catalog.write() as conn:
        conn.execute(t.locations.update().values(state="missing"))
    assert counts(run(lab, to)) == {"unchanged": 1}


def test_what_somebody_edited_is_kept_and_told(lab: Lab, to: Path) -> None:
    lab.picture("a.png", 1)
    lab.picture("b.png", 2)
    work(lab)
    run(lab, to)
    (to / "demo/a.enhanced.jpg").write_bytes(b"a person's own work")
    for _again in range(2):
        outcome = run(lab, to)
        assert counts(outcome) == {"unchanged": 1, "kept": 1}
        assert outcome.kept_files == [("demo/a.enhanced.jpg", "edited")]
        is_true(to)
    delete(lab, "a.png")
    delete(lab, "b.png")
    outcome = run(lab, to)
    assert counts(outcome) == {"removed": 1, "kept": 1}
    assert (to / "demo/a.enhanced.jpg").read_bytes() == b"a person's own work"
    assert manifest(to) == {}
    assert counts(run(lab, to)) == {}


def test_what_was_only_touched_or_copied_is_not_edited(lab: Lab, to: Path) -> None:
    lab.picture("a.png", 1)
    work(lab)
    run(lab, to)
    os.utime(to / "demo/a.enhanced.jpg")
    assert counts(run(lab, to)) == {"unchanged": 1}
    assert manifest(to)["demo/a.enhanced.jpg"]["mtime_ns"] == stats(to)["demo/a.enhanced.jpg"][1]  # read only once
    delete(lab, "a.png")
    assert counts(run(lab, to)) == {"removed": 1}


def test_what_is_not_ours_is_never_written_over(lab: Lab, to: Path, tmp_path: Path) -> None:
    for n, name in enumerate(("a.png", "b.png", "c.png")):
        lab.picture(name, n)
    (lab.folder / "sub").mkdir()
    lab.picture("sub/d.png", 4)
    work(lab)
    (to / "demo").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (to / "demo/a.enhanced.jpg").write_bytes(b"mine")
    (to / "demo/b.enhanced.jpg").symlink_to(tmp_path / "nothing")
    (to / "demo/sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SetupError, match="not empty"):
        run(lab, to)
    outcome = run(lab, to, into_existing=True)
    assert (put(outcome), outcome.kept, outcome.failures) == (1, 3, 0)
    assert {why for _name, why in outcome.kept_files} == {"not_ours"}
    assert (to / "demo/a.enhanced.jpg").read_bytes() == b"mine" and (to / "demo/b.enhanced.jpg").is_symlink()
    assert list((tmp_path / "elsewhere").iterdir()) == [] and set(manifest(to)) == {"demo/c.enhanced.jpg"}


def test_files_of_one_name_have_the_same_names_whatever_came_first(lab: Lab, to: Path, tmp_path: Path) -> None:
    for n, folder in enumerate(("x", "y", "z")):
        (lab.folder / folder).mkdir()
        lab.picture(f"{folder}/IMG.png", n)
        if folder != "x":
            lab.picture(f"{folder}/only-{folder}.png", n + 10)
        work(lab)
        run(lab, to, template="{filename}")
    run(lab, tmp_path / "at once", template="{filename}")
    assert there(to) == there(tmp_path / "at once") and len(there(to)) == 5
    assert sum("-" in name and name.startswith("IMG") for name in there(to)) == 3
    is_true(to)
    delete(lab, "x/IMG.png")
    delete(lab, "y/IMG.png")
    run(lab, to, template="{filename}")
    assert there(to) == {"IMG.enhanced.jpg", "only-y.enhanced.jpg", "only-z.enhanced.jpg"}
    is_true(to)


def test_a_name_that_changes_in_case_alone_is_followed(lab: Lab, to: Path) -> None:
    lab.picture("A.png", 1)
    work(lab)
    run(lab, to)
    (lab.folder / "A.png").rename(lab.folder / "a.png")
    work(lab)
    with lab.catalog.write() as conn:
        conn.execute(t.locations.update().where(t.locations.c.path == b"A.png").values(state="deleted"))
    assert put(run(lab, to)) == 1
    assert there(to) == {"demo/a.enhanced.jpg"}
    is_true(to)


def test_a_folder_that_is_called_like_a_picture_keeps_its_name(lab: Lab, to: Path) -> None:
    (lab.folder / "a.enhanced.jpg").mkdir()
    lab.picture("a.enhanced.jpg/b.png", 1)
    lab.picture("a.png", 2)
    work(lab)
    outcome = run(lab, to)
    assert (put(outcome), outcome.failures) == (2, 0)
    assert "demo/a.enhanced.jpg/b.enhanced.jpg" in there(to)
    assert sum(name.startswith("demo/a.enhanced-") for name in there(to)) == 1


def test_names_that_are_no_utf8_are_exported_and_told_without_loss(lab: Lab, to: Path) -> None:
    for n, name in enumerate((b"\xff.png", b"\xfe.png")):
        shutil.copy(lab.picture("tmp.png", n), os.fsencode(lab.folder) + b"/" + name)
        (lab.folder / "tmp.png").unlink()
    work(lab)
    assert put(run(lab, to)) == 2
    lines = manifest(to).values()
    assert all(line["name"].startswith("demo/_.enhanced-") for line in lines)
    assert {line["path_b64"] for line in lines} == {"/y5wbmc=", "/i5wbmc="}
    assert {line["path"] for line in lines} == {"\\udcff.png", "\\udcfe.png"}


def test_originals_are_copied_and_stay_what_they_are(lab: Lab, to: Path) -> None:
    original = lab.picture("a.png", 1)
    work(lab)
    run(lab, to, kinds=("original",), link="hard")
    exported = to / "demo/a.png"
    assert exported.read_bytes() == original.read_bytes()
    assert exported.stat().st_ino != original.stat().st_ino and original.stat().st_nlink == 1
    assert exported.stat().st_mtime_ns == original.stat().st_mtime_ns


def test_hard_links_take_no_space_and_are_not_written_by_mistake(lab: Lab, to: Path) -> None:
    lab.picture("a.png", 1)
    work(lab)
    assert counts(run(lab, to, link="hard")) == {"linked": 1}
    exported = to / "demo/a.enhanced.jpg"
    assert exported.stat().st_nlink == 2 and exported.stat().st_mode & 0o222 == 0
    assert manifest(to)["demo/a.enhanced.jpg"]["link"] == "hard"
    os.utime(exported)  # as the store does when the same object is made again
    assert counts(run(lab, to, link="hard")) == {"unchanged": 1}
    delete(lab, "a.png")
    assert counts(run(lab, to)) == {"removed": 1}


def test_by_default_editing_an_exported_file_leaves_the_store_alone(lab: Lab, to: Path) -> None:
    lab.picture("a.png", 1)
    work(lab)
    run(lab, to)
    line = manifest(to)["demo/a.enhanced.jpg"]
    with (to / "demo/a.enhanced.jpg").open("r+b") as file:
        file.write(b"other")
    (key,) = [entry.key for entry in lab.services.store.list("derived/enhanced_images")]
    assert len(lab.services.store.read(key, line["sha256"])) == line["bytes"]


def test_files_are_clones_where_the_file_system_can_make_them(
    lab: Lab, to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.picture("a.png", 1)
    work(lab)

    def clone(target: int, _request: int, source: int) -> int:
        return os.pwrite(target, os.pread(source, 10**7, 0), 0)

    monkeypatch.setattr(placing.fcntl, "ioctl", clone)
    assert counts(run(lab, to, kinds=("enhanced", "original"))) == {"linked": 2}
    assert {line["link"] for line in manifest(to).values()} == {"clone"}
    is_true(to)


def test_a_new_recipe_replaces_a_picture_once_it_is_made(lab: Lab, to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.picture("a.png", 1)
    work(lab)
    run(lab, to)
    before = manifest(to)["demo/a.enhanced.jpg"]
    monkeypatch.setattr(cheap_stages, "Recipe", lambda name, _code, *rest: Recipe(name, "another", *rest))
    monkeypatch.setattr(cheap_stages, "encode", lambda image, form: encode(255 - image, form))
    assert counts(run(lab, to)) == {"unchanged": 1}  # until then the old one stays
    assert manifest(to)["demo/a.enhanced.jpg"] == before
    work(lab)
    assert put(run(lab, to)) == 1
    after_it = manifest(to)["demo/a.enhanced.jpg"]
    assert after_it["recipe"] != before["recipe"] and after_it["sha256"] != before["sha256"]
    is_true(to)


def test_what_is_not_to_be_enhanced_any_more_is_removed(lab: Lab, to: Path) -> None:
    lab.picture("a.png", 1)
    work(lab)
    run(lab, to)
    change(lab, enhance=False)
    assert counts(run(lab, to)) == {"removed": 1} and there(to) == set()


def test_another_template_moves_files_and_loses_none_that_cannot_be_read(lab: Lab, to: Path) -> None:
    lab.picture("a.png", 1)
    lab.picture("b.png", 2)
    work(lab)
    run(lab, to, kinds=("original",))
    (lab.folder / "a.png").rename(lab.folder.parent / "a drive that is away.png")
    outcome = run(lab, to, kinds=("original",), template="{year}/{filename}")
    assert (put(outcome), outcome.removed, outcome.unchanged, outcome.failures) == (1, 1, 1, 1)
    assert outcome.failed[0].code == "original_gone" and (to / "demo/a.png").exists()
    is_true(to)


def test_one_that_fails_does_not_keep_the_others(lab: Lab, to: Path) -> None:
    for n in range(3):
        lab.picture(f"{n}.png", n)
    work(lab)
    entry = next(iter(lab.services.store.list("derived/enhanced_images")))
    (lab.settings.store_folder / entry.key).unlink()
    outcome = run(lab, to)
    assert (put(outcome), outcome.failures) == (2, 1) and outcome.failed[0].code == "store_failed"
    is_true(to)
    work(lab)


def test_a_run_is_about_its_source_and_kinds_alone(lab: Lab, to: Path, tmp_path: Path) -> None:
    lab.picture("a.png", 1)
    work(lab)
    run(lab, to, template="{filename}")
    (tmp_path / "more").mkdir()
    with lab.catalog.write() as conn:
        sources.add(conn, "more", os.fsencode(tmp_path / "more"), {})
    outcome = run(lab, to, source="more", template="{filename}")
    assert counts(outcome) == {"unchanged": 1} and there(to) == {"a.enhanced.jpg"}
    run(lab, to, kinds=("original",), template="{filename}")
    assert there(to) == {"a.enhanced.jpg", "a.png"}


def test_a_sidecar_says_what_the_originals_say(lab: Lab, to: Path) -> None:
    lab.picture("a.png", 1)
    lab.picture("b.png", 2)
    said = {"title": "a.png", "description": "The <sea> & us", "photoTakenTime": {"timestamp": "1593561600"},
            "geoData": {"latitude": 48.2, "longitude": -16.4}}  # fmt: skip
    (lab.folder / "a.png.json").write_text(json.dumps(said))
    work(lab)
    run(lab, to, kinds=("enhanced", "original"))
    assert there(to) == {
        "demo/a.enhanced.jpg", "demo/a.enhanced.jpg.xmp", "demo/a.png", "demo/a.png.xmp", "demo/b.enhanced.jpg",
        "demo/b.png",
    }  # fmt: skip
    found = parse("xmp", (to / "demo/a.enhanced.jpg.xmp").read_bytes())
    assert found == {
        "title": "a.png", "description": "The <sea> & us", "taken_at": "2020-07-01T00:00:00+00:00",
        "latitude": 48.2, "longitude": -16.4,
    }  # fmt: skip
    (lab.folder / "a.png.json").write_text(json.dumps(said | {"description": "Changed"}))
    work(lab)
    assert put(run(lab, to, kinds=("enhanced", "original"))) == 2
    assert b"Changed" in (to / "demo/a.enhanced.jpg.xmp").read_bytes()
    is_true(to)


@pytest.mark.parametrize("where", ["home", "home/store/x", "photos", "photos/x", "."])
def test_an_export_never_lies_in_or_around_a_source_or_the_home(lab: Lab, tmp_path: Path, where: str) -> None:
    with pytest.raises(SetupError, match="lie in each other"):
        run(lab, tmp_path / where)


def test_a_dry_run_does_nothing(lab: Lab, to: Path) -> None:
    lab.picture("a.png", 1)
    lab.picture("b.png", 2)
    work(lab)
    assert counts(run(lab, to, dry_run=True)) == {"written": 2} and not to.exists()
    run(lab, to)
    delete(lab, "a.png")
    lab.picture("c.png", 3)
    work(lab)
    before = stats(to)
    assert counts(run(lab, to, dry_run=True)) == {"written": 1, "unchanged": 1, "removed": 1}
    assert stats(to) == before and not (to / WORK).exists()


class _Killed(BaseException):
    pass


def after(number: int, call: Any) -> Any:
    """`call`, until it was called so often: then the process dies."""
    calls = iter(range(number))

    def made(*args: Any, **kwargs: Any) -> Any:
        if next(calls, None) is None:
            raise _Killed
        return call(*args, **kwargs)

    return made


@pytest.mark.parametrize("step", range(9))
def test_a_killed_run_goes_on_and_its_manifest_never_lies(
    lab: Lab, to: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    for n in range(4):
        lab.picture(f"{n}.png", n)
    work(lab)
    run(lab, to, template="{filename}")
    delete(lab, "0.png")
    (lab.folder / "x").mkdir()
    lab.picture("x/1.png", 11)  # takes the name of another
    lab.picture("5.png", 5)
    work(lab)
    with monkeypatch.context() as patched, pytest.raises(_Killed):
        if step < 4:
            patched.setattr(Placer, "place", after(step, Placer.place))
        elif step < 6:
            patched.setattr(Folder, "remove", after(step - 4, Folder.remove))
        elif step < 8:
            patched.setattr(Manifest, "write", after(step - 6, Manifest.write))
        else:
            patched.setattr(Manifest, "end", after(0, Manifest.end))
        run(lab, to, template="{filename}")
        raise _Killed  # fewer steps than that
    is_true(to)
    delete(lab, "5.png")  # what the killed run wrote is known as ours
    outcome = run(lab, to, template="{filename}")
    assert (outcome.kept, outcome.failures) == (0, 0)
    assert len(there(to)) == 4 and not (to / WORK).exists()
    assert len(manifest(to)) == 4
    is_true(to)
    before = stats(to)
    assert counts(run(lab, to, template="{filename}")) == {"unchanged": 4} and stats(to) == before


_DYING = """
import os, sys
from pathlib import Path
from cheap_stages import cheap_stages
from mirror_realm_assets.export import exporting, order
from mirror_realm_assets.export.folder import Folder
from mirror_realm_assets.resources.library import open_services
from mirror_realm_assets.settings import Settings

home, to = map(Path, sys.argv[1:])
put, calls = Folder.put, []

def dying(*args):
    calls.append(put(*args))
    if len(calls) == 2:
        os.kill(os.getpid(), 9)

Folder.put = dying
settings = Settings.at(home, quiet_seconds=0)
rule = next(stage.rule for stage in cheap_stages(settings) if stage.feature == "enhanced_images")
exporting.export(open_services(settings), rule, order.Order(to))
"""


def test_a_process_that_is_killed_between_writing_and_the_manifest_has_lied_about_nothing(lab: Lab, to: Path) -> None:
    for n in range(3):
        lab.picture(f"{n}.png", n)
    work(lab)
    paths = [str(Path(exporting.__file__).parents[2]), str(Path(cheap_stages.__file__).parent)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", _DYING, lab.home, to], env=env, timeout=120, check=False)
    assert done.returncode == -9
    assert manifest(to) == {} and len(list((to / "demo").iterdir())) == 2
    assert list((to / WORK).glob("*.part"))  # hard links share it until the draft's name is gone
    before = stats(to / "demo")
    outcome = run(lab, to)
    assert (put(outcome), outcome.unchanged, outcome.kept) == (1, 2, 0)
    assert before.items() <= stats(to / "demo").items() and not (to / WORK).exists()
    is_true(to)


def test_a_full_disk_ends_the_run_and_the_next_one_goes_on(lab: Lab, to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(3):
        lab.picture(f"{n}.png", n)
    work(lab)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(MirrorRealmError, match="no space left"):
        patched.setattr(placing, "_flush", full)
        run(lab, to)
    assert there(to) <= {f"{WORK}/unfinished.jsonl"} and manifest(to) == {}
    assert put(run(lab, to)) == 3
    is_true(to)


def test_another_librarys_folder_and_a_broken_manifest_are_left_alone(lab: Lab, to: Path, tmp_path: Path) -> None:
    lab.picture("a.png", 1)
    work(lab)
    run(lab, to)
    text = (to / MANIFEST).read_text()
    (to / MANIFEST).write_text(text.replace(lab.catalog.uuid(), "another"))
    with pytest.raises(SetupError, match="another library"):
        run(lab, to)
    for broken in ("", "{}", text + '{"name": "../../home"}\n', text.replace("demo/a", "../a"), text[:-30]):
        (to / MANIFEST).write_text(broken)
        with pytest.raises(SetupError, match="cannot be read"):
            run(lab, to)
    assert (to / "demo/a.enhanced.jpg").exists()


def test_two_exports_to_one_folder_do_not_meet(lab: Lab, to: Path) -> None:
    from mirror_realm_assets.export.target import locked

    with locked(to), pytest.raises(SetupError, match="Another export"):
        run(lab, to)


def test_a_folder_that_goes_away_ends_the_run(lab: Lab, to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(3):
        lab.picture(f"{n}.png", n)
    work(lab)
    real = exporting.Placer.place

    def unmounted(self: Placer, *args: Any) -> Any:
        to.rename(to.with_name("unplugged"))
        return real(self, *args)

    monkeypatch.setattr(exporting.Placer, "place", unmounted)
    with pytest.raises(SetupError, match="not there any more"):
        run(lab, to)
    assert not to.exists()
