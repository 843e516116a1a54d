"""hloc's HDF5 layout of features and matches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sfm_matchers.errors import InputError, one_line
from sfm_matchers.files.hdf5_items import dataset_names, find_item, read_dataset
from sfm_matchers.files.names import checked_names
from sfm_matchers.files.pair_lists import Pair, names_to_pair

UNKNOWN_SIDE = 1 << 17  # pixels; no photo has more
CROWD, PLACES_OF_CROWD = 16, 4  # so many keypoints do not share fewer places

COMPRESSED_FROM = 2048  # bytes; smaller arrays do not become smaller
Arrays = Mapping[str, np.ndarray]


@contextlib.contextmanager
def open_h5(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading.

    Raises:
        InputError: the file is missing or is not a readable HDF5 file.
    """
    if not Path(path).is_file():  # a pipe would never answer
        raise InputError(f"{path} {'is no file' if Path(path).exists() else 'does not exist'}")
    try:
        file = h5py.File(str(path), "r")
    except Exception as error:  # damage can make h5py fail in any way, here and below
        raise InputError(f"{path} is not readable HDF5 ({one_line(error)})") from error
    with file:
        yield file


@contextlib.contextmanager
def naming_damage(path: str | Path, name: str = "") -> Iterator[None]:
    """Turn what h5py raises inside the ``with`` block into an InputError that names the file."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        place = f" at /{name}" if name else ""
        raise InputError(f"{path} is damaged{place}: make it again ({one_line(error)})") from error


def list_groups(path: Path) -> list[str]:
    """Return the sorted names of all groups that hold datasets (images, or pair groups).

    Raises:
        InputError: the file is missing, damaged, or not HDF5, or a name cannot be that of a photo,
            or the file points at others.
    """
    with open_h5(path) as file, naming_damage(path):
        groups = {name.rpartition("/")[0] for name in dataset_names(file)}
    return sorted(checked_names(groups - {""}, path))


def holds(file: h5py.File, name: str) -> bool:
    """Return whether a file has a group; an InputError if it is damaged there, or has a link."""
    with naming_damage(file.filename, name):
        return find_item(file, name) is not None


def read_group(file: h5py.File, name: str) -> dict[str, np.ndarray]:
    """Return the datasets of one image or pair.

    Raises:
        InputError: the file has no such group, or is damaged there.
    """
    with naming_damage(file.filename, name):
        group = find_item(file, name)
        if not isinstance(group, h5py.Group):
            raise InputError(f"{file.filename} holds nothing for {name!r}")
        found = {key: read_dataset(file, f"{name}/{key}") for key in group}
        return {key: array for key, array in found.items() if array is not None}


def _check_numbers(file: h5py.File, name: str, key: str, array: np.ndarray) -> np.ndarray:
    if np.asarray(array).dtype.kind not in "biuf":
        raise InputError(f"{file.filename}: {key} of {name!r} are not numbers")
    return array


def _check_finite(file: h5py.File, name: str, key: str, array: np.ndarray) -> np.ndarray:
    if not np.isfinite(array).all():
        raise InputError(f"{file.filename}: {key} of {name!r} are not all finite")
    return array


def read_numbers(file: h5py.File, name: str, key: str) -> np.ndarray | None:
    """Return a dataset of numbers, or None if there is none.

    Raises:
        InputError: the dataset is damaged, or holds something else.
    """
    with naming_damage(file.filename, f"{name}/{key}"):
        array = read_dataset(file, f"{name}/{key}")
        return None if array is None else _check_numbers(file, name, key, array)


def read_finite_numbers(file: h5py.File, name: str, key: str) -> np.ndarray | None:
    """As `read_numbers`; InputError also for numbers that are not finite."""
    numbers = read_numbers(file, name, key)
    return None if numbers is None else _check_finite(file, name, key, numbers)


def _read_points(file: h5py.File, name: str, key: str) -> np.ndarray | None:
    """Return points (N, 2) float32, or None; the shape (0,) comes back as (0, 2)."""
    points = read_numbers(file, name, key)
    if points is None:
        return None
    if points.size and (points.ndim != 2 or points.shape[1] != 2):
        raise InputError(
            f"{file.filename}: {key} of {name!r} have the shape {points.shape}, expected (N, 2)"
        )
    return points.astype(np.float32).reshape(-1, 2)


def read_keypoints(file: h5py.File, name: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return the keypoints (N, 2) float32 of an image; hloc's shape (0,) comes back as (0, 2).

    Args:
        file: a feature file.
        name: of the image.
        size: its (width, height), where that is known; else what the file says counts.

    Raises:
        InputError: there are none, they are of another shape, cannot be those of the image, see
            `check_points`, or the file is damaged there.
    """
    keypoints = _read_points(file, name, "keypoints")
    if keypoints is None:
        raise InputError(f"{file.filename} holds no keypoints for image {name!r}")
    if size is None:
        stored = read_numbers(file, name, "image_size")
        if stored is not None and stored.shape == (2,) and (stored >= 1).all():
            size = (int(stored[0]), int(stored[1]))
    check_points(keypoints, size, f"{file.filename}: keypoints of {name!r}")
    return keypoints


