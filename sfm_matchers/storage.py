"""Files between the steps, in hloc's layout: HDF5 features and matches, and text files of pairs.

Layout (hloc's, so that either tool reads the other's files):

- a *feature file* holds one group per image, named by the image's POSIX path below the image
  folder: ``keypoints`` (N, 2) float32, ``descriptors`` (D, N) float16, ``scores`` (N,),
  ``scales`` (N,) in pixels, ``oris`` (N,) in degrees, ``image_size`` (2,) int64 as (width, height);
- a *match file* holds one group per pair, named by `names_to_pair`: ``matches0`` (N0,) int32 with
  the index of the match in image 1 or -1, ``matching_scores0`` (N0,) float16;
- a *correspondence file* holds, for detector-free matchers, ``keypoints0``, ``keypoints1`` (M, 2)
  float32 and ``scores`` (M,) float32 per pair, row by row. `keypoints.aggregate` turns it into a
  feature file and a match file.

Keypoints are pixels of the original photo; (0, 0) is the centre of its top-left pixel.

`StagedFile` writes such a file whole or not at all: finished entries lie in small part files, each
written under a temporary name and renamed, until `StagedFile.commit` merges them. A killed run
loses only the entries it was computing. Every entry carries a ``fingerprint`` attribute that says
what it was computed from; hloc ignores it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np

from sfm_matchers.errors import InputError, OutputError, SfmMatchersError, one_line
from sfm_matchers.files import content_hash, remove_left_behind, replacing, replacing_folder
from sfm_matchers.hdf5_items import dataset_names, find_item, read_dataset
from sfm_matchers.names import check_name, checked_names, name_fault

logger = logging.getLogger(__name__)

UNKNOWN_SIDE = 1 << 17  # pixels; no photo has more
CROWD, PLACES_OF_CROWD = 16, 4  # so many keypoints do not share fewer places

COMPRESSED_FROM = 2048  # bytes; smaller arrays do not become smaller

Pair = tuple[str, str]
Arrays = Mapping[str, np.ndarray]


# ---------------------------------------------------------------------------------------------
# Text files of pairs


def name_faults(names: Iterable[str]) -> dict[str, str]:
    """Return the names of photos that files of pairs or matches cannot hold, and why."""
    faults: dict[str, str] = {}
    owners: dict[str, str] = {}
    for name in sorted(set(names)):
        owner = owners.setdefault(name.replace("/", "-"), name)
        fault = name_fault(name)
        if fault is not None:
            faults[name] = fault
        elif owner != name:
            faults[name] = (
                f"the name is the same as {owner!r} in a match file, where '/' is written as '-'"
            )
    return faults


def read_pairs(path: Path, known_names: Iterable[str] | None = None) -> list[Pair]:
    """Read a file with one ``name0 name1`` a line; blank lines and ``#`` comments are skipped.

    Args:
        path: the pairs file.
        known_names: names of the photos. A line that is two of them is that pair, whatever they
            contain. They are needed only for names that contain spaces or begin with ``#``.

    Raises:
        InputError: the file is missing or is not text, or a line is not two names, or is two known
            ones in several ways, or one cannot be that of a photo; the message gives the file and
            the line number.
    """
    known = set(known_names or ())
    pairs = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        words = line.split()
        fitting = _known_pairs(line, known) or _known_pairs(line.strip(), known)
        if not fitting and (not words or words[0].startswith("#")):
            continue
        if not fitting and len(words) == 2:
            fitting = [(words[0], words[1])]
        if len(fitting) != 1:
            raise InputError(
                f"{path}, line {number}: expected two image names, found {line.strip()!r} (names "
                "with spaces must be those of photos, and fit in one way only)"
            )
        for name in fitting[0]:
            check_name(name, f"{path}, line {number}")
        pairs += fitting
    return pairs


def _known_pairs(line: str, known: set[str]) -> list[Pair]:
    """Return all ways to split a line at a space into two known names."""
    splits = [(line[:at], line[at + 1 :]) for at, letter in enumerate(line) if letter == " "]
    return [pair for pair in splits if known.issuperset(pair)]


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """Write one ``name0 name1`` a line, as hloc does.

    Names may contain spaces: `read_pairs` understands them, hloc does not.

    Raises:
        InputError: a name that `read_pairs` would refuse.
    """
    for name in sorted({name for pair in pairs for name in pair}):
        check_name(name, path)
    write_text(path, "\n".join(f"{name0} {name1}" for name0, name1 in pairs))


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, with or without byte order mark; all line ends become ``\\n``.

    Raises:
        InputError: it is missing, cannot be read, or is not such text.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file in UTF-8") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    with written_whole(path) as temporary:
        # Folders may have names that are not UTF-8, which a report tells.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def written_whole(path: Path, *, lasting: bool = True) -> Iterator[Path]:
    """As `files.replacing`.

    Raises:
        OutputError: it cannot be written.
    """
    with writing(path), replacing(path, lasting=lasting) as temporary:
        yield temporary


@contextlib.contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """As `files.replacing_folder`.

    Raises:
        OutputError: it cannot be written.
    """
    with writing(path), replacing_folder(path) as temporary:
        yield temporary


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what libraries raise inside the ``with`` block where they cannot write to `path`.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        yield
    except SfmMatchersError:
        raise
    except (OSError, RuntimeError) as error:
        is_full = is_of_full_disk(error, path.parent)
        if isinstance(error, RuntimeError) and not is_full and "errno" not in str(error):
            raise  # HDF5 tells the errno, others have computed something
        reason = "no space is left" if is_full else one_line(error)
        raise OutputError(f"cannot write {path}: {reason}. {GOES_ON}") from error


GOES_ON = "What is done is kept: the same command goes on from it"
_FULL_DISK = ("no space left", "disk is full", "disk full", "errno = 28", "quota exceeded")
LEAST_SPACE = 1 << 20  # bytes


def is_of_full_disk(error: BaseException, *folders: Path) -> bool:
    """True if an error says so, or if no space is left in one of the folders."""
    said = str(error).lower()
    return any(words in said for words in _FULL_DISK) or any(map(disk_is_full, folders))


def disk_is_full(folder: Path) -> bool:
    """Return whether hardly anything more can be written to a folder."""
    try:
        return shutil.disk_usage(folder).free < LEAST_SPACE
    except OSError:
        return False


def check_space(path: Path, num_bytes: int) -> None:
    """Look whether the disk has space for a file, before HDF5 or SQLite run out of it.

    They may end the process then, without an error.

    Raises:
        OutputError: it has not.
    """
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    free, needed = shutil.disk_usage(folder).free, LEAST_SPACE + num_bytes
    if free < needed:
        raise OutputError(
            f"cannot write {path}: no space is left ({free >> 20} MB are free, "
            f"{(needed >> 20) + 1} MB may be needed). {GOES_ON}"
        )


class Space:
    """Space for an SQLite database, of which `check_space` is asked while it grows."""

    def __init__(self, database_path: Path) -> None:
        self._path = database_path
        self._taken = 0

    def take(self, num_bytes: int) -> None:
        """Call it before so many bytes are added to the database.

        Raises:
            OutputError: there may not be enough space.
        """
        self._taken += num_bytes
        # What is written lies in a journal first, and then in the database too.
        check_space(self._path, 3 * self._taken)


def names_to_pair(name0: str, name1: str, separator: str = "/") -> str:
    """Return the group of a pair in a match file: ``/`` inside a name becomes ``-``."""
    return separator.join((name0.replace("/", "-"), name1.replace("/", "-")))


def unique_pairs(pairs: Iterable[Pair]) -> list[Pair]:
    """Drop self pairs and repeated pairs, in either direction; the first direction stays.

    Raises:
        InputError: a name that a match file cannot hold beside the others, see `name_faults`.
    """
    kept: dict[frozenset[str], Pair] = {}
    for name0, name1 in pairs:
        if name0 != name1:
            kept.setdefault(frozenset((name0, name1)), (name0, name1))
    faults = name_faults(name for pair in kept.values() for name in pair)
    if faults:
        name, fault = next(iter(faults.items()))
        raise InputError(f"{name!r}: {fault}: rename it")
    return list(kept.values())


@contextlib.contextmanager
def exclusive(folder: Path, share: str | None = None) -> Iterator[None]:
    """Keep other runs out of an output folder; a killed run leaves no lock behind.

    What it left half-written is deleted by the next one that is alone.

    Args:
        folder: the output folder.
        share: None for a run that must be alone. The name of a share lets runs with other shares
            in, but no second one with this name.

    Raises:
        InputError: another run is working in it, or it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = [".lock"] if share is None else [".lock", f".lock-{share.replace('/', '-of-')}"]
        locks = [(folder / name).open("a+") for name in names]
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from error
    with contextlib.ExitStack() as stack:
        for file in locks:
            stack.enter_context(file)
        try:
            _lock(locks[0], shared=share is not None)
            if share is not None:
                _lock(locks[1])
        except OSError as error:
            raise InputError(
                f"another run is working in {folder}: wait for its end, or give another folder"
            ) from error
        if share is None:
            remove_left_behind(folder)
        yield


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other run is in this block for the same folder."""
    with (folder / ".lock-common").open("a+") as file:
        while True:
            try:
                _lock(file)
                break
            except OSError:
                time.sleep(0.5)
        yield


def _lock(file: IO[str], *, shared: bool = False) -> None:
    """Lock an open file until it is closed, or its process ends.

    Windows has no shared locks: there, sharing runs are not told apart from one that is alone.

    Raises:
        OSError: it is locked.
    """
    if sys.platform == "win32":
        import msvcrt

        if not shared:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


# ---------------------------------------------------------------------------------------------
# HDF5: reading


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
def _naming_damage(path: str | Path, name: str = "") -> Iterator[None]:
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
    with open_h5(path) as file, _naming_damage(path):
        groups = {name.rpartition("/")[0] for name in dataset_names(file)}
    return sorted(checked_names(groups - {""}, path))


def holds(file: h5py.File, name: str) -> bool:
    """Return whether a file has a group; an InputError if it is damaged there, or has a link."""
    with _naming_damage(file.filename, name):
        return find_item(file, name) is not None


def read_fingerprint(file: h5py.File, name: str) -> str | None:
    """Return what an image or a pair was computed from; None if another tool has written it.

    Raises:
        InputError: the file has no such group, or is damaged there.
    """
    with _naming_damage(file.filename, name):
        item = find_item(file, name)
        if item is None:
            raise InputError(f"{file.filename} holds nothing for {name!r}")
        found = item.attrs.get("fingerprint")
    return None if found is None else str(found)


def read_group(file: h5py.File, name: str) -> dict[str, np.ndarray]:
    """Return the datasets of one image or pair.

    Raises:
        InputError: the file has no such group, or is damaged there.
    """
    with _naming_damage(file.filename, name):
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
    with _naming_damage(file.filename, f"{name}/{key}"):
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
    with _naming_damage(file.filename):
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


# ---------------------------------------------------------------------------------------------
# HDF5: writing, whole or not at all


def fingerprint(*parts: Any) -> str:
    """Return a short hash of JSON-like values; equal values give equal fingerprints anywhere."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_fingerprint(path: Path) -> str:
    """Return a short hash of a file's content."""
    return content_hash(path)


