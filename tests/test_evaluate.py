"""Relative poses of pairs with known truth: the list, the estimators, the numbers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipelines import evaluate
from pipelines.evaluate import evaluate_pairs
from sfm_matchers.errors import InputError, MissingExtraError
from sfm_matchers.evaluation import (
    estimate_relative_pose_poselib,
    matching_precision,
    pose_error,
    read_posed_pairs,
)
from sfm_matchers.matchers import Matches
from sfm_matchers.synthetic import Camera, camera_path, make_scene, render


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
    assert result.pose_errors["OpenCV MAGSAC++"][0] < 2.0
    assert result.auc["OpenCV MAGSAC++"][2] > 0.9
    summary = result.summary()
    assert summary.startswith("protocol: 1 pairs of")
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
    upright = read_posed_pairs(rendered_pair / "pairs.txt")[0]
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
    assert result.pose_errors["OpenCV MAGSAC++"][0] < 2.0


def test_wrong_pose_has_low_precision(rendered_pair: Path) -> None:
    (pair,) = read_posed_pairs(rendered_pair / "pairs.txt")
    random = np.random.default_rng(0)
    points0, points1 = random.uniform(0, 300, (2, 200, 2))
    assert matching_precision(points0, points1, pair) < 0.2
    assert matching_precision(points0[:0], points1[:0], pair) == 0.0


class _NoMatches:
    def match(self, image0: np.ndarray, image1: np.ndarray) -> Matches:
        nothing = np.zeros((0, 2), np.float32)
        return Matches(nothing, nothing, nothing[:, 0])


def test_unmatched_pair_counts_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "load_matcher", lambda *arguments: _NoMatches())
    for name in ("0.png", "1.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((96, 128, 3), np.uint8))
    pose = np.eye(4)
    pose[0, 3] = 1.0
    line = _line(("0.png", "1.png"), np.diag([100.0, 100.0, 1.0]), pose, "0 0")
    (tmp_path / "pairs.txt").write_text(line)
    result = evaluate_pairs(tmp_path / "pairs.txt", tmp_path, "sift", device="cpu")
    assert result.auc["OpenCV MAGSAC++"] == [0.0, 0.0, 0.0]
    assert result.pose_errors["OpenCV MAGSAC++"] == [180.0]
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
        read_posed_pairs(path)
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_posed_pairs(path)


def test_poselib_agrees_with_the_truth() -> None:
    pytest.importorskip("poselib")
    random = np.random.default_rng(0)
    points = random.uniform([-1, -1, 3], [1, 1, 6], (60, 3))
    intrinsics = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
    pose = np.eye(4)
    pose[:3, :3] = cv2.Rodrigues(np.array([0.05, -0.2, 0.03]))[0]
    pose[:3, 3] = [0.8, 0.1, 0.2]
    pixels = []
    for local in (points, points @ pose[:3, :3].T + pose[:3, 3]):
        projected = local @ intrinsics.T
        pixels.append(projected[:, :2] / projected[:, 2:])
    estimate = estimate_relative_pose_poselib(pixels[0], pixels[1], intrinsics, intrinsics)
    assert estimate is not None
    assert max(pose_error(pose, estimate[0], estimate[1])) < 0.1


def test_missing_poselib_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "poselib", None)
    with pytest.raises(MissingExtraError, match="pip install poselib"):
        estimate_relative_pose_poselib([[0, 0]], [[0, 0]], np.eye(3), np.eye(3))


def test_command_line_reports_errors_in_one_line(tmp_path: Path) -> None:
    arguments = ["--pairs_file", "absent.txt", "--image_dir", str(tmp_path), "--matcher", "sift"]
    command = [sys.executable, "-m", "pipelines.evaluate", "pairs", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: no file absent.txt")
