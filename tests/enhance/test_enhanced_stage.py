"""The stage `enhanced_images` with a real model, over files of many kinds in a real library."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import sqlalchemy as sa
from cheap_stages import embeddings, run_lane
from lab import Lab
from PIL import Image

from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.enhance.stage import enhanced_images_stage
from mirror_realm_assets.ingest.stage import raw_media_stage
from mirror_realm_assets.stages.stage import Stage

Picture = npt.NDArray[np.uint8]
OPTIONS = {"enhance.model": "realesr-animevideov3", "enhance.outscale": 2}


@pytest.fixture
def stages(lab: Lab, models_dir: Path) -> tuple[Stage, ...]:
    lab.settings.models_dir.rmdir() if lab.settings.models_dir.exists() else None
    lab.settings.models_dir.symlink_to(models_dir)
    return (raw_media_stage(lab.settings), embeddings(), enhanced_images_stage("fp32", models_dir))


def enhanced(lab: Lab, stages: tuple[Stage, ...], **options: object) -> dict[str, tuple[str, str | None, bytes]]:
    """Outcome, code and bytes of what was made, by the name of the file."""
    from mirror_realm_assets.catalog import sources

    with lab.catalog.write() as conn:
        sources.set_policy(conn, "demo", OPTIONS | {f"enhance.{key}": value for key, value in options.items()})
    for batch in lab.form(stages):
        run_lane(lab.services, stages, batch.key)
        run_lane(lab.services, stages, batch.key, "enhance")
    f, p, m, place = t.features.c, t.parts.c, t.media.c, t.locations.c
    query = (
        sa.select(place.display, f.status, f.code, f.output)
        .join(t.media, m.id == place.media_id)
        .join(t.parts, p.content_id == m.content_id)
        .join(t.features, sa.and_(f.image_digest == p.image_digest, f.part == p.part))
        .where(f.feature == "enhanced_images")
    )
    with lab.catalog.read() as conn:
        rows = conn.execute(query).all()
    store = lab.services.store
    return {
        name: (status, code, store.read(output["key"], output["sha256"]) if status == "ok" else b"")
        for name, status, code, output in rows
    }


def save(lab: Lab, name: str, picture: npt.NDArray[np.generic], **options: object) -> None:
    Image.fromarray(picture).save(lab.folder / name, **options)


def test_what_the_pictures_had_survives(lab: Lab, stages: tuple[Stage, ...], photos: dict[str, Picture]) -> None:
    photo = photos["coffee"][:24, :32]
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Canon"
    save(lab, "turned.jpg", photo, exif=exif)
    save(lab, "glass.png", np.dstack([photo, photo[..., :1]]))
    save(lab, "grey.png", photo[..., 1])
    save(lab, "deep.png", (photo[..., 2].astype(np.uint16) * 257))
    made = enhanced(lab, stages)
    assert {name: found[:2] for name, found in made.items()} == dict.fromkeys(
        ("turned.jpg", "glass.png", "grey.png", "deep.png"), ("ok", None)
    )
    opened = {name: Image.open(io.BytesIO(content)) for name, (_status, _code, content) in made.items()}
    assert opened["turned.jpg"].size == (48, 64)
    assert opened["turned.jpg"].getexif()[0x0112] == 1 and opened["turned.jpg"].getexif()[0x010F] == "Canon"
    assert opened["glass.png"].mode == "RGBA" and opened["grey.png"].mode == "L"
    assert opened["deep.png"].mode.startswith("I;16")


def test_an_animation_is_refused_and_the_rest_goes_on(
    lab: Lab, stages: tuple[Stage, ...], photos: dict[str, Picture]
) -> None:
    frames = [Image.fromarray(photos[name][:16, :16]) for name in ("coffee", "astronaut")]
    frames[0].save(lab.folder / "moving.webp", save_all=True, append_images=frames[1:])
    save(lab, "still.png", photos["chelsea"][:16, :16])
    made = enhanced(lab, stages)
    assert made["moving.webp"][:2] == ("refused", "unsupported")
    assert made["still.png"][0] == "ok"


@pytest.mark.parametrize(("file_format", "name"), [("jpeg", "JPEG"), ("webp", "WEBP"), ("tiff", "TIFF")])
def test_the_format_is_what_the_source_wants(
    lab: Lab, stages: tuple[Stage, ...], photos: dict[str, Picture], file_format: str, name: str
) -> None:
    save(lab, "photo.png", photos["chelsea"][:16, :16])
    (status, _code, content) = enhanced(lab, stages, format=file_format, quality=60)["photo.png"]
    assert status == "ok" and Image.open(io.BytesIO(content)).format == name
    assert list((lab.settings.home / "scratch").iterdir()) == []


def test_both_engines_make_the_same_picture_and_know_whose_it_is(
    lab: Lab, stages: tuple[Stage, ...], photos: dict[str, Picture]
) -> None:
    save(lab, "photo.png", photos["chelsea"][:16, :16])
    ours = enhanced(lab, stages, outscale=4)["photo.png"][2]
    with lab.catalog.read() as conn:
        before = conn.execute(sa.select(t.features.c.recipe).where(t.features.c.feature == "enhanced_images")).all()
    recipes = {
        stages[2].recipe(lab.source.policy.merged({"enhance.engine": engine})).digest  # type: ignore[union-attr]
        for engine in ("native", "realesrgan")
    }
    assert len(recipes) == 2 and before[0][0] in recipes
    assert Image.open(io.BytesIO(ours)).size == (64, 64)
