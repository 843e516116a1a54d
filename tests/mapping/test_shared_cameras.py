"""Photos without EXIF of one size that are of one camera, and that are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycolmap
import pytest
from PIL import ExifTags, Image

from sfm_matchers.exports.images import without_images
from sfm_matchers.localization.query_intrinsics import intrinsics_of_exif
from sfm_matchers.mapping.adjustment import adjust_robustly, median_error, robust_adjustment
from sfm_matchers.mapping.camera_options import CameraOptions
from sfm_matchers.mapping.database import create_database, known_focal_lengths
from sfm_matchers.mapping.given_intrinsics import try_free_cameras
from sfm_matchers.mapping.shared_cameras import (
    FEW_PHOTOS,
    PLAINLY_STRETCHED,
    OwnCameras,
    error_if_fisheye,
    error_if_stretched,
    is_bent,
    regrouped,
    split_cameras,
    try_own_cameras,
)
from sfm_matchers.photos.cameras import FILM_DIAGONAL, CameraGroups
from sfm_matchers.runs import camera_trials
from sfm_matchers.runs.findings import about_absurd_cameras
from sfm_matchers.runs.mapping import Build
from sfm_matchers.runs.options import SfmOptions
from sfm_matchers.runs.reconstruct import run
from sfm_matchers.runs.results import SfmResult
from sfm_matchers.synthetic import Camera, look_at
from tests.support.photos_of_zooms import center_error, run_with_sift, write_photos
from tests.support.rendered_lenses import lens, mapped, place, write_database

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_report")]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[CameraGroups]:
    """The cameras that models are made with, one after the other."""
    cameras, make = [], Build.make

    def noted(build: Build, groups: CameraGroups, *others: Any) -> list[pycolmap.Reconstruction]:
        cameras.append(groups)
        return make(build, groups, *others)

    monkeypatch.setattr(Build, "make", noted)
    return cameras


def test_two_cameras_of_one_size_are_told_apart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    centers = write_photos(tmp_path / "photos", (65, 50), 8)
    options = SfmOptions(tmp_path / "photos", tmp_path / "out", "sift", no_longer_tracks=True)
    result = run_with_sift(tmp_path)
    assert center_error(result.models[0], centers) < 0.005
    assert len(result.models[0].cameras) == 2
    assert "not of one camera, as the reprojection errors tell (median 0." in caplog.text
    assert "2 camera(s), of focal lengths 25" in result.summary["settings"]["cameras"]
    assert not (tmp_path / "out" / "cameras.tmp").exists()

    before = (tmp_path / "out" / "sparse" / "0" / "points3D.bin").stat().st_mtime_ns
    again = run(options)
    assert (tmp_path / "out" / "sparse" / "0" / "points3D.bin").stat().st_mtime_ns == before
    assert again.summary["settings"]["cameras"] == result.summary["settings"]["cameras"]


def test_cameras_that_the_user_joins_wrongly_are_told(tmp_path: Path) -> None:
    """With one camera for both, as asked, the model is 10 % off, its median error 0.33 px."""
    centers = write_photos(tmp_path / "photos", (65, 50), 8)
    result = run_with_sift(tmp_path, camera_mode="single")
    assert center_error(result.models[0], centers) > 0.05
    assert result.verdict.level == "fair"
    assert "photos that share a camera are of several" in result.verdict.text
    assert "leave away --camera_mode" in result.verdict.text


def test_digital_zoom_is_found_though_exif_does_not_tell(tmp_path: Path) -> None:
    centers = write_photos(tmp_path / "photos", (65, 50), 8)
    for path in (tmp_path / "photos").iterdir():
        exif = Image.Exif()
        exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = "Acme", "Phone"
        with Image.open(path) as photo:
            photo.save(path, exif=exif)
    result = run_with_sift(tmp_path)
    assert result.models[0].num_reg_images() == 8
    assert center_error(result.models[0], centers) < 0.005
    assert len(result.models[0].cameras) == 2
    assert "not of one camera" in result.summary["settings"]["cameras"]


def write_exif(folder: Path, focal_length: float) -> None:
    """Say of photos of 320 x 240 pixels that their focal length is so many pixels."""
    for path in folder.iterdir():
        exif = Image.Exif()
        exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = "Acme", "Phone"
        details = exif.get_ifd(ExifTags.IFD.Exif)
        details[ExifTags.Base.FocalLengthIn35mmFilm] = round(focal_length / 400 * FILM_DIAGONAL)
        with Image.open(path) as photo:
            photo.save(path, exif=exif)


@pytest.mark.parametrize(
    ("factor", "seed", "mode"),
    [
        (0.67, 4, "auto"),
        (2.5, 8, "auto"),
        (0.5, 4, "single"),
        (0.5, 3, "per_image"),
    ],
)
def test_a_focal_length_of_exif_that_the_photos_contradict_is_refused(
    factor: float, seed: int, mode: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With it, some models are 11 to 21 % off, or of two photos."""
    centers = write_photos(tmp_path / "photos", (65,), 6 if seed != 4 else 5, seed=seed)
    focal_length = Camera.from_field_of_view(320, 240, 65).fx
    write_exif(tmp_path / "photos", factor * focal_length)
    options = SfmOptions(
        tmp_path / "photos", tmp_path / "out", "sift", no_longer_tracks=True, camera_mode=mode
    )
    result = run(options)
    assert center_error(result.models[0], centers) < 0.005
    said = result.summary["settings"]["cameras"]
    assert f"EXIF's focal length is not that of {len(centers)} photo(s)" in said
    assert "px and not" in caplog.text
    assert result.verdict.level == "good"

    before = (tmp_path / "out" / "sparse" / "0" / "points3D.bin").stat().st_mtime_ns
    again = run(options)
    assert (tmp_path / "out" / "sparse" / "0" / "points3D.bin").stat().st_mtime_ns == before
    assert again.summary["settings"]["cameras"] == said


