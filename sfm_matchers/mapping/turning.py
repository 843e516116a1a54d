"""Photos between which the camera only turned, so that nothing tells how far anything is.

Where a rotation explains the points that two photos share as well as their noise allows, these
have no parallax. Intrinsics of the model may hide that: focal length and distortion that are off
bend a turn into a walk with small errors. So a simple camera of any focal length and distortion is
asked too: if with it rotations explain all photos, there was no walk.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pycolmap
from numpy.typing import NDArray

from sfm_matchers.mapping.adjustment import Observations

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
_MapsOfRays = Callable[[FloatArray, FloatArray, FloatArray], FloatArray]

MIN_SHARED = 20  # points of two photos; fewer tell nothing
MAX_PARTNERS = 6  # other photos that each is held against, those farthest off
MAX_LOOKED_AT = 120  # points of a pair
MAX_FITTED = 12  # pairs that the simple camera is fitted to
QUANTILE = 0.8  # of a pair's errors: a few wrong points are no parallax
# Errors of rotations over the noise that the model shows: turns have 0.8 to 1.8, a translation by a
# hundredth of the depth 5 and more.
PARALLAX = 2.5
MIN_NOISE = 0.1  # pixels, the same quantile of the noise of one keypoint
# Errors of a rotation over those of a homography, beyond which it is a plane that was walked along:
# of a pair with the intrinsics of the model, turns have up to 1.12; with those of a simple camera
# that explains them, over those of a homography with the model's, all pairs of turns have 0.5 to
# 1.02, walks along a wall from 1.07 on.
WORSE_THAN_PLANE, WORSE_THAN_PLANES = 1.2, 1.05
# Of the longer side: with intrinsics that were bent to explain a turn, rotations leave a hundredth
# or less; if the model's own leave more, it was a walk.
CLEARLY_WALKED = 0.05
MAX_STEPS = 15  # in which the best of the grid of simple cameras is refined
FOCAL_LENGTHS = np.geomspace(0.5, 2.0, 7)  # over the model's, which is bent but not unlike
# A walk along a wall looks like a turn through a longer lens (1.6 to 1.8 times); models that a turn
# was bent into have longer lenses than the photos (0.7 to 0.8 times).
MAX_LONGER = 1.3
LONGEST = 3.0  # focal length over the longer side
DISTORTIONS = (-0.3, -0.1, 0.0, 0.1, 0.3)
SIMPLE_MODELS = ("SIMPLE_RADIAL", "SIMPLE_RADIAL_FISHEYE")


def photos_that_only_turned(
    model: pycolmap.Reconstruction, fixed: Collection[str] = ()
) -> list[str]:
    """Return the photos of a model that have no parallax against any other one.

    Args:
        model: of any origin.
        fixed: photos whose intrinsics are known, so that no other ones are asked.

    Returns:
        Their names, sorted; all of the model's if the camera only turned.
    """
    if not model.num_reg_images():
        return []
    photos = _Photos(model)
    own = dict(model.cameras)
    turned, first_pairs = photos.turned(own)
    if len(first_pairs.rows) and len(turned) < len(photos.names):
        is_known = any(name in fixed for name in photos.names)
        if not is_known and first_pairs.is_doubtful(own):
            simple = _simple_cameras(first_pairs.thinned(), own, photos.limit)
            if simple and first_pairs.is_turn_otherwise(simple, own):
                otherwise, _ = photos.turned(simple)
                turned = otherwise if len(otherwise) == len(photos.names) else turned
    return sorted(photos.names[row] for row in turned)


@dataclass(frozen=True)
class _Pairs:
    """P pairs of photos with K points that both show, some more than once where they are fewer.

    Attributes:
        rows: (P, 2) of the photos.
        pixels: (P, 2, K, 2), COLMAP's.
        camera_ids: (P, 2).
    """

    rows: IntArray
    pixels: FloatArray
    camera_ids: IntArray

    def thinned(self) -> _Pairs:
        """Some of many pairs."""
        some = np.linspace(0, len(self.rows) - 1, min(MAX_FITTED, len(self.rows))).astype(int)
        return _Pairs(self.rows[some], self.pixels[some], self.camera_ids[some])

    def is_doubtful(self, cameras: Mapping[int, pycolmap.Camera]) -> bool:
        """True unless parallax is beyond what wrong intrinsics can hide or pretend."""
        if any(cameras[i].is_spherical() for i in np.unique(self.camera_ids).tolist()):
            return False
        sides = [max(cameras[i].width, cameras[i].height) for i in self.camera_ids[:, 1].tolist()]
        return bool(np.median(self.errors(cameras) / sides) < CLEARLY_WALKED)

    def is_turn_otherwise(
        self,
        simple: Mapping[int, pycolmap.Camera],
        own: Mapping[int, pycolmap.Camera],
    ) -> bool:
        """True if rotations with other cameras explain the pairs as well as planes with the own."""
        ratios = self.errors(simple) / self.errors(own, _homographies)
        return bool(np.median(ratios) < WORSE_THAN_PLANES)

    def are_turns(self, cameras: Mapping[int, pycolmap.Camera], limit: float) -> BoolArray:
        """Whether rotations explain the pairs, to a limit in pixels: (P,)."""
        turns = self.errors(cameras)
        # A wall seen along a walk moves nearly as in a turn, through a very long lens just so.
        turns[_are_long(cameras, self.camera_ids[:, 1])] = np.inf
        if not (turns < limit).any():
            return turns < limit
        return (turns < limit) & (turns < WORSE_THAN_PLANE * self.errors(cameras, _homographies))

    def errors(
        self, cameras: Mapping[int, pycolmap.Camera], maps_of: _MapsOfRays | None = None
    ) -> FloatArray:
        """What the best map of the rays leaves: a quantile (P,) of each pair's errors in pixels.

        Args:
            cameras: by id.
            maps_of: estimates the maps, rotations where None.
        """
        used = np.unique(self.camera_ids).tolist()
        rays = np.zeros((*self.pixels.shape[:3], 3))
        for camera_id in used:
            mine = self.camera_ids == camera_id
            found = np.asarray(
                cameras[camera_id].cam_ray_from_img(self.pixels[mine].reshape(-1, 2))
            )
            rays[mine] = np.nan_to_num(found).reshape(-1, *rays.shape[2:])
        weights = np.ones((len(rays), rays.shape[2]))
        for _ in range(3):
            maps = (maps_of or rotations)(rays[:, 0], rays[:, 1], weights)
            turned = rays[:, 0] @ maps.transpose(0, 2, 1)
            errors = np.full(weights.shape, np.inf)
            for camera_id in used:
                mine = self.camera_ids[:, 1] == camera_id
                there = np.asarray(cameras[camera_id].img_from_cam(turned[mine].reshape(-1, 3)))
                apart = there.reshape(-1, *self.pixels.shape[2:]) - self.pixels[mine, 1]
                errors[mine] = np.linalg.norm(apart, axis=-1)
            errors = np.nan_to_num(errors, nan=np.inf)
            scale = np.median(errors, axis=1, keepdims=True) + MIN_NOISE
            weights = 1 / (1 + (errors / np.where(np.isfinite(scale), scale, 1.0)) ** 2)
        return np.asarray(np.quantile(np.minimum(errors, 1e6), QUANTILE, axis=1))


def rotations(rays0: FloatArray, rays1: FloatArray, weights: FloatArray) -> FloatArray:
    """The rotations (P, 3, 3) that carry rays (P, K, 3) to others best (Kabsch)."""
    left, _, right = np.linalg.svd((rays1 * weights[..., None]).transpose(0, 2, 1) @ rays0)
    left[:, :, 2] *= np.linalg.det(left @ right)[:, None]
    return np.asarray(left @ right)


def _homographies(rays0: FloatArray, rays1: FloatArray, weights: FloatArray) -> FloatArray:
    """The linear maps (P, 3, 3) that carry rays (P, K, 3) to the directions of others best."""
    x, y, z = rays1[..., 0], rays1[..., 1], rays1[..., 2]
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1)
    cross = (cross * np.sqrt(weights)[..., None]).reshape(*x.shape, 3, 3)
    # Of each point three equations: the rows of the cross product, times the elements of the map.
    system = np.einsum("pkri,pkj->pkrij", cross, rays0).reshape(len(x), -1, 9)
    maps = np.linalg.eigh(system.transpose(0, 2, 1) @ system)[1][..., 0].reshape(-1, 3, 3)
    return np.asarray(maps * np.where(np.linalg.det(maps) < 0, -1.0, 1.0)[:, None, None])


class _Photos:
    """The registered photos of a model, by row, and the points that they share."""

    def __init__(self, model: pycolmap.Reconstruction) -> None:
        observations = Observations(model)
        images = [model.images[image_id] for image_id in observations.of_image]
        self.names = [image.name for image in images]
        self.camera_ids = np.array([image.camera_id for image in images], dtype=np.int64)
        self.centers = np.array([image.projection_center() for image in images]).reshape(-1, 3)
        self.pixels = [pixels for pixels, _ in observations.of_image.values()]
        self.points = [points for _, points in observations.of_image.values()]
        counts = [len(points) for points in self.points]
        owners, points = np.repeat(np.arange(len(counts)), counts), np.concatenate(self.points)
        order = np.argsort(points, kind="stable")
        self.owners = owners[order]
        self.starts = np.searchsorted(points[order], np.arange(len(observations.point_ids) + 1))
        errors = np.concatenate(list(observations.errors(model).values()))
        # A point that few photos observe fits them better than their keypoints are exact.
        redundancy = 1 - 1.5 * len(observations.point_ids) / max(len(errors), 1)
        noise = float(np.quantile(errors, QUANTILE)) / np.sqrt(max(redundancy, 0.1))
        self.limit = PARALLAX * np.sqrt(2) * max(noise, MIN_NOISE)

    def partners(self, row: int) -> list[int]:
        """The photos with enough common points, those farthest off first."""
        lengths = np.diff(self.starts)[self.points[row]]
        ends = np.cumsum(lengths)
        places = np.arange(lengths.sum()) + np.repeat(
            self.starts[self.points[row]] - ends + lengths, lengths
        )
        shared = np.bincount(self.owners[places], minlength=len(self.names))
        shared[row] = 0
        enough = np.flatnonzero(shared >= MIN_SHARED)
        apart = np.linalg.norm(self.centers[enough] - self.centers[row], axis=1)
        return [int(other) for other in enough[np.argsort(-apart, kind="stable")]][:MAX_PARTNERS]

    def pairs(self, rows: Sequence[tuple[int, int]]) -> _Pairs:
        """The common points of some pairs."""
        pixels = np.zeros((len(rows), 2, MAX_LOOKED_AT, 2))
        for index, both in enumerate(rows):
            points0, points1 = (self.points[row] for row in both)
            _, *places = np.intersect1d(points0, points1, return_indices=True)
            some = np.linspace(0, len(places[0]) - 1, MAX_LOOKED_AT).astype(int)
            for side in (0, 1):
                pixels[index, side] = self.pixels[both[side]][places[side][some]]
        array = np.array(rows, dtype=np.int64).reshape(-1, 2)
        return _Pairs(array, pixels, self.camera_ids[array])

    def turned(self, cameras: Mapping[int, pycolmap.Camera]) -> tuple[set[int], _Pairs]:
        """The photos (rows) without parallax; and the first pair of each photo that has any."""
        partners = [self.partners(row) for row in range(len(self.names))]
        candidates = {row for row, others in enumerate(partners) if others}
        first = self.pairs([(row, partners[row][0]) for row in sorted(candidates)])
        pairs = first
        is_known = np.zeros(len(self.starts) - 1, dtype=bool)  # points that a walk has placed
        for rank in range(1, MAX_PARTNERS + 1):
            if len(pairs.rows):
                walked = ~pairs.are_turns(cameras, self.limit)
                for both in pairs.rows[walked].tolist():
                    is_known[np.intersect1d(*(self.points[row] for row in both))] = True
                    candidates.difference_update(both)
            pairs = self.pairs(
                [(row, partners[row][rank]) for row in candidates if rank < len(partners[row])]
            )
        # Who sees these has a place by them, though it may be too near to each of the others.
        return {row for row in candidates if is_known[self.points[row]].sum() < MIN_SHARED}, first


def _simple_cameras(
    pairs: _Pairs, cameras: Mapping[int, pycolmap.Camera], limit: float
) -> dict[int, pycolmap.Camera]:
    """The simple cameras with which rotations explain pairs; empty if they do not.

    All cameras have the same distortion, and focal lengths off by the same factor.
    """
    camera_ids = np.unique(pairs.camera_ids).tolist()
    for model in SIMPLE_MODELS:

        def cost(factor: float, distortion: float, model: str = model) -> float:
            simple = {i: _simple(cameras[i], model, factor, distortion) for i in camera_ids}
            return float(np.median(pairs.errors(simple)))

        best = _lowest(cost, limit)
        simple = {i: _simple(cameras[i], model, *best) for i in camera_ids}
        if cost(*best) < limit and best[0] < MAX_LONGER:
            return {**cameras, **simple}
    return {}


def _are_long(cameras: Mapping[int, pycolmap.Camera], camera_ids: IntArray) -> BoolArray:
    """Whether cameras (N,) have a very long focal length."""
    long = [
        i
        for i in np.unique(camera_ids).tolist()
        if not cameras[i].is_spherical()
        and cameras[i].mean_focal_length() > LONGEST * max(cameras[i].width, cameras[i].height)
    ]
    return np.isin(camera_ids, long)


def _lowest(cost: Callable[[float, float], float], limit: float) -> tuple[float, float]:
    """The factor of focal lengths and the distortion of lowest cost, where that is below a limit;
    else some of a cost that is not."""
    grid = [(float(factor), k) for factor in FOCAL_LENGTHS for k in DISTORTIONS]
    costs = [cost(*each) for each in grid]
    best, lowest = grid[int(np.argmin(costs))], min(costs)
    ratio, step = float(np.sqrt(FOCAL_LENGTHS[1] / FOCAL_LENGTHS[0])), 0.1
    for _ in range(MAX_STEPS):
        moves = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
        around = [(best[0] * ratio**i, best[1] + j * step) for i, j in moves]
        costs = [cost(*each) for each in around]
        reach, is_better = 1, min(costs) < lowest
        if is_better:  # there may be more steps to the lowest
            best, lowest, reach = around[int(np.argmin(costs))], min(costs), 3
        if lowest - limit > reach * (max(costs) - lowest):
            break  # nearer to the lowest, costs hardly fall by more than they rise around it
        if not is_better:
            ratio, step = float(np.sqrt(ratio)), step / 2
    return best


def _simple(
    camera: pycolmap.Camera, model: str, factor: float, distortion: float
) -> pycolmap.Camera:
    """A camera with another focal length and distortion."""
    focal_length = factor * camera.mean_focal_length()
    centre = camera.principal_point_x, camera.principal_point_y
    return pycolmap.Camera(
        model=model,
        width=camera.width,
        height=camera.height,
        params=[focal_length, *centre, distortion],
        camera_id=camera.camera_id,
    )
