"""A mistyped path is one line with the path that was meant, and leaves no folder behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sfm_matchers
from pipelines import cli
from sfm_matchers.errors import InputError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: two photos in ``photos``, a ``model``, and outputs of a like name."""
    for name in "ab":
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "cameras.txt").touch()
    (tmp_path / "modle-localized").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


LOCALIZE = ["localize", "--map", "model", "--map_images", "photos", "--queries", "photos"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sfm", "--images", "photoz"], "did you mean photos?"),
        (["sfm", "--images", "photos/a.png"], "is not a folder of photos"),
        (["sfm", "--video", "clip.mp4"], "clip.mp4 is missing"),
        (["sfm", "--images", "photos", "--matcher", "sitf"], "did you mean 'sift'?"),
        (["sfm", "--images", "photos", "--weights", "offical"], "has no weights 'offical'"),
        (["sfm", "--images", "photos", "--camera_model", "HOLGA"], "unknown camera model"),
        (["sfm", "--images", "photos", "--camera_model", "OPNCV"], "did you mean 'OPENCV'?"),
        (["sfm", "--images", "photos", "--cameras", "camera.txt"], "camera.txt"),
        (["sfm", "--images", "photos", "--mask_dir", "mask"], "mask"),
        (["sfm", "--images", "photos", "--pairs", "pairs.txt"], "is not a file of pairs"),
        (["sfm", "--images", "photos", "--pairs", "exhuastive"], "did you mean exhaustive?"),
        (["sfm", "--images", "photos", "--georeference", "gps.csv"], "gps.csv"),
        ([*LOCALIZE, "--map", "modle"], "did you mean model?"),
        (
            ["localize", "--map", "photos", "--queries", "photos"],
            "photos is no map and no COLMAP model",
        ),
        ([*LOCALIZE, "--map_images", "foto"], "foto is not a folder of photos"),
        ([*LOCALIZE, "--queries", "photo"], "did you mean photos?"),
        ([*LOCALIZE, "--loc_pairs", "pairs.txt"], "is not a file of pairs"),
        ([*LOCALIZE, "--cameras", "camera.txt"], "is no file of cameras"),
        ([*LOCALIZE, "--matcher", "sitf"], "did you mean 'sift'?"),
        (["map", "build", "modle", "--images", "photos"], "did you mean model?"),
        (["map", "build", "model", "--images", "photoz"], "did you mean photos?"),
        (["export", "model", "modle", "--formats", "ply"], "did you mean model?"),
        (["export", "model", "model", "--image_dir", "photoz"], "did you mean photos?"),
        (["export", "model", "model"], "--image_dir: the folder of the model's photos is needed"),
        (["aachen", "--dataset", "photos"], "photos is not Aachen"),
        (["inloc", "--dataset", "photos"], "photos is not InLoc"),
        (["sfm", "--images", "model"], "model holds 0 photo(s)"),
        (["sfm", "--images", "photos", "--num_matched", "0"], "--num_matched 0: expected 1 or"),
        (["sfm", "--images", "photos", "--mapper_threads", "-2"], "--mapper_threads -2: expected"),
        ([*LOCALIZE, "--num_loc", "-1"], "--num_loc -1: expected 1 or more"),
        ([*LOCALIZE, "--ransac_thresh", "nan"], "--ransac_thresh nan: expected pixels"),
        (["map", "build", "model", "--images", "photos", "--num_covis", "0"], "--num_covis 0: exp"),
        (["map", "build", "model", "--images", "photos"], "model is not a COLMAP model"),
        (["inloc", "--skip_matches", "-1"], "--skip_matches -1: expected 0 or more"),
        (
            ["train", "--matcher", "jamma", "--photo_dir", "photos", "--steps", "0"],
            "--steps 0: exp",
        ),
        (["demo", "--count", "0"], "--count 0: expected 3 or more"),
        (["demo", "--seed", "-1"], "--seed -1: expected 0 or more"),
        (["demo", "--matcher", "sitf"], "did you mean 'sift'?"),
    ],
)
def test_a_mistake_leaves_no_folder(
    folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*arguments, "--output", "new/out"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert sorted(path.name for path in folder.iterdir()) == ["model", "modle-localized", "photos"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "empty.txt"], "empty.txt holds no pair of two photos"),
        (["--georeference", "empty.txt"], "empty.txt is empty"),
        (["--pairs", "spatial"], "needs the positions of photos"),
        (["--mask_dir", "model"], "model holds no mask of any photo"),
    ],
)
def test_nor_does_input_that_proves_wrong(
    folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "empty.txt").touch()
    assert cli.main(["sfm", "--images", "photos", *arguments, "--output", "new/out"]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "new").exists()


@pytest.mark.parametrize(
    "call",
    [
        lambda: sfm_matchers.reconstruct("photoz", "out"),
        lambda: sfm_matchers.match("photoz", "out", matcher="sift"),
        lambda: sfm_matchers.extract("photoz", "out", matcher="sift"),
        lambda: sfm_matchers.localize("model", "photos", "photoz", "out"),
    ],
)
def test_nor_does_one_in_python(folder: Path, call: Callable[[], object]) -> None:
    with pytest.raises(InputError, match=r"did you mean photos\?"):
        call()
    assert not (folder / "out").exists()


def test_a_run_that_is_there_has_the_mistake_in_its_log(folder: Path) -> None:
    (folder / "out").mkdir()
    assert cli.main(["sfm", "--images", "photoz", "--output", "out"]) == 2
    assert "did you mean photos?" in (folder / "out" / "log.txt").read_text(encoding="utf-8")
