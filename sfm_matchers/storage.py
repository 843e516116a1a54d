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
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np

from .errors import InputError, OutputError, SfmMatchersError

logger = logging.getLogger(__name__)

COMPRESSED_FROM = 2048  # bytes; smaller arrays do not become smaller

Pair = tuple[str, str]
Arrays = Mapping[str, np.ndarray]


# ---------------------------------------------------------------------------------------------
# Text files of pairs


def read_pairs(path: Path, known_names: Iterable[str] | None = None) -> list[Pair]:
    """Read a file with one ``name0 name1`` a line; blank lines and ``#`` comments are skipped.

    Args:
        path: the pairs file.
        known_names: names of the photos. They are needed only for names that contain spaces:
            such a line is split where both halves are known names.

    Raises:
        InputError: a line is not two names; the message gives the file and the line number.
    """
    known = set(known_names or ())
    pairs = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        pair = _split_pair(line, known)
        if pair is None:
            raise InputError(f"{path}, line {number}: expected two image names, found {line!r}")
        pairs.append(pair)
    return pairs


def _split_pair(line: str, known: set[str]) -> Pair | None:
    words = line.split()
    if len(words) == 2:
        return words[0], words[1]
    spaces = [position for position, letter in enumerate(line) if letter == " "]
    splits = [(line[:at], line[at + 1 :]) for at in spaces]
    fitting = [pair for pair in splits if pair[0] in known and pair[1] in known]
    return fitting[0] if len(fitting) == 1 else None


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """Write one ``name0 name1`` a line, as hloc does."""
    write_text(path, "\n".join(f"{name0} {name1}" for name0, name1 in pairs))


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    with _replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to, and rename it at the end: no file is ever half-written.

    Raises:
        OutputError: it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # HDF5 has both
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, SfmMatchersError):
            raise
        reason = "no space is left" if _disk_is_full(path.parent) else error
        raise OutputError(
            f"cannot write {path}: {reason}. What is done is kept: the same command goes on from it"
        ) from error


def _disk_is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < 1 << 20
    except OSError:
        return False


def names_to_pair(name0: str, name1: str, separator: str = "/") -> str:
    """Return the group of a pair in a match file: ``/`` inside a name becomes ``-``."""
    return separator.join((name0.replace("/", "-"), name1.replace("/", "-")))


def unique_pairs(pairs: Iterable[Pair]) -> list[Pair]:
    """Drop self pairs and repeated pairs, in either direction; the first direction stays.

    Raises:
        InputError: two different pairs share one group name (``a/b`` and ``a-b``).
    """
    kept: dict[frozenset[str], Pair] = {}
    for name0, name1 in pairs:
        if name0 != name1:
            kept.setdefault(frozenset((name0, name1)), (name0, name1))
    owners: dict[str, str] = {}
    for name in sorted({name for pair in kept.values() for name in pair}):
        other = owners.setdefault(name.replace("/", "-"), name)
        if other != name:
            raise InputError(
                f"the image names {other!r} and {name!r} are the same name in a match file, "
                "where '/' is written as '-': rename one of them"
            )
    return list(kept.values())