@pytest.mark.parametrize("millimetres", [1, 65535])
def test_a_focal_length_of_exif_that_no_lens_has_is_not_used(
    millimetres: int, tmp_path: Path
) -> None:
    """A focal length of 0 was a ZeroDivisionError; others took minutes to map in vain."""
    write_photos(tmp_path / "photos", (65,), 2)
    write_exif(tmp_path / "photos", millimetres / FILM_DIAGONAL * 400)
    path, names = tmp_path / "database.db", ["0.png", "1.png"]
    create_database(path, tmp_path / "photos", CameraGroups([names]), CameraOptions())
    assert not known_focal_lengths(path)
    assert not intrinsics_of_exif(tmp_path / "photos" / "0.png")


def test_such_a_focal_length_is_named_once_however_often_models_are_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_photos(tmp_path / "photos", (65, 50), 8)
    write_exif(tmp_path / "photos", 1 / FILM_DIAGONAL * 400)
    run(SfmOptions(tmp_path / "photos", tmp_path / "out", "sift", no_longer_tracks=True))
    said = "EXIF's focal length is none of 8 photo(s), such as 0.png with"
    assert caplog.text.count(said) == caplog.text.count("EXIF's focal length is none") == 1


def test_a_right_focal_length_of_exif_costs_no_second_mapping(
    tmp_path: Path, made: list[CameraGroups]
) -> None:
    centers = write_photos(tmp_path / "photos", (65,), 6)
    focal_length = Camera.from_field_of_view(320, 240, 65).fx
    write_exif(tmp_path / "photos", 1.03 * focal_length)
    options = SfmOptions(tmp_path / "photos", tmp_path / "out", "sift", no_longer_tracks=True)
    result = run(options)
    assert center_error(result.models[0], centers) < 0.005
    assert len(made) == 1
    assert "EXIF's focal length" not in result.summary["settings"]["cameras"]


@pytest.mark.parametrize(("over_pairs", "groups"), [(1.5, [1, 6]), (1.0, [1])])
def test_no_models_are_made_again_with_the_same_cameras(
    tmp_path: Path,
    made: list[CameraGroups],
    monkeypatch: pytest.MonkeyPatch,
    over_pairs: float,
    groups: list[int],
) -> None:
    """Cameras of their own help photos whose focal lengths agree, as by a lens that moves.

    They are doubted only where the pairs fit each other better than the model.
    """
    write_photos(tmp_path / "photos", (65,), 6)
    own = OwnCameras(0.9, 0.5, {f"{index}.png": 250.0 + index for index in range(6)})
    monkeypatch.setattr(camera_trials, "try_own_cameras", lambda *arguments: own)
    monkeypatch.setattr(camera_trials, "error_over_pairs", lambda *arguments: over_pairs)
    result = run_with_sift(tmp_path)
    assert [len(cameras.groups) for cameras in made] == groups
    said = result.summary["settings"]["cameras"]
    assert "not of one camera" not in said
    is_doubted = len(groups) > 1
    assert ("0.90 px, and 0.50 px with a camera for each photo" in said) == is_doubted
    advice = "cameras are uncertain: give their intrinsics (--cameras FILE)"
    assert (advice in result.verdict.text) == is_doubted


