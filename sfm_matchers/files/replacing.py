"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from sfm_matchers.errors import InputError, SfmMatchersError

logger = logging.getLogger(__name__)

_DATABASE = ".db"
_MEMORY = "-shm"  # tells nothing without a log
_LOGS = ("-wal", "-journal", _MEMORY)  # SQLite's own, beside a database

_TEMPORARY = re.compile(rf"\..+\.[0-9a-f]{{8}}\.tmp({'|'.join(_LOGS)})?")  # of `temporary_beside`


def temporary_beside(path: Path) -> Path:
    """Return a name in the folder of `path` that is hidden and nobody else's."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


@contextlib.contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder of such a name, beside `path`; it goes after the block.

    Raises:
        OSError: it cannot be made.
    """
    temporary = temporary_beside(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def unless_in_vain(folder: Path, traces: Sequence[str]) -> Iterator[None]:
    """Delete a folder that the block has made and ended with an error of ours, if it is empty.

    Args:
        folder: the folder; those above it that the block has made go too.
        traces: patterns of names of files that count as nothing.
    """
    made = [path for path in (folder, *folder.parents) if not is_taken(path)]
    try:
        yield
    except SfmMatchersError:
        found = [file.name for file in files_below(folder)] if made else []
        if made and all(any(fnmatch.fnmatch(name, trace) for trace in traces) for name in found):
            _remove(folder)
            with contextlib.suppress(OSError):
                for path in made[1:]:
                    path.rmdir()
        raise


@contextlib.contextmanager
def replacing(path: Path, *, lasting: bool = True) -> Iterator[Path]:
    """Give a name in the folder of `path` to write to; it takes its place if the block succeeds.

    The folder is made. The name is hidden and nobody else's, so that several processes may write
    the same file.

    Args:
        path: what is to be replaced.
        lasting: wait until the disk has the content. It takes milliseconds.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        yield temporary
        if lasting:
            flush(temporary)
        _take_place(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            for left in path.parent.glob(glob.escape(temporary.name) + "*"):
                left.unlink(missing_ok=True)


def _take_place(source: Path, path: Path) -> None:
    """Move a file to where it belongs; logs beside it, which would change it, go before."""
    for log in _logs_of(path):
        make_way(log)
        log.unlink(missing_ok=True)
    source.replace(path)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """The same for a folder: it is there, and empty; what lies at `path` is deleted afterwards.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = temporary_beside(path), temporary_beside(path)
    try:
        temporary.mkdir()
        yield temporary
        for file in files_below(temporary):
            flush(file)
        if is_taken(path):
            path.replace(old)
        temporary.replace(path)
    finally:
        for left in (temporary, old):
            _remove(left)


def _remove(path: Path) -> None:
    """Delete a file, or a folder with all that is in it; say so where that cannot be done."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
    with contextlib.suppress(OSError):
        if is_taken(path):
            logger.warning("%s is of no use and cannot be deleted: is it another user's?", path)


def flush(path: Path) -> None:
    """Wait until the disk has what was written to a file.

    Raises:
        OSError: it is not there, or could not be written.
    """
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def files_below(path: Path) -> list[Path]:
    """Return a file itself, or all files in a folder and below it, in order; none if not there."""
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file())


def has_unfinished_log(path: Path) -> bool:
    """Return whether a log beside a database would change what is read of it, or prevent it.

    A process that is killed leaves one, which whoever opens the database next takes over.
    """
    return any(
        log.is_symlink()
        or (log.exists() and not log.is_file())
        or (log.is_file() and log.stat().st_size > 0 and not log.name.endswith(_MEMORY))
        for log in _logs_of(path)
    )


def _logs_of(path: Path) -> list[Path]:
    if path.suffix != _DATABASE:
        return []
    return [path.with_name(path.name + suffix) for suffix in _LOGS]


def is_taken(path: Path) -> bool:
    """Return whether something has this name; a link that leads nowhere, or to itself, has."""
    return path.is_symlink() or path.exists()


def make_way(path: Path, *, is_told: bool = True) -> None:
    """Delete an empty folder, a pipe or a link to nowhere in the place of a file of ours; say so.

    Args:
        path: of the file.
        is_told: False where the file is missed later, and that is said.

    Raises:
        InputError: a folder there is not empty, or it cannot be deleted.
    """
    if path.is_file() or not is_taken(path):
        return
    try:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
    except OSError as error:
        raise InputError(
            f"{path} is not a file, as it must be: move it away ({error.strerror})"
        ) from error
    if is_told:
        logger.warning("%s was not a file: it is deleted, and made again", path)


def move_files(source: Path, folder: Path) -> None:
    """Let all files of a folder take the places of those in another one, one by one.

    Raises:
        InputError: something that is no file is in the place of one, see `make_way`.
        OSError: it cannot be done.
    """
    for file in sorted(source.iterdir()):
        make_way(folder / file.name)
        _take_place(file, folder / file.name)


def remove_left_behind(folder: Path) -> None:
    """Delete what killed runs have left half-written in an output folder and those in it.

    No other run may be writing there.
    """
    for pattern in (".*.tmp*", "*/.*.tmp*"):
        for path in list(folder.glob(pattern)):
            if _TEMPORARY.fullmatch(path.name):
                _remove(path)
