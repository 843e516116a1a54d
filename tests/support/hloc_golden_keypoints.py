"""hloc's own results of keypoint assembly."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from material import shared_path

GOLDEN = shared_path("hloc/golden")
IDENTICAL_FILES = ("map_cell8_noreassign", "map_cell8_trunc40", "refs_all", "two_images")

Golden = dict[str, np.ndarray]
Tree = dict[str, dict[str, np.ndarray]]


def load(name: str) -> Golden:
    with np.load(GOLDEN / name, allow_pickle=False) as file:
        return dict(file)


def subtree(golden: Golden, prefix: str) -> Tree:
    """Return group name -> dataset name -> array of all keys below a prefix."""
    tree: Tree = {}
    for key, array in golden.items():
        if key.startswith(prefix):
            group, _, dataset = key.removeprefix(prefix).rpartition("/")
            tree.setdefault(group, {})[dataset] = array
    return tree


def sorted_rows(*columns: np.ndarray) -> np.ndarray:
    table = np.column_stack(columns)
    return table[np.lexsort(table.T)]


# ---------------------------------------------------------------------------------------------
# The whole assembly, file to file


def write_tree(path: Path, tree: Tree) -> Path:
    with h5py.File(path, "a") as file:
        for group, arrays in tree.items():
            for dataset, array in arrays.items():
                file[f"{group}/{dataset}"] = array
    return path


def read_tree(path: Path) -> Tree:
    tree: Tree = {}

    def visit(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset):
            group, _, dataset = name.rpartition("/")
            tree.setdefault(group, {})[dataset] = item[()]

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return tree


def write_references(golden: Golden, step: int, folder: Path) -> tuple[Tree, list[Path]]:
    """Write the files of features that stay as they are; return what is in them, and the files."""
    references: Tree = {}
    paths = []
    for number in range(2):
        tree = subtree(golden, f"step{step}/refs/{number}/")
        if tree:
            paths.append(write_tree(folder / f"reference{step}{number}.h5", tree))
        references |= tree
    return references, paths


def check_features(found: Tree, expected: Tree, *, identical: bool) -> None:
    assert found.keys() == expected.keys()
    for name, arrays in expected.items():
        keypoints, scores = found[name]["keypoints"], found[name]["scores"]
        assert (keypoints.dtype, scores.dtype) == (np.float32, np.float32)
        assert keypoints.shape == (len(scores), 2)
        np.testing.assert_array_equal(found[name]["image_size"], (640, 480))
        np.testing.assert_array_equal(scores, arrays["score"])
        expected_keypoints = arrays["keypoints"].reshape(-1, 2)
        if identical:
            np.testing.assert_array_equal(keypoints, expected_keypoints)
        np.testing.assert_array_equal(
            sorted_rows(keypoints, scores), sorted_rows(expected_keypoints, arrays["score"])
        )


def match_rows(group: dict, keypoints0: np.ndarray, keypoints1: np.ndarray) -> np.ndarray:
    """Return (x0, y0, x1, y1, score) of all matches of a pair, sorted."""
    matches0, scores0 = group["matches0"], group["matching_scores0"]
    index0 = np.flatnonzero(matches0 >= 0)
    return sorted_rows(
        keypoints0[index0], keypoints1[matches0[index0]], scores0[index0].astype(np.float32)
    )


def check_matches(
    found: Tree, expected: Tree, found_keypoints: dict, expected_keypoints: dict, *, identical: bool
) -> None:
    assert found.keys() == expected.keys()
    for group, arrays in expected.items():
        name0, name1 = group.split("/")
        matches0 = found[group]["matches0"]
        assert len(matches0) == len(found[group]["matching_scores0"]) == len(found_keypoints[name0])
        np.testing.assert_array_equal(
            match_rows(found[group], found_keypoints[name0], found_keypoints[name1]),
            match_rows(arrays, expected_keypoints[name0], expected_keypoints[name1]),
        )
        if identical:  # hloc's array ends at the last match
            np.testing.assert_array_equal(matches0[: len(arrays["matches0"])], arrays["matches0"])
            assert (matches0[len(arrays["matches0"]) :] == -1).all()


def keypoints_by_key(*trees: Tree) -> dict[str, np.ndarray]:
    """Return keypoints by an image's name in a match file."""
    return {
        name.replace("/", "-"): arrays["keypoints"].reshape(-1, 2)
        for tree in trees
        for name, arrays in tree.items()
    }
