"""Pose and, where they are not known, intrinsics of one photo from 2D-3D matches.

Intrinsics that are off by some percent still leave most matches within the 12 pixels of an inlier:
their number does not tell, their errors do. `support` measures both, candidates are compared by it,
and `freed` looks for intrinsics that fit clearly better, from any pose that is roughly right. It
all works on matches that are there: tens of milliseconds, while the matching takes seconds.

Keypoints are in COLMAP's convention, (0.5, 0.5) at the centre of the top-left pixel.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace

import cv2
import numpy as np
import pycolmap

from sfm_matchers.photos.intrinsics import FOCAL_LENGTHS, camera_with, copy_intrinsics

# Pixels. Errors below it are alike: no detector is more exact.
ERROR_FLOOR = 0.5
# What freer intrinsics must gain in support to be believed: 0.1 for each inlier (all errors smaller
# by 5 %; what one gains from noise or from an inexact map is below 0.04), and 10 in all.
GAIN_PER_INLIER = 0.1
MIN_GAIN = 10.0
# Of intrinsics that the user gives, less is enough for a doubt: what is above noise.
NOISE_PER_INLIER = 0.04
# Fewer inliers do not tell intrinsics from a pose.
MIN_INLIERS = 16
# Of the extent of the map or, if less, of the distance of the points. Intrinsics are wrong, not
# just inexact, where better ones move the camera further: a localized camera is within 1 %. So
# estimated ones are worth little where the camera's standard deviation with them is above 0.6 %:
# on rendered maps errors are 0.6 times as large (root mean square), and 1 % is 2.8 times that.
WRONG_MOVE, MAX_UNCERTAINTY = 0.01, 0.006
# Degrees by which freer intrinsics may turn the camera that fit better than noise explains.
MAX_TURN = 1.0
# Of a photo's longer side, the standard deviation of the principal point of a lens that is not
# known: those of phones and of photos that are cut are so far from the middle.
MIDDLE_DEVIATION = 0.01
# Least extent of a map, of the distance of the points: photos may be taken from one place.
MIN_EXTENT = 0.2
# Points that give the 11 numbers of a projection.
MIN_LINEAR = 6
# Matches that intrinsics are estimated from: enough for a dozen numbers.
MAX_MATCHES = 1000
MAX_STEPS = 30
# What is freed, the least first, and its name.
FREEDOMS = ("focal length", "lens distortion", "principal point")
# RANSAC's trials where a solution is there already.
ALTERNATIVE_TRIALS = 1000
# Coherence of errors above which they are not noise, see `coherence`.
MAX_COHERENCE = 0.6

# Camera models with two parameters of distortion, for those that have fewer.
FREER_MODELS = {
    "SIMPLE_PINHOLE": "RADIAL",
    "PINHOLE": "OPENCV",
    "SIMPLE_RADIAL": "RADIAL",
    "SIMPLE_FISHEYE": "RADIAL_FISHEYE",
    "FISHEYE": "OPENCV_FISHEYE",
    "SIMPLE_RADIAL_FISHEYE": "RADIAL_FISHEYE",
}
# Of a lens of which nothing is known: a common one and a fisheye.
GUESSED_MODELS = ("SIMPLE_RADIAL", "SIMPLE_RADIAL_FISHEYE")


@dataclass(frozen=True)
class Matches:
    """2D-3D matches of a photo.

    Attributes:
        keypoints: (N, 2) float64.
        points: (N, 3) float64, in the world.
        max_error: largest reprojection error of an inlier, in pixels.
        extent: of the map's cameras, in the unit of the world, if it is known.
    """

    keypoints: np.ndarray
    points: np.ndarray
    max_error: float
    extent: float = np.inf

    def some(self, indices: np.ndarray) -> Matches:
        """Those of some indices (M,), or of a mask (N,)."""
        return replace(self, keypoints=self.keypoints[indices], points=self.points[indices])


@dataclass(frozen=True)
class Solution:
    """A pose and the intrinsics it belongs to.

    Attributes:
        camera: the intrinsics.
        cam_from_world: the pose.
        matches: what it was estimated from.
        covariance: COLMAP's (6, 6) of the pose (half of its rotation, translation), or None.
    """

    camera: pycolmap.Camera
    cam_from_world: pycolmap.Rigid3d
    matches: Matches
    covariance: np.ndarray | None = None

    @functools.cached_property
    def residuals(self) -> np.ndarray:
        """Projected points minus keypoints (N, 2) in pixels, NaN behind the camera."""
        return _residuals(self.camera, self.cam_from_world, self.matches)

    @functools.cached_property
    def errors(self) -> np.ndarray:
        """Their lengths (N,), infinite behind the camera."""
        return np.nan_to_num(np.linalg.norm(self.residuals, axis=1), nan=np.inf)

    @property
    def inliers(self) -> np.ndarray:
        """Bool (N,)."""
        return self.errors <= self.matches.max_error

    @property
    def num_inliers(self) -> int:
        """Matches within the largest error."""
        return int(self.inliers.sum())

    @property
    def median_error(self) -> float:
        """Of the inliers, in pixels."""
        return float(np.median(self.errors[self.inliers])) if self.inliers.any() else np.inf

    @functools.cached_property
    def support(self) -> float:
        """Logarithm of how much likelier the inliers' errors are than the largest one.

        Under a Cauchy distribution of scale `ERROR_FLOOR`, cut off at the largest error.
        """
        return float(_log_likelihood(self.errors, self.matches.max_error).sum())

    @property
    def depth(self) -> float:
        """Median distance of the inliers from the camera."""
        in_camera = self.cam_from_world * self.matches.points[self.inliers]
        return float(np.median(np.linalg.norm(in_camera, axis=1))) if len(in_camera) else np.nan

    @property
    def scale(self) -> float:
        """What errors of the position are measured by: the map's extent, or the depth if less."""
        return min(self.depth, max(self.matches.extent, MIN_EXTENT * self.depth))

    def moves_from(self, other: Solution) -> float:
        """Distance between the two camera centres, in scales of `other`."""
        offset = (
            self.cam_from_world.inverse().translation - other.cam_from_world.inverse().translation
        )
        return float(np.linalg.norm(offset)) / other.scale

    def is_clearly_better(self, other: Solution) -> bool:
        """True if its intrinsics are to be believed although those of `other` are preferred."""
        return self.support - other.support > max(MIN_GAIN, GAIN_PER_INLIER * self.num_inliers)

    def turns_from(self, other: Solution) -> float:
        """Degrees between the two orientations."""
        turn = self.cam_from_world * other.cam_from_world.inverse()
        return float(np.rad2deg(turn.rotation.angle()))

    def contradicts(self, other: Solution) -> bool:
        """True if the intrinsics of `other` are wrong, whether or not these are right: clearly
        worse, or worse than by noise and with another pose."""
        if self.is_clearly_better(other):
            return True
        is_noise = self.support - other.support <= max(
            MIN_GAIN, NOISE_PER_INLIER * self.num_inliers
        )
        is_there = self.moves_from(other) <= MAX_UNCERTAINTY and self.turns_from(other) <= MAX_TURN
        return not (is_noise or is_there)

    def summary(self) -> str:
        """Inliers and their median error."""
        return f"{self.num_inliers} inliers, {self.median_error:.1f} px"


