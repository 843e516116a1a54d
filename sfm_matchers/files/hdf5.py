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
UPRIGHT = "quarters_to_upright"  # dataset of a feature file, beside hloc's
CROWD, PLACES_OF_CROWD = 16, 4  # so many keypoints do not share fewer places

COMPRESSED_FROM = 2048  # bytes; smaller arrays do not become smaller
Arrays = Mapping[str, np.ndarray]


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


class Hdf5File:
    """An HDF5 file in hloc's layout, open for reading: features, matches, or both.

    Attributes:
        path: of the file.
    """

    def __init__(self, path: str | Path) -> None:
        """Open it.

        Raises:
            InputError: the file is missing or is not a readable HDF5 file.
        """
        if not Path(path).is_file():  # a pipe would never answer
            raise InputError(f"{path} {'is no file' if Path(path).exists() else 'does not exist'}")
        self.path = str(path)
        try:
            self._file = h5py.File(self.path, "r")
        except Exception as error:  # damage can make h5py fail in any way, here and below
            fault = f"{path} is not readable HDF5: make it again ({one_line(error)})"
            raise InputError(fault) from error

    def close(self) -> None:
        """Close it."""
        self._file.close()

    def names(self) -> list[str]:
        """Return the sorted names of all groups that hold datasets (images, or pair groups).

        Raises:
            InputError: the file is damaged, or a name cannot be that of a photo, or the file
                points at others.
        """
        with naming_damage(self.path):
            groups = {name.rpartition("/")[0] for name in dataset_names(self._file)}
        return sorted(checked_names(groups - {""}, self.path))

    def fingerprint(self, name: str) -> str | None:
        """Return what an image or a pair was computed from; None if another tool has written it.

        Raises:
            InputError: the file has no such group, or is damaged there.
        """
        return self._attribute(name, "fingerprint")

    def checksum(self, name: str) -> str | None:
        """Return the checksum that was written with an image or a pair; None if there is none.

        Raises:
            InputError: as `fingerprint`.
        """
        return self._attribute(name, "checksum")

    def _attribute(self, name: str, key: str) -> str | None:
        with naming_damage(self.path, name):
            item = find_item(self._file, name)
            if item is None:
                raise InputError(f"{self.path} holds nothing for {name!r}")
            found = item.attrs.get(key)
        return None if found is None else str(found)

    def uncertainty(self, name: str) -> float | None:
        """Return how many pixels the keypoints of an image may be off, 1 if the file does not say.

        None if it has none.
        """
        with naming_damage(self.path, name):
            keypoints = find_item(self._file, f"{name}/keypoints")
            return None if keypoints is None else float(keypoints.attrs.get("uncertainty", 1.0))

    def texts(self, name: str) -> list[str]:
        """Return a dataset of texts.

        Raises:
            InputError: there is none, or the file is damaged there.
        """
        with naming_damage(self.path, name):
            dataset = find_item(self._file, name)
            if not isinstance(dataset, h5py.Dataset):
                raise InputError(f"{self.path} holds no {name}")
            return [str(text) for text in dataset.asstr()[()]]

    def copy_to(self, name: str, parent: h5py.Group) -> None:
        """Copy a group into a group of another file.

        Raises:
            InputError: the file is damaged there, or the other one cannot be written.
        """
        with naming_damage(self.path, name):
            self._file.copy(name, parent, name=name.rpartition("/")[2])

    def __contains__(self, name: str) -> bool:
        """Return whether there is a group; InputError if the file is damaged there, or links."""
        with naming_damage(self.path, name):
            return find_item(self._file, name) is not None

    def group(self, name: str) -> dict[str, np.ndarray]:
        """Return the datasets of one image or pair.

        Raises:
            InputError: the file has no such group, or is damaged there.
        """
        with naming_damage(self.path, name):
            group = find_item(self._file, name)
            if not isinstance(group, h5py.Group):
                raise InputError(f"{self.path} holds nothing for {name!r}")
            found = {key: read_dataset(self._file, f"{name}/{key}") for key in group}
            return {key: array for key, array in found.items() if array is not None}

    def numbers(self, name: str, key: str) -> np.ndarray | None:
        """Return a dataset of numbers, or None if there is none.

        Raises:
            InputError: the dataset is damaged, or holds something else.
        """
        with naming_damage(self.path, f"{name}/{key}"):
            array = read_dataset(self._file, f"{name}/{key}")
            return None if array is None else self._check_numbers(name, key, array)

    def finite_numbers(self, name: str, key: str) -> np.ndarray | None:
        """As `numbers`; InputError also for numbers that are not finite."""
        numbers = self.numbers(name, key)
        return None if numbers is None else self._check_finite(name, key, numbers)

    def keypoints(self, name: str, size: tuple[int, int] | None = None) -> np.ndarray:
        """Return the keypoints (N, 2) float32 of an image; hloc's shape (0,) comes back as (0, 2).

        Args:
            name: of the image.
            size: its (width, height), where that is known; else what the file says counts.

        Raises:
            InputError: there are none, they are of another shape, cannot be those of the image, see
                `check_points`, or the file is damaged there.
        """
        keypoints = self._points(name, "keypoints")
        if keypoints is None:
            raise InputError(f"{self.path} holds no keypoints for image {name!r}")
        if size is None:
            stored = self.finite_numbers(name, "image_size")
            sides = [] if stored is None else stored.reshape(-1).tolist()
            if len(sides) == 2 and all(1 <= side <= UNKNOWN_SIDE for side in sides):
                size = (int(sides[0]), int(sides[1]))
        check_points(keypoints, size, f"{self.path}: keypoints of {name!r}")
        return keypoints

    def features(self, name: str) -> dict[str, np.ndarray]:
        """Return all datasets of an image, those of the layout above checked.

        Raises:
            InputError: there are no keypoints or no descriptors, a dataset is of another shape or
                does not hold finite numbers, or the file is damaged there.
        """
        arrays = self.group(name)
        arrays["keypoints"] = self.keypoints(name)
        if "descriptors" not in arrays:
            raise InputError(f"{self.path} holds no descriptors for image {name!r}")
        count, dimension = len(arrays["keypoints"]), len(np.atleast_1d(arrays["descriptors"]))
        shapes = {"descriptors": (dimension, count), "image_size": (2,), UPRIGHT: (1,)}
        shapes |= dict.fromkeys(("scores", "keypoint_scores", "scales", "oris"), (count,))
        for key in arrays.keys() & shapes.keys():
            self._check_numbers(name, key, arrays[key])
            if arrays[key].shape != shapes[key]:
                raise InputError(
                    f"{self.path}: {key} of {name!r} have the shape {arrays[key].shape}, "
                    f"expected {shapes[key]} for its {count} keypoints"
                )
            self._check_finite(name, key, arrays[key])
        return arrays

    def find_pair(self, name0: str, name1: str) -> tuple[str, bool] | None:
        """Return (group, reversed) of a pair in hloc's look-up order, or None; old names too."""
        with naming_damage(self.path):
            for separator in ("/", "_"):
                for first, second, is_reversed in ((name0, name1, False), (name1, name0, True)):
                    group = names_to_pair(first, second, separator)
                    if find_item(self._file, group) is not None:
                        return group, is_reversed
        return None

    def matches(
        self, name0: str, name1: str, num_keypoints: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the matches of a pair, stored in either direction.

        Args:
            name0: the first image.
            name1: the second.
            num_keypoints: how many keypoints the two have; matches of others are refused.

        Returns:
            Index pairs (M, 2) int64, column 0 for `name0`, and their scores (M,) float32 (ones
            where the file has none).

        Raises:
            InputError: the pair is not in the file or was never given ``matches0``, the file is
                damaged there, scores are not finite, or a match is of a keypoint that does not
                exist or cannot.
        """
        group, is_reversed = self.find_pair(name0, name1) or ("", False)
        matches0 = self.numbers(group, "matches0") if group else None
        if matches0 is None:
            raise InputError(f"{self.path} holds no matches for the pair {name0!r}, {name1!r}")
        if matches0.dtype.kind not in "iu":
            raise InputError(f"{self.path}: matches0 of {group!r} are not whole numbers")
        matches0 = matches0.reshape(-1).astype(np.int64)
        if len(matches0) and matches0.min() < -1:
            raise InputError(
                f"{self.path}: matches0 of {group!r} hold {matches0.min()}, which is no keypoint, "
                "and not -1 for none: they are damaged, or of more keypoints than 16 bits count"
            )
        scores0 = self.finite_numbers(group, "matching_scores0")
        if scores0 is None:
            scores0 = np.ones(len(matches0))
        if scores0.size != len(matches0):
            raise InputError(
                f"{self.path}: {group!r} has {len(matches0)} matches0, {scores0.size} scores"
            )
        index0 = np.flatnonzero(matches0 >= 0)
        matches = np.stack([index0, matches0[index0]], axis=1)
        scores = scores0.reshape(-1)[index0]
        matches = matches[:, ::-1] if is_reversed else matches
        if num_keypoints is not None and len(matches):
            largest = matches.max(axis=0)
            for name, count, index in zip((name0, name1), num_keypoints, largest, strict=True):
                if index >= count:
                    raise InputError(
                        f"{self.path}: the matches of {name0!r}, {name1!r} refer to keypoint "
                        f"{index} of {name!r}, which has {count}: they are of other features"
                    )
        return matches, scores.astype(np.float32)

    def correspondences(self, name0: str, name1: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the raw detector-free matches of a pair, stored in either direction.

        Returns:
            Points (M, 2) float32 in `name0`, points (M, 2) float32 in `name1`, scores (M,) float32.

        Raises:
            InputError: the pair is not in the file, its group holds no correspondences, scores are
                not finite, or the file is damaged there.
        """
        group, is_reversed = self.find_pair(name0, name1) or ("", False)
        keypoints0, keypoints1 = (self._points(group, f"keypoints{side}") for side in (0, 1))
        scores = self.finite_numbers(group, "scores")
        if keypoints0 is None or keypoints1 is None or scores is None:
            raise InputError(
                f"{self.path} holds no correspondences for the pair {name0!r}, {name1!r}"
            )
        scores = scores.reshape(-1).astype(np.float32)
        return (keypoints1, keypoints0, scores) if is_reversed else (keypoints0, keypoints1, scores)

    def _points(self, name: str, key: str) -> np.ndarray | None:
        """Return points (N, 2) float32, or None; the shape (0,) comes back as (0, 2)."""
        points = self.numbers(name, key)
        if points is None:
            return None
        if points.size and (points.ndim != 2 or points.shape[1] != 2):
            raise InputError(
                f"{self.path}: {key} of {name!r} have the shape {points.shape}, expected (N, 2)"
            )
        return points.astype(np.float32).reshape(-1, 2)

    def _check_numbers(self, name: str, key: str, array: np.ndarray) -> np.ndarray:
        if np.asarray(array).dtype.kind not in "biuf":
            raise InputError(f"{self.path}: {key} of {name!r} are not numbers")
        return array

    def _check_finite(self, name: str, key: str, array: np.ndarray) -> np.ndarray:
        if not np.isfinite(array).all():
            raise InputError(f"{self.path}: {key} of {name!r} are not all finite")
        return array


@contextlib.contextmanager
def open_h5(path: str | Path) -> Iterator[Hdf5File]:
    """Open an HDF5 file for reading.

    Raises:
        InputError: as `Hdf5File`.
    """
    file = Hdf5File(path)
    try:
        yield file
    finally:
        file.close()


def list_groups(path: str | Path) -> list[str]:
    """Return the names of a file as `Hdf5File.names` does."""
    with open_h5(path) as file:
        return file.names()


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


def mean_layers_run(path: Path, pairs: Iterable[Pair]) -> float | None:
    """Return how many layers a matcher with early exit took for a pair; None for other matchers.

    Raises:
        InputError: the file is damaged.
    """
    layers: list[float] = []
    with open_h5(path) as file:
        for pair in pairs:
            found = file.find_pair(*pair)
            run = file.numbers(found[0], "layers_run") if found else None
            if run is None:  # none of the others has it either
                break
            layers.append(float(run))
    return sum(layers) / len(layers) if layers else None


def compression(array: np.ndarray) -> dict[str, Any]:
    """Filters that every HDF5 library has, for matches and scores: most keypoints have none.

    Points and descriptors would take long and become hardly smaller.
    """
    if array.nbytes < COMPRESSED_FROM or array.ndim > 1:
        return {}
    return {"compression": "gzip", "compression_opts": 1, "shuffle": True}
