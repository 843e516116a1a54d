"""Which intrinsics of a query its matches support; scenes of points, with exact truth."""

from __future__ import annotations

import copy

import numpy as np
import pycolmap
import pytest

from sfm_matchers.localization import resectioning
from sfm_matchers.localization.in_model import estimate_pose
from sfm_matchers.localization.poses import LocalizationOptions, LocalizedQuery, Query, Status
from sfm_matchers.localization.query_intrinsics import query_of_map
from sfm_matchers.localization.resectioning import Matches
from sfm_matchers.photos.intrinsics import Intrinsics, camera_with

pytestmark = pytest.mark.slow

SIZE = (640, 480)
EXTENT = 4.0
POSE = pycolmap.Rigid3d(pycolmap.Rotation3d([0.1, -0.2, 0.05]), [0.3, -0.2, 0.5])


def lens(model: str, focal_length: float, *distortion: float) -> pycolmap.Camera:
    camera = camera_with(model, focal_length, SIZE)
    params = camera.params.copy()
    params[list(camera.extra_params_idxs())[: len(distortion)]] = distortion
    camera.params = params
    return camera


LENSES = {
    "pinhole": lens("PINHOLE", 600),
    "wide": lens("SIMPLE_RADIAL", 500, -0.25),
    "fisheye": lens("OPENCV_FISHEYE", 300, 0.02, -0.005),
    "long": lens("SIMPLE_RADIAL", 1500),
}


def matches_of(
    camera: pycolmap.Camera, count: int = 300, wrong: float = 0.2, noise: float = 0.4
) -> Matches:
    """Matches with a scene of some depth; a share of them is wrong."""
    rng = np.random.default_rng(3)
    pixels = rng.uniform(0, SIZE, (count, 2))
    rays = np.column_stack([camera.cam_from_img(pixels), np.ones(count)])
    depths = 6 + 3 * np.sin(pixels[:, 0] / 90) * np.cos(pixels[:, 1] / 70)
    points = POSE.inverse() * (rays * depths[:, None])
    keypoints = pixels + rng.normal(0, noise, (count, 2))
    bad = rng.random(count) < wrong
    keypoints[bad] = rng.uniform(0, SIZE, (bad.sum(), 2))
    return Matches(keypoints, points, 12.0, EXTENT)


def localized(query: Query, matches: Matches, **options: bool) -> tuple[LocalizedQuery, float]:
    """What became of a query, and its error in percent of the extent."""
    found = estimate_pose(
        query,
        matches.keypoints,
        matches.points,
        len(matches.points),
        LocalizationOptions(**options),
        matches.extent,
    )
    assert found.cam_from_world is not None
    offset = found.cam_from_world.inverse().translation - POSE.inverse().translation
    return found, 100 * float(np.linalg.norm(offset)) / EXTENT


def scaled(camera: pycolmap.Camera, factor: float) -> pycolmap.Camera:
    other, params = copy.copy(camera), camera.params.copy()
    params[list(camera.focal_length_idxs())] *= factor
    other.params = params
    return other


def test_each_of_the_maps_cameras_is_tried() -> None:
    for name, camera in LENSES.items():
        others = [Intrinsics(lens, other) for other, lens in LENSES.items() if other != name]
        first, *rest = [*others, Intrinsics(camera, name)]
        query = Query("q", first.camera, source=first.source, alternatives=rest)
        found, error = localized(query, matches_of(camera))
        assert found.status == Status.LOCALIZED
        assert error < 0.5
        assert found.intrinsics.startswith(f"{name} (")
        assert all(other.source in found.intrinsics for other in others)  # and how they fared


@pytest.mark.parametrize(
    ("name", "start"),
    [*((name, "nothing") for name in LENSES), ("long", "pinhole"), ("fisheye", "pinhole")]
    + [("wide", "long"), ("pinhole", "long")],
)
def test_a_lens_that_is_not_the_maps_is_estimated(name: str, start: str) -> None:
    camera = lens("SIMPLE_RADIAL", 768) if start == "nothing" else LENSES[start]
    query = Query("q", camera, start == "nothing", "the map's", may_change=True)
    found, error = localized(query, matches_of(LENSES[name]))
    assert found.status == Status.LOCALIZED
    assert error < 3