@contextlib.contextmanager
def exclusive(folder: Path, share: str | None = None) -> Iterator[None]:
    """Keep other runs out of an output folder; a killed run leaves no lock behind.

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
    try:
        file = h5py.File(str(path), "r")
    except OSError as error:
        reason = "does not exist" if not Path(path).exists() else f"is not readable HDF5 ({error})"
        raise InputError(f"{path} {reason}") from error
    with file:
        yield file


def list_groups(path: Path) -> list[str]:
    """Return the sorted names of all groups that hold datasets (images, or pair groups)."""
    names: set[str] = set()

    def visit(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset):
            names.add(name.rpartition("/")[0])

    with open_h5(path) as file:
        file.visititems(visit)
    return sorted(names)


def read_group(file: h5py.File, name: str) -> dict[str, np.ndarray]:
    """Return the datasets of one image or pair.

    Raises:
        InputError: the file has no such group.
    """
    if name not in file:
        raise InputError(f"{file.filename} holds nothing for {name!r}")
    group = file[name]
    return {
        key: item[()]
        for key, item in group.items()
        if isinstance(item, h5py.Dataset) and item.shape is not None
    }


def read_keypoints(file: h5py.File, name: str) -> np.ndarray:
    """Return the keypoints (N, 2) float32 of an image; hloc's shape (0,) comes back as (0, 2).

    Raises:
        InputError: there are none, they are of another shape, or the file is damaged there.
    """
    if name not in file or "keypoints" not in file[name]:
        raise InputError(f"{file.filename} holds no keypoints for image {name!r}")
    keypoints = _read_dataset(file[name], "keypoints")
    if keypoints.size and (keypoints.ndim != 2 or keypoints.shape[1] != 2):
        raise InputError(
            f"{file.filename}: the keypoints of {name!r} have the shape {keypoints.shape}, "
            "expected (N, 2)"
        )
    return keypoints.astype(np.float32).reshape(-1, 2)


def _read_dataset(group: h5py.Group, key: str) -> np.ndarray:
    try:
        return np.asarray(group[key][()])
    except OSError as error:
        raise InputError(
            f"{group.file.filename} is damaged at {group.name}/{key}: make it again"
        ) from error


def find_pair(file: h5py.File, name0: str, name1: str) -> tuple[str, bool] | None:
    """Return (group, reversed) of a pair in hloc's look-up order, old names included, or None."""
    for separator in ("/", "_"):
        for first, second, is_reversed in ((name0, name1, False), (name1, name0, True)):
            group = names_to_pair(first, second, separator)
            if group in file:
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
    found = find_pair(file, name0, name1)
    if found is None or "matches0" not in file[found[0]]:
        raise InputError(f"{file.filename} holds no matches for the pair {name0!r}, {name1!r}")
    group, is_reversed = file[found[0]], found[1]
    matches0 = _read_dataset(group, "matches0").reshape(-1)
    index0 = np.flatnonzero(matches0 >= 0)
    matches = np.stack([index0, matches0[index0].astype(np.int64)], axis=1)
    if "matching_scores0" in group:
        scores = _read_dataset(group, "matching_scores0").reshape(-1)[index0]
    else:
        scores = np.ones(len(index0))
    matches = matches[:, ::-1] if is_reversed else matches
    if num_keypoints is not None and len(matches):
        for name, count, index in zip((name0, name1), num_keypoints, matches.max(0), strict=True):
            if index >= count:
                raise InputError(
                    f"{file.filename}: the matches of {name0!r}, {name1!r} refer to keypoint "
                    f"{index} of {name!r}, which has {count}: they are of other features"
                )
    return matches, scores.astype(np.float32)


