"""Keypoints move to where the matches that were snapped to them agree."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sfm_matchers.confs import DetectorFreeConf, conf_names, load_conf
from sfm_matchers.files.pair_lists import Pair
from sfm_matchers.keypoints.assembly import Correspondences, ImageKeypoints, PairMatches, assemble
from sfm_matchers.keypoints.grid import AggregationOptions
from sfm_matchers.keypoints.refinement import SnappedMatches, refine_keypoints

NAMES = ("a.jpg", "b.jpg", "c.jpg", "d.jpg")
TURN = np.array([[0.0, -1.0], [1.0, 0.0]])  # a quarter, and a larger scale
MAPS = {
    "a.jpg": np.eye(2),
    "b.jpg": np.array([[0.9, 0.1], [-0.1, 1.0]]),
    "c.jpg": 1.5 * TURN,
    "d.jpg": np.array([[0.8, -0.2], [0.3, 0.9]]),
}


def correspondences(seed: int = 0, count: int = 300) -> dict[Pair, Correspondences]:
    """Exact matches of four photos of a plane, in each pair at other points of the same places."""
    random = np.random.default_rng(seed)
    places = random.random((count, 2)) * 600 + 700
    pairs: dict[Pair, Correspondences] = {}
    for name0, name1 in itertools.combinations(NAMES, 2):
        points = places + random.uniform(-1, 1, (count, 2))
        both = [(points @ MAPS[name].T).astype(np.float32) for name in (name0, name1)]
        pairs[name0, name1] = (*both, np.full(count, 0.5, np.float32))
    return pairs


def assembled(
    pairs: Mapping[Pair, Correspondences],
    refined: bool,
    fixed: Mapping[str, np.ndarray] | None = None,
) -> tuple[dict[str, np.ndarray], dict[Pair, PairMatches]]:
    results = list(assemble(pairs, AggregationOptions(3, 4, refined=refined), fixed))
    keypoints = {each.name: each.keypoints for each in results if isinstance(each, ImageKeypoints)}
    return keypoints, {each.pair: each for each in results if isinstance(each, PairMatches)}


def errors(keypoints: Mapping[str, np.ndarray], matches: Mapping[Pair, PairMatches]) -> np.ndarray:
    """Pixels by which matched keypoints miss each other, in the second photo of each pair."""
    found = []
    for (name0, name1), pair in matches.items():
        ids0 = np.flatnonzero(pair.matches0 >= 0)
        plane0 = keypoints[name0][ids0] @ np.linalg.inv(MAPS[name0]).T
        moved = plane0 @ MAPS[name1].T - keypoints[name1][pair.matches0[ids0]]
        found.append(np.linalg.norm(moved, axis=1))
    return np.concatenate(found)


def test_matched_keypoints_show_the_same_place() -> None:
    """Also in photos that are turned, larger or sheared against each other."""
    pairs = correspondences()
    before, after = (errors(*assembled(pairs, refined)) for refined in (False, True))
    assert np.median(before) > 1
    assert np.median(after) < 0.1
    assert (after < 0.5).mean() > 0.95


def test_the_matches_stay() -> None:
    pairs = correspondences()
    (keypoints, matches), (moved, same) = (assembled(pairs, refined) for refined in (False, True))
    assert keypoints.keys() == moved.keys()
    for name in keypoints:
        assert moved[name].dtype == np.float32
        distances = np.linalg.norm(keypoints[name] - moved[name], axis=1)
        assert 0 < np.median(distances) < 3
    for pair in matches:
        np.testing.assert_array_equal(matches[pair].matches0, same[pair].matches0)
        np.testing.assert_array_equal(matches[pair].matching_scores0, same[pair].matching_scores0)


def test_the_order_of_pairs_does_not_matter() -> None:
    pairs = correspondences()
    backwards = dict(reversed(pairs.items()))
    (first, _), (second, _) = assembled(pairs, True), assembled(backwards, True)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_keypoints_that_are_there_already_stay() -> None:
    """The others move to them."""
    pairs = correspondences()
    fixed = {name: assembled(pairs, False)[0][name] for name in ("a.jpg", "c.jpg")}
    medians = []
    for refined in (False, True):
        moved, matches = assembled(pairs, refined, fixed)
        assert moved.keys() == {"b.jpg", "d.jpg"}
        beside = {pair: each for pair, each in matches.items() if pair != ("a.jpg", "c.jpg")}
        medians.append(np.median(errors(moved | fixed, beside)))
    assert medians[1] < 0.7 * medians[0]


@given(
    count=st.integers(0, 20),
    spread=st.sampled_from([0.0, 1e-3, 100.0]),
    seed=st.integers(0, 100),
)
def test_whatever_the_matches_keypoints_are_finite_and_near(
    count: int, spread: float, seed: int
) -> None:
    """Few matches, matches at one point, matches without any order."""
    random = np.random.default_rng(seed)
    points = (random.random((4, count, 2)) * spread).astype(np.float32)
    ids = np.arange(count)
    matches = SnappedMatches(("a", "b"), ids, ids, points[0], points[1], np.ones(count))
    keypoints = {"a": points[0] + 1, "b": points[1] - 1}
    moved = refine_keypoints(keypoints, [matches])
    for name in keypoints:
        assert np.isfinite(moved[name]).all()
        assert (np.abs(moved[name] - keypoints[name]) < 20).all()


def test_keypoints_without_matches_stay() -> None:
    points = np.random.default_rng(0).random((50, 2)) * 100
    ids = np.arange(40)
    offset = np.float32([3, 0])
    keypoints = {"a": points + offset, "b": points, "c": points}
    matches = SnappedMatches(("a", "b"), ids, ids, points[:40], points[:40], np.ones(40))
    moved = refine_keypoints(keypoints, [matches])
    np.testing.assert_allclose(moved["a"][:40], moved["b"][:40], atol=0.1)  # they meet half-way
    np.testing.assert_allclose(moved["a"][:40], points[:40] + offset / 2, atol=0.1)
    np.testing.assert_allclose(moved["a"][40:], points[40:] + offset, rtol=1e-6)
    np.testing.assert_allclose(moved["c"], points, rtol=1e-6)


def test_points_of_new_photos_move_as_the_map_keypoints_lie() -> None:
    """A map's keypoint is up to `max_error` from the matched point; so must be the new one."""
    pairs = correspondences()
    keypoints, _ = assembled(pairs, True)
    is_new = {pair: pair[0] == "a.jpg" for pair in pairs}
    queries = {pair: pairs[pair] for pair in pairs if is_new[pair]}
    fixed = {name: keypoints[name] for name in NAMES[1:]}
    medians = []
    for refined in (False, True):
        options = AggregationOptions(3, 4, None, refined)
        results = list(assemble(queries, options, fixed))
        image = next(each for each in results if isinstance(each, ImageKeypoints))
        matches = {each.pair: each for each in results if isinstance(each, PairMatches)}
        assert image.name == "a.jpg"
        assert matches.keys() == queries.keys()
        medians.append(np.median(errors({**fixed, "a.jpg": image.keypoints}, matches)))
    assert medians[0] > 0.5
    assert medians[1] < 0.1


def test_models_of_photo_collections_are_made_of_refined_keypoints() -> None:
    confs = [load_conf(name) for name in conf_names()]
    refined = [c.name for c in confs if isinstance(c, DetectorFreeConf) and c.refine_keypoints]
    assert refined == ["eloftr", "eloftr_opt", "jamma"]