@pytest.mark.parametrize(
    ("name", "factor"),
    [*((name, 1.05) for name in LENSES), ("wide", 0.9), ("fisheye", 0.9)]
    + [("pinhole", 0.5), ("long", 1.5)],
)
def test_known_intrinsics_that_the_matches_contradict_are_said(name: str, factor: float) -> None:
    wrong = scaled(LENSES[name], factor)
    found, error = localized(Query("q", wrong), matches_of(LENSES[name]))
    assert error > 3
    assert found.status == Status.LOW_CONFIDENCE
    assert "the matches contradict the" in found.reason
    assert f"with {wrong.mean_focal_length():.0f} px" in found.reason
    assert found.camera.params.tolist() == wrong.params.tolist()
    right, error = localized(Query("q", LENSES[name]), matches_of(LENSES[name]))
    assert right.status == Status.LOCALIZED
    assert not right.reason
    assert error < 0.5


def test_what_is_not_the_focal_length_is_not_said_to_be() -> None:
    wrong = scaled(LENSES["pinhole"], 1)
    params = wrong.params.copy()
    params[list(wrong.principal_point_idxs())] += (0.1 * wrong.width, -0.1 * wrong.width)
    wrong.params = params
    found, _ = localized(Query("q", wrong), matches_of(LENSES["pinhole"]))
    assert found.status == Status.LOW_CONFIDENCE
    assert "contradict the lens distortion or principal point of its intrinsics" in found.reason
    assert found.reason.endswith("check those that are given, or leave them away")


@pytest.mark.parametrize("factor", [0.6, 0.98, 1.02, 1.5])
def test_exif_is_where_an_estimate_starts(factor: float) -> None:
    exif = lens("SIMPLE_RADIAL", 600 * factor)
    found, error = localized(
        Query("q", exif, source="EXIF", may_change=True), matches_of(LENSES["pinhole"])
    )
    assert found.status == Status.LOCALIZED
    assert error < 0.7
    assert found.intrinsics.startswith("focal length estimated (")
    assert "EXIF: " in found.intrinsics


def test_exifs_focal_length_stays_where_it_is_right() -> None:
    exif = lens("SIMPLE_RADIAL", 600.5)
    found, error = localized(
        Query("q", exif, source="EXIF", may_change=True), matches_of(LENSES["pinhole"])
    )
    assert found.intrinsics == "EXIF"
    assert found.camera.params[0] == 600.5
    assert error < 0.5


@pytest.mark.parametrize("corner", [(160, 120), (0, 0), (320, 0), (320, 240)])
def test_a_cropped_photo_is_told_by_its_matches(corner: tuple[int, int]) -> None:
    every, size = matches_of(LENSES["pinhole"], 1500), (320, 240)
    keypoints = every.keypoints - corner
    inside = ((keypoints > 0) & (keypoints < size)).all(axis=1)
    cropped = Matches(keypoints[inside], every.points[inside], 12.0, EXTENT)
    # EXIF's focal length is in millimetres: of the whole photo.
    exif = camera_with("SIMPLE_RADIAL", 300, size)
    found, error = localized(Query("q", exif, source="EXIF", may_change=True), cropped)
    assert error < 3 or found.status == Status.LOW_CONFIDENCE
    assert "EXIF: " in found.intrinsics
    known, error = localized(Query("q", exif), cropped)
    assert error > 5
    assert known.status == Status.LOW_CONFIDENCE


def test_scans_are_not_held_against_intrinsics() -> None:
    wrong = scaled(LENSES["pinhole"], 1.2)
    found, _ = localized(Query("q", wrong), matches_of(LENSES["pinhole"]), check_intrinsics=False)
    assert found.status == Status.LOCALIZED


def test_few_matches_hardly_determine_a_focal_length() -> None:
    """A wall seen from the front."""
    rng = np.random.default_rng(1)
    camera = lens("SIMPLE_RADIAL", 600)
    points = np.column_stack([rng.uniform(-1.5, 1.5, (60, 2)), rng.normal(6, 0.02, 60)])
    keypoints = camera.img_from_cam(points) + rng.normal(0, 0.3, (60, 2))
    guess = Query("q", lens("SIMPLE_RADIAL", 768), True, may_change=True)
    found = estimate_pose(guess, keypoints, points, 60, LocalizationOptions(), EXTENT)
    assert found.status == Status.LOW_CONFIDENCE
    assert "hardly determine the focal length" in found.reason
    known = estimate_pose(Query("q", camera), keypoints, points, 60, LocalizationOptions(), EXTENT)
    assert known.status == Status.LOCALIZED


