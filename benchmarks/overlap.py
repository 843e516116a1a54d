"""What a second look at the part that two photos share gains, and what it costs.

    python -m benchmarks.posed_pairs ../shared/photos/herz_jesus_p8 > pairs.txt
    python -m benchmarks.overlap pairs.txt ../shared/photos/herz_jesus_p8/images --matcher jamma

Each pair is matched whole and then again (`match_overlap` of the conf); one thread, CPU seconds,
whole photos encoded before. A match is right if its squared symmetric epipolar distance to the true
geometry is below 1e-4 in normalised coordinates; the distance printed is the median of these
matches' distances, times the mean focal length, in pixels of the photo.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from benchmarks import detector_free
from pipelines.evaluate import MAX_EPIPOLAR_DISTANCE
from sfm_matchers.benchmark_pairs import PosedPair, read_posed_pairs
from sfm_matchers.evaluation import symmetric_epipolar_distance
from sfm_matchers.images import read_image, turned
from sfm_matchers.overlap import match_overlap
from sfm_matchers.protocols import Matches
from sfm_matchers.quarter_turns import QuarterTurns, unturned_matches


def right_distances(matches: Matches, pair: PosedPair) -> np.ndarray:
    """Distances of the right matches, in pixels."""
    intrinsics = (pair.intrinsics0, pair.intrinsics1)
    squared = symmetric_epipolar_distance(
        matches.keypoints0, matches.keypoints1, pair.essential, *intrinsics
    )
    focal_length = np.mean([matrix[axis, axis] for matrix in intrinsics for axis in (0, 1)])
    return np.sqrt(squared[squared < MAX_EPIPOLAR_DISTANCE]) * focal_length


def main() -> None:
    """Print a row of a table for each look."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs_file", type=Path, help="as of benchmarks.posed_pairs")
    parser.add_argument("image_dir", type=Path, help="what its names are relative to")
    detector_free.add_options(parser)
    options = parser.parse_args()
    matcher = detector_free.load(options.matcher, options.weights)
    turns = QuarterTurns(matcher)
    seconds: tuple[list[float], list[float]] = ([], [])
    counts: tuple[list[int], list[int]] = ([], [])
    distances: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    pairs = read_posed_pairs(options.pairs_file, options.image_dir)
    looked_again = 0
    for pair in pairs:
        image0, image1 = (read_image(options.image_dir / name) for name in (pair.name0, pair.name1))
        quarters = turns.between(image0, image1)
        positioned = turned(image1, quarters)
        encoded = (matcher.encode(image0), matcher.encode(positioned))
        times = [time.process_time()]
        first = matcher.match_encoded(*encoded)
        times.append(time.process_time())
        closer = match_overlap(matcher, image0, positioned, first)
        times.append(time.process_time())
        looked_again += closer is not first
        for look, matches in enumerate((first, closer)):
            found = unturned_matches(matches, quarters, (image1.shape[1], image1.shape[0]))
            seconds[look].append(times[look + 1] - times[look])
            counts[look].append(len(found))
            distances[look].append(right_distances(found, pair))
    print(f"{looked_again} of {len(pairs)} pairs have the matches of a second look")
    print("| look | matches | right | distance | seconds |")
    for look, name in enumerate(("first", "second")):
        right = np.concatenate(distances[look])
        print(
            f"| {name} | {np.mean(counts[look]):.0f} | {len(right) / sum(counts[look]):.1%} "
            f"| {np.median(right):.2f} px | {statistics.median(seconds[look]):.2f} s |"
        )


if __name__ == "__main__":
    main()
