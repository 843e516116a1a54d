"""What was probably meant by a path that is not there."""

from __future__ import annotations

import contextlib
from pathlib import Path

from sfm_matchers.errors import nearest


def nearest_path(path: str | Path) -> str:
    """Return ``: did you mean X?`` if a path is missing and one of a like name is there.

    Returns:
        Else ``: there is no such file or folder``; nothing where the path is there.
    """
    path = Path(path)
    if path.exists():
        return ""
    for folder in path.parents:
        if not folder.is_dir():
            continue
        names: list[str] = []
        with contextlib.suppress(OSError):
            names = [entry.name for entry in folder.iterdir()]
        first, *others = path.relative_to(folder).parts
        if near := nearest(first, names):
            found = folder / near
            whole = found.joinpath(*others)
            return f": did you mean {whole if whole.exists() else found}?"
        break
    return ": there is no such file or folder"
