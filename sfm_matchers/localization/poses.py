"""Queries, and what became of them."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from sfm_matchers.errors import InputError
from sfm_matchers.files.names import check_name
from sfm_matchers.files.text import read_text, write_text
from sfm_matchers.mapping.diagnosis import fault_of_photo
from sfm_matchers.photos.intrinsics import Intrinsics

logger = logging.getLogger(__name__)


class Status(str, Enum):
    """What became of a query."""

    LOCALIZED = "localized"
    LOW_CONFIDENCE = "low confidence"  # a pose that few matches or a small share of them support
    FALLBACK = "fallback"  # no pose; that of the most similar photo of the map stands in for it
    FAILED = "failed"  # no pose, and no photo of the map that could stand in


@dataclass(frozen=True)
class Query:
    """A photo to localize.

    Attributes:
        name: of the photo.
        camera: with intrinsics in COLMAP's convention.
        focal_length_is_guess: the camera's focal length is only where to start from: it is
            estimated with the pose. A wrong one gives a wrong pose that many matches support.
        source: whence the intrinsics come, in the user's words.
        alternatives: intrinsics to compare with `camera`, which is preferred.
        may_change: intrinsics that the matches contradict are replaced by an estimate. Those that
            are known stay, and the pose is of low confidence.
        is_expected: the user expects one of these intrinsics: a suspicion against them is said even
            where it is too weak to replace them.
    """

    name: str
    camera: pycolmap.Camera
    focal_length_is_guess: bool = False
    source: str = "as given"
    alternatives: Sequence[Intrinsics] = ()
    may_change: bool = False
    is_expected: bool = False


@dataclass(frozen=True)
class LocalizationOptions:
    """How poses are estimated.

    Attributes:
        max_error: largest reprojection error of an inlier, in pixels, above 0.
        confident_inliers: a pose with fewer inliers is of low confidence.
        confident_ratio: so is one that a smaller share of the matches supports.
        covisibility_clustering: estimate a pose from each group of retrieved photos that share 3D
            points, and keep the one with most inliers.
        estimate_focal_length: refine the focal length of each query with its pose.
        check_intrinsics: hold them, and the errors of inliers, against the matches. Points that are
            inexact together, as those of scans are, look like wrong intrinsics.
    """

    max_error: float = 12.0
    confident_inliers: int = 20
    confident_ratio: float = 0.1
    covisibility_clustering: bool = False
    estimate_focal_length: bool = False
    check_intrinsics: bool = True

    def __post_init__(self) -> None:
        if not self.max_error > 0:
            raise InputError(f"the largest error of an inlier must be positive: {self.max_error}")

    def is_confident(self, inliers: np.ndarray) -> bool:
        """Whether inliers (N,) bool are so many, and such a share, that a pose may be believed."""
        return not self.weakness(inliers)

    def weakness(self, inliers: np.ndarray) -> str:
        """Why they are not, or ""."""
        number = int(inliers.sum())
        if number < self.confident_inliers:
            return f"{number} matches fit its pose, at least {self.confident_inliers} are asked for"
        if number < self.confident_ratio * len(inliers):
            return (
                f"{number} of its {len(inliers)} matches fit its pose, at least "
                f"{self.confident_ratio:.0%} are asked for"
            )
        return ""


@dataclass
class LocalizedQuery:
    """A query and what became of it.

    Attributes:
        name: of the photo.
        status: see `Status`.
        camera: as given, or with the estimated focal length.
        cam_from_world: the pose; None where it failed. Of status `FALLBACK`, that of
            `database_names[0]`.
        reason: why there is no pose of its own, or what speaks against it, or "".
        database_names: photos of the map that it was matched with, in the order of retrieval.
        num_matches: 2D-3D matches, several per keypoint included.
        keypoints: (N, 2) of the query, in COLMAP's convention, one row per 2D-3D match.
        points: (N, 3) their 3D points in the world.
        point_ids: (N,) ids of these in the model; empty where there is no model.
        inliers: (N,) bool.
        rival: (N,) bool where nothing else speaks against the pose: these fit one elsewhere; or
            None.
        covariance: (6, 6) of the pose for errors of a pixel: rotation in radians and centre, along
            the camera's axes; or None.
        intrinsics: whence the camera's come, and why.
        contradiction: which others the matches contradict, so that these were estimated; or "".
    """

    name: str
    status: Status
    camera: pycolmap.Camera
    cam_from_world: pycolmap.Rigid3d | None = None
    reason: str = ""
    database_names: list[str] = field(default_factory=list)
    num_matches: int = 0
    keypoints: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))
    point_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    inliers: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    rival: np.ndarray | None = None
    covariance: np.ndarray | None = None
    intrinsics: str = ""
    contradiction: str = ""

    def __repr__(self) -> str:
        """Return what became of it, in one line."""
        why = f": {self.reason}" if self.reason else ""
        counts = f"{self.num_inliers} of {len(self.inliers)} points agree"
        return f"LocalizedQuery({self.name!r}, {self.status.value}{why}, {counts})"

    @property
    def num_inliers(self) -> int:
        """2D-3D matches that support the pose."""
        return int(self.inliers.sum())

    @property
    def inlier_ratio(self) -> float:
        """Their share."""
        return self.num_inliers / max(1, len(self.inliers))

    def without_matches(self) -> LocalizedQuery:
        """The same without the 2D-3D matches, of which only the counts stay."""
        return replace(
            self,
            keypoints=np.zeros((0, 2)),
            points=np.zeros((0, 3)),
            point_ids=np.zeros(0, dtype=np.int64),
            rival=None,
        )

    def to_json(self) -> dict[str, Any]:
        """What a log keeps of it."""
        pose = None
        if self.cam_from_world is not None:
            pose = [*_quaternion(self.cam_from_world), *self.cam_from_world.translation.tolist()]
        return {
            "name": self.name,
            "status": self.status.value,
            "reason": self.reason,
            "qw_qx_qy_qz_tx_ty_tz": pose,
            "num_matches": self.num_matches,
            "num_inliers": self.num_inliers,
            "inlier_ratio": round(self.inlier_ratio, 4),
            "covariance": None if self.covariance is None else self.covariance.tolist(),
            "camera": {
                "model": self.camera.model.name,
                "width": self.camera.width,
                "height": self.camera.height,
                "params": self.camera.params.tolist(),
            },
            "intrinsics": self.intrinsics,
            "database_names": self.database_names,
        }


def failed_query(
    query: Query,
    reason: str,
    names: list[str],
    pose_of: Callable[[str], pycolmap.Rigid3d] | None,
    num_matches: int = 0,
) -> LocalizedQuery:
    """A query without a pose of its own: fallback where a photo of the map can stand in.

    Args:
        query: its name and camera.
        reason: why it has none.
        names: photos of the map, the most similar first.
        pose_of: gives the pose of a photo of the map by name, or is None where there is none.
        num_matches: to note.
    """
    pose = pose_of(names[0]) if names and pose_of is not None else None
    return LocalizedQuery(
        query.name,
        Status.FAILED if pose is None else Status.FALLBACK,
        query.camera,
        pose,
        reason,
        names,
        num_matches,
    )


def name_fault(result: LocalizedQuery, path: Path) -> None:
    """Add to the reason of a query without a pose of its own what is wrong with its photo."""
    if result.status not in (Status.FAILED, Status.FALLBACK):
        return
    if fault := fault_of_photo(path.parent, path.name):
        result.reason = f"{result.reason}; the photo is {fault}" if result.reason else fault


def log_outcome(result: LocalizedQuery) -> None:
    """Log why a query is not localized, or what speaks against its pose.

    For who hands results out: a later estimate or look at the map may overrule an earlier one.
    """
    if result.contradiction:
        logger.warning("%s: %s; they are estimated", result.name, result.contradiction)
    if result.status is Status.LOW_CONFIDENCE and result.reason:
        logger.warning("%s: low confidence: %s", result.name, result.reason)
    elif result.status in (Status.FALLBACK, Status.FAILED):
        logger.warning("%s: not localized: %s", result.name, result.reason)


def lines_of_words(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and words of each line that is neither blank nor a comment."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line.split()


def write_results(
    path: Path,
    results: Sequence[LocalizedQuery],
    *,
    prepend_camera_name: bool = False,
    submission: bool = True,
) -> Path:
    """Write a file of poses, and beside it a log with the status of each query.

    It has a line ``name qw qx qy qz tx ty tz`` (world to camera) for each query with a pose; the
    log, ``<stem>_log.jsonl``, has all queries and says which pose is which.

    Args:
        path: of the poses.
        results: of all queries.
        prepend_camera_name: write ``folder/name`` instead of ``name``, as some benchmarks ask.
        submission: to a benchmark: fallback poses too, and names without their folders. Otherwise
            whole names, and no pose that the photo does not have itself.

    Returns:
        The path of the log.
    """
    lines = []
    names: Counter[str] = Counter()
    for result in results:
        if result.cam_from_world is None:
            continue
        if result.status is Status.FALLBACK and not submission:
            continue
        parts = result.name.split("/")
        name = "/".join(parts[-2:]) if prepend_camera_name else parts[-1]
        name = name if submission else result.name
        names[name] += 1
        numbers = [*_quaternion(result.cam_from_world), *result.cam_from_world.translation]
        lines.append(" ".join([name, *(repr(float(number)) for number in numbers)]))
    for name, count in names.items():
        if count > 1:
            logger.warning("%s: %d photos are called %s there", path, count, name)
    write_text(path, "\n".join(lines) + "\n" if lines else "")
    log = log_path(path)
    write_text(log, "".join(json.dumps(result.to_json()) + "\n" for result in results))
    return log


def log_path(path: Path) -> Path:
    """Return where the log of a submission file lies.

    >>> log_path(Path("poses.txt")).name
    'poses_log.jsonl'
    """
    return path.with_name(path.stem + "_log.jsonl")


def read_poses(path: Path) -> dict[str, pycolmap.Rigid3d]:
    """Read a submission file: name -> cam_from_world.

    Raises:
        InputError: no such file, or a wrong line, which is named.
    """
    if not path.is_file():
        raise InputError(f"no file {path}")
    poses = {}
    for number, words in lines_of_words(path):
        try:
            values = np.array([float(word) for word in words[-7:]])
        except ValueError:
            values = np.zeros(0)
        if len(words) < 8 or not np.isfinite(values).all() or not values[:4].any():
            raise InputError(f"{path}, line {number}: expected 'name qw qx qy qz tx ty tz'")
        rotation = pycolmap.Rotation3d(np.roll(values[:4], -1))
        rotation.normalize()  # the file's digits are rounded
        name = check_name(" ".join(words[:-7]), f"{path}, line {number}")
        poses[name] = pycolmap.Rigid3d(rotation, values[4:])
    return poses


def _quaternion(pose: pycolmap.Rigid3d) -> list[float]:
    """qw qx qy qz."""
    x, y, z, w = pose.rotation.quat.tolist()
    return [w, x, y, z]


def count_by_status(results: Iterable[LocalizedQuery]) -> dict[str, int]:
    """Number of queries of each status, those without any included."""
    counts = Counter(result.status for result in results)
    return {status.value: counts[status] for status in Status}


MAX_LISTED = 3  # queries of one source of intrinsics that are named


def intrinsics_by_source(results: Iterable[LocalizedQuery]) -> list[str]:
    """Whence the intrinsics of queries come, a line for each source; why, of a single query.

    Those of queries without a choice, as benchmarks give them, are not listed.
    """
    groups: dict[str, list[LocalizedQuery]] = {}
    for result in results:
        source = result.intrinsics.partition(" (")[0]
        if source and source != Query.source:
            groups.setdefault(source, []).append(result)
    lines = []
    for source, group in sorted(groups.items(), key=lambda item: -len(item[1])):
        names = ", ".join(result.name for result in group[:MAX_LISTED])
        names += ", ..." if len(group) > MAX_LISTED else ""
        text = source if len(group) > 1 else group[0].intrinsics
        lines.append(f"{len(group)} of {text}: {names}")
    return lines
