"""How often the quarter turn between two photos is found, and what the search costs.

    python -m benchmarks.quarter_turns ../shared/photos/buddha --matcher jamma

The set is a folder with ``images/`` and ``colmap_gt/``. Of each pair of photos whose
optical axes are less than `--viewing` degrees apart the search is timed, and then the matching at
full size in the position found; one thread, CPU seconds, photos encoded before. A position is right
if the cameras are turned by less than 60 degrees about their axes then.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from pathlib import Path

import numpy as np
import pycolmap

from benchmarks import detector_free
from sfm_matchers.matchers.quarter_turns import QuarterTurns
from sfm_matchers.photos.images import read_image
from sfm_matchers.photos.resizing import turned

MAX_ROLL = 60.0  # degrees left; between 45 and 60 both neighbouring positions will do


def viewing_angle_and_roll(image0: pycolmap.Image, image1: pycolmap.Image) -> tuple[float, float]:
    """Degrees between the optical axes, and by which camera 1 is turned about its own."""
    rotation = image1.cam_from_world().rotation * image0.cam_from_world().rotation.inverse()
    matrix = rotation.matrix()
    axis, angle = np.cross(matrix[:, 2], [0, 0, 1]), float(np.arccos(np.clip(matrix[2, 2], -1, 1)))
    direction = axis / max(np.linalg.norm(axis), 1e-12)
    about_axis = pycolmap.Rotation3d(direction * angle).matrix() @ matrix
    return np.degrees(angle), np.degrees(np.arctan2(about_axis[1, 0], about_axis[0, 0]))


def main() -> None:
    """Print a line for each pair that is turned, and a row of a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photo_set", type=Path, help="folder with images and colmap_gt")
    detector_free.add_options(parser)
    parser.add_argument("--viewing", type=float, default=45, help="degrees (default: 45)")
    options = parser.parse_args()
    matcher = detector_free.load(options.matcher, options.weights)
    turns = QuarterTurns(matcher)
    model = pycolmap.Reconstruction(options.photo_set / "colmap_gt")
    images = sorted(model.images.values(), key=lambda image: image.name)
    photos = {image.name: read_image(options.photo_set / "images" / image.name) for image in images}
    small = {
        name: [turns.encode(photo, quarters) for quarters in range(4)]
        for name, photo in photos.items()
    }
    encoded = {name: matcher.encode(photo) for name, photo in photos.items()}
    search, whole, right, num_turned, turned_right = [], [], 0, 0, 0
    for image0, image1 in itertools.combinations(images, 2):
        angle, roll = viewing_angle_and_roll(image0, image1)
        if angle > options.viewing:
            continue
        start = time.process_time()
        quarters = turns.best(small[image0.name][0], small[image1.name].__getitem__)
        search.append(time.process_time() - start)
        left = (roll - 90 * quarters + 180) % 360 - 180
        is_right = abs(left) < MAX_ROLL
        right += is_right
        if abs(roll) > MAX_ROLL:
            num_turned += 1
            turned_right += is_right
            found = "right" if is_right else "wrong"
            print(f"{image0.name} {image1.name}: turned by {roll:.0f}, {90 * quarters} {found}")
        positioned = matcher.encode(turned(photos[image1.name], quarters))
        start = time.process_time()
        matcher.match_encoded(encoded[image0.name], positioned)
        whole.append(time.process_time() - start)
    seconds = [statistics.median(each) for each in (search, whole)]
    print("| matcher | pairs | right | turned | right | search | matching | ratio |")
    print(
        f"| {options.matcher} | {len(search)} | {right} | {num_turned} | {turned_right} "
        f"| {seconds[0]:.2f} s | {seconds[1]:.2f} s | {seconds[0] / seconds[1]:.2f} |"
    )


if __name__ == "__main__":
    main()
