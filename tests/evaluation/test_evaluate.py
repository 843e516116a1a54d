"""Poses and homographies of pairs with known truth: the lists, the estimators, the numbers."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from sfm_matchers.errors import InputError, MissingExtraError
from sfm_matchers.evaluation import runs
from sfm_matchers.evaluation.pair_lists import read_hpatches, read_posed_pairs, read_scene_info
from sfm_matchers.evaluation.runs import evaluate_homographies, evaluate_pairs
from sfm_matchers.evaluation.two_view import (
    POSE_ESTIMATORS,
    estimate_relative_pose,
    estimate_relative_pose_poselib,
    matching_precision,
    pose_error,
)
from sfm_matchers.matchers.protocols import Matches
from sfm_matchers.synthetic import Camera, camera_path, make_scene, render

pytestmark = pytest.mark.slow


def _line(names: tuple[str, str], intrinsics: np.ndarray, pose: np.ndarray, turns: str) -> str:
    numbers = np.concatenate([intrinsics.ravel(), intrinsics.ravel(), pose.ravel()])
    return " ".join([*names, turns, *(f"{number:.9g}" for number in numbers)]) + "\n"


@pytest.fixture(scope="module")
def rendered_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rendered photos and the list with their true relative pose."""
    folder = tmp_path_factory.mktemp("pairs")
    scene = make_scene(seed=1, kind="street", texture_size=256)
    camera = Camera.from_field_of_view(480, 360)
    poses = [np.vstack([pose, [0, 0, 0, 1]]) for pose in camera_path(scene, count=24)[:2]]
    for name, pose in zip(("0.png", "1.png"), poses, strict=True):
        image = render(scene, camera, pose[:3]).image
        cv2.imwrite(str(folder / name), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    truth = poses[1] @ np.linalg.inv(poses[0])
    (folder / "pairs.txt").write_text(_line(("0.png", "1.png"), camera.K, truth, "0 0"))
    return folder


def test_sift_finds_the_pose_of_a_rendered_pair(rendered_pair: Path) -> None:
    result = evaluate_pairs(rendered_pair / "pairs.txt", rendered_pair, "sift", device="cpu")
    assert result.num_pairs == 1
    assert result.num_matches > 50
    assert result.precision > 0.9
    assert max(result.pose_errors["OpenCV MAGSAC++"][0]) < 2.0
    assert result.auc["OpenCV MAGSAC++"][2] > 0.9
    summary = result.summary()
    assert summary.startswith("protocol: 1 pairs of")
    assert "threshold 0.5 px" in summary
    assert "AUC@5/10/20" in summary


def test_reduced_photos_give_points_of_the_stored_photos(rendered_pair: Path) -> None:
    result = evaluate_pairs(
        rendered_pair / "pairs.txt", rendered_pair, "sift", resize_max=320, device="cpu"
    )
    # Points left in pixels of the small photos would be off their epipolar lines.
    assert result.precision > 0.8
    assert "at most 320 px" in result.protocol


@pytest.mark.parametrize("turns", [(1, 0), (2, 3)])
def test_turned_photos_are_matched_upright(
    rendered_pair: Path, tmp_path: Path, turns: tuple[int, int]
) -> None:
    """Photos stored lying, with the intrinsics and poses of lying cameras."""
    upright = read_posed_pairs(rendered_pair / "pairs.txt", rendered_pair)[0]
    matrices, rotations = [], []
    for name, turn in zip(("0.png", "1.png"), turns, strict=True):
        image = cv2.imread(str(rendered_pair / name))
        assert image is not None
        height, width = image.shape[:2]
        cv2.imwrite(str(tmp_path / name), np.ascontiguousarray(np.rot90(image, -turn)))
        size = (width, height) if turn % 2 == 0 else (height, width)
        rotation = np.eye(3)
        rotation[:2, :2] = np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), turn)
        intrinsics = upright.intrinsics0.copy()
        middle = np.array([(width - 1) / 2, (height - 1) / 2])
        offset = rotation[:2, :2] @ (upright.intrinsics0[:2, 2] - middle)
        intrinsics[:2, 2] = np.array([(size[0] - 1) / 2, (size[1] - 1) / 2]) + offset
        matrices.append(intrinsics)
        rotations.append(rotation)
    pose = upright.cam1_from_cam0.copy()
    pose[:3, :3] = rotations[1] @ pose[:3, :3] @ rotations[0].T
    pose[:3, 3] = rotations[1] @ pose[:3, 3]
    numbers = np.concatenate([matrices[0].ravel(), matrices[1].ravel(), pose.ravel()])
    fields = ["0.png", "1.png", *map(str, turns), *(f"{number:.9g}" for number in numbers)]
    (tmp_path / "pairs.txt").write_text(" ".join(fields) + "\n")
    result = evaluate_pairs(tmp_path / "pairs.txt", tmp_path, "sift", device="cpu")
    assert result.precision > 0.9
    assert max(result.pose_errors["OpenCV MAGSAC++"][0]) < 2.0


