"""Poses of query photos from depth scans, as in InLoc: no model, a 3D point for every pixel.

Each photo of the data base is cut out of a scan. Beside it lies a ``.mat`` file with the 3D point
of each of its pixels, in the frame of the scan, and elsewhere a text file with the transformation
from that frame to the building's.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import h5py
import numpy as np
import pycolmap

from sfm_matchers.choices import SCAN_MAX_ERROR
from sfm_matchers.errors import InputError
from sfm_matchers.files.hdf5 import Hdf5File, open_h5
from sfm_matchers.files.pair_lists import Pair
from sfm_matchers.localization.in_model import estimate_pose, group_by_query
from sfm_matchers.localization.mat_files import read_mat
from sfm_matchers.localization.poses import (
    LocalizationOptions,
    LocalizedQuery,
    Query,
    failed_query,
    log_outcome,
)
from sfm_matchers.machine.progress import progress

logger = logging.getLogger(__name__)

POINTS_VARIABLE = "XYZcut"
TRANSFORMATION_LINES = slice(7, 11)  # of an alignment file: the 4 x 4 matrix
# The queries were taken with one phone: 28 mm where 36 mm film is 4032 pixels wide.
FOCAL_LENGTH_PER_SIDE = 28 / 36
CACHED_SCANS = 4  # some tens of megabytes each


@dataclass(frozen=True)
class ScanOptions:
    """How queries are localized against scans.

    Attributes:
        localization: how poses are estimated.
        skip_matches: a photo of the data base with fewer matches is left out.
    """

    localization: LocalizationOptions = field(
        default_factory=lambda: LocalizationOptions(
            max_error=SCAN_MAX_ERROR, check_intrinsics=False
        )
    )
    skip_matches: int = 0


def localize_in_scans(
    dataset: Path,
    queries: Iterable[Query],
    pairs: Iterable[Pair],
    feature_path: Path,
    match_path: Path,
    options: ScanOptions | None = None,
) -> Iterator[LocalizedQuery]:
    """Localize queries one after the other.

    Whatever is wrong with one query, pair or scan is said, and the rest goes on. There is no pose
    that could stand in: a query is localized, of low confidence, or failed.

    Args:
        dataset: the folder that holds ``database/cutouts`` and ``database/alignments``; names of
            images are relative to it.
        queries: photos with intrinsics.
        pairs: (query, photo of the data base), best first.
        feature_path: keypoints of both.
        match_path: matches, in either direction.
        options: how poses are estimated.
    """
    options = options or ScanOptions()
    retrieved = group_by_query(pairs)
    scans = _Scans(dataset)
    with open_h5(feature_path) as features, open_h5(match_path) as matches:
        for query in progress(list(queries), title="Localizing", unit="photo"):
            names = retrieved.get(query.name, [])
            try:
                result = _localize(query, names, scans, features, matches, options)
            except InputError as error:
                result = failed_query(query, str(error), names, None)
            log_outcome(result)
            yield result


def _localize(
    query: Query,
    names: list[str],
    scans: _Scans,
    features: Hdf5File,
    matches: Hdf5File,
    options: ScanOptions,
) -> LocalizedQuery:
    if not names:
        return failed_query(query, "no photo of the data base was retrieved for it", names, None)
    size = (query.camera.width, query.camera.height)
    keypoints = features.keypoints(query.name, size)
    all_keypoints, all_points = [np.zeros((0, 2), np.float32)], [np.zeros((0, 3))]
    used, faults = [], []
    for name in names:
        try:
            map_keypoints = features.keypoints(name)
            counts = (len(keypoints), len(map_keypoints))
            pairs, _ = matches.matches(query.name, name, counts)
            if len(pairs) < max(1, options.skip_matches):
                continue
            points, valid = scans.points(name, map_keypoints[pairs[:, 1]])
        except InputError as error:
            logger.warning("%s: %s", query.name, error)
            faults.append(str(error))
            continue
        all_keypoints.append(keypoints[pairs[valid, 0]])
        all_points.append(points[valid])
        used.append(name)
    points = np.concatenate(all_points)
    found = estimate_pose(
        query,
        np.concatenate(all_keypoints) + np.float32(0.5),
        points,
        len(points),
        options.localization,
    )
    if found.cam_from_world is None:
        reason = "; ".join([found.reason, *faults[:1]])
        return failed_query(query, reason, names, None, len(points))
    return replace(found, database_names=used)


class _Scans:
    """The scans of a data set, read when they are needed."""

    def __init__(self, dataset: Path) -> None:
        self.dataset = dataset
        self._read = functools.lru_cache(maxsize=CACHED_SCANS)(read_scan)
        self._transformation = functools.lru_cache(maxsize=None)(read_transformation)

    def points(self, name: str, keypoints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """3D points (N, 3) in the frame of the building, and where they are known (N,)."""
        points, valid = interpolate_scan(self._read(self.dataset / f"{name}.mat"), keypoints)
        transformation = self._transformation(transformation_path(self.dataset, name))
        return points @ transformation[:3, :3].T + transformation[:3, 3], valid


def transformation_path(dataset: Path, name: str) -> Path:
    """Where the transformation of the scan of a photo of the data base lies.

    ``.../cutouts/DUC1/024/DUC_cutout_024_0_0.jpg`` is of floor DUC1, scan 024, building DUC.

    Raises:
        InputError: the name is not of this form.
    """
    parts = name.split("/")
    if len(parts) < 3:
        raise InputError(f"{name}: expected .../<floor>/<scan>/<building>_cutout_... as its name")
    floor, scan, building = parts[-3], parts[-2], parts[-1][:3]
    folder = dataset / "database" / "alignments" / floor / "transformations"
    return folder / f"{building}_trans_{scan}.txt"


def read_transformation(path: Path) -> np.ndarray:
    """Read the matrix (4, 4) of an alignment file: its lines 8 to 11.

    Raises:
        InputError: no such file, or no such matrix in it.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[TRANSFORMATION_LINES]
    try:
        matrix = np.array([line.split() for line in lines], dtype=np.float64)
    except ValueError:
        matrix = np.zeros(0)
    if matrix.shape != (4, 4):
        raise InputError(f"{path}: lines 8 to 11 are not a matrix of 4 x 4 numbers")
    return matrix


