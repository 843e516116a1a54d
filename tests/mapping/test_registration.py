"""Photos that were left out are registered once the lens is known."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from sfm_matchers.evaluation.models import compare_models
from sfm_matchers.mapping.adjustment import adjust_robustly, robust_adjustment
from sfm_matchers.mapping.registration import register_missing
from sfm_matchers.runs.camera_models import choose_for_models
from sfm_matchers.runs.options import SfmOptions
from sfm_matchers.runs.reconstruct import run
from tests.support.photos_of_zooms import center_error, write_photos
from tests.support.rendered_lenses import lens, place, write_database

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_report")]


def without(truth: pycolmap.Reconstruction, *image_ids: int) -> pycolmap.Reconstruction:
    """The model without some photos, as the mapper leaves it."""
    model = copy.deepcopy(truth)
    for image_id in image_ids:
        model.deregister_frame(model.images[image_id].frame_id)
    model.tear_down()
    adjust_robustly(model, robust_adjustment(1), [1])
    return model


def test_photos_left_out_come_back(tmp_path: Path) -> None:
    truth = place(lens("OPENCV_FISHEYE", 600, 600, 640, 480, 0.02, -0.01, 0.002, 0))
    write_database(tmp_path / "database.db", truth)
    model = without(truth, 3, 10)
    larger = register_missing(model, ["2.png", "9.png", "no such.png"], tmp_path / "database.db")
    assert model.num_reg_images() == 8  # left as it was
    assert larger.num_reg_images() == 10
    assert compare_models(larger, truth).relative_center_errors.max() < 0.05
    assert larger.is_valid()
    assert register_missing(larger, [], tmp_path / "database.db") is larger


def test_a_better_lens_lets_photos_in(tmp_path: Path) -> None:
    truth = place(lens("OPENCV", 1000, 1000, 640, 480, -0.15, 0.05, 0.002, -0.001))
    write_database(tmp_path / "database.db", truth)
    model = without(truth, 3)
    camera = model.cameras[1]
    simple = pycolmap.Camera.create_from_model_name(1, "SIMPLE_RADIAL", 1000, 1280, 960)
    camera.model, camera.params = simple.model, simple.params.tolist()
    with pycolmap.Database.open(tmp_path / "database.db") as database:  # as it was mapped
        database.update_camera(camera)
    for _ in range(2):
        adjust_robustly(model, robust_adjustment(1))
    (larger,), (choice,) = choose_for_models([model], (), tmp_path / "database.db", 1)
    assert choice.after == "OPENCV"
    assert larger.num_reg_images() == 10
    assert compare_models(larger, truth).relative_center_errors.max() < 0.05


def test_photos_of_elsewhere_stay_out(tmp_path: Path) -> None:
    truth = place(lens("SIMPLE_RADIAL", 1000, 640, 480, -0.05))
    model = without(truth, 3)
    rng = np.random.default_rng(0)
    for point in truth.images[3].points2D:  # its matches are wrong
        point.xy = rng.uniform(0, [1280, 960])
    write_database(tmp_path / "database.db", truth)
    assert register_missing(model, ["2.png"], tmp_path / "database.db") is model


def test_the_mapper_tries_photos_again_that_colmap_gave_up(tmp_path: Path) -> None:
    """Of three zooms by folder COLMAP leaves one photo out; adjusted, its model has room for it."""
    centers = write_photos(tmp_path / "photos", (75, 55, 40), 12, "street", 12)
    for path in sorted((tmp_path / "photos").iterdir()):
        folder = tmp_path / "photos" / str(int(path.stem) % 3)
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)
    options = SfmOptions(
        tmp_path / "photos",
        tmp_path / "out",
        "sift",
        no_longer_tracks=True,
        camera_mode="per_folder",
    )
    model = run(options).models[0]
    assert model.num_reg_images() == 12
    for image in model.images.values():
        image.name = image.name.rpartition("/")[2]
    assert center_error(model, centers) < 0.002