def _log_likelihood(errors: np.ndarray, max_error: float) -> np.ndarray:
    scale = ERROR_FLOOR**2
    clipped = np.minimum(errors, max_error)
    return np.log((max_error**2 + scale) / (clipped**2 + scale))


def _residuals(
    camera: pycolmap.Camera, cam_from_world: pycolmap.Rigid3d, matches: Matches
) -> np.ndarray:
    projected = camera.img_from_cam(cam_from_world * matches.points)
    return np.asarray(projected, dtype=np.float64) - matches.keypoints


def solve(
    matches: Matches,
    camera: pycolmap.Camera,
    *,
    estimate_focal_length: bool = False,
    max_trials: int | None = None,
) -> Solution | None:
    """Estimate a pose by LO-RANSAC (COLMAP's, seeded) and refine it on its inliers.

    Args:
        matches: at least 4.
        camera: with intrinsics; stays as it is.
        estimate_focal_length: together with the pose, whatever it is in `camera`.
        max_trials: of RANSAC, COLMAP's where None.

    Raises:
        ValueError: the camera cannot be used.
    """
    camera = copy.copy(camera)  # its focal length may change
    estimation = pycolmap.AbsolutePoseEstimationOptions()
    estimation.ransac.max_error = matches.max_error
    estimation.ransac.random_seed = 0
    if max_trials is not None:
        estimation.ransac.max_num_trials = max_trials
    refinement = pycolmap.AbsolutePoseRefinementOptions()
    estimation.estimate_focal_length = refinement.refine_focal_length = estimate_focal_length
    found = pycolmap.estimate_and_refine_absolute_pose(
        matches.keypoints, matches.points, camera, estimation, refinement, return_covariance=True
    )
    if found is None:
        return None
    return Solution(camera, found["cam_from_world"], matches, found.get("covariance"))