def _parts_dir(path: Path) -> Path:
    return path.with_name(path.name + ".parts")


def staged_part(path: Path, name: str) -> Path:
    """Return where another process stages entries of the staged file at `path`.

    They count as added to that file as soon as it is opened again.
    """
    return _parts_dir(path) / f"{name}.h5"


class StagedFile:
    """An HDF5 file that is built entry by entry and appears, or changes, in one step.

    Entries added with `add` are safe at once: they lie in ``<path>.parts/`` until `commit` merges
    them, in the order of their names, with what the file already holds.

    A part may itself be the merged work of a process of its own: see `staged_part`.

    Args:
        path: the file to make or complete.
        wanted: what entries are to be computed from. Uncommitted ones that were computed from
            something else are forgotten.
        keep_parts: False drops what an interrupted run has added but not committed.
    """

    def __init__(
        self, path: Path, wanted: Mapping[str, str] | None = None, *, keep_parts: bool = True
    ) -> None:
        self.path = Path(path)
        self._parts_dir = _parts_dir(self.path)
        if not keep_parts:
            shutil.rmtree(self._parts_dir, ignore_errors=True)
        self._part_of: dict[str, Path] = {}
        self._fingerprints: dict[str, str | None] = {}
        if self.path.exists():
            self._fingerprints |= _intact_entries(self.path)
        for part in sorted(self._parts_dir.rglob("*.h5")):
            for name, entry_fingerprint in _read_part(part).items():
                if (wanted or {}).get(name) in (None, entry_fingerprint):
                    self._part_of[name] = part
                    self._fingerprints[name] = entry_fingerprint
        numbers = [int(part.stem) for part in self._parts_dir.glob("[0-9]*.h5")]
        self._next_part = 1 + max(numbers, default=-1)

    def __contains__(self, name: str) -> bool:
        return name in self._fingerprints

    def is_current(self, name: str, entry_fingerprint: str) -> bool:
        """True if the entry exists and was computed from the same inputs and settings.

        An entry without fingerprint was written by another tool, and is taken as it is.
        """
        return name in self and self._fingerprints[name] in (None, entry_fingerprint)

    def add(self, entries: Mapping[str, Arrays], fingerprints: Mapping[str, str]) -> None:
        """Store finished entries (group name -> datasets) so that a killed process keeps them."""
        part = self._parts_dir / f"{self._next_part:08d}.h5"
        # In memory: HDF5 may end the process where a disk is full.
        with h5py.File(part.name, "w", driver="core", backing_store=False) as file:
            for name, arrays in entries.items():
                group = file.create_group(name)
                group.attrs["fingerprint"] = fingerprints[name]
                group.attrs["checksum"] = _checksum(name, fingerprints[name], arrays)
                for key, array in arrays.items():
                    group.create_dataset(key, data=array, **_compression(array))
            file.flush()
            image = file.id.get_file_image()
        # Whether a part is whole is seen when it is read: nobody need wait for the disk.
        with written_whole(part, lasting=False) as temporary:
            temporary.write_bytes(image)
        self._next_part += 1
        for name in entries:
            self._part_of[name] = part
            self._fingerprints[name] = fingerprints[name]

    def commit(self) -> Path:
        """Merge all parts into the file and return its path. Does nothing if there are none."""
        if self._part_of or not self.path.exists():
            self._merge({name: self._part_of.get(name, self.path) for name in self._fingerprints})
        shutil.rmtree(self._parts_dir, ignore_errors=True)
        self._part_of.clear()
        self._next_part = 0
        return self.path

    def _merge(self, files: Mapping[str, Path]) -> None:
        """Write entries (name -> the file that holds it) to the file, and its seal."""
        is_ours = None not in self._fingerprints.values()
        if is_ours:
            write_text(_seal_path(self.path), "")
        else:
            _seal_path(self.path).unlink(missing_ok=True)
        copy_entries(files, self.path)
        if is_ours:
            _seal(self.path)