def read_scan(path: Path) -> np.ndarray:
    """Read the 3D points (H, W, 3) float64 of a ``.mat`` file, version 5 or 7.3; NaN where none.

    Raises:
        InputError: no such file, or not such content.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing")
    is_new = h5py.is_hdf5(path)
    points = _read_new_mat(path) if is_new else read_mat(path, POINTS_VARIABLE)
    if points is None:
        raise InputError(f"{path} holds no variable {POINTS_VARIABLE}")
    is_real = points.dtype.kind in "iuf"
    if points.ndim != 3 or points.shape[2] != 3 or not points.size or not is_real:
        raise InputError(f"{path}: {POINTS_VARIABLE} is not an array of H x W x 3 numbers")
    return points.astype(np.float64)


def _read_new_mat(path: Path) -> np.ndarray | None:
    with open_h5(path) as file:
        points = file.numbers("", POINTS_VARIABLE)
    return None if points is None else points.T  # MATLAB stores columns first


def interpolate_scan(scan: np.ndarray, keypoints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Look up 3D points at keypoints: bilinear, and the nearest pixel where that has a hole.

    A keypoint outside the image takes the value at the border.

    Args:
        scan: (H, W, 3), not finite where nothing was measured.
        keypoints: (N, 2) x and y, (0, 0) being the centre of the top-left pixel.

    Returns:
        Points (N, 3), and (N,) bool where they are known.
    """
    height, width = scan.shape[:2]
    is_somewhere = np.isfinite(keypoints).all(1)
    x, y = np.where(is_somewhere[:, None], keypoints, 0).astype(np.float64).T
    x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    share_x, share_y = (x - left)[:, None], (y - top)[:, None]
    with np.errstate(invalid="ignore"):  # infinity counts as a hole too
        upper = (1 - share_x) * scan[top, left] + share_x * scan[top, right]
        lower = (1 - share_x) * scan[bottom, left] + share_x * scan[bottom, right]
        points = (1 - share_y) * upper + share_y * lower
    nearest = scan[np.rint(y).astype(int), np.rint(x).astype(int)]
    points = np.where(np.isfinite(points).all(1, keepdims=True), points, nearest)
    return points, np.isfinite(points).all(1) & is_somewhere


def query_camera(size: tuple[int, int]) -> pycolmap.Camera:
    """Return the camera of a query of InLoc of (width, height) pixels."""
    focal_length = FOCAL_LENGTH_PER_SIDE * max(size)
    return pycolmap.Camera(
        model="SIMPLE_PINHOLE",
        width=size[0],
        height=size[1],
        params=[focal_length, size[0] / 2, size[1] / 2],
    )
