"""Where links lead."""

from __future__ import annotations

import os
from pathlib import Path


def real_path(path: str | Path) -> Path:
    """Return a path without links; where they lead in a circle, as far as they can be followed.

    `Path.resolve` raises RuntimeError there, before Python 3.13.
    """
    return Path(os.path.realpath(path))
