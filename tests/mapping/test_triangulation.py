"""Points for known poses: what is kept, what is refused, and what a failed run leaves behind."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pycolmap
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfm_matchers.errors import InputError
from sfm_matchers.files.pair_lists import Pair, names_to_pair
from sfm_matchers.mapping.triangulation import epipolar_errors, triangulate
from tests.support.point_models import add_image

NUM_POINTS = 300
NUM_WRONG = 60  # of the matches of each pair
CAMERA_ID = 3
CAMERA = pycolmap.Camera(
    model="SIMPLE_RADIAL",
    width=640,
    height=480,
    params=[500.0, 320.0, 240.0, -0.05],
    camera_id=CAMERA_ID,
)


@dataclass
class Inputs:
    """What `triangulate` takes, and the truth."""

    reference: pycolmap.Reconstruction
    image_dir: Path
    pairs: list[Pair]
    features: Path
    matches: Path
    points: np.ndarray

    def triangulate(self, output: Path, **options: object) -> pycolmap.Reconstruction:
        return triangulate(
            self.reference,
            output,
            self.image_dir,
            self.pairs,
            self.features,
            self.matches,
            **options,
        )


def model_without_points(step: float = 0.4) -> pycolmap.Reconstruction:
    """Four photos `step` metres apart, with ids that do not count from 1."""
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(CAMERA)
    for index in range(4):
        rotation = pycolmap.Rotation3d(np.array([0.0, 0.03 * index, 0.0]))
        pose = pycolmap.Rigid3d(rotation, np.array([-step * index, 0, 0]))
        add_image(model, 10 + 7 * index, f"db/{index}.jpg", pose, camera_id=CAMERA_ID)
    return model


@pytest.fixture
def make_inputs(tmp_path: Path) -> Callable[..., Inputs]:
    """Keypoint k of each photo sees point k; the first matches of each pair are mixed up."""

    def make(step: float = 0.4) -> Inputs:
        rng = np.random.default_rng(0)
        points = rng.uniform([-1.5, -1.5, 4], [2.5, 1.5, 9], (NUM_POINTS, 3))
        reference = model_without_points(step)
        features, matches = tmp_path / "features.h5", tmp_path / "matches.h5"
        images = sorted(reference.images.values(), key=lambda image: image.name)
        pairs = []
        with h5py.File(features, "w") as file:
            for image in images:
                seen = CAMERA.img_from_cam(image.cam_from_world() * points) - 0.5
                noisy = seen + rng.normal(0, 0.3, seen.shape)
                file[f"{image.name}/keypoints"] = noisy.astype(np.float32)
        with h5py.File(matches, "w") as file:
            for image0, image1 in itertools.combinations(images, 2):
                matches0 = np.arange(NUM_POINTS, dtype=np.int32)
                matches0[:NUM_WRONG] = np.roll(matches0[:NUM_WRONG], rng.integers(1, NUM_WRONG))
                file[f"{names_to_pair(image0.name, image1.name)}/matches0"] = matches0
                pairs.append((image0.name, image1.name))
        return Inputs(reference, tmp_path, pairs, features, matches, points)

    return make


@pytest.fixture
def inputs(make_inputs: Callable[..., Inputs]) -> Inputs:
    return make_inputs()


def num_inlier_matches(output: Path) -> int:
    with pycolmap.Database.open(output / "database.db") as database:
        return int(database.num_inlier_matches())


@pytest.mark.parametrize("verification", ["known_poses", "two_view", "none"])
def test_points_lie_where_they_are_and_ids_stay(
    inputs: Inputs, tmp_path: Path, verification: str
) -> None:
    model = inputs.triangulate(tmp_path / "out", verification=verification)
    assert set(model.images) == set(inputs.reference.images)
    assert set(model.cameras) == {CAMERA_ID}
    for image_id, image in model.images.items():
        given = inputs.reference.images[image_id]
        assert image.name == given.name
        assert image.frame_id == given.frame_id
        np.testing.assert_array_equal(
            image.cam_from_world().matrix(), given.cam_from_world().matrix()
        )
    np.testing.assert_array_equal(model.cameras[CAMERA_ID].params, CAMERA.params)
    points = [point for point in model.points3D.values() if point.track.length() == 4]
    assert len(points) >= NUM_POINTS - NUM_WRONG
    truth = [inputs.points[point.track.elements[0].point2D_idx] for point in points]
    errors = np.linalg.norm(np.array([point.xyz for point in points]) - truth, axis=1)
    assert np.median(errors) < 0.02
    written = pycolmap.Reconstruction(tmp_path / "out")
    assert written.num_points3D() == model.num_points3D()


def test_known_poses_drop_wrong_matches_and_only_these(inputs: Inputs, tmp_path: Path) -> None:
    inputs.triangulate(tmp_path / "poses")
    inputs.triangulate(tmp_path / "all", verification="none")
    right = len(inputs.pairs) * (NUM_POINTS - NUM_WRONG)
    assert num_inlier_matches(tmp_path / "all") == len(inputs.pairs) * NUM_POINTS
    # A wrong match may lie near its epipolar line by chance.
    assert right <= num_inlier_matches(tmp_path / "poses") < right + 0.1 * right


def test_uncertain_keypoints_get_more_room(inputs: Inputs, tmp_path: Path) -> None:
    with h5py.File(inputs.features, "a") as file:
        rng = np.random.default_rng(1)
        for name in inputs.reference.images.values():
            keypoints = file[name.name]["keypoints"]
            keypoints[...] += rng.normal(0, 4, keypoints.shape).astype(np.float32)
    inputs.triangulate(tmp_path / "certain")
    with h5py.File(inputs.features, "a") as file:
        for image in inputs.reference.images.values():
            file[image.name]["keypoints"].attrs["uncertainty"] = 5.0
    inputs.triangulate(tmp_path / "uncertain")
    every = len(inputs.pairs) * (NUM_POINTS - NUM_WRONG)
    assert num_inlier_matches(tmp_path / "certain") < 0.75 * every
    assert num_inlier_matches(tmp_path / "uncertain") > 0.98 * every


def test_the_same_files_give_the_same_model(inputs: Inputs, tmp_path: Path) -> None:
    for name in ("first", "second"):
        inputs.triangulate(tmp_path / name)
    for name in ("images.bin", "points3D.bin"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_pairs_of_other_photos_are_passed_over(inputs: Inputs, tmp_path: Path) -> None:
    inputs.pairs += [("query/1.jpg", "db/1.jpg"), ("db/1.jpg", "db/0.jpg")]
    inputs.triangulate(tmp_path / "out")
    with pycolmap.Database.open(tmp_path / "out" / "database.db") as database:
        assert database.num_matched_image_pairs() == 6


def test_weak_matches_are_left_out(inputs: Inputs, tmp_path: Path) -> None:
    with h5py.File(inputs.matches, "a") as file:
        for pair in inputs.pairs:
            scores = np.ones(NUM_POINTS, dtype=np.float16)
            scores[:NUM_WRONG] = 0.2
            file[f"{names_to_pair(*pair)}/matching_scores0"] = scores
    inputs.triangulate(tmp_path / "out", verification="none", min_match_score=0.5)
    kept = num_inlier_matches(tmp_path / "out")
    assert kept == len(inputs.pairs) * (NUM_POINTS - NUM_WRONG)


def test_a_run_without_points_says_so_and_leaves_the_last_model(
    inputs: Inputs, make_inputs: Callable[..., Inputs], tmp_path: Path
) -> None:
    inputs.triangulate(tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert "points3D.bin" in before
    one_place = make_inputs(step=0.0)
    with pytest.raises(InputError, match=r"no 3D point came out of 6 matched pairs: check"):
        one_place.triangulate(tmp_path / "out")
    with pytest.raises(InputError, match=r"no 3D point came out of 0 matched pairs"):
        triangulate(
            inputs.reference, tmp_path / "out", tmp_path, [], inputs.features, inputs.matches
        )
    after = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert after == before


def test_a_killed_run_is_no_obstacle(inputs: Inputs, tmp_path: Path) -> None:
    left = tmp_path / "out" / ".triangulation.0123abcd.tmp"
    left.mkdir(parents=True)
    (left / "database.db").write_bytes(b"half a database")
    inputs.triangulate(tmp_path / "out")
    assert not left.exists()


@pytest.mark.parametrize("verification", ["known_poses", "two_view", "none"])
def test_matches_of_other_features_are_refused(
    inputs: Inputs, tmp_path: Path, verification: str
) -> None:
    with h5py.File(inputs.matches, "a") as file:
        file[names_to_pair("db/0.jpg", "db/1.jpg")]["matches0"][-1] = 2000
    with pytest.raises(InputError, match=r"keypoint 2000 of 'db/1.jpg', which has 300"):
        inputs.triangulate(tmp_path / "out", verification=verification)


def test_other_mistakes_are_named(inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected one of known_poses, two_view, none"):
        inputs.triangulate(tmp_path / "out", verification="ransac")
    with h5py.File(inputs.matches, "a") as file:
        del file[names_to_pair("db/0.jpg", "db/1.jpg")]
    with pytest.raises(InputError, match=r"no matches for the pair 'db/0.jpg', 'db/1.jpg'"):
        inputs.triangulate(tmp_path / "out")
    inputs.reference.deregister_frame(inputs.reference.images[10].frame_id)
    with pytest.raises(InputError, match=r"no pose of db/0.jpg"):
        inputs.triangulate(tmp_path / "out")


@given(
    turn=st.tuples(*[st.floats(-1, 1)] * 3),
    move=st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda t: np.linalg.norm(t) > 0.1),
    shift=st.floats(0, 0.2),
)
def test_epipolar_errors_are_distances_from_lines(
    turn: tuple[float, ...], move: tuple[float, ...], shift: float
) -> None:
    """A match moved off its line by `shift` has that error there; one on it has none."""
    cam1_from_cam0 = pycolmap.Rigid3d(pycolmap.Rotation3d(np.array(turn)), np.array(move))
    ray0 = np.array([[0.3, -0.2]])
    near, far = (cam1_from_cam0 * (np.append(ray0[0], 1) * depth) for depth in (8.0, 20.0))
    if min(near[2], far[2]) < 0.5:
        return
    near, far = near[:2] / near[2], far[:2] / far[2]
    along = far - near
    if np.linalg.norm(along) < 1e-3:
        return
    across = np.array([-along[1], along[0]]) / np.linalg.norm(along)
    _, errors1 = epipolar_errors(cam1_from_cam0, ray0, (near + shift * across)[None])
    np.testing.assert_allclose(errors1, [shift], atol=1e-6)
    errors0, _ = epipolar_errors(cam1_from_cam0.inverse(), (near + shift * across)[None], ray0)
    np.testing.assert_allclose(errors0, [shift], atol=1e-6)


def test_a_model_of_one_photo_is_refused(inputs: Inputs, tmp_path: Path) -> None:
    for image_id in list(inputs.reference.images)[1:]:
        inputs.reference.deregister_frame(inputs.reference.images[image_id].frame_id)
    inputs.reference.write(tmp_path)  # as a file holds it: without photos that have no pose
    inputs.reference = pycolmap.Reconstruction(tmp_path)
    with pytest.raises(InputError, match="no two photos with poses"):
        inputs.triangulate(tmp_path / "out")
