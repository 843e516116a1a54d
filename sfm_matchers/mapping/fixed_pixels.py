"""What stands at the same pixels of all photos: a date, a logo, dirt on the lens, a dashboard, the
background of a turntable.

It matches in every pair, without any motion, and such matches agree with every epipolar geometry
along whose lines nothing moves. They deny that the camera walked, and where they are many the
mapper finds wrong poses, or none. Two photos without a step between them match likewise: so only
pairs whose other matches move, and agree with an epipolar geometry, tell what is fixed, and only
where they join most photos of a size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pycolmap
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]
BoolArray = NDArray[np.bool_]
ImagePair = tuple[int, int]

# Pixels between the two keypoints of a match. What moves has as many matches in a ring around no
# motion as within it, or more; what is fixed has its matches within a half.
FIXED, MOVES = 2.0, 6.0
MIN_FIXED = 15  # matches of a pair: as many as make a verified one
MIN_MOVING = 30  # that agree with an epipolar geometry
MIN_AGREEING = 0.5  # of the moving ones
MAX_ERROR = 4.0  # pixels from epipolar lines
MAX_LOOKED_AT = 100  # matches of a pair
# Photos that pairs with something fixed join, one by one: of all of a size, and at least.
MIN_SHARE_OF_PHOTOS, MIN_PHOTOS = 0.5, 3
CELLS = 50  # along the longer side
# Pairs with fixed matches in a cell: of all that have any, and at least. Single ones are chance.
MIN_SHARE_OF_PAIRS, MIN_PAIRS = 0.1, 3


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
        ids: of the images.
        fixed: pair -> where its fixed matches are (F, 2), of pairs that have any.
        telling: pairs of these in which much is fixed while the rest moves.
    """

    size: tuple[int, int]
    ids: list[int]
    fixed: dict[ImagePair, FloatArray]
    telling: list[ImagePair]


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
        photos = of_size.setdefault(size, _Photos(size, [], {}, []))
        photos.ids.append(image.image_id)
        of_photo[image.image_id] = photos
    keypoints = {i: np.asarray(database.read_keypoints(i))[:, :2] for i in of_photo}
    pair_ids, all_matches = database.read_all_matches()
    for pair_id, matches in zip(pair_ids, all_matches, strict=True):
        ids = pycolmap.pair_id_to_image_pair(pair_id)
        photos = of_photo[ids[0]]
        if photos is not of_photo[ids[1]]:
            continue
        pixels0, pixels1 = (keypoints[i][matches[:, side]] for side, i in enumerate(ids))
        motion = _motion(pixels0, pixels1)
        if (motion < FIXED).any():
            photos.fixed[ids] = pixels0[motion < FIXED]
            if _tells(pixels0, pixels1, motion):
                photos.telling.append(ids)
    return list(of_size.values())


def _motion(pixels0: FloatArray, pixels1: FloatArray) -> FloatArray:
    return np.asarray(np.linalg.norm(pixels1 - pixels0, axis=1))


def _tells(pixels0: FloatArray, pixels1: FloatArray, motion: FloatArray) -> bool:
    """Whether of a pair's matches (M, 2) many are fixed, while the rest moves."""
    num_fixed, moves = int((motion < FIXED).sum()), np.flatnonzero(motion > MOVES)
    num_between = len(motion) - num_fixed - len(moves)
    if num_fixed < max(MIN_FIXED, num_between) or len(moves) < MIN_MOVING:
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
    joined = largest_group(photos.telling)
    if len(joined) < max(MIN_PHOTOS, MIN_SHARE_OF_PHOTOS * len(photos.ids)):
        return None
    telling = [photos.fixed[ids] for ids in photos.telling if joined.issuperset(ids)]
    cells, num_matches = _fixed_cells(telling, photos.size), 0
    for ids, pixels in photos.fixed.items():
        if not cells[_cells_of(pixels, photos.size)].any():
            continue
        matches = database.read_matches(*ids)
        pixels0, pixels1 = (
            np.asarray(database.read_keypoints(i))[matches[:, side], :2]
            for side, i in enumerate(ids)
        )
        is_wrong = (_motion(pixels0, pixels1) < FIXED) & cells[_cells_of(pixels0, photos.size)]
        num_matches += int(is_wrong.sum())
        database.delete_matches(*ids)
        if not is_wrong.all():
            database.write_matches(*ids, matches[~is_wrong])
    return FixedPixels(len(joined), float(cells.mean()), num_matches) if num_matches else None


def _fixed_cells(telling: Sequence[FloatArray], size: tuple[int, int]) -> BoolArray:
    """Which cells have fixed matches in several of some pairs, or lie beside such."""
    columns, rows = _cells_of(np.array([size]), size)
    counts = np.zeros((1 + columns[0], 1 + rows[0]), np.int64)
    for pixels in telling:
        has_any = np.zeros(counts.shape, bool)
        has_any[_cells_of(pixels, size)] = True
        counts += has_any
    several = counts >= max(MIN_PAIRS, MIN_SHARE_OF_PAIRS * len(telling))
    return cv2.dilate(several.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0


def _cells_of(
    pixels: FloatArray, size: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Columns and rows (N,) of the cells in which pixels (N, 2) of photos of a size are."""
    inside = np.clip(pixels, 0, np.subtract(size, 1))
    columns, rows = (inside * CELLS / max(size)).astype(np.int64).T
    return columns, rows


def largest_group(pairs: Iterable[ImagePair]) -> set[int]:
    """Return most photos that pairs join, one by one.

    >>> sorted(largest_group([(1, 2), (3, 4), (4, 5)]))
    [3, 4, 5]
    """
    group_of: dict[int, set[int]] = {}
    for first, second in pairs:
        mine = group_of.setdefault(first, {first})
        others = group_of.setdefault(second, {second})
        if mine is others:
            continue
        mine |= others
        group_of.update(dict.fromkeys(others, mine))
    return max(group_of.values(), key=len, default=set())
