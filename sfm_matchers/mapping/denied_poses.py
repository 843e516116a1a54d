"""Photos whose known poses their own matches deny.

Photos under names of others, cropped or turned since the model was made, poses in another
convention: some matches fit such poses by chance, and become points by which queries are localized
at wrong places. Where poses are right nearly all matches of a pair lie near their epipolar lines.
Where most do not, but agree with one geometry of their own, the pair denies the poses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pycolmap
from numpy.typing import NDArray

from sfm_matchers.files.hdf5 import Hdf5File, open_h5
from sfm_matchers.files.pair_lists import Pair, unique_pairs
from sfm_matchers.mapping.pair_fit import distances_in_own_geometry
from sfm_matchers.mapping.triangulation import MAX_EPIPOLAR_ERROR, fits_poses

FloatArray = NDArray[np.float64]

MIN_MATCHES = 30  # of one geometry; of fewer it tells nothing
MOST = 0.5  # of a pair's matches
MAX_KEPT = 200  # photos whose keypoints are held: neighbours in the list share most of them
MAX_TRIALS = 2000  # to find the geometry that most of them have in common
# Of the matches of all pairs of photos that some pair agrees with. Of opposite sides that look
# alike half are of pairs that right poses deny, but each photo has a neighbour on its own side.
NEARLY_ALL = 0.65


def find_denied_poses(
    model: pycolmap.Reconstruction, pairs: Iterable[Pair], feature_path: Path, match_path: Path
) -> list[str]:
    """Return the photos whose poses their pairs deny, without one that agrees; of a map that is
    mostly denied beside several of these all.

    Args:
        model: poses and cameras; photos of panoramas are not looked at.
        pairs: of photos that are in the model.
        feature_path: keypoints.
        match_path: matches of all pairs.
    """
    images = {
        image.name: image for image in model.images.values() if not image.camera.is_spherical()
    }
    votes: dict[Pair, int] = {}
    with open_h5(feature_path) as features, open_h5(match_path) as file:
        points_of = lru_cache(MAX_KEPT)(partial(_points, features))
        for pair in unique_pairs(pairs):
            if images.keys() >= set(pair):
                votes[pair] = _vote(images[pair[0]], images[pair[1]], points_of, file)
    denied: list[str] = []
    while found := _without_support(votes):
        denied += found
        votes = {pair: vote for pair, vote in votes.items() if not set(found) & set(pair)}
    against = sum(-vote for vote in votes.values() if vote < 0)
    if len(denied) > 1 and against > NEARLY_ALL * sum(map(abs, votes.values())):
        denied += sorted({name for pair, vote in votes.items() if vote for name in pair})
    return denied


def _without_support(votes: Mapping[Pair, int]) -> list[str]:
    """Photos with pairs that deny their poses, and none that agrees with them."""
    agreeing = {name for pair, vote in votes.items() if vote > 0 for name in pair}
    denying = {name for pair, vote in votes.items() if vote < 0 for name in pair}
    return sorted(denying - agreeing)


def _points(features: Hdf5File, name: str) -> tuple[FloatArray, float]:
    """Keypoints (N, 2) of a photo in COLMAP's pixels, and how far they may miss a line."""
    keypoints = features.keypoints(name).astype(np.float64) + 0.5
    return keypoints, MAX_EPIPOLAR_ERROR * (features.uncertainty(name) or 1.0)


def _vote(
    first: pycolmap.Image,
    second: pycolmap.Image,
    points_of: Callable[[str], tuple[FloatArray, float]],
    file: Hdf5File,
) -> int:
    """How many matches of a pair agree with the poses of its photos; negative: with another
    geometry instead; 0 if they tell nothing."""
    cam1_from_cam0 = second.cam_from_world() * first.cam_from_world().inverse()
    if not np.any(cam1_from_cam0.translation):  # from one place: there are no epipolar lines
        return 0
    names = first.name, second.name
    keypoints, limits = zip(*map(points_of, names), strict=True)
    matches, _ = file.matches(*names, (len(keypoints[0]), len(keypoints[1])))
    if len(matches) < MIN_MATCHES:
        return 0
    points = [some[matches[:, side]] for side, some in enumerate(keypoints)]
    num_for = int(fits_poses(first, second, points, limits).sum())
    if num_for > MOST * len(matches):
        return num_for
    agree = _in_one_geometry(points[0], points[1])
    if agree.sum() < max(MIN_MATCHES, MOST * len(matches)):
        return 0
    num_for = int(fits_poses(first, second, [some[agree] for some in points], limits).sum())
    return num_for if num_for > MOST * agree.sum() else -int(agree.sum())


def _in_one_geometry(pixels0: FloatArray, pixels1: FloatArray) -> NDArray[np.bool_]:
    """Which matches (N,) agree with the epipolar geometry that most of them have in common."""
    # Another geometry counts only if it has most of the matches, and is found soon then.
    options = pycolmap.RANSACOptions(
        random_seed=0,
        max_error=MAX_EPIPOLAR_ERROR,
        min_inlier_ratio=MOST,
        max_num_trials=MAX_TRIALS,
    )
    distances = distances_in_own_geometry(pixels0, pixels1, options)
    if not len(distances):
        return np.zeros(len(pixels0), dtype=bool)
    return distances <= MAX_EPIPOLAR_ERROR