def best_of(solutions: Iterable[Solution | None]) -> Solution | None:
    """The solution of most support; an earlier one unless a later is clearly better."""
    best: Solution | None = None
    for solution in solutions:
        if solution is not None and (best is None or solution.is_clearly_better(best)):
            best = solution
    return best


def guesses(matches: Matches, size: tuple[int, int], trials: int | None = None) -> list[Solution]:
    """Solutions of estimated focal length for a lens of which nothing is known; may be empty."""
    cameras = [camera_with(model, max(size), size) for model in GUESSED_MODELS]
    solved = [
        solve(matches, camera, estimate_focal_length=True, max_trials=trials) for camera in cameras
    ]
    return [solution for solution in solved if solution is not None]


def better_intrinsics(start: Solution) -> tuple[Solution, int] | None:
    """Intrinsics that contradict those of a solution, if there are.

    Of these the ones with the least freedom: the focal length alone, with the lens distortion,
    with the principal point too.

    Returns:
        The solution, and how many of `FREEDOMS` had to change; or None.
    """
    if start.num_inliers < MIN_INLIERS:
        return None
    every = start.matches
    halves = (np.flatnonzero(start.inliers), np.flatnonzero(~start.inliers))
    some = np.concatenate([_evenly(half, MAX_MATCHES // 2) for half in halves])
    start = replace(start, matches=every.some(some))
    found = freed(start, len(FREEDOMS))
    if not found.contradicts(start) and coherence(start) < MAX_COHERENCE:
        return None
    # Something is wrong. It is worth other starts.
    size = (start.camera.width, start.camera.height)
    focal = [freed(start, 1), *guesses(start.matches, size, ALTERNATIVE_TRIALS)]
    distorted = [freed(chance, 2) for chance in focal]
    shifted = [found, freed(_most_supported(distorted), 3)]
    if (linear := solve_linearly(start)) is not None:
        shifted.append(freed(linear, 3))
    levels = [_most_supported(chances) for chances in (focal, distorted, shifted)]
    best = _most_supported(levels)
    if not best.contradicts(start):
        return None
    level = next(i for i, solution in enumerate(levels) if not best.contradicts(solution))
    return _refined(replace(levels[level], matches=every)), level + 1


def suspicion(known: Solution) -> Solution | None:
    """The solution with another focal length that speaks against a known one, if there is one.

    It need not be clearly better: it fits better than noise explains, is elsewhere, and by more
    than twice its uncertainty.
    """
    if known.num_inliers < MIN_INLIERS:
        return None
    found = freed(known, 1)
    move = found.moves_from(known)
    if found.support - known.support <= NOISE_PER_INLIER * known.num_inliers or move <= WRONG_MOVE:
        return None
    return found if move > 2 * centre_uncertainty(found, 1) / known.scale else None


def _evenly(indices: np.ndarray, most: int = MAX_MATCHES) -> np.ndarray:
    """At most so many of some indices."""
    if len(indices) <= most:
        return indices
    return indices[np.linspace(0, len(indices) - 1, most).astype(int)]


def _most_supported(solutions: Iterable[Solution]) -> Solution:
    return max(solutions, key=lambda solution: solution.support)


def solve_linearly(start: Solution) -> Solution | None:
    """Pose, focal lengths and principal point of a pinhole camera from the inliers of a solution.

    The direct linear transformation (Hartley and Zisserman, "Multiple View Geometry", 2nd edition,
    section 7.1) needs no start, so that it finds the principal point of a cropped photo.
    """
    keypoints = start.matches.keypoints[start.inliers]
    points = start.matches.points[start.inliers]
    if len(points) < MIN_LINEAR:
        return None
    image, world = _normalization(keypoints), _normalization(points)
    x, y = (_homogeneous(keypoints) @ image.T)[:, :2].T
    rows = _homogeneous(points) @ world.T
    zeros = np.zeros_like(rows)
    equations = np.concatenate(
        [np.hstack([rows, zeros, -x[:, None] * rows]), np.hstack([zeros, rows, -y[:, None] * rows])]
    )
    projection = np.linalg.svd(equations, full_matrices=False)[2][-1].reshape(3, 4)
    projection = np.linalg.inv(image) @ projection @ world
    # Points lie before the camera: their depths, the third row, are positive.
    projection *= np.sign(np.median(_homogeneous(points) @ projection[2]))
    calibration, rotation, centre = cv2.decomposeProjectionMatrix(projection)[:3]
    if np.linalg.det(rotation) < 0 or not calibration[2, 2] or not centre[3]:
        return None
    calibration = calibration / calibration[2, 2]
    focal_length = float(np.sqrt(abs(calibration[0, 0] * calibration[1, 1])))
    camera = camera_with("RADIAL", focal_length, (start.camera.width, start.camera.height))
    params = camera.params.copy()
    params[list(camera.principal_point_idxs())] = calibration[:2, 2]
    camera.params = params
    translation = -rotation @ (centre[:3, 0] / centre[3, 0])
    pose = pycolmap.Rigid3d(pycolmap.Rotation3d(rotation), translation)
    return Solution(camera, pose, start.matches)


def _normalization(values: np.ndarray) -> np.ndarray:
    """The similarity that brings points (N, D) to mean 0 and unit spread, (D + 1, D + 1)."""
    dimensions = values.shape[1]
    scale = 1 / max(float(values.std()), 1e-12)
    similarity = np.diag([scale] * dimensions + [1.0])
    similarity[:dimensions, -1] = -scale * values.mean(axis=0)
    return similarity


def _homogeneous(values: np.ndarray) -> np.ndarray:
    return np.hstack([values, np.ones((len(values), 1))])


def _refined(solution: Solution) -> Solution:
    """The same with the pose refined on all its inliers, and with a covariance."""
    found = pycolmap.refine_absolute_pose(
        solution.cam_from_world,
        solution.matches.keypoints,
        solution.matches.points,
        solution.inliers,
        copy.copy(solution.camera),
        return_covariance=True,
    )
    if found is None:
        return solution
    return Solution(
        solution.camera, found["cam_from_world"], solution.matches, found.get("covariance")
    )


def freed(start: Solution, level: int) -> Solution:
    """Adjust the pose and the first `level` of `FREEDOMS` to the matches.

    Levenberg-Marquardt on a Cauchy loss, cut off at the largest error; COLMAP's refinement of a
    pose keeps the principal point, and the inliers, which wrong intrinsics choose wrongly.
    """
    problem = _Problem(start, start.matches.some(np.isfinite(start.errors)), level)
    values = np.zeros(problem.size)
    cost, damping = problem.cost(values), 1e-3
    for _ in range(MAX_STEPS):
        hessian, gradient = problem.normal_equations(values)
        previous = cost
        while damping < 1e6:
            damped = hessian + damping * np.diag(np.diag(hessian) + 1e-9)
            candidate = values - np.linalg.solve(damped, gradient)
            cost_there = problem.cost(candidate)
            if cost_there < cost:
                values, cost, damping = candidate, cost_there, max(damping / 10, 1e-9)
                break
            damping *= 10
        if previous - cost < 1e-5 * previous:
            break
    return Solution(*problem.at(values), start.matches)


class _Problem:
    """Intrinsics and pose as one vector of order 1, zero at the start."""

    def __init__(
        self, start: Solution, matches: Matches, level: int, *, is_shifted: bool = False
    ) -> None:
        model = start.camera.model.name
        if level > 1 and model in FREER_MODELS:
            model = FREER_MODELS[model]
        self.camera = copy_intrinsics(start.camera, model)
        self.pose, self.depth, self.matches = start.cam_from_world, start.depth, matches
        self.focal = [int(index) for index in self.camera.focal_length_idxs()]
        self.shifted = [int(index) for index in self.camera.principal_point_idxs()]
        self.distortion = [int(index) for index in self.camera.extra_params_idxs()][:2]
        self.shifted = self.shifted if level > 2 or is_shifted else []
        self.distortion = self.distortion if level > 1 else []
        self.size = 6 + bool(self.focal) + len(self.distortion) + len(self.shifted)

    def at(self, values: np.ndarray) -> tuple[pycolmap.Camera, pycolmap.Rigid3d]:
        rotation = pycolmap.Rotation3d(values[:3]) * self.pose.rotation
        translation = self.pose.translation + self.depth * values[3:6]
        params, rest = self.camera.params.copy(), values[6:]
        if self.focal:
            params[self.focal] *= np.exp(np.clip(rest[0], -5, 5))
            rest = rest[1:]
        params[self.distortion] += rest[: len(self.distortion)]
        longer = max(self.camera.width, self.camera.height)
        params[self.shifted] += longer * rest[len(self.distortion) :]
        camera = copy.copy(self.camera)
        camera.params = params
        return camera, pycolmap.Rigid3d(rotation, translation)

    def residuals(self, values: np.ndarray) -> np.ndarray:
        return _residuals(*self.at(values), self.matches)

    def cost(self, values: np.ndarray) -> float:
        if not np.isfinite(values).all():
            return np.inf
        errors = np.nan_to_num(np.linalg.norm(self.residuals(values), axis=1), nan=np.inf)
        clipped = np.minimum(errors, self.matches.max_error)
        return float(np.log1p((clipped / ERROR_FLOOR) ** 2).sum())

    def normal_equations(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gauss-Newton's, each match weighted as the loss says."""
        here, step = self.residuals(values), 1e-6
        jacobian = np.stack(
            [(self.residuals(values + step * unit) - here) / step for unit in np.eye(self.size)],
            axis=-1,
        )
        squares = (here**2).sum(axis=1)
        counts = (squares < self.matches.max_error**2) & np.isfinite(jacobian).all(axis=(1, 2))
        weights = 1 / (squares[counts] + ERROR_FLOOR**2)
        weighted = jacobian[counts] * weights[:, None, None]
        hessian = np.einsum("nij,nik->jk", weighted, jacobian[counts])
        return hessian, np.einsum("nij,ni->j", weighted, here[counts])


def centre_covariance(solution: Solution) -> np.ndarray | None:
    """Covariance (6, 6) of a pose as a rotation in radians and the centre, along the camera's axes.

    COLMAP's is of half the angles, as quaternions have them, and of the translation, which changes
    with them too: the more, the further away the world's origin is.
    """
    if solution.covariance is None:
        return None
    x, y, z = solution.cam_from_world.translation
    change = np.eye(6)
    change[:3, :3] *= 2
    change[3:, :3] = 2 * np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.asarray(change @ solution.covariance @ change.T)


def centre_uncertainty(solution: Solution, level: int, middle_deviation: float = 0.0) -> float:
    """Standard deviation of the camera's centre where the first `level` of `FREEDOMS` are free.

    A principal point that is not among them has the standard deviation `middle_deviation`, of the
    longer side.
    """
    is_shifted = level < len(FREEDOMS) and middle_deviation > 0
    inliers = solution.matches.some(solution.inliers)
    problem = _Problem(solution, inliers, level, is_shifted=is_shifted)
    zero, step = np.zeros(problem.size), 1e-6
    hessian, _ = problem.normal_equations(zero)
    if is_shifted:
        hessian[-2:, -2:] += np.eye(2) / middle_deviation**2

    def centre(values: np.ndarray) -> np.ndarray:
        return np.asarray(problem.at(values)[1].inverse().translation)

    here = centre(zero)
    jacobian = np.stack(
        [(centre(step * unit) - here) / step for unit in np.eye(problem.size)], axis=-1
    )
    covariance = jacobian @ np.linalg.pinv(hessian, hermitian=True) @ jacobian.T
    return float(np.sqrt(max(0.0, np.trace(covariance))))


def coherence(solution: Solution) -> float:
    """How alike the errors of neighbouring inliers are: 0 for noise, 1 where all is systematic.

    The correlation of each inlier's residual with that of the nearest inlier elsewhere.
    """
    inliers = _evenly(np.flatnonzero(solution.inliers))
    if len(inliers) < MIN_INLIERS:
        return 0.0
    keypoints, residuals = solution.matches.keypoints[inliers], solution.residuals[inliers]
    nearest = np.array([_nearest_elsewhere(xy, keypoints) for xy in keypoints])
    here, there = residuals[nearest >= 0], residuals[nearest[nearest >= 0]]
    scale = np.sqrt((here**2).sum() * (there**2).sum())
    return float((here * there).sum() / scale) if scale > 0 else 0.0


def _nearest_elsewhere(xy: np.ndarray, keypoints: np.ndarray) -> int:
    """Index of the keypoint nearest to one, itself and its like (within 2 px) excepted, or -1."""
    squares = ((keypoints - xy) ** 2).sum(axis=1)
    squares[squares < 4] = np.inf
    index = int(squares.argmin())
    return index if np.isfinite(squares[index]) else -1


def doubt(solution: Solution, level: int, middle_deviation: float = MIDDLE_DEVIATION) -> str:
    """What speaks against intrinsics of which `level` of `FREEDOMS` are estimated, or "".

    See `centre_uncertainty` for the other argument.
    """
    if solution.median_error > ERROR_FLOOR and coherence(solution) > MAX_COHERENCE:
        return (
            f"the errors of its inliers, {solution.median_error:.1f} px, are alike where they are "
            "near each other: no intrinsics that were tried fit; give them, --camera_params"
        )
    sides = solution.camera.mean_focal_length() / max(solution.camera.width, solution.camera.height)
    if level and not FOCAL_LENGTHS[0] <= sides <= FOCAL_LENGTHS[1]:
        return f"there is hardly a lens of the estimated focal length, {sides:.3g} times the side"
    limit = MAX_UNCERTAINTY * solution.scale
    if level and centre_uncertainty(solution, level) > limit:
        freed_ = FREEDOMS[level - 1]
        return f"the matches hardly determine the {freed_}: give intrinsics, --camera_params"
    if level and centre_uncertainty(solution, level, middle_deviation) > limit:
        return (
            f"the matches hardly determine the {FREEDOMS[-1]}, which need not be in the middle "
            "where the lens is not known: give intrinsics, --camera_params"
        )
    return ""