@pytest.mark.parametrize("zoom", [1.0, 2.0])
def test_few_matches_do_not_tell_a_zoomed_photo_from_the_maps_camera(zoom: float) -> None:
    """On a wall seen from the front, they fit both: twice as near and zoomed by two is the same."""
    rng = np.random.default_rng(1)
    camera = lens("SIMPLE_RADIAL", 600 * zoom)
    points = np.column_stack([rng.uniform(-1.2, 1.2, (200, 2)), rng.normal(6, 0.02, 200)])
    keypoints = camera.img_from_cam(points) + rng.normal(0, 0.3, (200, 2))
    map_camera = lens("SIMPLE_RADIAL", 600)
    assumed = Query("q", map_camera, source="camera 1 of the map", may_change=True)
    few = LocalizationOptions(), EXTENT
    found = estimate_pose(assumed, keypoints[:25], points[:25], 25, *few)
    assert found.status == Status.LOW_CONFIDENCE
    assert ("hardly determine the focal" if zoom > 1 else "25 inliers fit any") in found.reason
    expected = query_of_map("q", SIZE, None, map_of(map_camera), camera_from_map=True)
    doubted = estimate_pose(expected, keypoints[:25], points[:25], 25, *few)
    assert doubted.status == Status.LOW_CONFIDENCE
    assert doubted.reason == found.reason
    many = estimate_pose(expected, keypoints, points, 200, *few)
    assert many.status == Status.LOW_CONFIDENCE
    assert "focal length" in many.reason
    known = Query("q", camera, source="--camera_params")
    assert estimate_pose(known, keypoints[:25], points[:25], 25, *few).status == Status.LOCALIZED
    deep = points + [0, 0, 3] * rng.random((200, 1))
    keypoints = map_camera.img_from_cam(deep) + rng.normal(0, 0.3, (200, 2))
    assert estimate_pose(assumed, keypoints[:40], deep[:40], 40, *few).status == Status.LOCALIZED


def wall(camera: pycolmap.Camera, tilt: float, seed: int) -> Matches:
    """Matches with a flat wall, which is turned by some radians."""
    rng = np.random.default_rng(seed)
    pixels = rng.uniform(0, SIZE, (200, 2))
    rays = np.column_stack([camera.cam_from_img(pixels), np.ones(200)])
    depths = 8 / (rays @ [np.sin(tilt), 0, np.cos(tilt)])
    points = POSE.inverse() * (rays * depths[:, None])
    return Matches(pixels + rng.normal(0, 0.4, pixels.shape), points, 12.0, EXTENT)


@pytest.mark.parametrize(("focal_length", "tilt"), [(500, 0.0), (900, 0.0), (500, 0.5)])
@pytest.mark.parametrize("shift", [0.0, 0.01])
def test_a_flat_wall_does_not_tell_a_lens_that_nobody_knows(
    focal_length: float, tilt: float, shift: float
) -> None:
    """Its middle need not be where the light enters: a little aside, it is another focal length
    and another place that fit."""
    camera = lens("PINHOLE", focal_length)
    camera.params = camera.params + shift * SIZE[0] * np.array([0, 0, 1, -0.5])
    query = Query("q", lens("SIMPLE_RADIAL", 768), True, "a guess", may_change=True)
    for seed in range(4):
        found, error = localized(query, wall(camera, tilt, seed))
        assert found.status is Status.LOW_CONFIDENCE or error < 1


def facade(camera: pycolmap.Camera, relief: float, seed: int) -> Matches:
    """Matches with a wall, turned by 0.3 radians, of which parts stand out by so much."""
    rng = np.random.default_rng(seed)
    pixels = rng.uniform(0, SIZE, (600, 2))
    rays = np.column_stack([camera.cam_from_img(pixels), np.ones(600)])
    parts = np.sign(np.sin(pixels[:, 0] / 40) * np.cos(pixels[:, 1] / 50))
    depths = (8 + relief * parts) / (rays @ [np.sin(0.3), 0, np.cos(0.3)])
    points = POSE.inverse() * (rays * depths[:, None])
    return Matches(pixels + rng.normal(0, 0.7, pixels.shape), points, 12.0, EXTENT)


