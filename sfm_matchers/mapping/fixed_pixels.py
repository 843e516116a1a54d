"""What stands at the same pixels of all photos: a date, a logo, dirt on the lens, a dashboard, the
background of a turntable.

It matches in every pair, without any motion, and such matches agree with every epipolar geometry
along whose lines nothing moves. They deny that the camera walked, and where they are many the
mapper finds wrong poses, or none. Two photos without a step between them match likewise: so only
pairs whose other matches move, and agree with an epipolar geometry, tell what is fixed, and only
where they join most photos of a size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pycolmap
from numpy.typing import NDArray

from sfm_matchers.mapping.groups import connected_groups

FloatArray = NDArray[np.floating]
BoolArray = NDArray[np.bool_]
ImagePair = tuple[int, int]

# Pixels between the two keypoints of a match. What moves has as many matches in a ring around no
# motion as within it, or more; what is fixed has its matches within a half.
FIXED, MOVES = 2.0, 6.0
# Of what is fixed, within half as far: 0.98 and more where SIFT finds it, 0.5 to 0.75 of what is so
# far away that it hardly moves.
MIN_SHARPNESS = 0.85
MIN_FIXED = 15  # matches of a pair: as many as make a verified one
MIN_MOVING = 30  # that agree with an epipolar geometry
MIN_AGREEING = 0.5  # of the moving ones
MAX_ERROR = 4.0  # pixels from epipolar lines
MAX_LOOKED_AT = 100  # matches of a pair
# Photos that pairs with something fixed join, one by one: of all of a size, and at least.
MIN_SHARE_OF_PHOTOS, MIN_PHOTOS = 0.5, 3
# Of their pairs that match: what is far away rests between two photos, one after the other, of a
# camera that goes straight on, and moves between others.
MIN_SHARE_OF_TELLING = 0.75
CELLS = 50  # along the longer side
# Pairs with fixed matches in a cell: of all that tell, and at least. Single ones are chance.
MIN_SHARE_OF_PAIRS, MIN_PAIRS = 0.1, 3
MIN_SHARE_OF_MATCHES = 0.5  # in a cell: what is fixed hides what moves


@dataclass(frozen=True)
class FixedPixels:
    """What stands at the same pixels of photos.

    Attributes:
        num_photos: of which that was seen.
        area: the share of a photo, at most.
        num_matches: left out.
    """

    num_photos: int
    area: float
    num_matches: int

    def summary(self) -> str:
        """Return one line for a person."""
        return (
            f"{self.num_matches:,} matches left out, as they are at the same pixels of "
            f"{self.num_photos} photos, on {100 * self.area:.0f} % of each, while the rest moves: "
            "a logo, a dashboard, a background that does not turn with a turntable? A mask "
            "(--mask_dir) leaves it out before matching"
        )


@dataclass
class _Photos:
    """The photos of one size.

    Attributes:
        size: width and height.
        keypoints: (K, 2) pixels, by the ids of the images.
        fixed: pairs that have a fixed match.
        telling: pairs of these in which much is fixed while the rest moves.
        denying: pairs that match, and in which little is fixed.
        counts: by cell, columns first, of telling pairs: (3, C, R) pairs with fixed matches there,
            fixed matches, moving matches.
    """

    size: tuple[int, int]
    keypoints: dict[int, FloatArray] = field(default_factory=dict)
    fixed: list[ImagePair] = field(default_factory=list)
    telling: list[ImagePair] = field(default_factory=list)
    denying: list[ImagePair] = field(default_factory=list)
    counts: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        """Begin to count."""
        (columns,), (rows,) = self.cells_of(np.array([self.size]))
        self.counts = np.zeros((3, 1 + columns, 1 + rows), np.int64)

    def matched(
        self, ids: ImagePair, matches: NDArray[np.integer]
    ) -> tuple[FloatArray, FloatArray]:
        """Pixels (M, 2) in both photos of the matches (M, 2) of a pair."""
        first, second = (self.keypoints[i][matches[:, side]] for side, i in enumerate(ids))
        return first, second

    def add(self, ids: ImagePair, matches: NDArray[np.integer]) -> None:
        """Look at the matches (M, 2) of a pair."""
        pixels0, pixels1 = self.matched(ids, matches)
        motion = _motion(pixels0, pixels1)
        if (motion < FIXED).any():
            self.fixed.append(ids)
        if not _has_peak(motion):
            if (motion > MOVES).sum() >= MIN_MOVING:
                self.denying.append(ids)
        elif _moves(pixels0, pixels1, motion):
            self.telling.append(ids)
            counts = np.zeros(self.counts.shape, np.int64)
            np.add.at(counts[1], self.cells_of(pixels0[motion < FIXED]), 1)
            np.add.at(counts[2], self.cells_of(pixels0[motion > MOVES]), 1)
            counts[0] = counts[1] > 0
            self.counts += counts

    def fixed_cells(self) -> BoolArray:
        """Which cells (C, R) have fixed matches in several pairs, or lie beside such."""
        num_pairs, num_fixed, num_moving = self.counts
        is_fixed = num_pairs >= max(MIN_PAIRS, MIN_SHARE_OF_PAIRS * len(self.telling))
        is_fixed &= num_fixed >= MIN_SHARE_OF_MATCHES * (num_fixed + num_moving)
        return cv2.dilate(is_fixed.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0

    def cells_of(self, pixels: FloatArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Columns and rows (N,) of the cells in which pixels (N, 2) are."""
        inside = np.clip(pixels, 0, np.subtract(self.size, 1))
        columns, rows = (inside * CELLS / max(self.size)).astype(np.int64).T
        return columns, rows


