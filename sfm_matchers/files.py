"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name in the folder of `path` to write to; it takes its place if the block succeeds.

    The folder is made. The name is hidden and nobody else's, so that several processes may write
    the same file.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """As `replacing`, for a folder: the block gets an empty one.

    The older folder stays until the new one is complete; a kill while they change places leaves
    both, one of them under a hidden name.

    Raises:
        OSError: it cannot be written.
    """
    name = f".{path.name}.{uuid.uuid4().hex[:8]}"
    temporary, older = path.with_name(f"{name}.tmp"), path.with_name(f"{name}.old.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():
            os.replace(path, older)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(older, ignore_errors=True)
