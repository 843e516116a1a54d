"""CPU and wall seconds of a whole run of `pipelines.sfm --matcher sift` beside plain pycolmap's.

    python -m benchmarks.sift_run PHOTOS

Plain pycolmap extracts features, matches all pairs and maps, with the same camera model and number
of features; photos are of one size, as one camera's are. Every run is a process of its own, from
its start to its end; the two take turns, and the ratio is the median over the turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pycolmap
from PIL import Image

from sfm_matchers.mapping.mapper import MIN_MODEL_SIZE
from sfm_matchers.photos.folders import find_images


class Cost(NamedTuple):
    """Seconds of one run."""

    cpu: float
    wall: float


def plain(image_dir: Path, outputs: Path) -> None:
    """Reconstruct by pycolmap alone, as its own documentation does it."""
    database_path = outputs / "database.db"
    mode = pycolmap.CameraMode.SINGLE
    reader = pycolmap.ImageReaderOptions(camera_model="SIMPLE_RADIAL")
    options = pycolmap.IncrementalPipelineOptions(min_model_size=MIN_MODEL_SIZE)
    pycolmap.logging.minloglevel = int(pycolmap.logging.ERROR)
    pycolmap.extract_features(database_path, image_dir, camera_mode=mode, reader_options=reader)
    pycolmap.match_exhaustive(database_path)
    models = pycolmap.incremental_mapping(database_path, image_dir, outputs, options)
    print({index: model.num_reg_images() for index, model in models.items()})


def measure(module: str, arguments: Sequence[str], image_dir: Path) -> Cost:
    """Run a module in a process of its own and return what it cost."""
    with tempfile.TemporaryDirectory() as outputs:
        command = [sys.executable, "-m", module, *arguments]
        command += ["--image_dir", str(image_dir), "--outputs", outputs]
        before, start = os.times(), time.monotonic()
        subprocess.run(command, check=True, capture_output=True)
        after, end = os.times(), time.monotonic()
    cpu = after.children_user + after.children_system
    return Cost(cpu - before.children_user - before.children_system, end - start)


def check_sizes(image_dir: Path) -> None:
    """Exit where photos are of several sizes: with one camera plain pycolmap leaves most out."""
    sizes = set()
    for name in find_images(image_dir):
        with Image.open(image_dir / name) as photo:
            sizes.add(photo.size)
    if len(sizes) != 1:
        raise SystemExit(f"error: {image_dir} has photos of {len(sizes)} sizes: give those of one")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line per turn and the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image_dir", type=Path)
    parser.add_argument("--runs", type=int, default=5, help="default: %(default)s")
    options = parser.parse_args(arguments)
    check_sizes(options.image_dir)
    turns = []
    for _ in range(options.runs):
        ours = measure("pipelines.sfm", ["--matcher", "sift"], options.image_dir)
        theirs = measure("benchmarks.sift_run", ["--plain"], options.image_dir)
        turns.append((ours, theirs))
        print(f"sfm {ours.cpu:.1f} CPU, {ours.wall:.1f} wall; ", end="")
        print(f"plain {theirs.cpu:.1f} CPU, {theirs.wall:.1f} wall", flush=True)
    for kind in Cost._fields:
        ratios = [getattr(ours, kind) / getattr(theirs, kind) for ours, theirs in turns]
        values = [statistics.median(getattr(t[i], kind) for t in turns) for i in (0, 1)]
        print(
            f"{kind} seconds, median: sfm {values[0]:.1f}, plain pycolmap {values[1]:.1f}, "
            f"ratio {statistics.median(ratios):.2f}"
        )


if __name__ == "__main__":
    if "--plain" in sys.argv:
        *_, images, _, results = sys.argv
        plain(Path(images), Path(results))
    else:
        main()
