"""The keypoints and matches of two matchers as one: photos keep both kinds of keypoints.

COLMAP verifies the matches of a pair together, whatever keypoints they are of, and makes tracks of
each kind. A photo that only the second matcher has matched gets a pose by points that its partners
see in the keypoints of that matcher; so what two of them match with a third is a match of theirs,
where they were not matched by it. Files are hloc's, see `storage`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np

from sfm_matchers.files.hdf5 import (
    Hdf5File,
    list_groups,
    open_h5,
)
from sfm_matchers.files.pair_lists import Pair, names_to_pair
from sfm_matchers.files.space import check_space
from sfm_matchers.files.text import written_whole

PAIRS_AT_HAND = 4096  # whose matches are kept, of the second matcher


def join_features(first: Path, second: Path, output: Path) -> None:
    """Write the keypoints of the photos of one feature file, then those of another.

    Args:
        first: feature file; only its photos are written.
        second: feature file, of the same photos or some of them.
        output: feature file without descriptors; replaced as a whole.

    Raises:
        InputError: a file is damaged.
    """
    check_space(output, first.stat().st_size + second.stat().st_size)
    with (
        open_h5(first) as file0,
        open_h5(second) as file1,
        written_whole(output) as temporary,
        h5py.File(temporary, "w") as joined,
    ):
        for name in list_groups(first):
            parts = [file.keypoints(name) for file in (file0, file1) if name in file]
            group = joined.create_group(name)
            group["keypoints"] = np.concatenate(parts)
            size = file0.numbers(name, "image_size")
            if size is not None:
                group["image_size"] = size


def join_matches(
    pairs: Sequence[Pair],
    first: tuple[Path, Path],
    second: tuple[Path, Path],
    output: Path,
) -> None:
    """Write the matches between the keypoints of `join_features`.

    Args:
        pairs: the pairs of the first matcher.
        first: its feature file and its match file.
        second: those of the other one, which has matched some of the pairs.
        output: match file; replaced as a whole.

    Raises:
        InputError: a file is damaged, or lacks a pair.
    """
    # They are compressed there.
    check_space(output, 4 * (first[1].stat().st_size + second[1].stat().st_size))
    with (
        open_h5(first[0]) as features0,
        open_h5(first[1]) as matches0,
        open_h5(second[0]) as features1,
        open_h5(second[1]) as matches1,
        written_whole(output) as temporary,
        h5py.File(temporary, "w") as joined,
    ):
        through = _MatchesThroughOthers(matches1, pairs)
        for pair in pairs:
            counts = [len(features0.keypoints(name)) for name in pair]
            others = [len(features1.keypoints(name)) if name in features1 else 0 for name in pair]
            partner = np.full(counts[0] + others[0], -1, np.int32)
            scores = np.zeros(len(partner), np.float16)
            for file, offsets in ((matches0, (0, 0)), (matches1, counts)):
                if file is matches1 and file.find_pair(*pair) is None:
                    indices, values = through.between(*pair)
                else:
                    indices, values = file.matches(*pair)
                partner[indices[:, 0] + offsets[0]] = indices[:, 1] + offsets[1]
                scores[indices[:, 0] + offsets[0]] = values
            group = joined.create_group(names_to_pair(*pair))
            group["matches0"], group["matching_scores0"] = partner, scores


class _MatchesThroughOthers:
    """Matches of two photos that follow from those of both with a third one."""

    def __init__(self, file: Hdf5File, pairs: Sequence[Pair]) -> None:
        self._matches = lru_cache(PAIRS_AT_HAND)(file.matches)
        self._partners: defaultdict[str, set[str]] = defaultdict(set)
        for name0, name1 in pairs:
            if file.find_pair(name0, name1) is not None:
                self._partners[name0].add(name1)
                self._partners[name1].add(name0)

    def between(self, name0: str, name1: str) -> tuple[np.ndarray, np.ndarray]:
        """Return indices (N, 2) of keypoints and scores (N,), each keypoint once, the surest."""
        found = [(np.zeros((0, 2), np.int64), np.zeros(0, np.float32))]
        for third in sorted(self._partners[name0] & self._partners[name1]):
            to0, scores0 = self._matches(third, name0)
            to1, scores1 = self._matches(third, name1)
            _, rows0, rows1 = np.intersect1d(to0[:, 0], to1[:, 0], return_indices=True)
            scores = np.minimum(scores0[rows0], scores1[rows1])
            found.append((np.stack([to0[rows0, 1], to1[rows1, 1]], axis=1), scores))
        indices, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = np.argsort(-scores, kind="stable")
        for side in (0, 1):
            _, first = np.unique(indices[order, side], return_index=True)
            order = order[np.sort(first)]
        return indices[order], scores[order]
