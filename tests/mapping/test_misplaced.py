"""Photos that lie at a wrong place of a model, which their reprojection errors do not tell."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pycolmap
import pytest

from sfm_matchers.mapping import misplaced
from sfm_matchers.mapping.adjustment import median_error
from sfm_matchers.mapping.misplaced import (
    Resection,
    find_misplaced,
    open_focal_lengths,
    own_focal_lengths,
    place_again,
    resections,
)
from sfm_matchers.runs.options import SfmOptions
from sfm_matchers.runs.reconstruct import run
from sfm_matchers.runs.results import SfmResult
from sfm_matchers.synthetic import look_at
from tests.support import rendered_lenses
from tests.support.photos_of_zooms import center_error, write_photos
from tests.support.rendered_lenses import lens, place, write_database

pytestmark = pytest.mark.usefixtures("no_report")

CAMERA = lens("SIMPLE_RADIAL", 1000, 640, 480, -0.05)


def move(model: pycolmap.Reconstruction, image_id: int, kept: int) -> None:
    """Bring a photo to another place, where it keeps few of its observations."""
    image = model.images[image_id]
    wrong = pycolmap.Rigid3d(look_at(np.array([3.0, -14.0, 2.0]), np.array([1.0, 0.0, 0.0])))
    image.frame.set_cam_from_world(1, wrong)
    for index in list(image.get_observation_point2D_idxs())[kept:]:
        model.delete_observation(image_id, index)


@pytest.fixture
def truth_and_database(tmp_path: Path) -> tuple[pycolmap.Reconstruction, Path]:
    truth = place(CAMERA)
    write_database(tmp_path / "database.db", truth)
    return truth, tmp_path / "database.db"


def test_photos_in_their_places_are_not_denied(
    truth_and_database: tuple[pycolmap.Reconstruction, Path],
) -> None:
    truth, database = truth_and_database
    assert find_misplaced(truth, database) == {}
    assert place_again(truth, database) is truth
    names = [image.name for image in truth.images.values()]
    assert own_focal_lengths(truth, database, names) == {}


def test_what_tells_the_place_of_a_photo_are_points_that_two_others_see(
    truth_and_database: tuple[pycolmap.Reconstruction, Path],
) -> None:
    truth, database = truth_and_database
    image = truth.images[3]
    lengths = [
        truth.points3D[point.point3D_id].track.length()
        for point in image.get_observation_points2D()
    ]
    found = resections(truth, database, {"2.png"})["2.png"]
    assert found.num_keypoints() == sum(length >= 3 for length in lengths)
    explained = found.num_explained(truth.cameras[1], image.cam_from_world())
    assert 0.99 * found.num_keypoints() < explained <= found.num_keypoints()


def test_a_photo_at_a_wrong_place_is_placed_again(
    truth_and_database: tuple[pycolmap.Reconstruction, Path],
) -> None:
    """Also where it keeps a few observations, and makes no reprojection error."""
    truth, database = truth_and_database
    model = copy.deepcopy(truth)
    move(model, 4, kept=0)
    assert list(find_misplaced(model, database)) == ["3.png"]
    assert find_misplaced(model, database)["3.png"] < 0.2
    better = place_again(model, database)
    assert better.num_reg_images() == 10
    assert find_misplaced(better, database) == {}
    assert rendered_lenses.center_error(better, truth) < 0.1
    assert rendered_lenses.center_error(model, truth) > 1  # left as it was


def test_wrong_matches_deny_no_place(
    truth_and_database: tuple[pycolmap.Reconstruction, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verified ones along epipolar lines, as of a statue's other side: they agree on no place."""
    truth, database = truth_and_database
    found = resections(truth, database)
    points = found["3.png"].points.copy()
    wrong = np.arange(0, len(points), 2)
    points[wrong] = points[np.roll(wrong, 7)]
    found["3.png"] = replace(found["3.png"], points=points)
    monkeypatch.setattr(misplaced, "resections", lambda *_: found)
    image = next(image for image in truth.images.values() if image.name == "3.png")
    explained = found["3.png"].num_explained(truth.cameras[1], image.cam_from_world())
    assert explained < 0.6 * found["3.png"].num_keypoints()
    assert find_misplaced(truth, database) == {}