def copy_entries(files: Mapping[str, Path], output: Path) -> None:
    """Write a file of entries (name -> the file that holds it), in the order of their names.

    Raises:
        InputError: a file is damaged.
        OutputError: the new one cannot be written.
    """
    check_space(output, sum(path.stat().st_size for path in set(files.values())))
    with (
        written_whole(output) as temporary,
        contextlib.ExitStack() as stack,
        h5py.File(str(temporary), "w") as merged,
    ):
        opened: dict[Path, h5py.File] = {}
        for name in sorted(files):
            source = files[name]
            if source not in opened:
                if len(opened) >= 64:
                    stack.pop_all().close()
                    opened.clear()
                opened[source] = stack.enter_context(open_h5(source))
            parent = merged.require_group(name.rpartition("/")[0] or "/")
            _copy_entry(opened[source], name, parent, output.parent)


def _copy_entry(source: h5py.File, name: str, parent: h5py.Group, folder: Path) -> None:
    """Raise InputError if the source is damaged, OSError if the target cannot be written."""
    try:
        with _naming_damage(source.filename, name):
            source.copy(name, parent, name=name.rpartition("/")[2])
    except InputError as error:
        if is_of_full_disk(error, folder):
            raise OSError(str(error)) from error
        raise


# ---------------------------------------------------------------------------------------------
# HDF5: noticing damage
#
# Every entry has a checksum of its datasets. To read all of them takes long where there are
# hundreds of thousands, so a small file beside, the seal, has the hash of the file whose entries
# were found intact; it also says that all of them were made by this program, and can be made again.


