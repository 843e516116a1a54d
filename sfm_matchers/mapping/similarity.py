"""The similarity between a model and metres, and how far it is to be trusted."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pycolmap

from sfm_matchers.errors import InputError
from sfm_matchers.geometry.coordinates import FloatArray

MIN_POINTS = 3
MAX_TRIALS = 400
# Below, three points decide too much to tell which of the others are wrong.
MIN_POINTS_FOR_OUTLIERS = 6
# In standard deviations: medians of the length of an error of one and of two coordinates, and a
# length that one error of three coordinates in a thousand exceeds.
MEDIAN_OF_1, MEDIAN_OF_2 = 0.6745, 1.177
LARGEST_OF_3 = 4.03
# Vertical errors are larger than horizontal ones by GPS; by this much at most, or smaller.
MAX_RATIO = 4.0

# Errors of photos taken one after the other are alike: more of them help no more than this many.
MAX_INDEPENDENT = 6
# Largest standard deviations: of the scale, relative, and of the turn about a line in radians.
MAX_SCALE_STD = 0.1
MAX_TURN_STD = 0.1


@dataclass(frozen=True)
class Similarity:
    """A similarity, by least squares on the points that agree.

    Attributes:
        transform: to metres.
        residuals: (N, 3) in metres, transformed minus measured.
        is_inlier: (N,).
        std: standard deviation in metres of one measured coordinate, from the residuals.
        scale_std: relative standard deviation of the scale, errors taken for independent.
    """

    transform: pycolmap.Sim3d
    residuals: FloatArray
    is_inlier: np.ndarray
    std: float
    scale_std: float


def fit_similarity(source: FloatArray, target: FloatArray, told_std: float = 0.0) -> Similarity:
    """Find the similarity from points of a model to measured ones, some of which may be wrong.

    Args:
        source: (N, 3) of the model.
        target: (N, 3) in metres.
        told_std: standard deviation of a coordinate in metres, if it is told; it counts where the
            points are too few to tell it.

    Raises:
        InputError: there are fewer than three points, or they do not determine a similarity; the
            message is a clause about "they".
    """
    if len(source) < MIN_POINTS:
        raise InputError(f"there are {len(source)} of them, three at least are needed")
    is_inlier = np.ones(len(source), bool)
    if len(source) >= MIN_POINTS_FOR_OUTLIERS:
        is_inlier = _agreeing(source, target)
    transform = pycolmap.estimate_sim3d(source[is_inlier], target[is_inlier])
    if transform is None or not 0 < transform.scale < math.inf:
        raise InputError("they are all at one place")
    residuals = transformed(transform, source) - target
    std = _std(residuals[is_inlier])
    if np.count_nonzero(is_inlier) < MIN_POINTS_FOR_OUTLIERS:
        std = max(std, told_std)
    scale_std = _check_shape(source[is_inlier] * float(transform.scale), std)
    return Similarity(transform, residuals, is_inlier, std, scale_std)


def transformed(transform: pycolmap.Sim3d, points: FloatArray) -> FloatArray:
    """Return points (N, 3) transformed."""
    matrix = transform.matrix()
    return np.asarray(points @ matrix[:, :3].T + matrix[:, 3])


def _std(residuals: FloatArray) -> float:
    """Standard deviation of a coordinate; seven of them went into the similarity."""
    return math.sqrt(float((residuals**2).sum()) / max(1, residuals.size - 7))


def _agreeing(source: FloatArray, target: FloatArray) -> np.ndarray:
    """Which points (N,) agree: least median of squares over triples, then those near its fit.

    No bound in metres is needed: receivers differ from centimetres to tens of metres.
    """
    half = len(source) // 2 + 1

    def lengths(transform: pycolmap.Sim3d) -> FloatArray:
        residuals = transformed(transform, source) - target
        return np.asarray(np.linalg.norm(residuals, axis=1))

    trials: list[tuple[float, int, pycolmap.Sim3d]] = []
    for triple in _triples(len(source)):
        transform = pycolmap.estimate_sim3d(source[triple], target[triple])
        if transform is not None:
            trials.append((float(np.median(lengths(transform))), len(trials), transform))
    best, smallest = None, math.inf
    for _, _, transform in sorted(trials, key=lambda trial: trial[:2])[:10]:
        for _ in range(5):
            nearest = np.argsort(lengths(transform), kind="stable")[:half]
            transform = pycolmap.estimate_sim3d(source[nearest], target[nearest]) or transform
        median = float(np.median(lengths(transform)))
        if median < smallest:
            best, smallest = transform, median
    is_inlier = np.ones(len(source), bool)
    if best is None:
        return is_inlier
    floor = 1e-9 * float(np.ptp(target, axis=0).max())  # of exact points
    for _ in range(20):
        agreeing = _normalised(transformed(best, source) - target, floor) <= LARGEST_OF_3
        if (agreeing == is_inlier).all():
            break
        is_inlier = agreeing
        best = pycolmap.estimate_sim3d(source[is_inlier], target[is_inlier]) or best
    return is_inlier


def _normalised(residuals: FloatArray, floor: float) -> FloatArray:
    """Lengths (N,) of residuals in standard deviations, which horizontal and vertical ones have of
    their own."""
    horizontal, vertical = np.hypot(residuals[:, 0], residuals[:, 1]), np.abs(residuals[:, 2])
    # The fit of few points is nearer to them than the truth is.
    more = 1 + 5 / (len(residuals) - 3)
    across = more * float(np.median(horizontal)) / MEDIAN_OF_2
    up = more * float(np.median(vertical)) / MEDIAN_OF_1
    across, up = max(across, up / MAX_RATIO, floor), max(up, across / MAX_RATIO, floor)
    return np.asarray(np.hypot(horizontal / across, vertical / up))


def _triples(count: int) -> list[list[int]]:
    if math.comb(count, 3) <= MAX_TRIALS:
        return [list(triple) for triple in itertools.combinations(range(count), 3)]
    rng = np.random.default_rng(0)
    return [rng.choice(count, 3, replace=False).tolist() for _ in range(MAX_TRIALS)]


def _check_shape(points: FloatArray, std: float) -> float:
    """Return the relative standard deviation of the scale by points (N, 3) in metres.

    Raises:
        InputError: scale or rotation are not determined.
    """
    moments = np.linalg.svd(points - points.mean(axis=0), compute_uv=False) ** 2 / len(points)
    spread, beside = math.sqrt(moments.sum()), math.sqrt(moments[1:].sum())
    if std > MAX_SCALE_STD * spread * math.sqrt(min(len(points), MAX_INDEPENDENT)):
        raise InputError(
            f"they lie within {spread:.3g} m of their middle and are exact to {std:.2g} m: too "
            "near to each other to tell a scale"
        )
    turn = MAX_TURN_STD * beside * math.sqrt(min(len(points), MAX_INDEPENDENT))
    if std > turn or beside < 1e-3 * spread:
        raise InputError(
            f"they lie on a line, within {beside:.2g} m, and are exact to {std:.2g} m: the model "
            "could be turned about it; some beside the line are needed"
        )
    return std / (spread * math.sqrt(len(points)))
