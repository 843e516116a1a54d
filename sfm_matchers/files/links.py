"""Where links lead."""

from __future__ import annotations

import os
from pathlib import Path


def real_path(path: str | Path) -> Path:
    """Return a path without links; where they lead in a circle, as far as they can be followed.

    `Path.resolve` raises RuntimeError there, before Python 3.13.
    """
    return Path(os.path.realpath(path))


def dead_link(path: Path) -> Path | None:
    """Return a path, or the folder above it, that is a link to nowhere; None if none is.

    It may be one to a disk that is not mounted.
    """
    return next((p for p in (path, *path.parents) if p.is_symlink() and not p.exists()), None)