def test_a_model_that_is_bent_is_mapped_with_a_camera_for_each_photo(tmp_path: Path) -> None:
    """Three zooms in turn: with one camera for all, 12 of 12 photos are 24 % off."""
    centers = write_photos(tmp_path / "photos", (75, 55, 40), 9, "street", 5)
    result = run_with_sift(tmp_path)
    assert center_error(result.models[0], centers) < 0.001
    said = result.summary["settings"]["cameras"]
    num_cameras = len(result.models[0].cameras)
    assert f"{num_cameras} camera(s), of focal lengths 20" in said
    # From a bent model the last bits decide the way: three cameras, or more and some of one photo.
    assert ("not certain" in said) == (num_cameras != 3)
    names = {image.name for image in result.models[0].images.values()}
    assert not is_bent(result.models[0], tmp_path / "out" / "database.db", names)


def test_a_few_zoomed_photos_of_many_are_told_apart(tmp_path: Path) -> None:
    """Three of twelve: the model was 24 % off, and the median error that of one camera."""
    order = (65, 65, 65, 65, 30, 30, 65, 65, 30, 65, 65, 65)
    centers = write_photos(tmp_path / "photos", order, 12, "street", 7)
    result = run_with_sift(tmp_path)
    assert center_error(result.models[0], centers) < 0.005
    assert len(result.models[0].cameras) == 2


def test_stretched_photos_are_of_one_camera() -> None:
    """Cameras of their own help them too, but two focal lengths help more."""
    truth = place(lens("OPENCV", 1333, 1000, 640, 480, 0, 0, 0, 0))
    model = mapped(truth)
    names = {image.name for image in model.images.values()}
    own = try_own_cameras(model, names)
    assert error_if_stretched(model, names) < 0.7 * own.own_error
    assert model.cameras[1].model.name == "SIMPLE_RADIAL"  # left as it was


@pytest.mark.parametrize(
    "params", [("OPENCV_FISHEYE", 560, 560, 640, 480, 0, 0, 0, 0), ("FOV", 700, 700, 640, 480, 1.1)]
)
def test_photos_by_a_fisheye_are_of_one_camera(params: tuple[Any, ...]) -> None:
    """Cameras of their own help them too, but the right lens helps more."""
    model = mapped(place(lens(*params)))
    names = {image.name for image in model.images.values()}
    own = try_own_cameras(model, names)
    assert own.own_error < 0.9 * own.shared_error
    assert error_if_fisheye(model, names) < 0.7 * own.own_error
    assert model.cameras[1].model.name == "SIMPLE_RADIAL"  # left as it was


def test_photos_of_two_zooms_are_not_stretched_ones() -> None:
    truth = place(lens("SIMPLE_RADIAL", 1000, 640, 480, 0))
    names = {image.name for image in truth.images.values()}
    zoomed = {name for name in names if int(name[0]) % 2}
    for image in truth.images.values():
        if image.name in zoomed:
            for point in image.points2D:
                point.xy = 1.15 * (point.xy - [640, 480]) + [640, 480]
    adjust_robustly(truth, robust_adjustment(1))
    own = try_own_cameras(truth, names)
    assert own.own_error < 0.7 * own.shared_error
    assert not error_if_stretched(truth, names) <= own.own_error
    assert not error_if_fisheye(truth, names) <= own.own_error


def test_few_photos_do_not_tell_that_they_are_stretched() -> None:
    model = mapped(place(lens("OPENCV", 1333, 1000, 640, 480, 0, 0, 0, 0)))
    names = sorted(image.name for image in model.images.values())
    few = without_images(model, names[4:])
    assert error_if_stretched(few, names[:4]) == float("inf")


@pytest.mark.parametrize("focal_length", [1333, 1000])
def test_few_photos_tell_that_they_are_plainly_stretched(focal_length: float) -> None:
    model = mapped(place(lens("OPENCV", focal_length, 1000, 640, 480, 0, 0, 0, 0)))
    names = sorted(image.name for image in model.images.values())
    few = without_images(model, names[4:])
    error = error_if_stretched(few, names[:4], num_photos=FEW_PHOTOS, anisotropy=PLAINLY_STRETCHED)
    if focal_length == 1000:
        assert error == float("inf")
    else:
        assert error < 0.7 * median_error(few, names[:4])


def test_one_camera_stays_one(tmp_path: Path) -> None:
    centers = write_photos(tmp_path / "photos", (65,), 6)
    result = run_with_sift(tmp_path)
    assert center_error(result.models[0], centers) < 0.005
    assert "taken for one camera per size, 1 camera(s)" in result.summary["settings"]["cameras"]
    own = try_own_cameras(result.models[0], [f"{index}.png" for index in range(6)])
    assert not own.contradicts
    assert len(own.focal_lengths) == 6
    assert len(result.models[0].cameras) == 1  # left as it was


