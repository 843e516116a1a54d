"""The keypoints and matches of two matchers as one: photos keep both kinds of keypoints.

COLMAP verifies the matches of a pair together, whatever keypoints they are of, and makes tracks of
each kind. Files are hloc's, see `storage`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from sfm_matchers.files.hdf5 import (
    list_groups,
    open_h5,
)
from sfm_matchers.files.pair_lists import Pair, names_to_pair
from sfm_matchers.files.space import check_space
from sfm_matchers.files.text import written_whole


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
        for pair in pairs:
            counts = [len(features0.keypoints(name)) for name in pair]
            others = [len(features1.keypoints(name)) if name in features1 else 0 for name in pair]
            partner = np.full(counts[0] + others[0], -1, np.int32)
            scores = np.zeros(len(partner), np.float16)
            for file, offsets in ((matches0, (0, 0)), (matches1, counts)):
                if file is matches1 and file.find_pair(*pair) is None:
                    continue
                indices, values = file.matches(*pair)
                partner[indices[:, 0] + offsets[0]] = indices[:, 1] + offsets[1]
                scores[indices[:, 0] + offsets[0]] = values
            group = joined.create_group(names_to_pair(*pair))
            group["matches0"], group["matching_scores0"] = partner, scores
