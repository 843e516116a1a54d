"""One process at a time."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sfm_matchers.errors import InputError
from sfm_matchers.files.links import dead_link
from sfm_matchers.files.replacing import make_way, remove_left_behind


@contextlib.contextmanager
def exclusive(folder: Path, share: str | None = None) -> Iterator[None]:
    """Keep other runs out of an output folder; a killed run leaves no lock behind.

    What it left half-written is deleted by the next one that is alone.

    Args:
        folder: the output folder.
        share: None for a run that must be alone. The name of a share lets runs with other shares
            in, but no second one with this name.

    Raises:
        InputError: another run is working in it, it cannot be written to, or something lies in the
            place of a lock.
    """
    if link := dead_link(folder):
        raise InputError(f"cannot write to {folder}: {link} is a link that leads nowhere")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = [".lock"] if share is None else [".lock", f".lock-{share.replace('/', '-of-')}"]
        for name in names:
            make_way(folder / name)
        locks = [(folder / name).open("a+") for name in names]
    except OSError as error:
        exists = error.filename is not None and Path(error.filename).exists()
        where = error.filename if exists else folder
        raise InputError(f"cannot write to {where}: {error.strerror or error}") from error
    with contextlib.ExitStack() as stack:
        for file in locks:
            stack.enter_context(file)
        try:
            lock_file(locks[0], shared=share is not None)
            if share is not None:
                lock_file(locks[1])
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
                lock_file(file)
                break
            except OSError:
                time.sleep(0.5)
        yield


def lock_file(file: IO[str], *, shared: bool = False) -> None:
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
