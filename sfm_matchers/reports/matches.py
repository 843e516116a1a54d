"""The verified matches that a report holds, for pairs that are looked at one by one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from sfm_matchers.files.hdf5 import open_h5
from sfm_matchers.mapping.diagnosis import MatchGraph
from sfm_matchers.photos.images import points_to_upright

logger = logging.getLogger(__name__)

MAX_PARTNERS = 30  # of each image, those with most verified matches
MAX_LINES_OF_PAIR = 150
MAX_LINES_IN_ALL = 200_000  # of 8 bytes each
FULL = 65535  # a coordinate at the right or lower end of a photo


@dataclass(frozen=True)
class LinesOfPairs:
    """Verified matches to draw.

    Attributes:
        pairs: (P, 4) int: rows of the two images, verified matches, matches before verification.
        counts: (P,) int, how many lines of each are there.
        lines: (sum of counts, 4) uint16: x and y in the first photo, then in the second, both
            upright, as shares of width and height.
    """

    pairs: np.ndarray
    counts: np.ndarray
    lines: np.ndarray


def no_lines() -> LinesOfPairs:
    """Return those of no pair."""
    none = np.zeros((0, 4))
    return LinesOfPairs(none.astype(np.int64), np.zeros(0, dtype=int), none.astype(np.uint16))


def read_lines(
    graph: MatchGraph,
    feature_path: Path,
    sizes: Mapping[str, tuple[int, int]],
    orientations: Mapping[str, int],
) -> LinesOfPairs:
    """Read matches of the strongest pairs of each image, a part where there are many.

    Args:
        graph: of the run.
        feature_path: the keypoints (HDF5) that its database was filled with.
        sizes: (width, height) of photos as stored; pairs of others have no lines.
        orientations: EXIF's, by name.
    """
    chosen = _strongest_pairs(graph)
    each = MAX_LINES_OF_PAIR
    if len(chosen):
        each = int(np.clip(MAX_LINES_IN_ALL // len(chosen), 1, MAX_LINES_OF_PAIR))
    counts, lines = [], [np.zeros((0, 4))]
    with (
        open_h5(feature_path) as features,
        pycolmap.Database.open(str(graph.database_path)) as database,
    ):
        shares: dict[str, np.ndarray] = {}
        for edge in chosen.tolist():
            names = [graph.names[row] for row in graph.edges[edge]]
            if any(name not in sizes or name not in graph.image_ids for name in names):
                counts.append(0)
                continue
            for name in names:
                if name not in shares:
                    size = np.array(sizes[name], dtype=np.float64)
                    upright = (features.keypoints(name) + 0.5) / size
                    shares[name] = points_to_upright(upright, orientations.get(name, 1))
            ids = [graph.image_ids[name] for name in names]
            inliers = database.read_two_view_geometry(*ids).inlier_matches.astype(np.int64)
            kept = np.linspace(0, len(inliers) - 1, min(each, len(inliers))).astype(np.int64)
            matches = inliers[kept]
            ends = [shares[name][matches[:, side]] for side, name in enumerate(names)]
            lines.append(np.concatenate(ends, axis=1))
            counts.append(len(matches))
    pairs = np.stack([*graph.edges[chosen].T, graph.verified[chosen], graph.matches[chosen]], 1)
    quantized = (np.concatenate(lines) * FULL).round().clip(0, FULL).astype(np.uint16)
    return LinesOfPairs(pairs, np.array(counts, dtype=np.int64), quantized)


def _strongest_pairs(graph: MatchGraph) -> np.ndarray:
    """Return edges with verified matches that are among the MAX_PARTNERS best of an image."""
    order = np.argsort(-graph.verified, kind="stable")
    seen = np.zeros(len(graph.names), dtype=np.int64)
    chosen = []
    for edge in order[graph.verified[order] > 0].tolist():
        first, second = graph.edges[edge]
        if min(seen[first], seen[second]) < MAX_PARTNERS:
            chosen.append(edge)
        seen[first] += 1
        seen[second] += 1
    return np.array(chosen, dtype=np.int64)