def _seal_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256")


def _seal(path: Path) -> None:
    write_text(_seal_path(path), file_fingerprint(path))


def _is_sealed(path: Path) -> bool:
    seal = _seal_path(path)
    return seal.exists() and seal.read_bytes() == file_fingerprint(path).encode()


def _checksum(name: str, source: str | None, arrays: Mapping[str, Any]) -> str:
    """Return a hash of an entry: its name, what it was computed from, its datasets."""
    digest = hashlib.sha256(repr((name, source)).encode())
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        digest.update(repr((key, array.dtype.str, np.shape(arrays[key]))).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def _read_fingerprints(path: Path) -> dict[str, str | None]:
    """Return the name of each entry of a file, and what it was computed from.

    Raises:
        InputError: the file is damaged.
    """
    with open_h5(path) as file:
        return {name: read_fingerprint(file, name) for name in list_groups(path)}


def _sound_entries(path: Path, *, is_ours: bool) -> tuple[dict[str, str | None], int]:
    """The same of the entries that are as they were written, and the number of the others.

    Args:
        path: the file.
        is_ours: this program has made all of it. Otherwise entries without checksum are of other
            tools, or of earlier versions, and are taken as they are.

    Raises:
        InputError: the file cannot be read, or an entry of another tool cannot.
    """
    sound: dict[str, str | None] = {}
    num_damaged = 0
    with open_h5(path) as file:
        for name in list_groups(path):
            source, checksum = None, None
            try:
                with _naming_damage(path, name):
                    source, checksum = map(file[name].attrs.get, ("fingerprint", "checksum"))
                arrays = read_group(file, name)
            except InputError:
                if not is_ours and checksum is None:
                    raise
                checksum, arrays = "", {}
            source = None if source is None else str(source)
            if (checksum is None and not is_ours) or checksum == _checksum(name, source, arrays):
                sound[name] = source
            else:
                num_damaged += 1
    return sound, num_damaged


def _intact_entries(path: Path) -> dict[str, str | None]:
    """Return the entries of a file, and what each was computed from.

    A file that is not as it was written is written again, without its damaged entries.

    Raises:
        InputError: the file cannot be read, and this program cannot make it again.
    """
    if _is_sealed(path):
        return _read_fingerprints(path)
    is_ours = _seal_path(path).exists()
    is_changed = is_ours and _seal_path(path).stat().st_size > 0
    try:
        sound, num_damaged = _sound_entries(path, is_ours=is_ours)
    except InputError as error:
        if not is_ours:
            raise
        logger.warning("%s; all it held is made again", error)
        path.unlink()
        return {}
    if num_damaged or is_changed:
        told = f"{num_damaged} of {num_damaged + len(sound)} entries are damaged and made again"
        if not num_damaged:
            told = f"what its {len(sound)} entries hold is whole, and kept"
        logger.warning("%s is not as it was written: %s", path, told)
        copy_entries(dict.fromkeys(sound, path), path)
    if None not in sound.values():
        _seal(path)
    return sound


def _read_part(path: Path) -> dict[str, str | None]:
    """The same of an uncommitted part, which is deleted where nothing of it can be read."""
    try:
        sound, num_damaged = _sound_entries(path, is_ours=True)
    except InputError as error:
        logger.warning("%s; what it held is done again", error)
        path.unlink(missing_ok=True)
        return {}
    if num_damaged:
        logger.warning("%s: %d damaged entries are done again", path, num_damaged)
    return sound


def _compression(array: np.ndarray) -> dict[str, Any]:
    """Filters that every HDF5 library has, for matches and scores: most keypoints have none.

    Points and descriptors would take long and become hardly smaller.
    """
    if array.nbytes < COMPRESSED_FROM or array.ndim > 1:
        return {}
    return {"compression": "gzip", "compression_opts": 1, "shuffle": True}


def remove_staged(path: Path) -> None:
    """Delete a staged file together with its unmerged parts."""
    for file in (Path(path), _seal_path(Path(path))):
        file.unlink(missing_ok=True)
    shutil.rmtree(_parts_dir(path), ignore_errors=True)
