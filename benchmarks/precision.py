"""What half precision costs in matches: each matcher in float32, bfloat16 and float16.

    python -m benchmarks.precision --matchers jamma eloftr sift+mambaglue --device cuda

Pairs of rendered photos, whose truth is known. A match is right within 3 px of it. Precision is
the share of right matches; recall is the number of right matches over that in float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from sfm_matchers.confs import load_conf
from sfm_matchers.matchers.photo_matchers import make_photo_matcher
from sfm_matchers.matchers.protocols import Matches
from sfm_matchers.networks.precision import PRECISIONS
from sfm_matchers.synthetic import Camera, camera_path, make_scene, project, render, unproject

KINDS = ("room", "courtyard")
TOLERANCE = 3.0  # px
VIEWS = 24  # on the path of a camera; pairs are a few steps of it apart
STEPS_APART = 2

Pair = tuple[np.ndarray, np.ndarray, np.ndarray]


def pairs(count: int, camera: Camera) -> Iterator[Pair]:
    """Two photos and, for each pixel of the first, its position in the second: (H, W, 2)."""
    for index in range(count):
        scene = make_scene(index, kind=KINDS[index % len(KINDS)], texture_size=512)
        path = camera_path(scene, VIEWS, seed=index)
        pose0, pose1 = path[0], path[STEPS_APART]
        view0, view1 = (render(scene, camera, pose) for pose in (pose0, pose1))
        position, _ = project(unproject(view0.depth, camera, pose0), camera, pose1)
        yield view0.image, view1.image, position


def right(matches: Matches, position: np.ndarray) -> int:
    """Number of matches within `TOLERANCE` of the truth."""
    x, y = matches.keypoints0.round().astype(int).T
    x, y = x.clip(0, position.shape[1] - 1), y.clip(0, position.shape[0] - 1)
    # The truth is that of the nearest pixel: the rest of the way is the same in both photos.
    expected = position[y, x] + matches.keypoints0 - np.stack([x, y], axis=1)
    return int((np.linalg.norm(matches.keypoints1 - expected, axis=1) < TOLERANCE).sum())


def measure(name: str, rendered: list[Pair], device: str) -> None:
    """Print the rows of one matcher."""
    conf = load_conf(name)
    right_in_float32 = 0
    for precision in PRECISIONS:
        of_precision = replace(conf, model={**conf.model, "precision": precision})
        matcher = make_photo_matcher(of_precision, "bundled", device)
        found = num_right = 0
        for image0, image1, position in tqdm(rendered, f"{name} {precision}"):
            matches = matcher.match(image0, image1)
            found += len(matches)
            num_right += right(matches, position)
        right_in_float32 = right_in_float32 or num_right
        share, recall = num_right / max(found, 1), num_right / max(right_in_float32, 1)
        print(f"| {name} | {precision} | {found} | {100 * share:.1f} % | {100 * recall:.1f} % |")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    names = ["jamma", "eloftr", "sift+mambaglue"]
    parser.add_argument("--matchers", nargs="+", default=names)
    parser.add_argument("--pairs", type=int, default=6, help="number of pairs")
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480), help="pixels")
    parser.add_argument(
        "--device", default="cpu", help="cpu, where half precision is slow, or cuda"
    )
    options = parser.parse_args()
    print("| matcher | precision | matches | right | right, of float32's |\n|---|---|---|---|---|")
    rendered = list(pairs(options.pairs, Camera.from_field_of_view(*options.size)))
    for name in options.matchers:
        measure(name, rendered, options.device)


if __name__ == "__main__":
    main()
