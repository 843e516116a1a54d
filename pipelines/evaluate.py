"""Measure a matcher where the truth is known.

    python -m pipelines.evaluate pairs --pairs_file PAIRS --image_dir PHOTOS --matcher sift

`pairs`: relative poses. Each line of the file is `image0 image1 rot0 rot1 K0 K1 T_0to1`, the layout
of SuperGlue's lists of MegaDepth-1500 and ScanNet-1500 (matrices row by row; rot0 and rot1 count the
quarter turns, counter-clockwise, that set the photos upright for matching).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sfm_matchers.errors import SfmMatchersError
from sfm_matchers.evaluation import (
    POSE_ESTIMATORS,
    PosedPair,
    matching_precision,
    pose_auc,
    pose_error,
    read_posed_pairs,
)
from sfm_matchers.images import network_size, read_image, resize_image, to_original, unturned
from sfm_matchers.matchers import Matches, PhotoMatcher, load_matcher
from sfm_matchers.storage import write_text

AUC_THRESHOLDS = (5.0, 10.0, 20.0)  # degrees
NO_POSE_ERROR = 180.0  # degrees
MAX_EPIPOLAR_DISTANCE = 1e-4  # squared, in normalised coordinates


@dataclass(frozen=True)
class PairsResult:
    """Measures over all pairs of a list.

    Attributes:
        protocol: how the numbers came about, in one line.
        num_pairs: pairs in the list.
        auc: estimator -> area under the recall curve up to 5, 10 and 20 degrees, in 0..1.
        precision: mean share of matches close to their epipolar lines.
        num_matches: mean number of matches.
        pose_errors: estimator -> larger of rotation and translation error of each pair in
            degrees; 180 without a pose.
    """

    protocol: str
    num_pairs: int
    auc: dict[str, list[float]]
    precision: float
    num_matches: float
    pose_errors: dict[str, list[float]]

    def summary(self) -> str:
        """Return a few lines for a person, the protocol first."""
        lines = [self.protocol]
        for estimator, areas in self.auc.items():
            numbers = " / ".join(f"{100 * area:.1f}" for area in areas)
            lines.append(f"pose AUC@5/10/20 degrees, {estimator}: {numbers}")
        lines.append(f"matching precision: {100 * self.precision:.1f} %")
        lines.append(f"matches per pair: {self.num_matches:.0f}")
        return "\n".join(lines)


def available_estimators() -> list[str]:
    """Names of the pose estimators that can run here."""
    has_poselib = importlib.util.find_spec("poselib") is not None
    return [name for name in POSE_ESTIMATORS if has_poselib or not name.startswith("PoseLib")]


def evaluate_pairs(
    pairs_file: Path,
    image_dir: Path,
    matcher: str,
    *,
    weights: str = "bundled",
    resize_max: int | None = None,
    max_error: float = 1.0,
    device: str = "auto",
) -> PairsResult:
    """Match every pair of a list, estimate its pose and compare with the truth.

    Args:
        pairs_file: see `evaluation.read_posed_pairs`.
        image_dir: the folder that the names in the list are relative to.
        matcher: name of a conf, or a conf file.
        weights: see `matchers.load_matcher`.
        resize_max: reduce photos to this longer side first; the conf may reduce them further.
        max_error: inlier threshold of the estimators in pixels of the photo as stored.
        device: see `matchers.load_matcher`.

    Raises:
        InputError: a bad list, a missing photo, an unknown matcher.
        WeightsError: the weights cannot be loaded.
    """
    pairs = read_posed_pairs(pairs_file)
    photo_matcher = load_matcher(matcher, weights, device)
    estimators = available_estimators()
    errors: dict[str, list[float]] = {name: [] for name in estimators}
    precisions, counts = [], []
    for pair in tqdm(pairs, desc=f"Pairs ({matcher})", unit="pair"):
        matches = _match_photos(photo_matcher, image_dir, pair, resize_max)
        counts.append(len(matches))
        precisions.append(
            matching_precision(matches.keypoints0, matches.keypoints1, pair, MAX_EPIPOLAR_DISTANCE)
        )
        for name in estimators:
            errors[name].append(_pose_error(name, matches, pair, max_error))
    return PairsResult(
        _protocol(pairs_file, len(pairs), matcher, weights, resize_max, max_error),
        len(pairs),
        {name: pose_auc(values, AUC_THRESHOLDS) for name, values in errors.items()},
        float(np.mean(precisions)),
        float(np.mean(counts)),
        errors,
    )


def _match_photos(
    matcher: PhotoMatcher, image_dir: Path, pair: PosedPair, resize_max: int | None
) -> Matches:
    """Match two photos, reduced if need be; points in pixels of the photos as stored."""
    images, to_stored = [], []
    for name, turns in zip((pair.name0, pair.name1), pair.quarter_turns, strict=True):
        stored = read_image(image_dir / name)
        image, scale = np.ascontiguousarray(np.rot90(stored, turns)), (1.0, 1.0)
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
    return max(pose_error(pair.cam1_from_cam0, estimate[0], estimate[1]))


def _protocol(
    pairs_file: Path,
    num_pairs: int,
    matcher: str,
    weights: str,
    resize_max: int | None,
    max_error: float,
) -> str:
    size = f"longer side at most {resize_max} px" if resize_max else "full size"
    return (
        f"protocol: {num_pairs} pairs of {pairs_file}; matcher {matcher}, weights {weights}; "
        f"photos at {size} before the conf's own preprocessing; inlier threshold {max_error:g} px "
        "of the photo; pose error = larger of rotation and translation angle, sign of the "
        "translation ignored; precision = share of matches with squared symmetric epipolar "
        f"distance below {MAX_EPIPOLAR_DISTANCE:g} in normalised coordinates"
    )


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tasks = parser.add_subparsers(dest="task", required=True)
    pairs = tasks.add_parser("pairs", help="relative poses of pairs with known truth")
    pairs.add_argument("--pairs_file", type=Path, required=True)
    pairs.add_argument("--image_dir", type=Path, required=True)
    pairs.add_argument("--matcher", required=True, help="name of a conf, or a conf file")
    pairs.add_argument("--weights", default="bundled", help="bundled, official or a file")
    pairs.add_argument("--resize_max", type=int, help="longer side in pixels before matching")
    pairs.add_argument("--max_error", type=float, default=1.0, help="inlier threshold in pixels")
    pairs.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    pairs.add_argument("--output", type=Path, help="write the result as JSON too")
    return parser.parse_args()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = _parse_arguments()
    try:
        result = evaluate_pairs(
            arguments.pairs_file,
            arguments.image_dir,
            arguments.matcher,
            weights=arguments.weights,
            resize_max=arguments.resize_max,
            max_error=arguments.max_error,
            device=arguments.device,
        )
        if arguments.output:
            write_text(arguments.output, json.dumps(asdict(result), indent=2) + "\n")
    except SfmMatchersError as error:
        raise SystemExit(f"error: {error}") from None
    print(result.summary())
