"""A matcher on pairs with known truth."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from sfm_matchers.errors import InputError
from sfm_matchers.evaluation.homographies import (
    HOMOGRAPHY_ESTIMATORS,
    coarse_precision_recall,
    homography_error,
)
from sfm_matchers.evaluation.pair_lists import PosedPair, read_hpatches, read_posed_pairs
from sfm_matchers.evaluation.two_view import (
    CONFIDENCE,
    POSE_ESTIMATORS,
    matching_precision,
    pose_auc,
    pose_error,
)
from sfm_matchers.machine.progress import progress
from sfm_matchers.matchers.photo_matchers import load_matcher
from sfm_matchers.matchers.protocols import Matches
from sfm_matchers.photos.images import read_image
from sfm_matchers.photos.resizing import network_size, resize_image, to_original, turned, unturned

POSE_THRESHOLDS = (5.0, 10.0, 20.0)  # degrees
CORNER_THRESHOLDS = (3.0, 5.0, 10.0)  # pixels
NO_POSE_ERROR = 180.0  # degrees
NO_HOMOGRAPHY_ERROR = 1e6  # pixels; larger errors count as this
MAX_EPIPOLAR_DISTANCE = 1e-4  # squared, in normalised coordinates
COARSE_CELL = 8  # pixels
HOMOGRAPHY_MEASURES = (
    "error = mean distance of the four corners of photo 0 from where the truth puts them; a match "
    f"is coarsely right if the true position is within {COARSE_CELL / 2:g} px along x and y, "
    f"recall is the share of visible {COARSE_CELL} x {COARSE_CELL} cells of photo 0 with such a "
    "match"
)


@dataclass(frozen=True)
class PairsResult:
    """Measures over all pairs of a list.

    Attributes:
        protocol: how the numbers came about.
        num_pairs: pairs in the list.
        auc: estimator -> area under the recall curve up to 5, 10 and 20 degrees, in 0..1, over all
            runs of all pairs.
        precision: mean share of matches close to their epipolar lines.
        num_matches: mean number of matches.
        pose_errors: estimator -> for each pair the larger of rotation and translation error of each
            run in degrees; 180 without a pose.
    """

    protocol: str
    num_pairs: int
    auc: dict[str, list[float]]
    precision: float
    num_matches: float
    pose_errors: dict[str, list[list[float]]]

    def summary(self) -> str:
        """Return a few lines for a person, the protocol first."""
        return "\n".join(
            [
                self.protocol,
                *_auc_lines("pose AUC@5/10/20 degrees", self.auc),
                f"matching precision: {100 * self.precision:.1f} %",
                f"matches per pair: {self.num_matches:.0f}",
            ]
        )


@dataclass(frozen=True)
class HomographiesResult:
    """Measures over all pairs of HPatches.

    Attributes:
        protocol: how the numbers came about.
        num_pairs: pairs of photos.
        auc: estimator -> area under the recall curve up to 3, 5 and 10 px, in 0..1.
        coarse_precision: mean share of matches that reach the true coarse cell.
        coarse_recall: mean share of the visible coarse cells with such a match.
        num_matches: mean number of matches.
        corner_errors: estimator -> mean corner error of each pair in pixels; 1e6 without estimate.
    """

    protocol: str
    num_pairs: int
    auc: dict[str, list[float]]
    coarse_precision: float
    coarse_recall: float
    num_matches: float
    corner_errors: dict[str, list[float]]

    def summary(self) -> str:
        """Return a few lines for a person, the protocol first."""
        return "\n".join(
            [
                self.protocol,
                *_auc_lines("homography AUC@3/5/10 px", self.auc),
                f"coarse precision: {100 * self.coarse_precision:.1f} %",
                f"coarse recall: {100 * self.coarse_recall:.1f} %",
                f"matches per pair: {self.num_matches:.0f}",
            ]
        )


def _auc_lines(title: str, auc: dict[str, list[float]]) -> list[str]:
    return [
        f"{title}, {estimator}: {' / '.join(f'{100 * area:.1f}' for area in areas)}"
        for estimator, areas in auc.items()
    ]


def _available(estimators: Iterable[str]) -> list[str]:
    """Names of the estimators that can run here."""
    has_poselib = importlib.util.find_spec("poselib") is not None
    return [name for name in estimators if has_poselib or not name.startswith("PoseLib")]


# Relative poses -----------------------------------------------------------------------------------


def evaluate_pairs(
    pairs_file: Path,
    image_dir: Path,
    matcher: str,
    *,
    weights: str = "bundled",
    resize_max: int | None = None,
    max_error: float = 0.5,
    runs: int = 5,
    seed: int = 0,
    device: str = "auto",
) -> PairsResult:
    """Match every pair of a list, estimate its pose and compare with the truth.

    Args:
        pairs_file: see `benchmark_pairs.read_posed_pairs`.
        image_dir: the folder that the names in the list are relative to.
        matcher: name of a conf, or a conf file.
        weights: see `matchers.load_matcher`.
        resize_max: reduce photos to this longer side first; the conf may reduce them further.
        max_error: inlier threshold of the estimators in pixels of the photo as stored.
        runs: estimations of each pair, with the matches in another order each time.
        seed: of these orders.
        device: see `matchers.load_matcher`.

    Raises:
        InputError: a bad list, a missing photo, an unknown matcher, no runs.
        WeightsError: the weights cannot be loaded.
    """
    pairs = read_posed_pairs(pairs_file, image_dir)
    return measure_pairs(
        pairs,
        image_dir,
        load_matcher(matcher, weights, device),
        f"{pairs_file}; matcher {matcher}, weights {weights}",
        resize_max=resize_max,
        max_error=max_error,
        runs=runs,
        seed=seed,
    )


class ImageMatcher(Protocol):
    """What matches two images; `matchers.PhotoMatcher` does."""

    def match(self, photo0: np.ndarray, photo1: np.ndarray, /) -> Matches:
        """Match two RGB images (H, W, 3) uint8; points in their pixels."""


def measure_pairs(
    pairs: Sequence[PosedPair],
    image_dir: Path,
    matcher: ImageMatcher,
    label: str,
    *,
    resize_max: int | None = None,
    max_error: float = 0.5,
    runs: int = 5,
    seed: int = 0,
) -> PairsResult:
    """As `evaluate_pairs`, for pairs and a matcher at hand; `label` names both in the protocol.

    Raises:
        InputError: a missing photo, no runs.
    """
    if runs < 1:
        raise InputError(f"runs is {runs}: estimate each pose at least once")
    estimators = _available(POSE_ESTIMATORS)
    errors: dict[str, list[list[float]]] = {name: [] for name in estimators}
    precisions, counts = [], []
    for pair in progress(pairs, title="Pairs", unit="pair"):
        matches = _match_photos(matcher, image_dir, pair, resize_max)
        counts.append(len(matches))
        precisions.append(
            matching_precision(matches.keypoints0, matches.keypoints1, pair, MAX_EPIPOLAR_DISTANCE)
        )
        random = np.random.default_rng(seed)
        shuffled = [matches.select(random.permutation(len(matches))) for _ in range(runs)]
        for name in estimators:
            errors[name].append([_pose_error(name, one, pair, max_error) for one in shuffled])
    size = f"longer side at most {resize_max} px" if resize_max else "full size"
    protocol = (
        f"protocol: {len(pairs)} pairs of {label}; "
        f"photos at {size} before the conf's own preprocessing; essential matrix with inlier "
        f"threshold {max_error:g} px of the photo as stored and of the mean focal length, "
        f"confidence {CONFIDENCE:g} (OpenCV); {runs} runs with shuffled matches (seed {seed}), all "
        "in the AUC; error = larger of rotation and translation angle, sign of the translation "
        "ignored; precision = share of matches with squared symmetric epipolar distance below "
        f"{MAX_EPIPOLAR_DISTANCE:g} in normalised coordinates"
    )
    return PairsResult(
        protocol,
        len(pairs),
        {name: pose_auc(np.ravel(values), POSE_THRESHOLDS) for name, values in errors.items()},
        float(np.mean(precisions)),
        float(np.mean(counts)),
        errors,
    )


def _match_photos(
    matcher: ImageMatcher, image_dir: Path, pair: PosedPair, resize_max: int | None
) -> Matches:
    """Match two photos, reduced if need be; points in pixels of the photos as stored."""
    images, to_stored = [], []
    for name, turns in zip((pair.name0, pair.name1), pair.quarter_turns, strict=True):
        stored = read_image(image_dir / name)
        image, scale = turned(stored, turns), (1.0, 1.0)
        size = (image.shape[1], image.shape[0])
        if resize_max and max(size) > resize_max:
            resized = resize_image(image, network_size(size, resize_max, multiple=1))
            image, scale = resized.pixels, resized.scale
        images.append(image)
        to_stored.append((scale, turns, (stored.shape[1], stored.shape[0])))
    matches = matcher.match(*images)
    points = [
        unturned(to_original(keypoints, scale), turns, size)
        for keypoints, (scale, turns, size) in zip(
            (matches.keypoints0, matches.keypoints1), to_stored, strict=True
        )
    ]
    return Matches(points[0], points[1], matches.scores)


def _pose_error(estimator: str, matches: Matches, pair: PosedPair, max_error: float) -> float:
    estimate = POSE_ESTIMATORS[estimator](
        matches.keypoints0,
        matches.keypoints1,
        pair.intrinsics0,
        pair.intrinsics1,
        max_error=max_error,
    )
    if estimate is None:
        return NO_POSE_ERROR
    return max(pose_error(pair.cam1_from_cam0, estimate.rotation, estimate.translation))


# Homographies -------------------------------------------------------------------------------------


def evaluate_homographies(
    hpatches_dir: Path,
    matcher: str,
    *,
    weights: str = "bundled",
    resize_min: int = 480,
    max_error: float = 3.0,
    max_matches: int = 1000,
    device: str = "auto",
) -> HomographiesResult:
    """Match the pairs of HPatches, estimate their homographies and compare with the truth.

    Args:
        hpatches_dir: see `benchmark_pairs.read_hpatches`.
        matcher: name of a conf, or a conf file.
        weights: see `matchers.load_matcher`.
        resize_min: shorter side in pixels to which all photos are resized; every number is in
            pixels of these.
        max_error: inlier threshold of the estimators in pixels.
        max_matches: the surest of a pair are used.
        device: see `matchers.load_matcher`.

    Raises:
        InputError: no sequences, a missing photo or homography, an unknown matcher.
        WeightsError: the weights cannot be loaded.
    """
    pairs = read_hpatches(hpatches_dir)
    photo_matcher = load_matcher(matcher, weights, device)
    estimators = _available(HOMOGRAPHY_ESTIMATORS)
    errors: dict[str, list[float]] = {name: [] for name in estimators}
    coarse, counts = [], []
    for pair in progress(pairs, title=f"Homographies ({matcher})", unit="pair"):
        image0, stored_from_image0 = _read_resized(hpatches_dir / pair.name0, resize_min)
        image1, stored_from_image1 = _read_resized(hpatches_dir / pair.name1, resize_min)
        truth = np.linalg.inv(stored_from_image1) @ pair.homography @ stored_from_image0
        size0, size1 = ((image.shape[1], image.shape[0]) for image in (image0, image1))
        matches = photo_matcher.match(image0, image1)
        matches = matches.select(np.argsort(-matches.scores, kind="stable")[:max_matches])
        points0, points1 = matches.keypoints0, matches.keypoints1
        counts.append(len(matches))
        coarse.append(coarse_precision_recall(points0, points1, truth, size0, size1, COARSE_CELL))
        for name in estimators:
            found = HOMOGRAPHY_ESTIMATORS[name](points0, points1, max_error=max_error)
            errors[name].append(min(homography_error(found, truth, size0), NO_HOMOGRAPHY_ERROR))
    protocol = (
        f"protocol: {len(pairs)} pairs of {hpatches_dir}, the 8 sequences of large photos left "
        f"out; matcher {matcher}, weights {weights}; photos resized to a shorter side of "
        f"{resize_min} px before the conf's own preprocessing, all numbers in their pixels; the "
        f"{max_matches} surest matches; inlier threshold {max_error:g} px; {HOMOGRAPHY_MEASURES}"
    )
    precision, recall = np.mean(coarse, axis=0).tolist()
    return HomographiesResult(
        protocol,
        len(pairs),
        {name: pose_auc(values, CORNER_THRESHOLDS) for name, values in errors.items()},
        precision,
        recall,
        float(np.mean(counts)),
        errors,
    )


def _read_resized(path: Path, resize_min: int) -> tuple[np.ndarray, np.ndarray]:
    """A photo with this shorter side, and the (3, 3) map from its pixels to those of the file."""
    stored = read_image(path)
    height, width = stored.shape[:2]
    factor = resize_min / min(height, width)
    resized = resize_image(stored, (round(width * factor), round(height * factor)))
    x, y = resized.scale
    return resized.pixels, np.array([[x, 0, x / 2 - 0.5], [0, y, y / 2 - 0.5], [0, 0, 1.0]])


@dataclass(frozen=True)
class PosesResult:
    """Errors of absolute poses.

    Attributes:
        pose_errors: name -> distance of the centres, in the unit of the map, and angle in degrees.
        table: recall by condition.
    """

    pose_errors: dict[str, tuple[float, float]]
    table: str

    def summary(self) -> str:
        """Return a few lines for a person, the protocol first."""
        return (
            "protocol: distance of camera centres and angle of rotation; photos of the truth "
            f"without a pose count as missed\n{self.table}"
        )


def evaluate_poses(poses: Path, truth: Path) -> PosesResult:
    """Compare the poses of a submission file with true ones.

    Raises:
        InputError: a file is missing or has a wrong line.
    """
    from sfm_matchers.evaluation.absolute_poses import pose_errors, recall_table
    from sfm_matchers.localization.poses import read_poses

    found, true = read_poses(poses), read_poses(truth)
    return PosesResult(pose_errors(found, true), recall_table(found, true))
