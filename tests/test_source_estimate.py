"""What a source will take: told from headers alone, before anything is computed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import sqlalchemy as sa
from lab import Lab

from mirror_realm_assets import estimate
from mirror_realm_assets.catalog import features, measured, media, sources
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import inserted_id, now
from mirror_realm_assets.catalog.features import FeatureKey, Finding
from mirror_realm_assets.catalog.wants import Recipe
from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.estimate import Estimate, of_folder


def of(lab: Lab, **options: object) -> Estimate:
    with lab.catalog.write() as conn:
        source = sources.set_policy(conn, "demo", options)
    return of_folder(lab.settings, source)


def test_files_bytes_and_what_the_policy_leaves_out_are_counted(lab: Lab) -> None:
    lab.picture("a.png", 1, size=(100, 100))
    lab.picture("b.png", 2, size=(100, 100))
    lab.picture("c.png", 3, size=(400, 300))
    (lab.folder / "words.txt").write_text("no picture")
    (lab.folder / ".hidden.png").write_bytes(b"x")
    found = of(lab, **{"enhance.max_pixels": 50_000})
    assert found.files == 4
    assert found.bytes == sum(p.stat().st_size for p in lab.folder.iterdir() if not p.name.startswith("."))
    assert found.sampled == 3
    assert (found.enhance_files, found.not_wanted) == (2, 1)
    assert found.enhance_bytes == pytest.approx(2 * 100 * 100 * 16 * 1.9, rel=0.01)
    assert found.search_seconds > 0


def test_work_grows_with_the_pixels_and_is_nothing_when_it_is_not_wanted(lab: Lab) -> None:
    lab.picture("a.png", 1, size=(100, 100))
    small = of(lab)
    lab.picture("b.png", 2, size=(200, 100))
    assert of(lab).enhance_seconds == pytest.approx(3 * small.enhance_seconds, abs=0.2)
    half = of(lab, **{"enhance.outscale": 2.0})
    assert half.enhance_bytes == pytest.approx(3 * small.enhance_bytes / 4, rel=0.01)
    nothing = of(lab, enhance=False)
    assert (nothing.enhance_files, nothing.enhance_seconds, nothing.enhance_bytes, nothing.not_wanted) == (0, 0, 0, 0)
    assert nothing.files == 2


def test_a_sample_stands_for_the_whole_folder(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "_SAMPLE", 5)
    for n in range(20):
        lab.picture(f"{n}.png", n, size=(50, 40))
    found = of(lab)
    assert (found.files, found.sampled, found.enhance_files) == (20, 5, 20)


def test_an_empty_folder_takes_nothing_and_a_missing_one_is_an_error(lab: Lab, tmp_path: Path) -> None:
    assert of(lab).files == 0
    assert of(lab).enhance_seconds == 0
    with lab.catalog.write() as conn:
        away = sources.add(conn, "away", os.fsencode(tmp_path / "nowhere"), {})
    with pytest.raises(SetupError) as error:
        of_folder(lab.settings, away)
    assert error.value.code == "folder_missing"


def test_kinds_refusals_by_size_and_the_space_there_is_are_told(lab: Lab) -> None:
    lab.picture("a.png", 1)
    lab.picture("b.PNG", 2)
    (lab.folder / "film.mov").write_bytes(b"x" * 5000)
    lab.settings = lab.settings.model_copy(update={"max_file_bytes": 4999})
    found = of(lab)
    assert found.kinds == {"png": 2, "mov": 1}
    assert (found.files, found.too_large, found.enhance_files) == (3, 1, 2)
    assert (found.fits, found.rate_from) == (True, "table")
    lab.settings = lab.settings.model_copy(update={"low_space_bytes": 2**62})
    assert of(lab).fits is False


def test_a_speed_that_was_measured_here_replaces_the_table(lab: Lab) -> None:
    output = {"model": "realesrgan-x4plus", "device": "cpu", "precision": "fp32"}
    with lab.catalog.write() as conn:
        for n, (side, made_by) in enumerate([(500, output), (500, {**output, "device": "cuda"}), (30, output)]):
            part = media.Part(0, "still", f"{n:064x}", side, side)
            _identify(conn, n, part)
            key = FeatureKey(part.image_digest, 0, "enhanced_images", "r" * 64)
            features.write(conn, key, Recipe("enhanced_images", "1"), Finding("ok", made_by, seconds=10.0))
        assert measured.enhancement_rate(conn, "realesrgan-x4plus", "cpu", "fp32") == pytest.approx(40.0)
        assert measured.enhancement_rate(conn, "realesrgan-x4plus", "cpu", "bf16") is None


def _identify(conn: sa.Connection, n: int, part: media.Part) -> None:
    content = {"digest": f"{n:064d}", "size": 1, "custody": "referenced", "created_at": now(conn)}
    content_id = inserted_id(conn.execute(t.contents.insert().values(**content)))
    facts = {"image_digest": part.image_digest, "width": part.width, "height": part.height}
    conn.execute(t.parts.insert().values(content_id=content_id, part=0, kind="still", **facts))
