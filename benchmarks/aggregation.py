"""Assembling keypoints and matches: the package against a plain loop over correspondences.

    python -m benchmarks.aggregation

Both get the same 100 pairs of 1500 matches, held in memory, and must return the same keypoints
and the same matches. They run in turns; times are CPU seconds of the process (both use one
thread), so that other programs on the machine do not count.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections import Counter, defaultdict

import numpy as np

from sfm_matchers.files.pair_lists import Pair
from sfm_matchers.keypoints.assembly import Correspondences, ImageKeypoints, assemble
from sfm_matchers.keypoints.grid import AggregationOptions

NUM_IMAGES, NUM_PAIRS, NUM_MATCHES, NUM_CORNERS = 15, 100, 1500, 6000
IMAGE_SIZE = (1600, 1200)  # pixels
REQUIRED_RATIO = 20

Keypoints = dict[str, np.ndarray]
Matches = dict[Pair, np.ndarray]


def synthetic_pairs(rng: np.random.Generator) -> dict[Pair, Correspondences]:
    """Return matches of corners that all images share: image 0 refined, image 1 on an 8 px grid."""
    corners = rng.uniform(0, 1, (NUM_CORNERS, 2)) * IMAGE_SIZE
    names = [f"{index:02d}.jpg" for index in range(NUM_IMAGES)]
    pairs = [(name0, name1) for name0 in names for name1 in names if name0 < name1]
    correspondences = {}
    for pair in pairs[:NUM_PAIRS]:
        seen = corners[rng.choice(NUM_CORNERS, NUM_MATCHES, replace=False)]
        refined = seen + rng.normal(0, 0.7, seen.shape)
        coarse = np.round((seen + 0.5) / 8) * 8 - 0.5
        scores = rng.uniform(0.2, 1, NUM_MATCHES)
        arrays = tuple(array.astype(np.float32) for array in (refined, coarse, scores))
        correspondences[pair] = arrays
    return correspondences


def assemble_vectorized(
    correspondences: dict[Pair, Correspondences], options: AggregationOptions
) -> tuple[Keypoints, Matches]:
    """Assemble with the package."""
    keypoints: Keypoints = {}
    matches: Matches = {}
    for result in assemble(correspondences, options):
        if isinstance(result, ImageKeypoints):
            keypoints[result.name] = result.keypoints
        else:
            matches[result.pair] = result.matches0
    return keypoints, matches


def assemble_by_loop(
    correspondences: dict[Pair, Correspondences], options: AggregationOptions
) -> tuple[Keypoints, Matches]:
    """Assemble one correspondence after the other, with dictionaries."""
    counts = Counter(name for pair in correspondences for name in pair)
    pairs = sorted(correspondences, key=lambda pair: (min(counts[name] for name in pair), pair))
    votes: dict[str, dict] = defaultdict(dict)
    for pair in pairs:
        points0, points1, scores = correspondences[pair]
        for *points, score in zip(points0.tolist(), points1.tolist(), scores, strict=True):
            for name, point in zip(pair, points, strict=True):
                bins = votes[name].setdefault(loop_snap(point, options.cell_size), {})
                node = loop_snap(point, options.max_error)
                bins[node] = bins.get(node, np.float32(0)) + score

    keypoints, grids = {}, {}
    for name, cells in votes.items():
        elected = [max(bins.items(), key=lambda item: item[1]) for bins in cells.values()]
        elected.sort(key=lambda item: -item[1])
        nodes = [node for node, _ in elected[: options.max_keypoints]]
        keypoints[name] = np.array(nodes, dtype=np.float32)
        grids[name] = loop_grid(nodes, options.max_error)

    matches = {}
    for pair in pairs:
        points0, points1, scores = correspondences[pair]
        best0: dict[int, tuple[float, int]] = {}
        best1: dict[int, float] = {}
        for point0, point1, score in zip(
            points0.tolist(), points1.tolist(), scores.tolist(), strict=True
        ):
            id0 = loop_nearest(point0, grids[pair[0]], options.max_error)
            id1 = loop_nearest(point1, grids[pair[1]], options.max_error)
            if id0 < 0 or id1 < 0:
                continue
            if score > best0.get(id0, (-1.0, -1))[0]:
                best0[id0] = score, id1
            best1[id1] = max(score, best1.get(id1, -1.0))
        matches0 = np.full(len(keypoints[pair[0]]), -1, dtype=np.int32)
        for id0, (score, id1) in best0.items():
            if best1[id1] == score:
                matches0[id0] = id1
        matches[pair] = matches0
    return keypoints, matches


def loop_snap(point: list[float], step: float) -> tuple[float, float]:
    """Snap one point."""
    x, y = point
    return (
        round(round((x + 0.5) / step) * step - 0.5, 2),
        round(round((y + 0.5) / step) * step - 0.5, 2),
    )


def loop_grid(nodes: list[tuple[float, float]], step: float) -> dict:
    """Sort keypoints into squares."""
    grid = defaultdict(list)
    for index, (x, y) in enumerate(nodes):
        grid[x // step, y // step].append((index, x, y))
    return grid


def loop_nearest(point: list[float], grid: dict, max_error: float) -> int:
    """Return the keypoint nearest to one point, or -1."""
    best, best_distance = -1, math.inf
    column, row = point[0] // max_error, point[1] // max_error
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            for index, x, y in grid.get((column + dx, row + dy), ()):
                distance = math.sqrt((point[0] - x) ** 2 + (point[1] - y) ** 2)
                if distance <= max_error and (distance, index) < (best_distance, best):
                    best, best_distance = index, distance
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of both")
    rounds = parser.parse_args().rounds

    correspondences = synthetic_pairs(np.random.default_rng(0))
    for label, options in (
        ("max_error 1, cell_size 1", AggregationOptions(1, 1)),
        ("max_error 2, cell_size 8", AggregationOptions(2, 8)),
    ):
        functions = (assemble_by_loop, assemble_vectorized)
        seconds: dict[str, list[float]] = {function.__name__: [] for function in functions}
        results = {}
        for _ in range(rounds):
            for function in functions:
                start = time.process_time()
                results[function.__name__] = function(correspondences, options)
                seconds[function.__name__].append(time.process_time() - start)
        check_equal(*results.values())
        loop, vectorized = (statistics.median(values) for values in seconds.values())
        print(
            f"{label}: {NUM_PAIRS} pairs x {NUM_MATCHES} matches, loop {loop:.2f} s, "
            f"vectorized {vectorized:.3f} s, ratio {loop / vectorized:.1f} "
            f"(required {REQUIRED_RATIO}), results equal"
        )


def check_equal(expected: tuple[Keypoints, Matches], found: tuple[Keypoints, Matches]) -> None:
    """Stop if keypoints or matches differ."""
    for want, got in zip(expected, found, strict=True):
        different = [key for key in want if not np.array_equal(want[key], got[key])]
        if different or want.keys() != got.keys():
            raise SystemExit(f"results differ, for example at {different[:1]}")


if __name__ == "__main__":
    main()