def leave_out_fixed_pixels(database_path: Path) -> FixedPixels | None:
    """Take matches between the same pixels out of a database, where something is fixed there.

    Args:
        database_path: with matches that are not verified yet.

    Returns:
        What was found; None if nothing.
    """
    with (
        pycolmap.Database.open(database_path) as database,
        pycolmap.DatabaseTransaction(database),
    ):
        found = [one for photos in _look(database) if (one := _leave_out(database, photos))]
    if not found:
        return None
    return FixedPixels(
        sum(one.num_photos for one in found),
        max(one.area for one in found),
        sum(one.num_matches for one in found),
    )


def _look(database: pycolmap.Database) -> list[_Photos]:
    """Look at all pairs, those of photos of a size together."""
    cameras = {camera.camera_id: camera for camera in database.read_all_cameras()}
    of_size: dict[tuple[int, int], _Photos] = {}
    of_photo: dict[int, _Photos] = {}
    for image in database.read_all_images():
        size = cameras[image.camera_id].width, cameras[image.camera_id].height
        photos = of_size.setdefault(size, _Photos(size))
        photos.keypoints[image.image_id] = np.asarray(database.read_keypoints(image.image_id))[
            :, :2
        ]
        of_photo[image.image_id] = photos
    pair_ids, all_matches = database.read_all_matches()
    for pair_id, matches in zip(pair_ids, all_matches, strict=True):
        ids = pycolmap.pair_id_to_image_pair(pair_id)
        photos = of_photo[ids[0]]
        if photos is of_photo[ids[1]]:
            photos.add(ids, matches)
    return list(of_size.values())


def _motion(pixels0: FloatArray, pixels1: FloatArray) -> FloatArray:
    return np.asarray(np.linalg.norm(pixels1 - pixels0, axis=1))


def _has_peak(motion: FloatArray) -> bool:
    """Whether many of a pair's matches (M,) are fixed, and hardly any move a little."""
    num_fixed = int((motion < FIXED).sum())
    num_between = int((motion <= MOVES).sum()) - num_fixed
    if num_fixed < max(MIN_FIXED, num_between):
        return False
    return bool((motion < FIXED / 2).sum() >= MIN_SHARPNESS * num_fixed)


def _moves(pixels0: FloatArray, pixels1: FloatArray, motion: FloatArray) -> bool:
    """Whether enough of a pair's matches (M, 2) move, and agree with an epipolar geometry."""
    moves = np.flatnonzero(motion > MOVES)
    if len(moves) < MIN_MOVING:
        return False
    some = moves[np.linspace(0, len(moves) - 1, min(MAX_LOOKED_AT, len(moves))).astype(int)]
    options = pycolmap.RANSACOptions(random_seed=0, max_error=MAX_ERROR)
    found = pycolmap.estimate_fundamental_matrix(
        pixels0[some], pixels1[some], options, use_sampson_refinement=False
    )
    num_agreeing = found["num_inliers"] if found else 0
    return bool(num_agreeing >= max(MIN_MOVING, MIN_AGREEING * len(some)))


def _leave_out(database: pycolmap.Database, photos: _Photos) -> FixedPixels | None:
    """Take the fixed matches of photos of a size out of a database."""
    joined = max(connected_groups(photos.telling), key=len, default=set())
    if len(joined) < max(MIN_PHOTOS, MIN_SHARE_OF_PHOTOS * len(photos.keypoints)):
        return None
    num_denying = sum(joined.issuperset(ids) for ids in photos.denying)
    if len(photos.telling) < MIN_SHARE_OF_TELLING * (len(photos.telling) + num_denying):
        return None
    cells, num_matches = photos.fixed_cells(), 0
    for ids in photos.fixed:
        matches = database.read_matches(*ids)
        pixels0, pixels1 = photos.matched(ids, matches)
        is_wrong = (_motion(pixels0, pixels1) < FIXED) & cells[photos.cells_of(pixels0)]
        if not is_wrong.any():
            continue
        num_matches += int(is_wrong.sum())
        database.delete_matches(*ids)
        if not is_wrong.all():
            database.write_matches(*ids, matches[~is_wrong])
    return FixedPixels(len(joined), float(cells.mean()), num_matches) if num_matches else None
