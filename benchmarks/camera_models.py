"""Is the camera model that is chosen as good as the true calibration?

    python -m benchmarks.camera_models
    python -m benchmarks.camera_models --lenses RADIAL OPENCV --places 2

Ten photos each of points all around through lenses of many models, with exact truth. For each lens:
mean errors of the camera centres with `SIMPLE_RADIAL`, and with the model that is chosen, over
those with the true calibration given.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pycolmap

from sfm_matchers.mapping.camera_models import choose_camera_models
from tests.support.rendered_lenses import (
    calibrated,
    center_error,
    lens,
    mapped,
    place,
    write_database,
)

LENSES = {
    "none": lens("SIMPLE_RADIAL", 1000, 640, 480, 0),
    "RADIAL": lens("RADIAL", 1000, 640, 480, -0.15, 0.08),
    "OPENCV": lens("OPENCV", 1000, 1000, 640, 480, -0.15, 0.05, 0.002, -0.001),
    "RADIAL-off": lens("RADIAL", 1000, 655, 470, -0.15, 0.06),
    "OPENCV-off": lens("OPENCV", 1000, 1000, 625, 490, 0.05, -0.02, 0.001, 0.001),
    "OPENCV_FISHEYE": lens("OPENCV_FISHEYE", 600, 600, 640, 480, 0.02, -0.01, 0.002, 0),
    "THIN_PRISM_FISHEYE-off": lens(
        "THIN_PRISM_FISHEYE", 600, 600, 655, 470, 0.05, -0.02, 5e-4, 3e-4, 0, 0, 0, 0
    ),
}


def ratios(camera: pycolmap.Camera, seed: int) -> tuple[float, float, str]:
    """Errors with `SIMPLE_RADIAL` and with the chosen model over those with the true calibration,
    and which model that is."""
    truth = place(camera, seed)
    least = center_error(calibrated(truth), truth)
    start = mapped(truth)
    with tempfile.TemporaryDirectory() as folder:
        database_path = Path(folder) / "database.db"
        write_database(database_path, truth)
        chosen, (choice,) = choose_camera_models(start, database_path=database_path)
    return center_error(start, truth) / least, center_error(chosen, truth) / least, choice.after


def main() -> None:
    """Print a row for each lens."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lenses", nargs="+", default=list(LENSES), choices=LENSES)
    parser.add_argument("--places", type=int, default=4, help="for each lens (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the first place (default: 0)")
    options = parser.parse_args()
    print("'-off': the principal point is off the middle; medians, and the largest in brackets")
    print("| lens | `SIMPLE_RADIAL` | `auto` | chosen |\n|---|---|---|---|")
    for name in options.lenses:
        found = [ratios(LENSES[name], options.seed + index) for index in range(options.places)]
        simple, chosen = (np.array([row[part] for row in found]) for part in (0, 1))
        models = ", ".join(f"{model} ({n})" for model, n in Counter(r[2] for r in found).items())
        print(
            f"| {name} | {np.median(simple):.3g} | {np.median(chosen):.2f} ({chosen.max():.2f}) "
            f"| {models} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
