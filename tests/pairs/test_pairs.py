"""Which photos are matched with which."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pycolmap
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfm_matchers.errors import InputError
from sfm_matchers.files.pair_lists import write_pairs
from sfm_matchers.pairs.policies import (
    covisibility_pairs,
    exhaustive_pairs,
    pairs_from_file,
    pose_pairs,
    query_pairs,
    retrieval_pairs,
    sequential_pairs,
)
from tests.support.point_models import add_image, add_tracks


def make_model(
    poses: list[pycolmap.Rigid3d], tracks: list[list[tuple[int, int]]] | None = None
) -> pycolmap.Reconstruction:
    """Photos 0.jpg, 1.jpg, ...; tracks are lists of (photo, keypoint)."""
    tracks = tracks or []
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera.create_from_model_name(1, "SIMPLE_PINHOLE", 500.0, 640, 480)
    model.add_camera_with_trivial_rig(camera)
    num_keypoints = Counter(photo for track in tracks for photo, _ in track)
    for index, pose in enumerate(poses):
        add_image(model, index + 1, f"{index}.jpg", pose, np.zeros((num_keypoints[index], 2)))
    elements = {i: [(photo + 1, row) for photo, row in track] for i, track in enumerate(tracks)}
    add_tracks(model, np.zeros((len(tracks), 3)), elements, fewest=1)
    return model


def pose_at(center: np.ndarray, turn: np.ndarray | None = None) -> pycolmap.Rigid3d:
    """cam_from_world of a camera at `center`, turned by a rotation vector."""
    cam_from_world = pycolmap.Rotation3d(np.zeros(3) if turn is None else turn)
    return pycolmap.Rigid3d(cam_from_world, -(cam_from_world.matrix() @ center))


@settings(max_examples=40, deadline=None)
@given(
    seen_by=st.lists(st.sets(st.integers(0, 5), min_size=2), max_size=12),
    num_matched=st.integers(0, 7),
)
def test_covisible_photos_share_most_points(seen_by: list[set[int]], num_matched: int) -> None:
    next_keypoint: Counter[int] = Counter()
    tracks = []
    for photos in seen_by:
        tracks.append([(photo, next_keypoint[photo]) for photo in sorted(photos)])
        next_keypoint.update(photos)
    model = make_model([pose_at(np.zeros(3))] * 6, tracks)
    expected = []
    for photo in range(6):
        shared = Counter(other for photos in seen_by if photo in photos for other in photos)
        others = sorted((-count, other) for other, count in shared.items() if other != photo)
        expected += [(f"{photo}.jpg", f"{other}.jpg") for _, other in others[:num_matched]]
    assert covisibility_pairs(model, num_matched) == expected


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), num_matched=st.integers(0, 8), threshold=st.floats(5.0, 175.0))
def test_photos_paired_by_pose_are_near_and_look_the_same_way(
    seed: int, num_matched: int, threshold: float
) -> None:
    rng = np.random.default_rng(seed)
    centers, turns = rng.normal(size=(6, 3)), rng.normal(size=(6, 3))
    poses = [pose_at(c, t) for c, t in zip(centers, turns, strict=True)]
    axes = [pose.rotation.matrix()[2] for pose in poses]  # the camera's z in the world
    expected = []
    for i in range(6):
        angles = [np.rad2deg(np.arccos(np.clip(axes[i] @ axes[j], -1, 1))) for j in range(6)]
        same_way = [j for j in range(6) if j != i and angles[j] <= threshold]
        nearest = sorted(same_way, key=lambda j: np.linalg.norm(centers[i] - centers[j]))
        expected += [(f"{i}.jpg", f"{j}.jpg") for j in nearest[:num_matched]]
    assert pose_pairs(make_model(poses), num_matched, threshold) == expected


def test_a_photo_without_pose_or_points_is_in_no_pair() -> None:
    model = make_model([pose_at(np.zeros(3)), pose_at(np.ones(3)), pose_at(np.ones(3))])
    assert covisibility_pairs(model, 3) == []
    model.deregister_frame(model.images[2].frame_id)
    assert pose_pairs(model, 3) == [("0.jpg", "2.jpg"), ("2.jpg", "0.jpg")]


def test_lists_without_a_model() -> None:
    assert exhaustive_pairs(["a", "b", "c"]) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert exhaustive_pairs(["a"]) == []
    frames = ["frame10", "frame9", "frame1"]
    assert sequential_pairs(frames, 1) == [("frame1", "frame9"), ("frame9", "frame10")]
    assert len(sequential_pairs(frames, 9)) == 3


def test_pairs_by_similarity(tmp_path: Path) -> None:
    path = tmp_path / "global.h5"
    vectors = {"a": [1, 0], "b": [0.9, 0.1], "c": [-1, 0.2], "q": [0.8, 0]}
    with h5py.File(path, "w") as file:
        for name, vector in vectors.items():
            file[f"{name}/global_descriptor"] = np.array(vector, dtype=np.float16)
    database = ["a", "b", "c"]
    assert retrieval_pairs(database, path, 1) == [("a", "b"), ("c", "b")]  # b-a is a-b
    assert query_pairs(["q", "a"], database, path, 9) == [
        ("q", "a"),
        ("q", "b"),
        ("q", "c"),
        ("a", "b"),
        ("a", "c"),
    ]
    positive = query_pairs(["q", "a"], database, path, 9, min_similarity=0.0)
    assert positive == [("q", "a"), ("q", "b"), ("a", "b")]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(*[st.sampled_from(["a.jpg", "b c.jpg", "d.jpg", "x.jpg", "y.jpg"])] * 2)),
    st.sampled_from(["\n", "\r\n", "\n\n", "\n# comment\n"]),
)
def test_pairs_from_a_file_are_those_listed(listed: list[tuple[str, str]], end: str) -> None:
    names = ["a.jpg", "b c.jpg", "d.jpg"]
    listed = [pair for pair in listed if "b c.jpg" not in pair or set(pair) <= set(names)]
    distinct = {frozenset(pair) for pair in listed if pair[0] != pair[1]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.txt"
        path.write_text(end.join(map(" ".join, listed)), encoding="utf-8", newline="")
        if not any(pair <= set(names) for pair in distinct):
            with pytest.raises(InputError, match="no pair of two photos"):
                pairs_from_file(path, names)
            return
        pairs, unknown = pairs_from_file(path, names)
    assert {frozenset(pair) for pair in pairs + unknown} == distinct
    assert len(pairs + unknown) == len(distinct)
    assert all(set(pair) <= set(names) for pair in pairs)
    assert not any(set(pair) <= set(names) for pair in unknown)
    assert set(pairs + unknown) <= set(listed)


def test_pairs_from_a_file_are_split_by_what_is_known(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    write_pairs(path, [("a", "b"), ("b", "a"), ("a", "x"), ("a", "a")])
    assert pairs_from_file(path, ["a", "b"]) == ([("a", "b")], [("a", "x")])
    with pytest.raises(InputError, match="no pair of two photos"):
        pairs_from_file(path, ["y", "z"])
    with pytest.raises(InputError, match="is not a file of pairs"):
        pairs_from_file(tmp_path / "missing.txt", ["a", "b"])