def write_cropped_photos(folder: Path, kind: str) -> np.ndarray:
    """Write photos without their right quarter; return centres."""
    centers = write_photos(folder, (65,), 10, kind, 5)
    for path in folder.iterdir():
        cv2.imwrite(str(path), cv2.imread(str(path))[:, :240])
    return centers


def test_a_named_camera_model_does_not_fit_cropped_photos_without_a_word(tmp_path: Path) -> None:
    write_cropped_photos(tmp_path / "photos", "street")
    verdict = run_with_sift(tmp_path, camera_model="SIMPLE_RADIAL").verdict
    assert verdict.level != "good"
    assert "the photos fit a principal point 4" in verdict.text
    assert "if they are cropped, --camera_model auto finds it" in verdict.text


@pytest.mark.parametrize("kind", ["street", "room"])
def test_photos_that_are_cropped_alike_are_of_one_camera(kind: str, tmp_path: Path) -> None:
    centers = write_cropped_photos(tmp_path / "photos", kind)
    result = run_with_sift(tmp_path)
    assert center_error(result.models[0], centers) < 0.002
    (camera,) = result.models[0].cameras.values()
    assert camera.principal_point_x == pytest.approx(160, abs=3)
    assert "with principal point" in result.summary["settings"]["camera models"]
    assert result.verdict.level == "good"


@pytest.mark.parametrize(
    ("given", "contradicts", "offset"),
    [
        (lens("SIMPLE_RADIAL", 1000, 640, 480, -0.05), False, 0),
        (lens("SIMPLE_RADIAL", 1300, 640, 480, -0.05), True, 0),
        (lens("SIMPLE_RADIAL", 750, 640, 480, -0.05), True, 0),
        (lens("SIMPLE_RADIAL", 1000, 640, 480, -0.25), True, 0),
        (lens("SIMPLE_RADIAL", 1000, 700, 440, -0.05), True, 72),
        (lens("SIMPLE_RADIAL", 1000, 640, 525, -0.05), True, 45),
    ],
)
def test_given_intrinsics_are_held_against_the_model(
    given: pycolmap.Camera, contradicts: bool, offset: float
) -> None:
    model = place(lens("SIMPLE_RADIAL", 1000, 640, 480, -0.05))
    names = {image.name for image in model.images.values()}
    model.cameras[1].params = given.params.tolist()
    adjust_robustly(model, robust_adjustment(1), [1])
    free = try_free_cameras(model, names)
    assert free.contradicts == contradicts
    assert free.has_other_centre == (offset > 0)
    assert free.centre_offset == pytest.approx(offset, abs=4)
    assert free.given.params[0] == given.params[0]
    assert free.found.params[0] == pytest.approx(1000, rel=0.01)
    np.testing.assert_array_equal(model.cameras[1].params, given.params)  # left as it was


def test_a_photo_that_falls_out_of_the_model_tells_nothing_of_its_camera() -> None:
    model = split_cameras(place(lens("SIMPLE_RADIAL", 1000, 640, 480, -0.05)), {"9.png"})
    (lost,) = [image for image in model.images.values() if image.name == "9.png"]
    astray = pycolmap.Rigid3d(look_at(np.array([0.0, 90, 40]), np.zeros(3)))
    lost.frame.set_cam_from_world(lost.camera_id, astray)
    assert not try_free_cameras(model, {"9.png"}).contradicts


@pytest.mark.parametrize(("focal_length", "is_absurd"), [(1000, False), (3e6, True)])
def test_focal_lengths_that_no_lens_has_are_no_good_model(
    focal_length: float, is_absurd: bool
) -> None:
    model = split_cameras(place(lens("SIMPLE_RADIAL", 1000, 640, 480, -0.05)), {"9.png"})
    (camera_id,) = [image.camera_id for image in model.images.values() if image.name == "9.png"]
    model.cameras[camera_id].params = [focal_length, 640, 480, 0]
    said = "the model is wrong at 9.png: the focal length is 2.34e+03 times the longer side"
    assert about_absurd_cameras(model, ()).startswith(said) == is_absurd
    assert about_absurd_cameras(model, {"9.png"}) == ""


# Lines of --cameras for photos of 320 x 240 pixels, whose focal length is 251.
RIGHT, HALF = "PINHOLE 251 251 160 120", "PINHOLE 125.5 125.5 160 120"
OFF_CENTRE, TOO_LOW = "PINHOLE 125.5 125.5 80 60", "PINHOLE 251 251 160 149"


