"""Repeated structure: verified pairs of photos of two places that look alike, taken for one.

Opposite sides of a building, twin towers and repeated fronts give pairs with many exact matches,
and a model in which both places are one. What tells them apart is what stands around. Two photos
taken from one direction show the same surroundings too; if all matches lie on one part, and none on
another part that both should show and whose keypoints match in other photos, the two are *twins*:
photos of two places. A third photo that matches both can only be at one of them, at the one whose
surroundings it shares.

Pairs are only dropped by such a contradiction. Photos taken from different directions share little
of their surroundings anyway, so that nothing is said of them without twins.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import pycolmap
from numpy.typing import NDArray

from sfm_matchers.choices import PANORAMIC_MODEL
from sfm_matchers.errors import listed
from sfm_matchers.files.pair_lists import Pair
from sfm_matchers.mapping.sparse_scene import nearest

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

# Of the photo's diagonal: farther from all matches of a pair, a keypoint is in its surroundings.
RADIUS = 0.05
TWIN_MATCHES = 60  # verified
TWIN_KEYPOINTS = 30  # least in the surroundings
# Share of a pair's matches that one homography explains: with parallax, what both should show is
# hidden in one of them, or elsewhere. Rendered twins have 0.97 and more, true pairs that would pass
# for twins otherwise 0.9 and less.
AGREE_WITH_HOMOGRAPHY = 0.95
# A pair shares the surroundings of a photo that has a twin if so many of its matches lie there, in
# so many squares as long as the radius.
SHARED_MATCHES, SHARED_SHARE, SHARED_AREA = 10, 0.04, 8
ONE_PLACE = 2  # steps from photo to photo that share surroundings
MAX_STEPS = 4  # from photo to photo of one place
# Rotations of three pairs that lead back to the first photo, degrees: beyond doubt they do, or not.
CLOSED, NOT_CLOSED = 10.0, 20.0
MUCH_STRONGER = 2.0  # times the verified matches
MIN_TRIPLETS = 2
# Verified: fewer register no photo and determine no rotation. Of five such pairs of a church's
# internet photos whose rotations contradicted stronger pairs, two were right.
ROTATION_MATCHES = 30
MAX_LINES = 10  # about pairs


@dataclass(frozen=True)
class _Limits:
    """What makes twins of two photos.

    Attributes:
        angle: largest one between the rays to matched points, degrees.
        rate: least share of the keypoints that match, where there are matches, of those that match
            in any photo.
        area: least of the surroundings without matches, as a share of all that has keypoints.
        larger_area: likewise, of the photo that has more of it.
    """

    angle: float
    rate: float
    area: float
    larger_area: float


CERTAIN = _Limits(angle=8.0, rate=0.35, area=0.13, larger_area=0.2)
NEXT_TO_TWINS = _Limits(angle=15.0, rate=0.3, area=0.13, larger_area=0.16)


@dataclass(frozen=True)
class SuspiciousPair:
    """A verified pair whose photos seem to show two places.

    Attributes:
        names: of the photos.
        num_inliers: verified matches.
        reason: what speaks against it.
    """

    names: Pair
    num_inliers: int
    reason: str


@dataclass(frozen=True)
class _Photo:
    keypoints: FloatArray  # (N, 2) pixels
    size: FloatArray  # (2,) width and height
    camera: pycolmap.Camera
    name: str

    @cached_property
    def radius(self) -> float:
        return RADIUS * float(np.hypot(*self.size))

    def far_from(self, keypoints: IntArray) -> BoolArray:
        """True for each keypoint (N,) that lies in the surroundings of some of them."""
        if not len(keypoints):
            return np.ones(len(self.keypoints), dtype=bool)
        _, distances = nearest(self.keypoints[keypoints], self.keypoints, 1)
        return np.asarray(distances[:, 0] > self.radius)

    def area(self, keypoints: IntArray) -> int:
        """How many squares, as long as the radius, hold some of the keypoints."""
        return len(np.unique((self.keypoints[keypoints] / self.radius).astype(np.int64), axis=0))


@dataclass
class VerifiedGraph:
    """Photos and verified pairs of a database; `matches[a][b]` (M, 2) are keypoints of a and b."""

    photos: dict[int, _Photo]
    matches: dict[int, dict[int, IntArray]]
    geometries: dict[tuple[int, int], pycolmap.TwoViewGeometry] = field(repr=False)
    _without_pose: set[tuple[int, int]] = field(default_factory=set)

    @classmethod
    def read(cls, database_path: Path) -> VerifiedGraph:
        """Read a database."""
        with pycolmap.Database.open(database_path) as database:
            cameras = {camera.camera_id: camera for camera in database.read_all_cameras()}
            photos = {}
            for image in database.read_all_images():
                camera = cameras[image.camera_id]
                keypoints = np.asarray(database.read_keypoints(image.image_id), np.float64)
                photos[image.image_id] = _Photo(
                    keypoints[:, :2] if keypoints.size else np.zeros((0, 2)),
                    np.array([camera.width, camera.height], np.float64),
                    camera,
                    image.name,
                )
            pair_ids, geometries = database.read_two_view_geometries()
        graph = cls(photos, {image_id: {} for image_id in photos}, {})
        for pair_id, geometry in zip(pair_ids, geometries, strict=True):
            first, second = pycolmap.pair_id_to_image_pair(pair_id)
            matches = np.asarray(geometry.inlier_matches, np.int64).reshape(-1, 2)
            if len(matches):
                graph.matches[first][second] = matches
                graph.matches[second][first] = matches[:, ::-1]
                graph.geometries[first, second] = geometry
        return graph

    def pairs(self) -> list[tuple[int, int]]:
        """All pairs, in order."""
        return sorted(self.geometries)

    def matched_elsewhere(self, image: int, other: int) -> IntArray:
        """Keypoints of a photo that match in photos other than this one, and not in this one."""
        elsewhere = [
            matches[:, 0] for third, matches in self.matches[image].items() if third != other
        ]
        if not elsewhere:
            return np.zeros(0, np.int64)
        return np.setdiff1d(np.concatenate(elsewhere), self.matches[image][other][:, 0])

    def count(self, first: int, second: int) -> int:
        """Number of verified matches of a pair."""
        return len(self.matches[first].get(second, ()))

    def posed(self, first: int, second: int) -> pycolmap.TwoViewGeometry | None:
        """The geometry of a pair with its relative pose, where there is one."""
        geometry = self.geometries[first, second]
        if geometry.cam2_from_cam1 is None and (first, second) not in self._without_pose:
            one, two = self.photos[first], self.photos[second]
            found = pycolmap.estimate_two_view_geometry_pose(
                one.camera, one.keypoints, two.camera, two.keypoints, geometry
            )
            if not found:
                self._without_pose.add((first, second))
        return None if (first, second) in self._without_pose else geometry

    def angle(self, first: int, second: int) -> float:
        """Median angle between the rays to the matched points of a pair, degrees; or infinity."""
        geometry = self.posed(first, second)
        return np.inf if geometry is None else float(np.degrees(geometry.tri_angle))

    def rotation(self, first: int, second: int) -> pycolmap.Rotation3d | None:
        """From the first to the second photo of a pair, in either order."""
        geometry = self.posed(min(first, second), max(first, second))
        if geometry is None:
            return None
        pose = geometry.cam2_from_cam1
        if pose is None:
            return None
        rotation = pose.rotation
        return rotation if first < second else rotation.inverse()


def find_look_alikes(graph: VerifiedGraph) -> list[SuspiciousPair]:
    """Find the pairs that should not be mapped, in the order of their names."""
    twins = _find_twins(graph)
    twins_of: dict[int, list[int]] = {}
    for first, second in sorted(twins):
        twins_of.setdefault(first, []).append(second)
        twins_of.setdefault(second, []).append(first)
    shared = _sharing_surroundings(graph, twins, twins_of)
    steps = _Steps(shared)
    if any(steps.between(*pair) <= ONE_PLACE for pair in twins):
        # A third photo shares the surroundings of both: they are no twins, and none is certain.
        twins, twins_of = set(), {}
    found = []
    for first, second in graph.pairs():
        if (first, second) in twins:
            reason = "they look alike, but what stands around differs"
        else:
            reason = ""
            if (first, second) not in shared:
                reason = _why_elsewhere(graph, twins_of, steps, first, second)
            reason = reason or _why_not_closed(graph, twins, first, second)
        if reason:
            names = graph.photos[first].name, graph.photos[second].name
            count = len(graph.matches[first][second])
            found.append(SuspiciousPair(names, count, reason))
    return sorted(found, key=lambda pair: pair.names)


def _find_twins(graph: VerifiedGraph) -> set[tuple[int, int]]:
    """Pairs of twins; next to those that are certain, less evidence is enough."""
    twins = {pair for pair in graph.pairs() if _are_twins(graph, *pair, CERTAIN)}
    places = {side for first, second in twins for side in ((first, second), (second, first))}
    near = {
        (a, b)
        for first, second in places
        for a in (first, *graph.matches[first])
        for b in (second, *graph.matches[second])
        if (a, b) in graph.geometries and (a, b) not in twins
    }
    return twins | {pair for pair in sorted(near) if _are_twins(graph, *pair, NEXT_TO_TWINS)}


def _are_twins(graph: VerifiedGraph, first: int, second: int, limits: _Limits) -> bool:
    """True if two photos from one direction match on one part, and on nothing else around."""
    matches = graph.matches[first][second]
    photos = graph.photos[first], graph.photos[second]
    if len(matches) < TWIN_MATCHES or any(
        photo.camera.model_name == PANORAMIC_MODEL for photo in photos
    ):
        return False
    points = [photo.keypoints[matches[:, side]] for side, photo in enumerate(photos)]
    homography, agree = cv2.findHomography(points[0], points[1], cv2.RANSAC, photos[1].radius / 2)
    if homography is None or agree.mean() < AGREE_WITH_HOMOGRAPHY:
        return False
    if abs(np.linalg.det(homography)) < 1e-12:
        return False
    there: FloatArray = np.asarray(homography, dtype=np.float64)
    back: FloatArray = np.asarray(np.linalg.inv(there), dtype=np.float64)
    shares = [
        _unmatched_area(graph, first, second, there, limits.rate),
        _unmatched_area(graph, second, first, back, limits.rate),
    ]
    if min(shares) < limits.area or max(shares) < limits.larger_area:
        return False
    return graph.angle(first, second) < limits.angle


def _unmatched_area(
    graph: VerifiedGraph, image: int, other: int, homography: FloatArray, least_rate: float
) -> float:
    """Area of a photo that another one should show, and does not match, of all that both show.

    Where too few keypoints are there, or where the others are hardly matched either, it is 0.
    """
    photo, size = graph.photos[image], graph.photos[other].size
    matched = graph.matches[image][other][:, 0]
    elsewhere = graph.matched_elsewhere(image, other)
    if not len(elsewhere):
        return 0.0
    far = photo.far_from(matched)[elsewhere]
    rate = len(matched) / (len(matched) + np.count_nonzero(~far))
    homogeneous = np.column_stack([photo.keypoints[elsewhere], np.ones(len(elsewhere))])
    projected = homogeneous @ homography.T
    in_front = projected[:, 2] * np.median(projected[:, 2]) > 0
    places = projected[:, :2] / np.where(in_front, projected[:, 2], np.inf)[:, None]
    inside = in_front & (places >= 0).all(axis=1) & (places < size).all(axis=1)
    surroundings = elsewhere[far & inside]
    if rate < least_rate or len(surroundings) < TWIN_KEYPOINTS:
        return 0.0
    area = photo.area(surroundings)
    return area / (area + photo.area(matched))


def _sharing_surroundings(
    graph: VerifiedGraph, twins: Iterable[tuple[int, int]], twins_of: Mapping[int, Sequence[int]]
) -> set[tuple[int, int]]:
    """The pairs that match in the surroundings by which a photo differs from its twins.

    Where neither photo has a twin, nothing speaks against a pair: it is among them.
    """
    around = {
        image: graph.photos[image].far_from(
            np.concatenate([graph.matches[image][twin][:, 0] for twin in others])
        )
        for image, others in twins_of.items()
    }
    shared = set()
    for first, second in set(graph.pairs()).difference(twins):
        matches = graph.matches[first][second]
        needed = max(SHARED_MATCHES, SHARED_SHARE * len(matches))
        there = [
            (graph.photos[image], matches[around[image][matches[:, side]], side])
            for side, image in enumerate((first, second))
            if image in around
        ]
        if all(len(some) >= needed and photo.area(some) >= SHARED_AREA for photo, some in there):
            shared.add((first, second))
    return shared


class _Steps:
    """How many steps lie between photos along pairs."""

    def __init__(self, pairs: Iterable[tuple[int, int]]) -> None:
        self._neighbours: dict[int, set[int]] = {}
        self._from: dict[int, dict[int, int]] = {}
        for first, second in pairs:
            self._neighbours.setdefault(first, set()).add(second)
            self._neighbours.setdefault(second, set()).add(first)

    def between(self, first: int, second: int) -> float:
        """Number of steps; infinite if more than `MAX_STEPS`."""
        if first not in self._from:
            reached, queue = {first: 0}, deque([first])
            while queue:
                image = queue.popleft()
                if reached[image] == MAX_STEPS:
                    continue
                for other in sorted(self._neighbours.get(image, ())):
                    if other not in reached:
                        reached[other] = reached[image] + 1
                        queue.append(other)
            self._from[first] = reached
        return self._from[first].get(second, np.inf)


def _why_elsewhere(
    graph: VerifiedGraph,
    twins_of: Mapping[int, Sequence[int]],
    steps: _Steps,
    first: int,
    second: int,
) -> str:
    """Say why a photo stands elsewhere than another one: near the twin of it; "" if it does not."""
    for image, other in ((first, second), (second, first)):
        for twin in twins_of.get(image, ()):
            if steps.between(other, twin) < steps.between(other, image):
                names = [graph.photos[i].name for i in (other, twin, image)]
                return "{} shares the surroundings of {}, which only looks like {}".format(*names)
    return ""


def _why_not_closed(
    graph: VerifiedGraph, twins: Collection[tuple[int, int]], first: int, second: int
) -> str:
    """Say which photos contradict the rotation of a pair, by much stronger pairs with both."""
    if graph.count(first, second) < ROTATION_MATCHES:
        return ""
    needed = MUCH_STRONGER * graph.count(first, second)
    against = []
    for third in sorted(set(graph.matches[first]).intersection(graph.matches[second])):
        if min(graph.count(first, third), graph.count(third, second)) < needed:
            continue
        if {(min(i, third), max(i, third)) for i in (first, second)}.intersection(twins):
            continue
        direct = graph.rotation(first, second)
        one, two = graph.rotation(first, third), graph.rotation(third, second)
        if direct is None or one is None or two is None:
            continue
        angle = np.degrees((two * one * direct.inverse()).angle())
        if angle < CLOSED:
            return ""
        if angle > NOT_CLOSED:
            against.append(graph.photos[third].name)
    if len(against) < MIN_TRIPLETS:
        return ""
    return f"its rotation contradicts those by way of {listed(against)}"


def drop_pairs(database_path: Path, pairs: Iterable[SuspiciousPair]) -> None:
    """Take the verified matches of pairs out of a database; their matches stay."""
    with (
        pycolmap.Database.open(database_path) as database,
        pycolmap.DatabaseTransaction(database),
    ):
        image_ids = {image.name: image.image_id for image in database.read_all_images()}
        for pair in pairs:
            database.delete_two_view_geometry(*(image_ids[name] for name in pair.names))


def describe(pairs: Sequence[SuspiciousPair], *, are_dropped: bool) -> dict[str, str]:
    """A line for each pair, the strongest first; the last one counts those that are not shown."""
    ordered = sorted(pairs, key=lambda pair: (-pair.num_inliers, pair.names))
    what = "dropped" if are_dropped else "kept"
    lines = {
        " and ".join(pair.names): f"{what}, {pair.num_inliers} verified matches: {pair.reason}"
        for pair in ordered[:MAX_LINES]
    }
    if len(ordered) > MAX_LINES:
        lines["others"] = f"{what}, {len(ordered) - MAX_LINES} more pairs"
    return lines
