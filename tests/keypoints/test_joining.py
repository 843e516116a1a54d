"""Keypoints and matches of two matchers as one."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from sfm_matchers.files.hdf5 import open_h5
from sfm_matchers.files.pair_lists import Pair, names_to_pair
from sfm_matchers.keypoints.joining import join_features, join_matches

NAMES = ("a", "b", "c", "d")


def write(
    folder: Path, count: int, matches: dict[Pair, tuple[list[int], list[float]]]
) -> tuple[Path, Path]:
    folder.mkdir()
    with h5py.File(folder / "features.h5", "w") as file:
        for name in NAMES:
            file[f"{name}/keypoints"] = np.zeros((count, 2), np.float32)
    with h5py.File(folder / "matches.h5", "w") as file:
        for pair, (partner, scores) in matches.items():
            file[f"{names_to_pair(*pair)}/matches0"] = np.array(partner, np.int32)
            file[f"{names_to_pair(*pair)}/matching_scores0"] = np.array(scores, np.float32)
    return folder / "features.h5", folder / "matches.h5"


def test_what_two_photos_match_with_a_third_is_a_match_of_theirs(tmp_path: Path) -> None:
    nothing, one = ([-1, -1], [0.0, 0.0]), ([1, -1], [0.9, 0.0])
    pairs = [("a", "b"), ("a", "c"), ("b", "c"), ("a", "d"), ("b", "d")]
    first = write(tmp_path / "first", 2, {pair: nothing for pair in pairs} | {("a", "b"): one})
    # c and d are matched again, with a and b; d says of keypoint 0 of a what c denies, less surely.
    second = write(
        tmp_path / "second",
        3,
        {
            ("a", "c"): ([2, 1, -1], [0.5, 0.8, 0]),
            ("b", "c"): ([-1, 2, 0], [0, 0.7, 0.6]),
            ("a", "d"): ([0, -1, 1], [0.2, 0, 0.75]),
            ("b", "d"): ([0, -1, 1], [0.9, 0, 0.75]),
        },
    )
    output = tmp_path / "joined"
    join_features(first[0], second[0], output.with_suffix(".features"))
    join_matches(pairs, first, second, output)
    with open_h5(output) as file:
        indices, scores = file.matches("a", "b", (5, 5))
        # Of the first matcher; then behind its two keypoints those through c, and one through d.
        assert indices.tolist() == [[0, 1], [2, 3], [4, 4]]
        np.testing.assert_allclose(scores, [0.9, 0.5, 0.75], atol=1e-3)
        assert file.matches("a", "c")[0].tolist() == [[2, 4], [3, 3]]