def run_with_cameras(folder: Path, lines: str) -> SfmResult:
    """Map `folder`/photos with a file of cameras."""
    (folder / "cameras.txt").write_text(lines)
    return run_with_sift(folder, cameras=folder / "cameras.txt")


@pytest.mark.parametrize(
    ("kind", "count", "lines", "named"),
    [
        # One photo of six: the model is 13 % off, and the median error of all hardly tells.
        ("room", 6, f"0.png SIMPLE_RADIAL 502 160 120 0\n* {RIGHT}", "0.png"),
        # Half of them: 20 % off and more. No adjustment leads out of it, and its errors are small.
        ("courtyard", 10, f"[0-4].png {HALF}\n* {RIGHT}", "0.png, 1.png"),
        # The focal length is only a start, but the principal point stays.
        ("room", 6, f"* {OFF_CENTRE} start", "the photos"),
        # The model is 0.1 % off, and turned by 6.5 degrees.
        ("courtyard", 10, f"* {TOO_LOW}", "the photos, so that rotations are 6."),
    ],
)
def test_given_cameras_that_are_wrong_are_named(
    kind: str, count: int, lines: str, named: str, tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos", (65,), count, kind, 8 if kind == "courtyard" else 3)
    verdict = run_with_cameras(tmp_path, lines).verdict
    assert verdict.level != "good"
    assert f"the given intrinsics contradict {named}" in verdict.text


def test_a_given_start_that_is_only_inexact_is_no_contradiction(tmp_path: Path) -> None:
    centers = write_photos(tmp_path / "photos", (65,), 6)
    result = run_with_cameras(tmp_path, "* PINHOLE 350 350 160 120 start")
    assert center_error(result.models[0], centers) < 0.005
    assert result.verdict.level == "good"


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("focal_length", [1000, 1500])
def test_pairs_tell_whether_a_model_is_bent(
    focal_length: float, is_known: bool, tmp_path: Path
) -> None:
    model = place(lens("SIMPLE_RADIAL", 1000, 640, 480, 0))
    path = tmp_path / "database.db"
    write_database(path, model)
    if is_known:  # as where EXIF has a focal length
        with pycolmap.Database.open(path) as database:
            pair_ids, geometries = database.read_two_view_geometries()
            for pair_id, geometry in zip(pair_ids, geometries, strict=True):
                geometry.config = pycolmap.TwoViewGeometryConfiguration.CALIBRATED
                pair = pycolmap.pair_id_to_image_pair(pair_id)
                database.delete_two_view_geometry(*pair)
                database.write_two_view_geometry(*pair, geometry)
    model.cameras[1].params = [focal_length, 640, 480, 0]
    adjust_robustly(model, robust_adjustment(1), [1])
    names = {image.name for image in model.images.values()}
    assert is_bent(model, path, names) == (focal_length != 1000)


def test_a_run_says_that_given_intrinsics_are_wrong(tmp_path: Path) -> None:
    """30 % too long a focal length: all photos are registered, 3 % off."""
    write_photos(tmp_path / "photos", (65,), 6)
    result = run_with_sift(tmp_path, camera_model="SIMPLE_PINHOLE", camera_params="326,160,120")
    said = result.summary["verdict"]
    assert "the given intrinsics contradict the photos" in said
    assert "with a focal length of 251 instead of 326 px" in said


@pytest.mark.parametrize(
    ("shared_error", "own_error", "contradicts"),
    [(0.30, 0.076, True), (0.23, 0.064, True), (0.11, 0.065, False), (0.17, 0.13, False)],
)
def test_what_is_left_of_exact_models_is_noise(
    shared_error: float, own_error: float, *, contradicts: bool
) -> None:
    assert OwnCameras(shared_error, own_error, {}).contradicts == contradicts


@pytest.mark.parametrize(
    ("own_error", "focal_lengths", "expected"),
    [(0.43, (574, 590, 612), False), (0.43, (250, 252, 420), True), (0.3, (574, 590, 612), True)],
)
def test_focal_lengths_that_stay_together_are_of_one_camera(
    own_error: float, focal_lengths: tuple[float, ...], expected: bool
) -> None:
    own = OwnCameras(0.54, own_error, dict(zip("abc", focal_lengths, strict=True)))
    assert own.are_several(["abc"]) is expected


def test_groups_are_split_where_focal_lengths_are() -> None:
    groups = [["a", "b", "c", "d", "e"], ["f", "g"], ["h"]]
    focal_lengths = {"a": 500, "b": 700, "c": 505, "d": 695, "f": 300, "g": 303}
    assert regrouped(groups, focal_lengths) == [["a", "c"], ["b", "d"], ["e"], ["f", "g"], ["h"]]
