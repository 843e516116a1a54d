"""HDF5 files that are made entry by entry and survive a kill."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import h5py

from sfm_matchers.errors import InputError
from sfm_matchers.files.entries import copy_entries
from sfm_matchers.files.hdf5 import Arrays, compression
from sfm_matchers.files.replacing import make_way
from sfm_matchers.files.seals import _checksum, _intact_entries, _seal, _seal_path, _sound_entries
from sfm_matchers.files.text import write_text, written_whole

logger = logging.getLogger(__name__)


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
        for path in (self.path, _seal_path(self.path)):
            make_way(path)
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

    def is_made_of(self, name: str, entry_fingerprint: str) -> bool:
        """True if the entry exists and this program computed it from the same inputs."""
        return self._fingerprints.get(name) == entry_fingerprint

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
                    group.create_dataset(key, data=array, **compression(array))
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


def copy_staged(path: Path, target: Path) -> None:
    """Copy a file of entries, unless there is one; a seal tells that it can be made again."""
    if path.is_file() and not target.exists():
        if _seal_path(path).is_file():
            shutil.copyfile(_seal_path(path), _seal_path(target))
        shutil.copyfile(path, target)


def remove_staged(path: Path) -> None:
    """Delete a staged file together with its unmerged parts."""
    for file in (Path(path), _seal_path(Path(path))):
        file.unlink(missing_ok=True)
    shutil.rmtree(_parts_dir(path), ignore_errors=True)
