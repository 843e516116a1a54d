"""Room on the disk, asked for before libraries run out of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from sfm_matchers.errors import OutputError, SfmMatchersError, one_line
from sfm_matchers.files.links import dead_link


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
    except (OSError, RuntimeError, ValueError) as error:
        is_full = is_of_full_disk(error, path.parent)
        if not isinstance(error, OSError) and not is_full and "errno" not in str(error):
            raise  # HDF5 tells the errno, others have computed something
        if not is_full and (link := dead_link(path)):
            raise OutputError(
                f"cannot write {path}: {link} is a link that leads nowhere: move it away"
            ) from error
        reason = "no space is left" if is_full else one_line(error)
        raise OutputError(f"cannot write {path}: {reason}. {GOES_ON}") from error


GOES_ON = "What is done is kept: the same command goes on from it"
_FULL_DISK = ("no space left", "disk is full", "disk full", "errno = 28", "quota exceeded")
MIN_SPACE = 1 << 20  # bytes


def is_of_full_disk(error: BaseException, *folders: Path) -> bool:
    """True if an error says so, or if no space is left in one of the folders."""
    said = str(error).lower()
    return any(words in said for words in _FULL_DISK) or any(map(disk_is_full, folders))


def disk_is_full(folder: Path) -> bool:
    """Return whether hardly anything more can be written to a folder, or no further file."""
    try:
        return shutil.disk_usage(folder).free < MIN_SPACE or not _takes_files(folder)
    except OSError:
        return False


def _takes_files(folder: Path) -> bool:
    """Return whether the table of files of a disk, if it has one, has room."""
    if sys.platform == "win32":
        return True
    status = os.statvfs(folder)
    return status.f_favail > 0 or status.f_files == 0


def check_space(path: Path, num_bytes: int) -> None:
    """Look whether the disk has space for a file, before HDF5 or SQLite run out of it.

    They may end the process then, without an error.

    Raises:
        OutputError: it has not.
    """
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    free, needed = shutil.disk_usage(folder).free, MIN_SPACE + num_bytes
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