def test_wrong_pose_has_low_precision(rendered_pair: Path) -> None:
    (pair,) = read_posed_pairs(rendered_pair / "pairs.txt", rendered_pair)
    random = np.random.default_rng(0)
    points0, points1 = random.uniform(0, 300, (2, 200, 2))
    assert matching_precision(points0, points1, pair) < 0.2
    assert matching_precision(points0[:0], points1[:0], pair) == 0.0


class _NoMatches:
    def match(self, image0: np.ndarray, image1: np.ndarray) -> Matches:
        nothing = np.zeros((0, 2), np.float32)
        return Matches(nothing, nothing, nothing[:, 0])


def test_unmatched_pair_counts_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "load_matcher", lambda *arguments: _NoMatches())
    for name in ("0.png", "1.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((96, 128, 3), np.uint8))
    pose = np.eye(4)
    pose[0, 3] = 1.0
    line = _line(("0.png", "1.png"), np.diag([100.0, 100.0, 1.0]), pose, "0 0")
    (tmp_path / "pairs.txt").write_text(line)
    result = evaluate_pairs(tmp_path / "pairs.txt", tmp_path, "sift", device="cpu")
    assert result.auc["OpenCV MAGSAC++"] == [0.0, 0.0, 0.0]
    assert result.pose_errors["OpenCV MAGSAC++"] == [[180.0] * 5]
    assert result.precision == result.num_matches == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no pairs"),
        ("a.png b.png 0 0 1 2 3\n", "7 fields, expected 38"),
        (_line(("a", "b"), np.eye(3), np.eye(4), "0.5 0"), "count quarter turns"),
        (_line(("a", "b"), np.eye(3), np.eye(4), "0 zero"), "cannot be read"),
    ],
)
def test_bad_lists_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "pairs.txt"
    with pytest.raises(InputError, match="no file"):
        read_posed_pairs(path, tmp_path)
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_posed_pairs(path, tmp_path)


