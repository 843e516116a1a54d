"""Photos without EXIF whose focal length is far from COLMAP's guess."""

from __future__ import annotations

import shutil
from pathlib import Path

import pycolmap
import pytest

from benchmarks.half_maps import of_scene_info
from sfm_matchers.evaluation.models import compare_models
from sfm_matchers.mapping.camera_options import CameraOptions
from sfm_matchers.mapping.database import create_database, guessed_focal_lengths
from sfm_matchers.photos.cameras import CameraGroups
from sfm_matchers.photos.given_cameras import GivenCamera
from sfm_matchers.runs.options import SfmOptions
from sfm_matchers.runs.reconstruct import run
from tests.support.material import shared_path
from tests.support.photos_of_zooms import write_photos

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_report")]


def test_real_photos_of_a_drone_are_mapped_from_another_guess(tmp_path: Path) -> None:
    """From 1.2 times the longer side (it is 0.7) three of five, with a focal length of 2954 px."""
    posed = shared_path("posed")
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in (4152, 4156, 4158, 4160, 4162):
        name = f"img_{number}.jpg"
        shutil.copy(posed / "lewis" / "images" / name, photos / name)
    result = run(SfmOptions(photos, tmp_path / "out", "sift", no_longer_tracks=True))
    (model,) = result.models
    assert model.num_reg_images() == 5
    truth = of_scene_info(posed / "scene_info" / "lewis.npz", posed / "lewis" / "images")
    errors = compare_models(model, truth)
    assert errors.relative_center_errors.mean() < 0.2  # percent
    assert "mapped from a focal length of 0.75 times" in result.summary["settings"]["cameras"]

    made = (tmp_path / "out" / "sparse" / "0" / "points3D.bin").stat().st_mtime_ns
    again = run(SfmOptions(photos, tmp_path / "out", "sift", no_longer_tracks=True))
    assert (tmp_path / "out" / "sparse" / "0" / "points3D.bin").stat().st_mtime_ns == made
    assert again.summary["settings"]["cameras"] == result.summary["settings"]["cameras"]


def test_a_guess_is_of_photos_whose_focal_length_nothing_tells(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", (65,), 3)
    groups = CameraGroups([["0.png"], ["1.png"], ["2.png"]], guess=0.75)
    given = [
        GivenCamera("1.png", "SIMPLE_RADIAL", (300, 160, 120, 0)),
        GivenCamera("2.png", "OPENCV_FISHEYE", ()),
    ]
    path = tmp_path / "database.db"
    create_database(path, tmp_path / "photos", groups, CameraOptions(given=given))
    assert guessed_focal_lengths(path) == {"0.png"}
    with pycolmap.Database.open(path) as database:
        cameras = {image.name: image.camera_id for image in database.read_all_images()}
        found = [database.read_camera(cameras[f"{index}.png"]) for index in range(2)]
    assert [camera.mean_focal_length() for camera in found] == [0.75 * 320, 300]
