"""Commands given features from anywhere: one line of error, and nothing else is touched."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from pipelines.hloc import main

pytestmark = pytest.mark.slow

PHOTOS = ("a.jpg", "b.jpg", "c.jpg")
WIDTH, HEIGHT = 320, 240


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photos, features and matches that have nothing to do with each other."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    with h5py.File(tmp_path / "features.h5", "w") as file:
        for name in PHOTOS:
            pixels = rng.integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name)
            file[f"{name}/keypoints"] = rng.uniform(0, HEIGHT, (60, 2)).astype(np.float32)
    with h5py.File(tmp_path / "matches.h5", "w") as file:
        for pair in combinations(PHOTOS, 2):
            file[f"{pair[0]}/{pair[1]}/matches0"] = rng.permutation(60).astype(np.int32)
    (tmp_path / "pairs.txt").write_text("\n".join(map(" ".join, combinations(PHOTOS, 2))))
    return tmp_path


def reconstruct(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The error of a reconstruction."""
    inputs = ["--sfm_dir", str(folder / "sfm"), "--image_dir", str(folder / "images")]
    for name in ("pairs.txt", "features.h5", "matches.h5"):
        inputs += [f"--{Path(name).stem}", str(folder / name)]
    assert main(["reconstruction", *inputs, *options]) == 2
    return capsys.readouterr().err.strip().split("\n")[-1]


def test_a_features_file_cannot_have_another_file_overwritten(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = folder / "picture.webp"  # COLMAP does not decode it: a black one is made
    Image.new("RGB", (WIDTH, HEIGHT), (255, 0, 0)).save(picture)
    content = picture.read_bytes()
    with h5py.File(folder / "features.h5", "a") as file:
        file["../picture.webp/keypoints"] = np.zeros((4, 2), np.float32)
    error = reconstruct(folder, capsys)
    assert "'../picture.webp': the name leads out of its folder by '..'" in error
    assert picture.read_bytes() == content


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e6, 3e38])
def test_keypoints_that_cannot_be_are_refused_by_name(
    folder: Path, capsys: pytest.CaptureFixture[str], value: float
) -> None:
    with h5py.File(folder / "features.h5", "a") as file:
        file["b.jpg/keypoints"][7, 0] = value
    assert "features.h5: keypoints of 'b.jpg'" in reconstruct(folder, capsys)


def test_keypoints_in_one_place_are_refused_by_name(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with h5py.File(folder / "features.h5", "a") as file:
        file["b.jpg/keypoints"][...] = 5
    assert "keypoints of 'b.jpg' are 60, nearly all one point" in reconstruct(folder, capsys)


@pytest.mark.parametrize("options", [(), ("--skip_geometric_verification",)])
def test_matches_without_sense_give_no_model(
    folder: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    assert reconstruct(folder, capsys, *options).startswith("error: no model came out: ")
