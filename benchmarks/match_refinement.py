"""What the refinements of matches gain, after the network's own, and what they cost.

    python -m benchmarks.posed_pairs ../shared/photos/herz_jesus_p8/colmap_gt > pairs.txt
    python -m benchmarks.match_refinement pairs.txt ../shared/photos/herz_jesus_p8/images

Each pair is matched whole; then what it shares (`match_overlap`, in which the whole is only looked
at coarsely); then the points of that are moved (`least_squares_matching`). One thread, CPU seconds
of each step alone, whole photos encoded before. A match is right if its squared symmetric epipolar
distance to the true geometry is below 1e-4 in normalised coordinates; the distance printed is the
median of these matches' distances, times the mean focal length, in pixels of the photo.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from benchmarks import detector_free
from sfm_matchers.confs import DetectorFreeConf, load_conf
from sfm_matchers.evaluation.pair_lists import PosedPair, read_posed_pairs
from sfm_matchers.evaluation.runs import MAX_EPIPOLAR_DISTANCE
from sfm_matchers.geometry.epipolar import symmetric_epipolar_distance
from sfm_matchers.matchers.least_squares_matching import least_squares_matching
from sfm_matchers.matchers.looks import first_looks
from sfm_matchers.matchers.overlap import match_overlap
from sfm_matchers.matchers.protocols import Matches
from sfm_matchers.matchers.quarter_turns import QuarterTurns, unturned_matches
from sfm_matchers.photos.images import quarters_to_upright, read_image_and_orientation
from sfm_matchers.photos.resizing import turned


def right_distances(matches: Matches, pair: PosedPair) -> np.ndarray:
    """Distances of the right matches, in pixels."""
    intrinsics = (pair.intrinsics0, pair.intrinsics1)
    squared = symmetric_epipolar_distance(
        matches.keypoints0, matches.keypoints1, pair.essential, *intrinsics
    )
    focal_length = np.mean([matrix[axis, axis] for matrix in intrinsics for axis in (0, 1)])
    return np.sqrt(squared[squared < MAX_EPIPOLAR_DISTANCE]) * focal_length


def main() -> None:
    """Print a row of a table for each refinement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs_file", type=Path, help="as of benchmarks.posed_pairs")
    parser.add_argument("image_dir", type=Path, help="what its names are relative to")
    detector_free.add_options(parser)
    options = parser.parse_args()
    matcher, conf = detector_free.load(options.matcher, options.weights), load_conf(options.matcher)
    assert isinstance(conf, DetectorFreeConf)
    turns = QuarterTurns(matcher)
    names = ["network", "match_overlap", "least_squares_matching"]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    counts: dict[str, list[int]] = {name: [] for name in names}
    distances: dict[str, list[np.ndarray]] = {name: [] for name in names}
    changed = dict.fromkeys(names, 0)
    for pair in read_posed_pairs(options.pairs_file, options.image_dir):
        paths = [options.image_dir / name for name in (pair.name0, pair.name1)]
        (image0, way0), (image1, way1) = map(read_image_and_orientation, paths)
        sizes = (image0.shape[1::-1], image1.shape[1::-1])
        upright = (quarters_to_upright(way0), quarters_to_upright(way1))
        image0, image1 = map(turned, (image0, image1), upright)
        turn = turns.between(image0, image1)
        image1, quarters = turned(image1, turn), (upright[0], upright[1] + turn)
        encoded = (matcher.encode(image0), matcher.encode(image1))
        matches = Matches(*(np.zeros(shape, np.float32) for shape in ((0, 2), (0, 2), 0)))
        for name in names:
            before, start = matches, time.process_time()
            if name == "network":
                matches = matcher.match_encoded(*encoded)
            elif name == "match_overlap":
                (look,) = first_looks(matcher, [encoded])
                matches = match_overlap(matcher, image0, image1, look)
            else:
                matches = least_squares_matching(image0, image1, before)
            seconds[name].append(time.process_time() - start)
            changed[name] += not np.array_equal(matches.keypoints1, before.keypoints1)
            found = unturned_matches(matches, quarters, sizes)
            counts[name].append(len(found))
            distances[name].append(right_distances(found, pair))
    print("| look | pairs changed | matches | right | distance | seconds |")
    for name in names:
        right = np.concatenate(distances[name])
        print(
            f"| {name} | {changed[name]} | {np.mean(counts[name]):.0f} "
            f"| {len(right) / sum(counts[name]):.1%} | {np.median(right):.2f} px "
            f"| {statistics.median(seconds[name]):.2f} s |"
        )


if __name__ == "__main__":
    main()
