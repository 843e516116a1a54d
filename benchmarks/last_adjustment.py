"""What the last, robust adjustment of a model gains and costs: a database mapped with and without.

    python -m benchmarks.last_adjustment OUTPUTS TRUTH

OUTPUTS is that of a finished `pipelines.sfm`, TRUTH a COLMAP model of the same photos: the true
one, or one from other matches. Both times are of the whole mapping.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pycolmap

from sfm_matchers.evaluation.models import compare_models
from sfm_matchers.mapping.mapper import reconstruct


def measure(database_path: Path, truth: pycolmap.Reconstruction, robust: bool) -> str:
    """Return a row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        models = reconstruct(database_path, Path(folder), Path(folder) / "sparse", robust=robust)
        seconds = time.process_time() - start
    model = models[0]
    errors = compare_models(model, truth)
    relative = errors.relative_center_errors
    return (
        f"| {'with' if robust else 'without'} | {model.num_reg_images()} | "
        f"{model.num_points3D()} | {model.compute_mean_reprojection_error():.3f} px | "
        f"{relative.mean():.4f} % | {relative.max():.4f} % | {errors.rotation_errors.mean():.4f} | "
        f"{seconds:.1f} |"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("outputs", type=Path, help="output folder of pipelines.sfm")
    parser.add_argument("truth", type=Path, help="folder of a COLMAP model")
    options = parser.parse_args(arguments)
    truth = pycolmap.Reconstruction(options.truth)
    print(
        "| | photos | points | reprojection error | mean centre error | largest | "
        "rotation (degrees) | CPU seconds |\n|---|---|---|---|---|---|---|---|"
    )
    for robust in (False, True):
        print(measure(options.outputs / "database.db", truth, robust), flush=True)


if __name__ == "__main__":
    main()