def read_correspondences(
    file: h5py.File, name0: str, name1: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the raw detector-free matches of a pair, stored in either direction.

    Returns:
        Points (M, 2) float32 in `name0`, points (M, 2) float32 in `name1`, scores (M,) float32.

    Raises:
        InputError: the pair is not in the file, or its group holds no correspondences.
    """
    found = find_pair(file, name0, name1)
    if found is None or "keypoints0" not in file[found[0]]:
        raise InputError(
            f"{file.filename} holds no correspondences for the pair {name0!r}, {name1!r}"
        )
    group, is_reversed = file[found[0]], found[1]
    keypoints0, keypoints1 = (
        np.asarray(group[key][()], dtype=np.float32).reshape(-1, 2)
        for key in ("keypoints0", "keypoints1")
    )
    scores = np.asarray(group["scores"][()], dtype=np.float32).reshape(-1)
    return (keypoints1, keypoints0, scores) if is_reversed else (keypoints0, keypoints1, scores)


# ---------------------------------------------------------------------------------------------
# HDF5: writing, whole or not at all


def fingerprint(*parts: Any) -> str:
    """Return a short hash of JSON-like values; equal values give equal fingerprints anywhere."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_fingerprint(path: Path) -> str:
    """Return a short hash of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


class StagedFile:
    """An HDF5 file that is built entry by entry and appears, or changes, in one step.

    Entries added with `add` are safe at once: they lie in ``<path>.parts/`` until `commit` merges
    them, in the order of their names, with what the file already holds.

    A part may itself be the merged work of a process of its own: see `part`.

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
        self._parts_dir = self.path.with_name(self.path.name + ".parts")
        if not keep_parts:
            shutil.rmtree(self._parts_dir, ignore_errors=True)
        self._part_of: dict[str, Path] = {}
        self._fingerprints: dict[str, str | None] = {}
        if self.path.exists():
            self._fingerprints |= _read_fingerprints(self.path)
        for part in sorted(self._parts_dir.rglob("*.h5")):
            for name, entry_fingerprint in _read_part(part).items():
                if (wanted or {}).get(name) in (None, entry_fingerprint):
                    self._part_of[name] = part
                    self._fingerprints[name] = entry_fingerprint
        numbers = [int(part.stem) for part in self._parts_dir.glob("[0-9]*.h5")]
        self._next_part = 1 + max(numbers, default=-1)

    def part(self, name: str) -> StagedFile:
        """Return a staged file of its own for entries that another process computes.

        Its entries count as added to this file as soon as it is opened again.
        """
        return StagedFile(self._parts_dir / f"{name}.h5")

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
        with _replacing(part) as temporary, h5py.File(str(temporary), "w") as file:
            for name, arrays in entries.items():
                group = file.create_group(name)
                group.attrs["fingerprint"] = fingerprints[name]
                for key, array in arrays.items():
                    group.create_dataset(key, data=array, **_compression(array))
        self._next_part += 1
        for name in entries:
            self._part_of[name] = part
            self._fingerprints[name] = fingerprints[name]

    def commit(self) -> Path:
        """Merge all parts into the file and return its path. Does nothing if there are none."""
        if self._part_of or not self.path.exists():
            self._merge()
        shutil.rmtree(self._parts_dir, ignore_errors=True)
        self._part_of.clear()
        self._next_part = 0
        return self.path

    def _merge(self) -> None:
        with (
            _replacing(self.path) as temporary,
            contextlib.ExitStack() as stack,
            h5py.File(str(temporary), "w") as merged,
        ):
            source: Path | None = None
            opened: dict[Path, h5py.File] = {}
            for name in sorted(self._fingerprints):
                source = self._part_of.get(name, self.path)
                if source not in opened:
                    if len(opened) >= 64:
                        stack.pop_all().close()
                        opened.clear()
                    opened[source] = stack.enter_context(open_h5(source))
                parent = merged.require_group(name.rpartition("/")[0] or "/")
                opened[source].copy(name, parent, name=name.rpartition("/")[2])


def _read_fingerprints(path: Path) -> dict[str, str | None]:
    """Return the name of each entry of a file, and what it was computed from.

    Raises:
        InputError: the file is damaged.
    """
    try:
        with open_h5(path) as file:
            return {name: file[name].attrs.get("fingerprint") for name in list_groups(path)}
    except (OSError, RuntimeError, KeyError) as error:
        raise InputError(f"{path} is damaged ({error}): delete it to have it made again") from error


def _read_part(path: Path) -> dict[str, str | None]:
    """The same of an uncommitted part, which is deleted where it is damaged."""
    try:
        return _read_fingerprints(path)
    except InputError as error:
        logger.warning("%s: what it held is done again", error)
        path.unlink(missing_ok=True)
        return {}


def _compression(array: np.ndarray) -> dict[str, Any]:
    """Filters that every HDF5 library has, for matches and scores: most keypoints have none.

    Points and descriptors would take long and become hardly smaller.
    """
    if array.nbytes < COMPRESSED_FROM or array.ndim > 1:
        return {}
    return {"compression": "gzip", "compression_opts": 1, "shuffle": True}


def remove_staged(path: Path) -> None:
    """Delete a staged file together with its unmerged parts."""
    Path(path).unlink(missing_ok=True)
    shutil.rmtree(path.with_name(path.name + ".parts"), ignore_errors=True)