def _noisy_matches(seed: int, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A pose and matches of `NOISY_CAMERAS` with noise in pixels, a fifth of them wrong."""
    random = np.random.default_rng(seed)
    points = random.uniform([-3, -3, 5], [3, 3, 12], (300, 3))
    axis, direction = random.normal(size=(2, 3))
    pose = np.eye(4)
    pose[:3, :3] = cv2.Rodrigues(np.deg2rad(12) * axis / np.linalg.norm(axis))[0]
    pose[:3, 3] = direction / np.linalg.norm(direction)
    pixels = []
    for local, intrinsics in zip(
        (points, points @ pose[:3, :3].T + pose[:3, 3]), NOISY_CAMERAS, strict=True
    ):
        projected = local @ intrinsics.T
        pixels.append(projected[:, :2] / projected[:, 2:] + random.normal(0, noise, (300, 2)))
    wrong = random.random(300) < 0.2
    pixels[1][wrong] = random.uniform(0, 1000, (wrong.sum(), 2))
    return pose, pixels[0], pixels[1]


NOISY_CAMERAS = (
    np.array([[800.0, 0, 500], [0, 800, 400], [0, 0, 1]]),
    np.array([[1400.0, 0, 500], [0, 1400, 400], [0, 0, 1]]),
)


@pytest.mark.parametrize(("name", "limit"), [("OpenCV RANSAC", 1.5), ("OpenCV MAGSAC++", 0.5)])
def test_opencv_poses_are_as_exact_as_the_matches_allow(name: str, limit: float) -> None:
    """The best minimal sample is off by more than a pose refined on all inliers; on rays instead
    of pixels MAGSAC++ would be off by 1.0 degrees here."""
    errors = []
    for seed in range(12):
        pose, points0, points1 = _noisy_matches(seed, 0.7)
        estimate = POSE_ESTIMATORS[name](points0, points1, *NOISY_CAMERAS, max_error=1.0)
        assert estimate is not None
        errors.append(max(pose_error(pose, estimate.rotation, estimate.translation)))
    assert np.median(errors) < limit


@pytest.mark.parametrize("name", ["OpenCV RANSAC", "OpenCV MAGSAC++", "PoseLib LO-RANSAC"])
def test_estimators_repeat_their_result(name: str) -> None:
    if name.startswith("PoseLib"):
        pytest.importorskip("poselib")
    _, points0, points1 = _noisy_matches(0, 0.7)
    first, second = (POSE_ESTIMATORS[name](points0, points1, *NOISY_CAMERAS) for _ in range(2))
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first.rotation, second.rotation)
    np.testing.assert_array_equal(first.inliers, second.inliers)


def test_few_matches_give_no_pose() -> None:
    points = np.arange(8.0).reshape(4, 2)
    assert estimate_relative_pose(points, points, *NOISY_CAMERAS) is None


def test_poselib_agrees_with_the_truth() -> None:
    pytest.importorskip("poselib")
    pose, points0, points1 = _noisy_matches(0, 0.1)
    estimate = estimate_relative_pose_poselib(points0, points1, *NOISY_CAMERAS)
    assert estimate is not None
    assert max(pose_error(pose, estimate.rotation, estimate.translation)) < 0.2


def test_missing_poselib_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "poselib", None)
    with pytest.raises(MissingExtraError, match=r"\[evaluation\]"):
        estimate_relative_pose_poselib([[0, 0]], [[0, 0]], np.eye(3), np.eye(3))


def test_command_line_reports_errors_in_one_line(tmp_path: Path) -> None:
    arguments = ["--pairs_file", "absent.txt", "--image_dir", str(tmp_path), "--matcher", "sift"]
    command = [sys.executable, "-m", "pipelines.evaluate", "pairs", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: no file absent.txt")


def _write_scene_info(path: Path, rendered: Path, *, pickled: bool) -> None:
    """The rendered pair as a scene of MegaDepth, with a photo that is not used."""
    (pair,) = read_posed_pairs(rendered / "pairs.txt", rendered)
    entries = {
        "image_paths": np.array(["0.png", None, "1.png"], dtype=object),
        "depth_paths": np.array(["0.h5", None, "1.h5"], dtype=object),
        "intrinsics": np.empty(3, dtype=object),
        "poses": np.empty(3, dtype=object),
        "pair_infos": np.empty(1, dtype=object),
    }
    entries["intrinsics"][[0, 2]] = [pair.intrinsics0, pair.intrinsics1]
    to_first = np.eye(4)
    to_first[:3, 3] = [1, 2, 3]
    entries["poses"][[0, 2]] = [to_first, pair.cam1_from_cam0 @ to_first]
    entries["pair_infos"][0] = (np.array([0, 2]), 0.4, np.zeros(4))
    if pickled:
        path.write_bytes(pickle.dumps(entries))
    else:
        np.savez(path, **entries)


@pytest.mark.parametrize("pickled", [True, False])
def test_megadepth_scene_info_gives_the_pairs_of_the_list(
    rendered_pair: Path, tmp_path: Path, pickled: bool
) -> None:
    _write_scene_info(tmp_path / "0015.npz", rendered_pair, pickled=pickled)
    (expected,) = read_posed_pairs(rendered_pair / "pairs.txt", rendered_pair)
    (pair,) = read_posed_pairs(tmp_path, rendered_pair)
    assert (pair.name0, pair.name1) == ("0.png", "1.png")
    np.testing.assert_allclose(pair.intrinsics1, expected.intrinsics1)
    np.testing.assert_allclose(pair.cam1_from_cam0, expected.cam1_from_cam0, atol=1e-12)
    result = evaluate_pairs(tmp_path, rendered_pair, "sift", device="cpu")
    assert max(result.pose_errors["OpenCV MAGSAC++"][0]) < 2.0


def test_scene_info_that_runs_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.npz"
    path.write_bytes(pickle.dumps({"image_paths": subprocess.check_call}))
    with pytest.raises(InputError, match="check_call is refused"):
        read_scene_info(path)
    np.savez(path, image_paths=np.array([subprocess.check_call], dtype=object))
    with pytest.raises(InputError, match="check_call is refused"):
        read_scene_info(path)
    np.savez(path, image_paths=np.zeros(3))
    with pytest.raises(InputError, match="not a scene_info file"):
        read_scene_info(path)
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read"):
        read_scene_info(path)


def test_scannet_list_scales_the_intrinsics_to_the_photos(
    rendered_pair: Path, tmp_path: Path
) -> None:
    (expected,) = read_posed_pairs(rendered_pair / "pairs.txt", rendered_pair)
    folder = tmp_path / "scene0707_00" / "color"
    folder.mkdir(parents=True)
    for name, frame in (("0.png", 15), ("1.png", 585)):
        image = cv2.imread(str(rendered_pair / name))
        assert image is not None
        cv2.imwrite(str(folder / f"{frame}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 98])
    small = np.diag([640 / 480, 480 / 360, 1]) @ expected.intrinsics0
    np.savez(tmp_path / "intrinsics.npz", scene0707_00=small)
    name = np.array([[707, 0, 15, 585]], dtype=np.uint16)
    pose = expected.cam1_from_cam0[:3].reshape(1, 12)
    np.savez(tmp_path / "test.npz", name=name, rel_pose=pose)
    (pair,) = read_posed_pairs(tmp_path / "test.npz", tmp_path)
    np.testing.assert_allclose(pair.intrinsics0, expected.intrinsics0)
    np.testing.assert_allclose(pair.cam1_from_cam0, expected.cam1_from_cam0)
    result = evaluate_pairs(tmp_path / "test.npz", tmp_path, "sift", device="cpu")
    assert result.precision > 0.8
    (tmp_path / "intrinsics.npz").unlink()
    with pytest.raises(InputError, match=r"no .*intrinsics.npz"):
        read_posed_pairs(tmp_path / "test.npz", tmp_path)


# Homographies


@pytest.fixture(scope="module")
def hpatches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sequences in the layout of HPatches: photos of a rendered facade through homographies."""
    folder = tmp_path_factory.mktemp("hpatches")
    scene = make_scene(seed=1, kind="street", texture_size=256)
    camera = Camera.from_field_of_view(360, 270)
    pose = camera_path(scene, count=24)[0]
    plane = render(scene, camera, pose).image[..., ::-1]
    random = np.random.default_rng(0)
    corners = np.array([[0, 0], [359, 0], [359, 269], [0, 269]], np.float32)
    for sequence, spread in (("v_wall", 25), ("i_wall", 0), ("v_talent", 25)):
        (folder / sequence).mkdir()
        cv2.imwrite(str(folder / sequence / "1.ppm"), plane)
        for k in range(2, 7):
            moved = corners + random.uniform(-spread, spread, (4, 2)).astype(np.float32)
            homography = cv2.getPerspectiveTransform(corners, moved)
            seen = cv2.warpPerspective(plane, homography, (400, 300), flags=cv2.INTER_CUBIC)
            dimmed = np.clip(seen * random.uniform(0.7, 1), 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / sequence / f"{k}.ppm"), dimmed)
            np.savetxt(folder / sequence / f"H_1_{k}", homography)
    return folder


