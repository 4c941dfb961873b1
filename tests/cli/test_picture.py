import errno
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from mirror_realm_assets.cli.main import cli
from mirror_realm_assets.enhance import picture as module
from mirror_realm_assets.enhance.progress import Tiles
from mirror_realm_assets.errors import Failed


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with weights and nothing else: no catalog, no store."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "models").symlink_to(models_dir)
    monkeypatch.setenv("MIRROR_REALM_HOME", str(folder))
    monkeypatch.setenv("MIRROR_REALM_DEVICE", "cpu")
    monkeypatch.setenv("MIRROR_REALM_PRECISION", "fp32")
    return folder


@pytest.fixture
def photo(tmp_path: Path, photos: dict[str, npt.NDArray[np.uint8]]) -> Path:
    """A photograph of 48x40 pixels with a name that a terminal and rich would make something of."""
    path = tmp_path / "[red]\x1b[31mcat.png"
    Image.fromarray(photos["chelsea"]).resize((48, 40)).save(path)
    return path


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the network by plain enlargement, for tests of everything around it; lists the models asked for."""
    asked: list[str] = []

    class Plain:
        precision, device = "fp32", "cpu"

        def __init__(self, spec: object, *_: object, **__: object) -> None:
            self.name = spec.name  # type: ignore[attr-defined]
            asked.append(self.name)

        def __enter__(self) -> "Plain":
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def output_size(self, height: int, width: int, _outscale: float | None) -> tuple[int, int]:
            return 4 * height, 4 * width

        def strips(
            self, image: npt.NDArray[np.uint8], *, on_progress: Callable[[Tiles], None], **_: object
        ) -> Iterator[npt.NDArray[np.uint8]]:
            on_progress(Tiles(0, 1, 1.0))
            yield image.repeat(4, 0).repeat(4, 1)
            on_progress(Tiles(1, 1, 0.0))

    monkeypatch.setattr(module, "open_engine", lambda _engine, *arguments, **named: Plain(*arguments, **named))
    return asked


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["enhance", *map(str, arguments)])


def test_a_picture_is_enlarged_tile_by_tile_and_json_stands_alone_on_stdout(photo: Path, tmp_path: Path) -> None:
    before = (photo.read_bytes(), photo.stat().st_mtime_ns)
    result = run(photo, tmp_path / "out.png", "--tile", 24, "--outscale", 2, "--precision", "fp32", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found.pop("seconds") > 0
    assert found == {
        "input": [48, 40],
        "output": [96, 80],
        "tiles": 4,
        "model": "realesrgan-x4plus",
        "precision": "fp32",
    }
    with Image.open(tmp_path / "out.png") as made:
        assert (made.size, made.format) == ((96, 80), "PNG")
        small = np.asarray(made.resize((48, 40)), np.float32)
    with Image.open(photo) as original:
        assert np.abs(small - np.asarray(original, np.float32)).mean() < 12  # it shows the same thing
    assert result.stderr.splitlines()[0].startswith("0 of 4 tiles, about ")
    assert result.stderr.splitlines()[-1] == "4 of 4 tiles"
    assert (photo.read_bytes(), photo.stat().st_mtime_ns) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([photo.name, "out.png"])


def test_another_precision_is_used_and_reported(photo: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.png"
    Image.new("RGB", (8, 8), "red").save(small)
    result = run(small, tmp_path / "out.webp", "--precision", "bf16", "--json")
    assert json.loads(result.stdout)["precision"] == "bf16"


@pytest.mark.parametrize(("suffix", "written"), [("png", "PNG"), ("JPG", "JPEG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
@pytest.mark.usefixtures("network")
def test_the_suffix_decides_the_format(photo: Path, tmp_path: Path, suffix: str, written: str) -> None:
    target = tmp_path / f"[bold]\x1b]0;out.{suffix}"
    result = run(photo, target)
    assert result.exit_code == 0
    assert "\x1b" not in result.output
    assert "[bold]" in result.stdout
    with Image.open(target) as made:
        assert (made.size, made.format) == ((192, 160), written)


@pytest.mark.usefixtures("network")
def test_the_result_has_the_mode_that_the_umask_allows(photo: Path, tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        run(photo, tmp_path / "out.png")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "out.png").stat().st_mode) == 0o640


@pytest.mark.usefixtures("network")
def test_an_original_may_be_named_by_a_link_out_of_its_folder(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link.png").symlink_to(photo)
    assert run(tmp_path / "folder" / "link.png", tmp_path / "out.png").exit_code == 0


@pytest.mark.usefixtures("network")
def test_an_existing_file_is_replaced_with_force_only(photo: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.png"
    target.write_text("precious")
    result = run(photo, target)
    assert result.exit_code == 1
    assert "exists already. Choose another name, or add --force." in result.stderr
    assert target.read_text() == "precious"
    assert run(photo, target, "--force").exit_code == 0
    with Image.open(target) as made:
        assert made.size == (192, 160)


@pytest.mark.parametrize("kind", ["itself", "symlink", "hard link", "by a linked folder"])
def test_the_original_is_never_written_over_under_whatever_name(
    photo: Path, tmp_path: Path, network: list[str], kind: str
) -> None:
    target = tmp_path / "other.png"
    if kind == "itself":
        target = photo
    elif kind == "symlink":
        target.symlink_to(photo)
    elif kind == "hard link":
        target.hardlink_to(photo)
    else:
        (tmp_path / "folder").symlink_to(tmp_path)
        target = tmp_path / "folder" / photo.name
    before = photo.read_bytes()
    result = run(photo, target, "--force")
    assert result.exit_code == 1
    assert "is the original itself, which is never written over" in result.stderr
    assert photo.read_bytes() == before
    assert network == []


@pytest.mark.usefixtures("network")
def test_a_link_is_replaced_and_not_what_it_leads_to(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.png").write_text("precious")
    (tmp_path / "out.png").symlink_to("precious.png")
    assert run(photo, tmp_path / "out.png").exit_code == 1
    assert run(photo, tmp_path / "out.png", "--force").exit_code == 0
    assert (tmp_path / "precious.png").read_text() == "precious"


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), os.mkfifo])
def test_what_is_no_regular_file_is_not_replaced_even_with_force(
    photo: Path, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "out.png")
    result = run(photo, tmp_path / "out.png", "--force")
    assert result.exit_code == 1
    assert "is no regular file" in result.stderr


@pytest.mark.usefixtures("network")
def test_a_file_that_appears_during_the_work_is_not_replaced(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, publish = tmp_path / "out.png", module._publish

    def late(draft: Path, to: Path, force: bool) -> None:
        to.write_text("precious")
        publish(draft, to, force)

    monkeypatch.setattr(module, "_publish", late)
    result = run(photo, target)
    assert result.exit_code == 1
    assert "exists already" in result.stderr
    assert target.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([photo.name, "out.png"])


@pytest.mark.usefixtures("network")
def test_file_systems_without_hard_links_work_too(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    assert run(photo, tmp_path / "out.png").exit_code == 0
    assert (tmp_path / "out.png").exists()


@pytest.mark.usefixtures("network")
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = run(photo, tmp_path / "out.png")
    assert result.exit_code == 1
    assert "There is no space left for" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [photo.name]


def test_a_place_that_cannot_be_written_to_is_found_before_the_work(
    photo: Path, tmp_path: Path, network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(photo, tmp_path / "nowhere" / "out.png")
    assert result.exit_code == 1
    assert "cannot be written: No such file or directory" in result.stderr

    def denied(_path: Path) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(module, "_create", denied)
    assert "cannot be written: Permission denied" in run(photo, tmp_path / "out.png").stderr
    assert network == []


def test_an_original_that_is_not_there_or_no_picture_is_named(tmp_path: Path, network: list[str]) -> None:
    gone = run(tmp_path / "[red]gone.jpg", tmp_path / "out.png")
    assert gone.exit_code == 1
    assert "There is no file" in gone.stderr
    assert "[red]gone.jpg" in gone.stderr
    text = tmp_path / "\x1b[2Jtext.jpg"
    text.write_text("no picture")
    result = run(text, tmp_path / "out.png")
    assert result.exit_code == 1
    assert "text.jpg: " in result.stderr
    assert "\x1b" not in result.stderr
    assert "no supported format" in result.stderr
    assert "no regular file" in run(tmp_path, tmp_path / "out.png").stderr
    assert network == []


def test_an_original_that_may_not_be_read_or_is_being_written_says_so(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for code, says in (("unreadable", "the right to read the file"), ("changed_while_reading", "Try again when")):

        def refuse(*_: object, error: Failed = Failed(code, "It went wrong."), **__: object) -> None:  # noqa: B008
            raise error

        monkeypatch.setattr(module, "read_original", refuse)
        result = run(photo, tmp_path / "out.png")
        assert result.exit_code == 1
        assert "cat.png: It went wrong." in result.stderr
        assert says in result.stderr


def test_missing_and_altered_weights_are_one_sentence_with_the_remedy(
    photo: Path, tmp_path: Path, home: Path, models_dir: Path
) -> None:
    (home / "models").unlink()
    missing = run(photo, tmp_path / "out.png")
    assert missing.exit_code == 1
    assert "are missing" in missing.stderr
    assert "mirror-realm models fetch" in missing.stderr
    (home / "models").mkdir()
    shutil.copy(models_dir / "realesrgan-x4plus.safetensors", home / "models")
    with (home / "models" / "realesrgan-x4plus.safetensors").open("r+b") as file:
        file.write(b"altered")
    altered = run(photo, tmp_path / "out.png")
    assert altered.exit_code == 1
    assert "are not the expected ones. Delete " in altered.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["out.png", "--faces"], "The weights of gfpgan-v1.4 are missing"),
        (["out.png", "--outscale", "nan"], "outscale must be above 0"),
        (["out.png", "--outscale", "9"], "outscale must be above 0 and at most 8"),
        (["out.png", "--model", "nope"], "There is no model 'nope'"),
        (["out.gif"], "Let the result's name end in one of .png, .jpg, .webp, .tif, .jpeg, .tiff"),
        (["out"], "no suffix"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(
    photo: Path, tmp_path: Path, network: list[str], arguments: list[str], says: str
) -> None:
    result = run(photo, tmp_path / arguments[0], *arguments[1:])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert says in result.stderr
    assert network == []
    assert [path.name for path in tmp_path.iterdir()] == [photo.name]


def test_the_package_realesrgan_can_be_asked_for(photo: Path, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.png", tmp_path / "theirs.png"
    assert run(photo, ours).exit_code == 0
    result = run(photo, theirs, "--engine", "realesrgan", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["output"] == [192, 160]
    pixels = [np.asarray(Image.open(path)).astype(int) for path in (ours, theirs)]
    assert np.abs(pixels[0] - pixels[1]).max() <= 1
    refused = run(photo, tmp_path / "out.png", "--engine", "realesrgan", "--precision", "bf16")
    assert refused.exit_code == 1 and "use the engine native" in refused.stderr


def test_a_result_too_long_for_its_format_is_refused_before_the_work(tmp_path: Path, network: list[str]) -> None:
    Image.new("RGB", (5000, 1)).save(tmp_path / "long.png")
    result = run(tmp_path / "long.png", tmp_path / "out.webp")
    assert result.exit_code == 1
    assert "20000 pixels long, more than webp can hold" in result.stderr
    assert network == []


@pytest.mark.parametrize(
    "arguments", [[], ["in.png"], ["in.png", "out.png", "--tile", "0"], ["a", "b", "--engine", "x"]]
)
def test_usage_errors_exit_with_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2