@pytest.mark.parametrize(("num_right", "is_named"), [(8, True), (24, False)])
def test_a_photo_that_hardly_anything_holds_is_named(
    num_right: int,
    is_named: bool,
    truth_and_database: tuple[pycolmap.Reconstruction, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As mirrored ones, which agree with each other: of 29 other matches 8 fit by chance."""
    truth, database = truth_and_database
    found = resections(truth, database)
    chosen = np.unique(found["3.png"].keypoints, return_index=True)[1][:29]
    parts = (found["3.png"].keypoints, found["3.png"].keypoints_xy, found["3.png"].points)
    few = Resection(*(part[chosen] for part in parts))
    few.points[num_right:] = np.roll(few.points[num_right:], 3, axis=0)
    found["3.png"] = few
    monkeypatch.setattr(misplaced, "resections", lambda *_: found)
    assert list(find_misplaced(truth, database)) == ["3.png"] * is_named


def test_few_matches_deny_no_place_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    agreeing = {f"{number}.png": (900, 1000) for number in range(5)}

    def denied(explained: int, total: int) -> list[str]:
        found = agreeing | {"other.png": (explained, total)}
        images = [SimpleNamespace(name=name) for name in found]
        monkeypatch.setattr(
            misplaced,
            "resections",
            lambda *_: {
                name: SimpleNamespace(num_keypoints=lambda total=total: total)
                for name, (_, total) in found.items()
            },
        )
        monkeypatch.setattr(misplaced, "_num_explained", lambda _, image, __: found[image.name][0])
        monkeypatch.setattr(misplaced, "_belongs_elsewhere", lambda *_: True)
        model = SimpleNamespace(images=dict(enumerate(images)), num_reg_images=lambda: len(found))
        return list(find_misplaced(cast(Any, model), Path()))

    assert denied(73, 100) == []
    assert denied(730, 1000) == ["other.png"]
    assert denied(50, 100) == ["other.png"]


def test_where_many_photos_are_denied_none_is_named(
    truth_and_database: tuple[pycolmap.Reconstruction, Path],
) -> None:
    truth, database = truth_and_database
    model = copy.deepcopy(truth)
    for image_id in (2, 4, 6, 8):
        move(model, image_id, kept=0)
    assert find_misplaced(model, database) == {}


@pytest.mark.parametrize("is_registered", [True, False])
def test_the_focal_length_of_a_photo_of_another_camera_is_found(
    is_registered: bool, truth_and_database: tuple[pycolmap.Reconstruction, Path], tmp_path: Path
) -> None:
    truth, _ = truth_and_database
    zoomed = copy.deepcopy(truth)
    middle = np.array([640.0, 480.0])
    for point in zoomed.images[4].points2D:
        point.xy = 2 * (point.xy - middle) + middle
    database = tmp_path / "zoomed.db"
    write_database(database, zoomed)
    model = copy.deepcopy(zoomed)
    if not is_registered:
        pycolmap.ObservationManager(model).deregister_frame(model.images[4].frame_id)
        model.tear_down()
    found = own_focal_lengths(model, database, {f"{index}.png" for index in range(10)})
    assert found == {"3.png": pytest.approx(2000, rel=0.03)}


@pytest.mark.slow
def test_a_run_places_a_photo_again(tmp_path: Path) -> None:
    """One of twelve photos of a street had 418 observations at a place that is 43 % off."""
    centers = write_photos(tmp_path / "photos", (65,), 12, "street", 7)
    options = SfmOptions(tmp_path / "photos", tmp_path / "out", "sift", no_longer_tracks=True)
    result = run(options)
    assert center_error(result.models[0], centers) < 0.002
    assert median_error(result.models[0]) < 0.2
    assert result.verdict.level == "good"


@pytest.mark.slow
def test_one_zoomed_photo_of_many_is_told_apart(tmp_path: Path) -> None:
    """It is 48 % off with the camera of the others, and the median error that of one camera."""
    order = (65,) * 8 + (35,) + (65,) * 3
    centers = write_photos(tmp_path / "photos", order, 12, "street", 6)
    options = SfmOptions(tmp_path / "photos", tmp_path / "out", "sift", no_longer_tracks=True)
    result = run(options)
    assert center_error(result.models[0], centers) < 0.005
    assert all(model.num_reg_images() > 2 for model in result.models)  # one was of two
    assert "of focal lengths 250 px (11), 50" in result.summary["settings"]["cameras"]


def run_with_own_cameras(folder: Path) -> SfmResult:
    options = SfmOptions(folder / "photos", folder / "out", "sift", no_longer_tracks=True)
    return run(replace(options, camera_mode="per_image"))


@pytest.mark.slow
def test_photos_whose_focal_length_nothing_tells_are_named(tmp_path: Path) -> None:
    """One that sees 53 points has 381 px instead of 642, and is 11 % off."""
    write_photos(tmp_path / "photos", (28,), 9, "courtyard", 30)
    text = run_with_own_cameras(tmp_path).verdict.text
    assert "probably at a wrong place: 2.png, whose matches fit a focal length of 6" in text


@pytest.mark.slow
def test_photos_of_another_zoom_tell_their_focal_length(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", (65, 50), 12, "room", 8)
    result = run_with_own_cameras(tmp_path)
    assert result.verdict.level == "good"
    names = {image.name for image in result.models[0].images.values()}
    assert open_focal_lengths(result.models[0], tmp_path / "out" / "database.db", names) == {}