@pytest.mark.parametrize("start", ["nothing", "camera 1 of the map"])
@pytest.mark.parametrize("seed", [0, 2])
@pytest.mark.parametrize("relief", [0.3, 0.6])
def test_a_principal_point_beside_the_middle_is_no_other_lens_elsewhere(
    relief: float, seed: int, start: str
) -> None:
    """Distortion explains a part of it, with a camera that is off by 1.7 to 4.3 % of the extent."""
    camera = copy.copy(LENSES["pinhole"])
    params = camera.params.copy()
    params[list(camera.principal_point_idxs())] += SIZE[0] * np.array([0.01, -0.005])
    camera.params = params
    is_guess = start == "nothing"
    assumed = lens("SIMPLE_RADIAL", 768) if is_guess else LENSES["pinhole"]
    query = Query("q", assumed, is_guess, start, may_change=True)
    found, error = localized(query, facade(camera, relief, seed))
    assert error < 0.5
    assert found.status is (Status.LOCALIZED if relief > 0.5 else Status.LOW_CONFIDENCE)
    assert found.intrinsics.startswith("principal point estimated")


def map_of(*cameras: pycolmap.Camera) -> pycolmap.Reconstruction:
    """A map of one photo by each of some cameras."""
    model = pycolmap.Reconstruction()
    for index, camera in enumerate(cameras, start=1):
        same = copy.copy(camera)
        same.camera_id = index
        model.add_camera_with_trivial_rig(same)
        image = pycolmap.Image(name=f"{index}.jpg", camera_id=index, image_id=index)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d())
    return model


@pytest.mark.parametrize("zoom", [1.05, 1.3, 1.5, 2, 3])
@pytest.mark.parametrize("names", [("pinhole",), ("wide",), ("pinhole", "long")])
def test_a_zoomed_photo_is_not_of_the_maps_camera(names: tuple[str, ...], zoom: float) -> None:
    """Cut out of the middle and enlarged to the size that it had."""
    model = map_of(*(LENSES[name] for name in names))
    query = query_of_map("q", SIZE, None, model, camera_from_map=True)
    found, error = localized(query, matches_of(scaled(LENSES[names[0]], zoom)))
    assert found.status == Status.LOCALIZED
    assert error < 1.5
    assert "estimated (" in found.intrinsics
    assert "the matches contradict the" in found.contradiction


@pytest.mark.parametrize("name", LENSES)
def test_the_maps_camera_stays_as_it_is_where_it_is_right(name: str) -> None:
    others = [lens for other, lens in LENSES.items() if other != name]
    query = query_of_map("q", SIZE, None, map_of(*others, LENSES[name]), camera_from_map=True)
    for count in (40, 300):
        found, error = localized(query, matches_of(LENSES[name], count))
        assert found.status == Status.LOCALIZED
        assert error < 1
        assert found.intrinsics.startswith("camera 4 of the map")
        assert found.camera.params.tolist() == LENSES[name].params.tolist()


def test_a_portrait_out_of_the_middle_is_not_the_maps_camera_turned() -> None:
    every, size = matches_of(LENSES["pinhole"], 600), (360, 480)
    keypoints = every.keypoints - [140, 0]
    inside = ((keypoints > 0) & (keypoints < size)).all(axis=1)
    cropped = Matches(keypoints[inside], every.points[inside], 12.0, EXTENT)
    query = query_of_map("q", size, None, map_of(LENSES["pinhole"]), camera_from_map=True)
    found, error = localized(query, cropped)
    assert found.status == Status.LOCALIZED
    assert error < 1.5
    assert found.camera.mean_focal_length() == pytest.approx(600, rel=0.01)


def test_what_is_expected_is_suspected_sooner() -> None:
    """A focal length that is a little off, and too few matches to replace it."""
    model = map_of(lens("SIMPLE_RADIAL", 606))
    matches = matches_of(LENSES["pinhole"], 60, noise=0.6)
    found, _ = localized(query_of_map("q", SIZE, None, model), matches)
    assert found.status == Status.LOCALIZED
    expected, _ = localized(query_of_map("q", SIZE, None, model, camera_from_map=True), matches)
    assert expected.status == Status.LOW_CONFIDENCE
    assert "the matches contradict the focal length" in expected.reason


def test_errors_of_wrong_intrinsics_are_alike_beside_each_other() -> None:
    matches = matches_of(LENSES["fisheye"])
    right = resectioning.solve(matches, LENSES["fisheye"])
    wrong = resectioning.solve(matches, LENSES["pinhole"])
    assert abs(resectioning.coherence(right)) < 0.2
    assert resectioning.coherence(wrong) > resectioning.MAX_COHERENCE


def test_results_repeat() -> None:
    query = Query("q", LENSES["long"], may_change=True)
    one, two = (localized(query, matches_of(LENSES["wide"]))[0] for _ in range(2))
    assert one.cam_from_world.matrix().tolist() == two.cam_from_world.matrix().tolist()
    assert query.camera.params.tolist() == LENSES["long"].params.tolist()