def check_points(points: np.ndarray, size: tuple[int, int] | None, where: str) -> None:
    """Refuse points (N, 2) that cannot be those of a photo of `size` (width, height).

    Detectors may place them a little outside, and files may have width and height in either order:
    half of the longer side is allowed.

    Raises:
        InputError: some are not finite or far outside the photo, or nearly all are one point, on
            which geometry cannot be estimated; `where` says which they are.
    """
    if not np.isfinite(points).all():
        raise InputError(f"{where} are not all finite: extract them again")
    sides = np.array(size or (UNKNOWN_SIDE, UNKNOWN_SIDE))
    margin = 0.5 * sides.max()
    outside = ((points < -margin) | (points > sides + margin)).any(axis=1)
    if outside.any():
        x, y = points[np.flatnonzero(outside)[0]]
        photo = f"its {sides[0]} x {sides[1]} pixels" if size else "any photo"
        raise InputError(
            f"{where} lie far outside {photo}, such as ({x:g}, {y:g}): extract them from this photo"
        )
    places = np.ascontiguousarray(points, np.float32).view(np.int64)
    if len(points) >= CROWD and len(np.unique(places)) < PLACES_OF_CROWD:
        raise InputError(f"{where} are {len(points)}, nearly all one point: extract them again")


def read_features(file: h5py.File, name: str) -> dict[str, np.ndarray]:
    """Return all datasets of an image, those of the layout above checked.

    Raises:
        InputError: there are no keypoints or no descriptors, a dataset is of another shape or does
            not hold numbers, descriptors are not finite, or the file is damaged there.
    """
    arrays = read_group(file, name)
    arrays["keypoints"] = read_keypoints(file, name)
    if "descriptors" not in arrays:
        raise InputError(f"{file.filename} holds no descriptors for image {name!r}")
    count, dimension = len(arrays["keypoints"]), len(np.atleast_1d(arrays["descriptors"]))
    shapes = {"descriptors": (dimension, count), "image_size": (2,)}
    shapes |= dict.fromkeys(("scores", "keypoint_scores", "scales", "oris"), (count,))
    for key in arrays.keys() & shapes.keys():
        _check_numbers(file, name, key, arrays[key])
        if arrays[key].shape != shapes[key]:
            raise InputError(
                f"{file.filename}: {key} of {name!r} have the shape {arrays[key].shape}, "
                f"expected {shapes[key]} for its {count} keypoints"
            )
    _check_finite(file, name, "descriptors", arrays["descriptors"])
    return arrays


def find_pair(file: h5py.File, name0: str, name1: str) -> tuple[str, bool] | None:
    """Return (group, reversed) of a pair in hloc's look-up order, old names included, or None."""
    with naming_damage(file.filename):
        for separator in ("/", "_"):
            for first, second, is_reversed in ((name0, name1, False), (name1, name0, True)):
                group = names_to_pair(first, second, separator)
                if find_item(file, group) is not None:
                    return group, is_reversed
    return None


