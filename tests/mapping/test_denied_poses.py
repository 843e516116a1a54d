"""Photos that are not those of a map's poses are told from those that are."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pycolmap
import pytest

from sfm_matchers.files.pair_lists import Pair, names_to_pair
from sfm_matchers.mapping.denied_poses import find_denied_poses
from tests.support.point_models import add_image

NUM_PHOTOS, NUM_POINTS, NUM_WRONG = 8, 120, 40
NAMES = [f"db/{index}.jpg" for index in range(NUM_PHOTOS)]
CAMERA = pycolmap.Camera(
    model="PINHOLE", width=640, height=480, params=[500.0, 500.0, 320.0, 240.0], camera_id=1
)


def model_of(poses: list[pycolmap.Rigid3d]) -> pycolmap.Reconstruction:
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(CAMERA)
    for index, (name, pose) in enumerate(zip(NAMES, poses, strict=True)):
        add_image(model, index + 1, name, pose)
    return model


@pytest.fixture
def denied(tmp_path: Path) -> Callable[..., list[str]]:
    """Of a walk past points, a third of each pair's matches wrong, and what is said of poses."""
    rng = np.random.default_rng(0)
    points = rng.uniform([-2, -2, 4], [3, 2, 9], (NUM_POINTS, 3))
    turns = [pycolmap.Rotation3d(np.array([0.02, 0.08, 0.03]) * index) for index in range(8)]
    true = [
        pycolmap.Rigid3d(turn, np.array([-0.3 * index, 0.1 * (index % 3), 0.05 * index]))
        for index, turn in enumerate(turns)
    ]
    true[1] = pycolmap.Rigid3d(turns[1], np.zeros(3))  # where the first one was taken
    features, matches, pairs = tmp_path / "features.h5", tmp_path / "matches.h5", []
    with h5py.File(features, "w") as file:
        for name, pose in zip(NAMES, true, strict=True):
            seen = CAMERA.img_from_cam(pose * points) - 0.5
            file[f"{name}/keypoints"] = np.asarray(seen + rng.normal(0, 0.3, seen.shape))
    with h5py.File(matches, "w") as file:
        for pair in itertools.combinations(NAMES, 2):
            matches0 = np.arange(NUM_POINTS, dtype=np.int32)
            matches0[:NUM_WRONG] = np.roll(matches0[:NUM_WRONG], rng.integers(1, NUM_WRONG))
            file[f"{names_to_pair(*pair)}/matches0"] = matches0
            pairs.append(pair)

    def find(
        order: list[int], some: list[Pair] | None = None, *, num_elsewhere: int = 0
    ) -> list[str]:
        poses = [true[index] for index in order]
        elsewhere = pycolmap.Rigid3d(pycolmap.Rotation3d([0.0, 1, 0, 0]), np.array([0.0, 0, 9]))
        for index in range(num_elsewhere):  # of another side that looks alike
            poses[index] = poses[index] * elsewhere
        model = model_of(poses)
        return find_denied_poses(model, some or pairs, features, matches)

    return find


def test_right_poses_are_not_denied(denied: Callable[..., list[str]]) -> None:
    assert denied(list(range(8))) == []


def test_two_swapped_photos_are_named(denied: Callable[..., list[str]]) -> None:
    assert sorted(denied([0, 1, 5, 3, 4, 2, 6, 7])) == ["db/2.jpg", "db/5.jpg"]


def test_photos_under_names_of_others_are_named(denied: Callable[..., list[str]]) -> None:
    assert len(denied([3, 7, 1, 6, 0, 2, 5, 4])) >= 5


def test_photos_in_reverse_order_are_named(denied: Callable[..., list[str]]) -> None:
    assert len(denied([7, 6, 5, 4, 3, 2, 1, 0])) >= 5


def test_a_photo_without_pairs_is_not_denied(denied: Callable[..., list[str]]) -> None:
    assert denied([0, 1, 5, 3, 4, 2, 6, 7], [(NAMES[0], NAMES[1])]) == []


def test_photos_of_one_place_have_no_epipolar_lines(denied: Callable[..., list[str]]) -> None:
    assert denied(list(range(8)), [(NAMES[0], NAMES[1])]) == []


def test_sides_that_look_alike_deny_no_poses(denied: Callable[..., list[str]]) -> None:
    assert denied(list(range(8)), num_elsewhere=4) == []