def test_sift_finds_the_homographies_of_rendered_sequences(hpatches: Path) -> None:
    result = evaluate_homographies(hpatches, "sift", resize_min=240, device="cpu")
    assert result.num_pairs == 10  # v_talent is one of the large sequences that papers leave out
    assert result.auc["OpenCV RANSAC"][0] > 0.7
    assert np.median(result.corner_errors["OpenCV RANSAC"]) < 1.0
    assert result.coarse_precision > 0.85
    assert 0.05 < result.coarse_recall < 1
    summary = result.summary()
    assert summary.startswith("protocol: 10 pairs of")
    assert "AUC@3/5/10 px" in summary
    assert "shorter side of 240 px" in summary


def test_unmatched_homographies_count_as_failed(
    hpatches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "load_matcher", lambda *arguments: _NoMatches())
    result = evaluate_homographies(hpatches, "sift", resize_min=120, device="cpu")
    assert result.auc["OpenCV RANSAC"] == [0.0, 0.0, 0.0]
    assert result.corner_errors["OpenCV RANSAC"] == [1e6] * 10
    assert result.coarse_precision == result.coarse_recall == 0.0


def test_incomplete_hpatches_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no sequences"):
        read_hpatches(tmp_path)
    (tmp_path / "v_wall").mkdir()
    with pytest.raises(InputError, match="H_1_2 cannot be read"):
        read_hpatches(tmp_path)
