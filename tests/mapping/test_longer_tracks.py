"""Points of a model are found in more of its photos."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pycolmap
import pytest

from pipelines import refine
from sfm_matchers.errors import InputError
from sfm_matchers.evaluation.models import compare_models
from sfm_matchers.mapping import patch_location
from sfm_matchers.mapping.adjustment import adjust_robustly
from sfm_matchers.mapping.patch_location import BORDER, Photos, carry_over, locate
from sfm_matchers.mapping.sparse_scene import SparseScene, View, is_hidden
from sfm_matchers.mapping.tracks import (
    LongerTracks,
    default_adjustment,
    join_points,
    lengthen_tracks,
)
from sfm_matchers.synthetic import Camera, make_scene, write_photos
from tests.support.point_models import add_image

pytestmark = pytest.mark.slow

CAMERA = Camera.from_field_of_view(480, 360)
NUM_PHOTOS = 8


class Place(NamedTuple):
    folder: Path
    truth: pycolmap.Reconstruction
    model: pycolmap.Reconstruction
    longer: pycolmap.Reconstruction
    done: LongerTracks


def short_model(truth: pycolmap.Reconstruction, noise: float) -> pycolmap.Reconstruction:
    """The true points, each seen by two of the photos that show it, with noise."""
    random = np.random.default_rng(0)
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(truth.cameras[1])
    tracks: dict[int, list[pycolmap.TrackElement]] = {}
    keepers = {
        point_id: random.permutation([each.image_id for each in point.track.elements])[:2]
        for point_id, point in sorted(truth.points3D.items())
    }
    for image_id, image in sorted(truth.images.items()):
        kept = [
            each
            for each in image.get_observation_points2D()
            if image_id in keepers[each.point3D_id]
        ]
        xy = np.array([each.xy for each in kept]) + random.normal(0, noise, (len(kept), 2))
        add_image(model, image_id, image.name, image.cam_from_world(), xy)
        for index, each in enumerate(kept):
            element = pycolmap.TrackElement(image_id, index)
            tracks.setdefault(each.point3D_id, []).append(element)
    for point_id, elements in tracks.items():
        point = truth.points3D[point_id]
        model.add_point3D(point.xyz, pycolmap.Track(elements), point.color)
    return model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("courtyard")
    scene = make_scene(3, kind="courtyard", texture_size=512)
    truth = write_photos(folder, scene, NUM_PHOTOS, seed=1, camera=CAMERA, depth=True)
    model = short_model(truth, noise=0.3)
    fixed = list(model.cameras)
    longer, done = lengthen_tracks(model, folder / "images", fixed_cameras=fixed)
    return Place(folder, truth, model, longer, done)


def added_observations(place: Place) -> list[tuple[pycolmap.Image, np.ndarray, np.ndarray]]:
    """For each image the points (A, 3), true to the depth maps, of its new keypoints (A, 2)."""
    surfaces = {}
    for image in place.truth.images.values():
        depth = np.load((place.folder / "depth" / image.name).with_suffix(".npy"))
        surfaces[image.image_id] = depth
    result = []
    for image_id, image in sorted(place.longer.images.items()):
        first = place.model.images[image_id].num_points2D()
        points, pixels = [], []
        for index in range(first, image.num_points2D()):
            each = image.points2D[index]
            if not each.has_point3D():
                continue
            sources = [
                element
                for element in place.longer.points3D[each.point3D_id].track.elements
                if element.point2D_idx < place.model.images[element.image_id].num_points2D()
            ]
            seen = [surface_point(place, surfaces, element) for element in sources]
            if seen:
                points.append(np.median(seen, axis=0))
                pixels.append(each.xy)
        result.append((place.truth.images[image_id], np.array(points), np.array(pixels)))
    return result


def surface_point(
    place: Place, depths: dict[int, np.ndarray], element: pycolmap.TrackElement
) -> np.ndarray:
    """What an observation shows, by the depth map of its photo."""
    image = place.truth.images[element.image_id]
    xy = place.model.images[element.image_id].points2D[element.point2D_idx].xy
    depth = cv2.getRectSubPix(depths[element.image_id], (1, 1), (xy - 0.5).tolist())[0, 0]
    ray = np.append(image.camera.cam_from_img(xy), 1.0)
    return np.asarray(image.cam_from_world().inverse() * (depth * ray))


def test_tracks_get_longer(place: Place) -> None:
    assert place.model.compute_mean_track_length() == 2
    assert place.longer.compute_mean_track_length() > 2.25
    assert place.done.track_lengths[1] == place.longer.compute_mean_track_length()
    assert place.done.added > 250
    assert place.longer.is_valid()


def test_added_observations_are_where_the_points_are(place: Place) -> None:
    errors = []
    for image, points, pixels in added_observations(place):
        for point, pixel in zip(points, pixels, strict=True):
            expected = image.project_point(point)
            errors.append(np.inf if expected is None else np.linalg.norm(expected - pixel))
    assert len(errors) > 250
    assert np.median(errors) < 0.4
    assert np.mean(np.array(errors) > 2) < 0.02


def test_hidden_points_are_not_added(place: Place) -> None:
    hidden = []
    for image, points, pixels in added_observations(place):
        assert len(points)
        depth = np.load((place.folder / "depth" / image.name).with_suffix(".npy"))
        column, row = np.rint(pixels - 0.5).astype(int).T
        distances = np.array([(image.cam_from_world() * point)[2] for point in points])
        # The nearest surface within a pixel: at an edge either one may show.
        around = cv2.dilate(depth, np.ones((3, 3)))[row, column]
        hidden.extend(around < 0.98 * distances)
    assert np.mean(hidden) < 0.01


def test_cameras_do_not_get_worse(place: Place) -> None:
    before = pycolmap.Reconstruction(place.model)
    adjust_robustly(before, default_adjustment(), [1])
    errors = [compare_models(m, place.truth).center_errors.mean() for m in (before, place.longer)]
    assert errors[1] <= errors[0]


def test_keypoints_that_were_there_keep_their_order(place: Place) -> None:
    for image_id, image in place.model.images.items():
        longer = place.longer.images[image_id]
        assert longer.num_points2D() >= image.num_points2D()
        for index in range(image.num_points2D()):
            np.testing.assert_array_equal(longer.points2D[index].xy, image.points2D[index].xy)


def test_what_lies_behind_is_hidden() -> None:
    """A wall at 2 m with a window, seen from the front; points before, on and behind it."""
    view = view_at(np.zeros(3))
    x, y = np.meshgrid(np.linspace(-1, 1, 41), np.linspace(-1, 1, 41))
    wall = np.column_stack([x.ravel(), y.ravel(), np.full(x.size, 2.0)])
    wall = wall[np.abs(wall[:, :2]).max(1) > 0.3]
    slope = np.column_stack([x.ravel(), y.ravel(), 2 + 1.5 * (x.ravel() + 1)])
    points = np.array([[0.6, 0.6, 2.0], [0.9, 0.9, 3.0], [0.3, 0.3, 1.0]])
    np.testing.assert_array_equal(is_hidden(view, points, wall), [False, True, False])
    assert not is_hidden(view, slope, slope + 1e-3).any()


def view_at(center: np.ndarray) -> View:
    camera = pycolmap.Camera.create_from_model_name(1, "OPENCV_FISHEYE", 300.0, 640, 480)
    pose = np.column_stack([np.eye(3), -center])
    return View(1, "a.jpg", camera, pose)


def test_patches_are_carried_over_the_plane() -> None:
    """A plane seen by fisheye lenses: what is next to a point lands where its projection does."""
    views = view_at(np.zeros(3)), view_at(np.array([0.5, 0.1, 0.2]))
    normal = np.array([[0.3, -0.2, -1.0]]) / np.linalg.norm([0.3, -0.2, 1.0])
    point = np.array([[0.4, 0.3, 2.0]])
    along = np.cross(normal, [[1.0, 0.0, 0.0]]) * 1e-3
    pixels = [[view.project(p)[0] for p in (point, point + along)] for view in views]
    center, linear = carry_over(*views, np.array(pixels[0][:1]), point, normal)
    np.testing.assert_allclose(center[0], pixels[1][0], atol=1e-6)
    np.testing.assert_allclose(
        linear[0] @ (pixels[0][1] - pixels[0][0]), pixels[1][1] - pixels[1][0], rtol=1e-2
    )


def test_points_that_fit_all_observations_are_joined(place: Place) -> None:
    model = pycolmap.Reconstruction(place.truth)
    long = [i for i, point in sorted(model.points3D.items()) if point.track.length() >= 4]
    point = model.points3D[long[0]]
    elements = [(each.image_id, each.point2D_idx) for each in point.track.elements]
    position, color = point.xyz.copy(), point.color.copy()
    model.delete_point3D(long[0])
    halves = [
        model.add_point3D(
            position, pycolmap.Track([pycolmap.TrackElement(*e) for e in half]), color
        )
        for half in (elements[:2], elements[2:])
    ]
    assert join_points(model, [tuple(halves), (halves[1], halves[0]), (long[1], long[2])]) == 1
    lengths = {point.track.length() for point in model.points3D.values()}
    assert len(elements) in lengths
    assert model.is_valid()


@pytest.mark.parametrize("model", ["OPENCV_FISHEYE", "EQUIRECTANGULAR", "FULL_OPENCV", "FOV"])
def test_projection_and_rays_agree_for_every_lens(model: str) -> None:
    camera = pycolmap.Camera.create_from_model_name(1, model, 300.0, 640, 320)
    pose = np.column_stack([np.eye(3), [0.1, 0.2, 0.3]])
    view = View(1, "a.jpg", camera, pose)
    points = np.random.default_rng(0).normal(0, 1, (200, 3)) + [0, 0, 1]
    pixels = view.project(points)
    seen = view.shows(pixels, 0)
    assert 20 < seen.sum() < 200 or model == "EQUIRECTANGULAR"
    rays = points[seen] - view.center
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    np.testing.assert_allclose(view.rays(pixels[seen]), rays, atol=2e-3)
    assert view.pixels_per_radian > 0


def test_command(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place.model.write(tmp_path)
    images, output = place.folder / "images", tmp_path / "refined"
    arguments = ["--model", str(tmp_path), "--output", str(output), "--image_dir"]
    assert refine.main([*arguments, str(images), "--rounds", "1", "--fixed_intrinsics"]) == 0
    assert "mean track length 2.00" in capsys.readouterr().out
    written = pycolmap.Reconstruction(output)
    assert written.compute_mean_track_length() > 2.2
    np.testing.assert_array_equal(written.cameras[1].params, place.model.cameras[1].params)
    assert refine.main([*arguments, str(tmp_path)]) == 2
    assert "none of the model's photos" in capsys.readouterr().err
    assert refine.main([*arguments, str(images), "--rounds", "0"]) == 2


def test_photos_of_another_size_are_told(place: Place, tmp_path: Path) -> None:
    for path in (place.folder / "images").iterdir():
        cv2.imwrite(str(tmp_path / path.name), cv2.resize(cv2.imread(str(path)), (240, 180)))
    with pytest.raises(InputError, match="240x180, its camera in the model 480x360"):
        lengthen_tracks(place.model, tmp_path)


def test_missing_photos_are_left_out(place: Place, tmp_path: Path) -> None:
    for path in sorted((place.folder / "images").iterdir())[1:]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    longer, done = lengthen_tracks(place.model, tmp_path, rounds=1, fixed_cameras=[1])
    assert done.added > 100
    assert longer.images[1].num_points2D() == place.model.images[1].num_points2D()


def test_a_model_without_points_stays_as_it_is(place: Place) -> None:
    empty = pycolmap.Reconstruction(place.truth)
    empty.delete_all_points2D_and_points3D()
    longer, done = lengthen_tracks(empty, place.folder / "images")
    assert longer.num_points3D() == done.added == 0


def test_a_model_that_its_cameras_contradict_is_refused(place: Place) -> None:
    model = pycolmap.Reconstruction(place.model)
    model.cameras[1].params = [1e30 for _ in model.cameras[1].params]
    with pytest.raises(InputError, match="points is where the model's cameras"):
        lengthen_tracks(model, place.folder / "images")


def test_points_that_one_photo_sees_leave_the_model(place: Place) -> None:
    model = pycolmap.Reconstruction(place.model)
    for point_id in sorted(model.points3D):
        track = model.points3D[point_id].track
        if point_id % 2:
            model.delete_observation(track.elements[0].image_id, track.elements[0].point2D_idx)
    left, _ = lengthen_tracks(model, place.folder / "images")
    assert min(point.track.length() for point in left.points3D.values()) >= 2
    for point in model.points3D.values():
        point.track = pycolmap.Track()
    with pytest.raises(InputError, match="points are seen by 0 keypoints, of its images"):
        lengthen_tracks(model, place.folder / "images")


def test_a_photo_that_leaves_the_model_is_named(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    model = pycolmap.Reconstruction(place.model)
    image = model.images[4]
    image.frame.rig_from_world = pycolmap.Rigid3d(pycolmap.Rotation3d(), np.array([0, 0, -1e6]))
    random = np.random.default_rng(2)
    for point in image.points2D:
        point.xy = random.uniform(0, CAMERA.height, 2)
    left, _ = lengthen_tracks(model, place.folder / "images")
    assert left.num_reg_images() == NUM_PHOTOS - 1
    (line,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert line.startswith("no longer in the model")
    assert line.endswith(f": {image.name}")


def test_photos_too_large_for_memory_are_reduced_and_tell_the_same(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = pycolmap.Reconstruction(place.model)
    for camera in model.cameras.values():
        camera.rescale(4.0)
    for image in model.images.values():
        photo = cv2.imread(str(place.folder / "images" / image.name))
        large = cv2.resize(photo, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(tmp_path / image.name), large)
        for point in image.points2D:
            point.xy = 4 * point.xy
    monkeypatch.setattr(patch_location, "SHARP_SIDE", 480)  # samples lie 4 pixels apart
    scene = SparseScene.of(model)
    candidates = scene.unseen_candidates(0, 4.0 * BORDER)
    found = []
    for largest, factor in ((1 << 26, 1), (1000 * 800, 2)):
        monkeypatch.setattr(patch_location, "LARGEST_PIXELS", largest)
        photos = Photos(tmp_path, 1 << 30)
        assert photos.reduction(scene.views[0]) == factor
        found.append(locate(scene, 0, candidates, photos))
        assert photos.blurred(scene.views[0], 4.0).shape == (1440 // factor, 1920 // factor)
    whole, reduced = found
    both = whole.succeeded & reduced.succeeded
    assert both.sum() > 0.9 * whole.succeeded.sum() > 20
    apart = np.linalg.norm(whole.pixel - reduced.pixel, axis=1)[both]
    assert np.median(apart) < 0.1  # of pixels of which samples are 4 apart
    assert np.median(reduced.deviation[both] / whole.deviation[both]) == pytest.approx(1, abs=0.1)
