"""Keypoint assembly against hloc's own results (`../shared/hloc/golden`).

Keypoints with equal scores have no defined order, so keypoints and matches are compared by their
coordinates, exactly; in the files of `IDENTICAL_FILES` nothing is undefined and indices are
compared too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hloc_golden_keypoints import (
    GOLDEN,
    IDENTICAL_FILES,
    Golden,
    Tree,
    check_features,
    check_matches,
    keypoints_by_key,
    load,
    read_tree,
    sorted_rows,
    subtree,
    write_references,
    write_tree,
)

from sfm_matchers.keypoints.aggregation import aggregate
from sfm_matchers.keypoints.assembly import matches0_from_ids, unique_matches
from sfm_matchers.keypoints.grid import (
    AggregationOptions,
    assign_to_keypoints,
    elect_keypoints,
    quantize,
)


def load_cases(name: str) -> list:
    """Return one parameter set per case of a file whose keys are ``<case>/<array>``."""
    cases: dict[str, Golden] = {}
    for key, array in load(name).items():
        case, _, entry = key.partition("/")
        cases.setdefault(case, {})[entry] = array
    return [pytest.param(case, id=name) for name, case in cases.items()]


# ---------------------------------------------------------------------------------------------
# The steps


@pytest.mark.parametrize("case", load_cases("assign_update.npz"))
def test_election_golden_assign_update(case: Golden) -> None:
    max_error, cell_size, num_calls, has_scores = case["cfg"]
    points = np.concatenate([case[f"kpts_{call}"] for call in range(int(num_calls))])
    expected_ids = np.concatenate([case[f"ids_{call}"] for call in range(int(num_calls))])
    scores = np.ones(len(points), np.float32)
    if has_scores:
        scores = np.concatenate([case[f"scores_{call}"] for call in range(int(num_calls))])

    cells, bins = quantize(points, max_error, None if cell_size < 0 else cell_size)
    election = elect_keypoints(cells, bins, scores)

    np.testing.assert_array_equal(election.ids, expected_ids)
    np.testing.assert_array_equal(cells, case["cells"].astype(np.float32)[expected_ids])
    np.testing.assert_array_equal(
        np.unique(np.column_stack([election.ids, bins]), axis=0),
        np.unique(np.column_stack([case["bin_cell"], case["bin_xy"]]).astype(np.float32), axis=0),
    )
    np.testing.assert_array_equal(election.keypoints, case["winner_xy"].astype(np.float32))
    np.testing.assert_array_equal(election.scores, case["winner_score"])


@pytest.mark.parametrize("case", load_cases("assign_nn.npz"))
def test_assignment_golden_assign_nn(case: Golden) -> None:
    ids = assign_to_keypoints(case["kpts"], case["ref"], float(case["max_error"]))
    np.testing.assert_array_equal(ids, case["ids"])


@pytest.mark.parametrize("case", load_cases("unique_matches.npz"))
def test_matches_golden_unique_matches(case: Golden) -> None:
    ids0, ids1 = case["matches"].T if "matches" in case else (case["ids0"], case["ids1"])
    scores = case["scores"]
    if "kept" in case:
        kept = unique_matches(ids0, ids1, scores)
        np.testing.assert_array_equal(
            sorted_rows(ids0[kept], ids1[kept], scores[kept]),
            sorted_rows(case["kept"], case["kept_scores"]),
        )
    matches0, scores0 = matches0_from_ids(ids0, ids1, scores, len(case["matches0"]))
    np.testing.assert_array_equal(matches0, case["matches0"])
    np.testing.assert_array_equal(scores0, case["matching_scores0"])
    assert (matches0.dtype, scores0.dtype) == (np.int32, np.float16)


def run_step(golden: Golden, step: int, folder: Path) -> tuple[Tree, Tree, Tree]:
    """Run one step on the files in `folder`; return features, matches, reference features."""
    pairs = [tuple(map(str, pair)) for pair in golden[f"step{step}/pairs"]]
    max_keypoints = int(golden[f"step{step}/max_kps"])
    options = AggregationOptions(
        max_error=float(golden["max_error"]),
        cell_size=float(golden["cell_size"]),
        max_keypoints=None if max_keypoints < 0 else max_keypoints,
    )
    overwrite = bool(golden[f"step{step}/overwrite"])
    correspondence_path = folder / "correspondences.h5"
    if overwrite:
        correspondence_path.unlink()
    write_tree(correspondence_path, subtree(golden, f"step{step}/dense/"))
    references, reference_paths = write_references(golden, step, folder)
    aggregate(
        pairs,
        correspondence_path,
        folder / "features.h5",
        folder / "matches.h5",
        options,
        {name: (640, 480) for pair in pairs for name in pair},
        fixed_features=reference_paths,
        existing="overwrite" if overwrite else "keep",
    )
    return read_tree(folder / "features.h5"), read_tree(folder / "matches.h5"), references


@pytest.mark.parametrize("name", sorted(path.stem for path in (GOLDEN / "pipeline").glob("*.npz")))
def test_aggregate_golden_pipeline(name: str, tmp_path: Path) -> None:
    golden = load(f"pipeline/{name}.npz")
    identical = name in IDENTICAL_FILES
    for step in range(int(golden["num_steps"])):
        if golden[f"step{step}/overwrite"]:
            continue  # hloc mixes old keypoints in; see test_aggregate_golden_overwrite
        features, matches, references = run_step(golden, step, tmp_path)
        expected_features = subtree(golden, f"step{step}/out_features/")
        expected_matches = subtree(golden, f"step{step}/out_matches/")
        assert set(matches) == set(golden[f"step{step}/out_match_keys"].tolist())
        check_features(features, expected_features, identical=identical)
        check_matches(
            matches,
            expected_matches,
            keypoints_by_key(references, features),
            keypoints_by_key(references, expected_features),
            identical=identical,
        )


def test_aggregate_golden_overwrite_starts_clean(tmp_path: Path) -> None:
    """An overwriting run equals a run on no files at all, unlike hloc's."""
    golden = load("pipeline/overwrite.npz")
    second, fresh = tmp_path / "second", tmp_path / "fresh"
    second.mkdir()
    fresh.mkdir()
    run_step(golden, 0, second)
    features, matches, _ = run_step(golden, 1, second)
    write_tree(fresh / "correspondences.h5", {})
    fresh_features, fresh_matches, _ = run_step(golden, 1, fresh)

    hloc_features = subtree(golden, "step1/out_features/")
    assert any(
        len(features[name]["scores"]) != len(hloc_features[name]["score"]) for name in features
    )
    for found, expected in ((features, fresh_features), (matches, fresh_matches)):
        assert found.keys() == expected.keys()
        for group, arrays in expected.items():
            for dataset, array in arrays.items():
                np.testing.assert_array_equal(found[group][dataset], array)
