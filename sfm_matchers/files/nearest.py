"""What was probably meant by a path that is not there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from sfm_matchers.errors import nearest


def nearest_path(path: str | Path, may_be: Callable[[Path], bool] = Path.exists) -> str:
    """Return ``: did you mean X?`` if a path is missing and one of a like name is there.

    Args:
        path: as it was given.
        may_be: tells whether a path may be the one that was meant.

    Returns:
        Else ``: there is no such file or folder``; nothing where the path is there.
    """
    path = Path(path)
    if path.exists():
        return ""
    for folder in path.parents:
        if not folder.is_dir():
            continue
        first, *others = path.relative_to(folder).parts
        whole: dict[str, Path] = {}
        with contextlib.suppress(OSError):
            for entry in folder.iterdir():
                meant = entry.joinpath(*others)
                whole[entry.name] = meant if meant.exists() else entry
        if near := nearest(first, (name for name, meant in whole.items() if may_be(meant))):
            return f": did you mean {whole[near]}?"
        break
    return ": there is no such file or folder"
