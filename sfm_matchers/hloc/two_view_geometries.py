"""Two-view geometries that hloc writes, completed for pycolmap.

hloc 1.5 writes the inliers of a pair without the kind of its geometry, and pycolmap 4.2.1 leaves
such a pair out without an error: `triangulation.main` in its default mode, and
`reconstruction.main` without verification, end with no point at all. Earlier versions of pycolmap
do not ask for it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pycolmap


def complete_before(module: ModuleType, name: str) -> None:
    """Let a step of hloc complete the geometries of its database first; once for each step."""
    step: Callable[..., Any] = getattr(module, name)
    if hasattr(step, "completes_geometries"):
        return

    @functools.wraps(step)
    def run(*args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(step).bind(*args, **kwargs).arguments
        complete_geometries(given["database_path"])
        return step(*args, **kwargs)

    run.completes_geometries = True  # type: ignore[attr-defined]
    setattr(module, name, run)


def complete_geometries(database_path: Path) -> None:
    """Call all geometries that have inliers but no kind calibrated, as hloc means them."""
    kinds = pycolmap.TwoViewGeometryConfiguration
    with (
        pycolmap.Database.open(database_path) as database,
        pycolmap.DatabaseTransaction(database),
    ):
        pair_ids, geometries = database.read_two_view_geometries()
        for pair_id, geometry in zip(pair_ids, geometries, strict=True):
            if geometry.config == kinds.UNDEFINED and len(geometry.inlier_matches):
                geometry.config = kinds.CALIBRATED
                ids = pycolmap.pair_id_to_image_pair(pair_id)
                database.update_two_view_geometry(*ids, geometry)
