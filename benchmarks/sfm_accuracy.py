"""Models of real photo sets against their true poses, beside plain pycolmap's.

    python -m benchmarks.sfm_accuracy ../shared/photos --matchers sift jamma

A set is a folder with ``images/`` and, where the truth is known, ``colmap_gt/`` (a COLMAP text
model). Plain pycolmap is `extract_features`, `match_exhaustive`, `incremental_mapping` with its
defaults. Errors are of camera centres after the best similarity transform, in percent of the
largest distance between two true centres.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pycolmap

from sfm_matchers.errors import InputError
from sfm_matchers.evaluation.models import compare_models
from sfm_matchers.files.colmap_database import quiet_colmap
from sfm_matchers.runs.options import SfmOptions
from sfm_matchers.runs.reconstruct import run


def plain_pycolmap(image_dir: Path, work_dir: Path) -> pycolmap.Reconstruction | None:
    """Return the largest model of plain pycolmap, or None."""
    database = work_dir / "database.db"
    with quiet_colmap():
        pycolmap.extract_features(database, image_dir)
        pycolmap.match_exhaustive(database)
        models = pycolmap.incremental_mapping(database, image_dir, work_dir)
    return max(models.values(), key=lambda model: model.num_reg_images(), default=None)


def ours(matcher: str, weights: str) -> Callable[[Path, Path], pycolmap.Reconstruction | None]:
    """Return a function like `plain_pycolmap` for one of our matchers."""

    def reconstruct(image_dir: Path, work_dir: Path) -> pycolmap.Reconstruction | None:
        models = run(SfmOptions(image_dir, work_dir, matcher, weights=weights)).models
        return models[0] if models else None

    return reconstruct


def measure(
    name: str, reconstruct: Callable[[Path, Path], pycolmap.Reconstruction | None], photo_set: Path
) -> str:
    """Return a row of the table."""
    work_dir = Path(tempfile.mkdtemp())
    start = time.monotonic()
    model = reconstruct(photo_set / "images", work_dir)
    seconds = time.monotonic() - start
    shutil.rmtree(work_dir)
    total = sum(1 for path in (photo_set / "images").rglob("*") if path.is_file())
    if model is None:
        return f"| {photo_set.name} | {name} | 0 of {total} | - | - | - | - | {seconds:.0f} |"
    center = worst = rotation = "-"
    truth_path = photo_set / "colmap_gt"
    if truth_path.is_dir():
        try:
            errors = compare_models(model, pycolmap.Reconstruction(truth_path))
            relative = errors.relative_center_errors
            center, worst = f"{relative.mean():.3f} %", f"{relative.max():.3f} %"
            rotation = f"{errors.rotation_errors.mean():.3f}"
        except InputError:
            center = worst = rotation = "too few"
    return (
        f"| {photo_set.name} | {name} | {model.num_reg_images()} of {total} | "
        f"{model.num_points3D()} | {center} | {worst} | {rotation} | {seconds:.0f} |"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photo_sets", type=Path, help="folder of photo sets")
    parser.add_argument("--matchers", nargs="*", default=["sift"], help="default: sift")
    parser.add_argument("--weights", default="bundled", help="default: bundled")
    options = parser.parse_args(arguments)
    logging.getLogger("sfm_matchers").setLevel(logging.WARNING)
    print(
        "| set | method | registered | points | mean centre error | largest | rotation (degrees) | "
        "seconds |\n|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    for photo_set in sorted(path.parent for path in options.photo_sets.glob("*/images")):
        print(measure("plain pycolmap", plain_pycolmap, photo_set), flush=True)
        for matcher in options.matchers:
            print(measure(matcher, ours(matcher, options.weights), photo_set), flush=True)


if __name__ == "__main__":
    main()