def read_matches(
    file: h5py.File, name0: str, name1: str, num_keypoints: tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the matches of a pair, stored in either direction.

    Args:
        file: a match file.
        name0: the first image.
        name1: the second.
        num_keypoints: how many keypoints the two have; matches of others are refused.

    Returns:
        Index pairs (M, 2) int64, column 0 for `name0`, and their scores (M,) float32 (ones where
        the file has none).

    Raises:
        InputError: the pair is not in the file or was never given ``matches0``, the file is
            damaged there, or a match is of a keypoint that does not exist.
    """
    group, is_reversed = find_pair(file, name0, name1) or ("", False)
    matches0 = read_numbers(file, group, "matches0") if group else None
    if matches0 is None:
        raise InputError(f"{file.filename} holds no matches for the pair {name0!r}, {name1!r}")
    if matches0.dtype.kind == "f":
        raise InputError(f"{file.filename}: matches0 of {group!r} are not whole numbers")
    matches0 = matches0.reshape(-1).astype(np.int64)
    scores0 = read_numbers(file, group, "matching_scores0")
    if scores0 is None:
        scores0 = np.ones(len(matches0))
    if scores0.size != len(matches0):
        raise InputError(
            f"{file.filename}: {group!r} has {len(matches0)} matches0, {scores0.size} scores"
        )
    index0 = np.flatnonzero(matches0 >= 0)
    matches = np.stack([index0, matches0[index0]], axis=1)
    scores = scores0.reshape(-1)[index0]
    matches = matches[:, ::-1] if is_reversed else matches
    if num_keypoints is not None and len(matches):
        for name, count, index in zip((name0, name1), num_keypoints, matches.max(0), strict=True):
            if index >= count:
                raise InputError(
                    f"{file.filename}: the matches of {name0!r}, {name1!r} refer to keypoint "
                    f"{index} of {name!r}, which has {count}: they are of other features"
                )
    return matches, scores.astype(np.float32)


def mean_layers_run(path: Path, pairs: Iterable[Pair]) -> float | None:
    """Return how many layers a matcher with early exit took for a pair; None for other matchers.

    Raises:
        InputError: the file is damaged.
    """
    layers: list[float] = []
    with open_h5(path) as file:
        for pair in pairs:
            found = find_pair(file, *pair)
            run = read_numbers(file, found[0], "layers_run") if found else None
            if run is None:  # none of the others has it either
                break
            layers.append(float(run))
    return sum(layers) / len(layers) if layers else None


def read_correspondences(
    file: h5py.File, name0: str, name1: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the raw detector-free matches of a pair, stored in either direction.

    Returns:
        Points (M, 2) float32 in `name0`, points (M, 2) float32 in `name1`, scores (M,) float32.

    Raises:
        InputError: the pair is not in the file, its group holds no correspondences, or the file is
            damaged there.
    """
    group, is_reversed = find_pair(file, name0, name1) or ("", False)
    keypoints0, keypoints1, scores = (
        read(file, group, key)
        for read, key in (
            (_read_points, "keypoints0"),
            (_read_points, "keypoints1"),
            (read_numbers, "scores"),
        )
    )
    if keypoints0 is None or keypoints1 is None or scores is None:
        raise InputError(
            f"{file.filename} holds no correspondences for the pair {name0!r}, {name1!r}"
        )
    scores = scores.reshape(-1).astype(np.float32)
    return (keypoints1, keypoints0, scores) if is_reversed else (keypoints0, keypoints1, scores)


def compression(array: np.ndarray) -> dict[str, Any]:
    """Filters that every HDF5 library has, for matches and scores: most keypoints have none.

    Points and descriptors would take long and become hardly smaller.
    """
    if array.nbytes < COMPRESSED_FROM or array.ndim > 1:
        return {}
    return {"compression": "gzip", "compression_opts": 1, "shuffle": True}
