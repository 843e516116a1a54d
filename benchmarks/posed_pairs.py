"""A list of pairs with known poses, for `pipelines.evaluate pairs`, from a photo set with truth.

    python -m benchmarks.posed_pairs ../shared/photos/buddha --rotation 35 60 --count 12 > pairs.txt
    python -m pipelines.evaluate pairs --pairs_file pairs.txt --max_error 2 \\
        --image_dir ../shared/photos/buddha/images --matcher jamma

The set is a folder with ``images/`` and ``colmap_gt/``, a COLMAP text model. The lines are those of
SuperGlue's lists: two names, two quarter turns (0), intrinsics of both photos, cam1_from_cam0.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pycolmap


def posed_pairs(
    model: pycolmap.Reconstruction, least: float, most: float
) -> Iterator[tuple[pycolmap.Image, pycolmap.Image]]:
    """Pairs of images, by name, between which the camera turns by `least` to `most` degrees."""
    images = sorted(model.images.values(), key=lambda image: image.name)
    for image0, image1 in itertools.combinations(images, 2):
        turn = image1.cam_from_world().rotation * image0.cam_from_world().rotation.inverse()
        if least <= np.degrees(turn.angle()) < most:
            yield image0, image1


def line(model: pycolmap.Reconstruction, image0: pycolmap.Image, image1: pycolmap.Image) -> str:
    """The line of a pair."""
    pose = image1.cam_from_world() * image0.cam_from_world().inverse()
    numbers = [
        *(model.cameras[image.camera_id].calibration_matrix() for image in (image0, image1)),
        np.vstack([pose.matrix(), [0, 0, 0, 1]]),
    ]
    values = " ".join(f"{value:.9g}" for matrix in numbers for value in matrix.flatten())
    return f"{image0.name} {image1.name} 0 0 {values}"


def main() -> None:
    """Print the list."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photo_set", type=Path, help="folder with images and colmap_gt")
    parser.add_argument(
        "--rotation",
        type=float,
        nargs=2,
        default=(0, 180),
        metavar=("MIN", "MAX"),
        help="degrees by which the camera turns (default: 0 180)",
    )
    parser.add_argument("--count", type=int, default=25, help="pairs, at random (default: 25)")
    options = parser.parse_args()
    model = pycolmap.Reconstruction(options.photo_set / "colmap_gt")
    pairs = list(posed_pairs(model, *options.rotation))
    random.Random(0).shuffle(pairs)
    for pair in pairs[: options.count]:
        print(line(model, *pair))


if __name__ == "__main__":
    main()
