"""A list of pairs with known poses, for `pipelines.evaluate pairs`, drawn at random.

    python -m benchmarks.posed_pairs MODEL --rotation 35 60 --count 12 > pairs.txt
    python -m pipelines.evaluate pairs --pairs_file pairs.txt --max_error 2 \\
        --image_dir PHOTOS --matcher jamma

The truth is a COLMAP model, or one of LoFTR's scene_info files. The lines are those of SuperGlue's
lists: two names, two quarter turns (0), intrinsics of both photos, cam1_from_cam0.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from sfm_matchers.evaluation.models import rotation_angle
from sfm_matchers.evaluation.pair_lists import PosedPair, read_scene_info
from sfm_matchers.mapping.models import read_model


@dataclass(frozen=True)
class Candidate:
    """A pair that could be in the list, and the share of the scene that both photos see, 0 to 1."""

    pair: PosedPair
    shared: float

    @property
    def rotation(self) -> float:
        """Degrees by which the camera turns between the photos."""
        return rotation_angle(self.pair.cam1_from_cam0[:3, :3])


def of_model(model: pycolmap.Reconstruction) -> Iterator[Candidate]:
    """Pairs of a model; shared are 3D points, of those that the photo with fewer of them has."""
    images = sorted(model.images.values(), key=lambda image: image.name)
    points = {
        image.image_id: {point.point3D_id for point in image.points2D if point.has_point3D()}
        for image in images
    }
    for image0, image1 in itertools.combinations(images, 2):
        matrix = np.eye(4)
        matrix[:3] = (image1.cam_from_world() * image0.cam_from_world().inverse()).matrix()
        intrinsics = [
            model.cameras[image.camera_id].calibration_matrix() for image in (image0, image1)
        ]
        seen0, seen1 = points[image0.image_id], points[image1.image_id]
        shared = len(seen0 & seen1) / max(min(len(seen0), len(seen1)), 1)
        yield Candidate(PosedPair(image0.name, image1.name, *intrinsics, matrix), shared)


def of_scene_info(path: Path) -> Iterator[Candidate]:
    """Pairs that a scene_info file lists, with its overlaps."""
    scene = read_scene_info(path)
    for (first, second), overlap in zip(scene.pairs.tolist(), scene.overlaps, strict=True):
        yield Candidate(scene.posed_pair(first, second), float(overlap))


def line(pair: PosedPair) -> str:
    """The line of a pair."""
    matrices = (pair.intrinsics0, pair.intrinsics1, pair.cam1_from_cam0)
    values = " ".join(f"{value:.9g}" for matrix in matrices for value in matrix.flatten())
    return f"{pair.name0} {pair.name1} 0 0 {values}"


def main() -> None:
    """Print the list."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("truth", type=Path, help="folder of a COLMAP model, or scene_info file")
    limits = {"type": float, "nargs": 2, "metavar": ("MIN", "MAX")}
    parser.add_argument(
        "--rotation",
        default=(0, 180),
        help="degrees by which the camera turns (default: 0 180)",
        **limits,
    )
    parser.add_argument(
        "--shared",
        default=(0, 100),
        help="percent of 3D points, or of known depth, that both see (default: 0 100)",
        **limits,
    )
    parser.add_argument("--count", type=int, default=25, help="pairs (default: 25)")
    options = parser.parse_args()
    truth = options.truth
    candidates = of_scene_info(truth) if truth.suffix == ".npz" else of_model(read_model(truth))
    chosen = [
        candidate.pair
        for candidate in candidates
        if options.rotation[0] <= candidate.rotation < options.rotation[1]
        and options.shared[0] <= 100 * candidate.shared < options.shared[1]
    ]
    random.Random(0).shuffle(chosen)
    for pair in chosen[: options.count]:
        print(line(pair))


if __name__ == "__main__":
    main()
