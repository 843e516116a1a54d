"""Temporary folders that no kill leaves for good."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from sfm_matchers.files.locks import lock_file

_PREFIX = "sfm-matchers-"
_LOCK = ".lock"  # in the folder: held by the process that works there
_NEW = 60  # seconds in which a folder may not have its lock yet


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Give a folder for files that nobody needs later; it goes after the block.

    The first call of a process deletes those that killed processes of this user have left.

    Raises:
        OSError: it cannot be made.
    """
    _remove_left_behind(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        with (folder / _LOCK).open("a+") as lock:
            lock_file(lock)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def _remove_left_behind(temporary: Path) -> None:
    """Delete folders of this user that no process works in."""
    with contextlib.suppress(OSError):
        for folder in temporary.glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError):
                if _is_old_and_own(folder):
                    with (folder / _LOCK).open("r+") as lock:
                        lock_file(lock)
                    shutil.rmtree(folder, ignore_errors=True)


def _is_old_and_own(folder: Path) -> bool:
    status = folder.lstat()  # a link may be another user's
    is_own = not hasattr(os, "getuid") or status.st_uid == os.getuid()
    return is_own and not folder.is_symlink() and time.time() - status.st_mtime > _NEW
