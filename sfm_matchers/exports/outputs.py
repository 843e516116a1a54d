"""The folder that exports are written to, and which of its files are theirs.

``exports.json`` lists what was written and what it was made from: only that is ever replaced or
deleted, as the folder may hold photos and models that nobody could make again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from sfm_matchers.errors import InputError
from sfm_matchers.files.fingerprints import content_hash
from sfm_matchers.files.notes import copy_of, read_memory, write_memory
from sfm_matchers.files.replacing import files_below, make_way
from sfm_matchers.files.text import folder_written_whole, written_whole

logger = logging.getLogger("sfm_matchers.exports")

RECORD = "exports.json"
PREPARED = "export"  # in the name of a temporary folder, .export.*.tmp
_LINK = "link"  # in place of a hash


class OutputFolder:
    """A folder whose exports are replaced, and nothing else.

    Args:
        path: the folder; made when something is written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._sources = _read_record(self.path / RECORD)

    def is_current(self, name: str, source: str) -> bool:
        """True if `name` is there, was made from the same, and is as it was written.

        If it only is not as it was written, this says so.
        """
        noted, _, files = self._sources.get(name, "").partition(" ")
        try:
            known = json.loads(files)
        except ValueError:
            return False
        path = self.path / name
        if noted != source or not isinstance(known, dict):
            return False
        marks = known.items()
        is_whole = path.exists() and all(_is_as_written(path / file, m) for file, m in marks)
        if not is_whole:
            logger.warning("%s is missing or damaged: it is exported again", path)
        return is_whole

    def noted(self) -> dict[str, str]:
        """Return the exports that are there, and what each was made of."""
        sources = {name: note.partition(" ")[0] for name, note in self._sources.items()}
        return {name: one for name, one in sources.items() if one and (self.path / name).exists()}

    def check(self, name: str) -> None:
        """Raise InputError if `name` is there and is no export."""
        if (self.path / name).exists() and name not in self._sources:
            raise InputError(
                f"{self.path / name} is there already and was not written by an export: move it "
                "away, or give another folder"
            )

    @contextlib.contextmanager
    def folder(self, name: str, source: str) -> Iterator[Path]:
        """Give an empty folder, which takes the place of `name` if the block succeeds.

        Raises:
            InputError: `name` is there and is no export.
            OutputError: it cannot be written.
        """
        path = self._claim(name)
        with folder_written_whole(path) as temporary:
            yield temporary
        self._note(name, f"{source} {json.dumps(_marks(path))}")

    @contextlib.contextmanager
    def file(self, name: str, source: str) -> Iterator[Path]:
        """Give a path to write to; the file takes the place of `name` if the block succeeds.

        Args:
            name: of the file.
            source: what it is made of; "" if it is written each time.

        Raises:
            InputError: `name` is there and is no export.
            OutputError: it cannot be written.
        """
        path = self._claim(name)
        make_way(path, is_told=not source)  # else `is_current` has told
        with written_whole(path) as temporary:
            yield temporary
        self._note(name, f"{source} {json.dumps(_marks(path))}")

    def _claim(self, name: str) -> Path:
        """Note that `name` is an export, before it is there: a kill may follow any time."""
        self.check(name)
        self._note(name, "")
        return self.path / name

    def _note(self, name: str, source: str) -> None:
        self._sources[name] = source
        write_memory(self.path / RECORD, self._sources, twice=True)


def _marks(path: Path) -> dict[str, str]:
    """What tells whether each file of an export is as it was written: size, time and hash.

    Links to photos are only noted as links: hashing them reads many gigabytes, for nothing.
    """
    return {file.relative_to(path).as_posix(): _mark(file) for file in files_below(path)}


def _mark(file: Path) -> str:
    status = file.stat()
    digest = _LINK if _is_link(file) else content_hash(file)
    return f"{status.st_size} {status.st_mtime_ns} {digest}"


def _is_link(file: Path) -> bool:
    """True of a link, or a file of several names: a photo of the user's, which runs hash."""
    return file.is_symlink() or file.stat().st_nlink > 1


def _is_as_written(file: Path, mark: str) -> bool:
    """True if a file of an export fits its mark; those of earlier versions have no hash."""
    size, time, *digest = mark.split()
    try:
        if not file.is_file():  # a pipe never ends
            return False
        if digest and digest[0] != _LINK:
            return content_hash(file) == digest[0]
        if digest and not _is_link(file):
            return False
        status = file.stat()
        return (size, time) == (str(status.st_size), str(status.st_mtime_ns))
    except OSError:
        return False


def remove_exports(path: str | Path) -> None:
    """Delete what exports have written to a folder, and nothing else."""
    path = Path(path)
    record = path / RECORD
    found = [*(path / name for name in _read_record(record)), record, copy_of(record)]
    for target in (*found, path / PREPARED):  # what a kill has left
        found += target.parent.glob(f".{target.name}.*.tmp")
    for target in found:
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)


def _read_record(path: Path) -> dict[str, str]:
    """What was written, and from what.

    Names that lead out of the folder are not ours.
    """
    return {
        name: str(source)
        for name, source in read_memory(path, twice=True).items()
        if not Path(name).is_absolute() and ".." not in Path(name).parts
    }
