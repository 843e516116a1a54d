"""Properties of keypoint assembly, and what happens to its files when a run is interrupted."""

from __future__ import annotations

import doctest
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfm_matchers.errors import InputError
from sfm_matchers.files.hdf5 import list_groups
from sfm_matchers.files.pair_lists import Pair, names_to_pair
from sfm_matchers.files.staged import StagedFile
from sfm_matchers.keypoints import aggregation, grid
from sfm_matchers.keypoints.aggregation import AggregationSummary, aggregate
from sfm_matchers.keypoints.assembly import (
    Correspondences,
    ImageKeypoints,
    PairMatches,
    assemble,
    matches0_from_ids,
    unique_matches,
)
from sfm_matchers.keypoints.grid import (
    AggregationOptions,
    assign_to_keypoints,
    elect_keypoints,
    quantize,
    snap,
)

NAMES = ("db/1.jpg", "db/2.jpg", "db/3.jpg", "query/1.jpg")
PAIRS: tuple[Pair, ...] = tuple(
    (name0, name1) for index, name0 in enumerate(NAMES) for name1 in NAMES[index + 1 :]
)
SIZES = {name: (640, 480) for name in NAMES}
COARSE = AggregationOptions(max_error=2, cell_size=8)

seeds = st.integers(0, 2**32 - 1)
grids = st.sampled_from([(1, 1), (2, 8), (4, 4), (0.5, 8), (2, None), (0, 0)])
limits = st.sampled_from([None, 1, 7, 8192])


def random_correspondences(
    seed: int, pairs: Sequence[Pair] = PAIRS, max_points: int = 40
) -> dict[Pair, Correspondences]:
    """Return noisy views of a few corners; some pairs can be empty."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-0.5, 60, (50, 2))

    def view(seen: np.ndarray) -> np.ndarray:
        return (corners[seen] + rng.normal(0, 0.8, (len(seen), 2))).astype(np.float32)

    correspondences = {}
    for pair in pairs:
        seen = rng.integers(0, len(corners), rng.integers(0, max_points))
        scores = rng.integers(1, 20, len(seen)) / np.float32(20)  # ties are common
        correspondences[pair] = view(seen), view(seen), scores.astype(np.float32)
    return correspondences


def collect(
    correspondences: dict[Pair, Correspondences],
    options: AggregationOptions,
    fixed: dict[str, np.ndarray] | None = None,
) -> tuple[dict[str, ImageKeypoints], dict[Pair, PairMatches]]:
    results = list(assemble(correspondences, options, fixed))
    images = {result.name: result for result in results if isinstance(result, ImageKeypoints)}
    matches = {result.pair: result for result in results if isinstance(result, PairMatches)}
    assert len(images) + len(matches) == len(results)
    return images, matches


def assert_same(first: tuple, second: tuple) -> None:
    """Compare two results of `collect`."""
    for found, expected in zip(first, second, strict=True):
        assert found.keys() == expected.keys()
        for key in expected:
            for array, wanted in zip(found[key][1:], expected[key][1:], strict=True):
                np.testing.assert_array_equal(array, wanted)


def test_docstring_examples() -> None:
    assert doctest.testmod(grid).failed == 0


# ---------------------------------------------------------------------------------------------
# The steps


@given(seed=seeds, step=st.sampled_from([0, 0.5, 1, 1.5, 2, 3, 4, 8]))
def test_snapping_is_idempotent_and_short(seed: int, step: float) -> None:
    points = np.random.default_rng(seed).uniform(-20, 4000, (50, 2)).astype(np.float32)
    nodes = snap(points, step)
    np.testing.assert_array_equal(snap(nodes, step), nodes)
    assert np.abs(nodes - points).max() <= step / 2 + 0.01


def test_quantize_by_hand() -> None:
    points = np.array([[0, 0], [3.5, 7.6], [11.4, 11.6]])
    cells, bins = quantize(points, max_error=2.9, cell_size=8)
    np.testing.assert_array_equal(cells, np.float32([[-0.5, -0.5], [-0.5, 7.5], [7.5, 15.5]]))
    np.testing.assert_array_equal(bins, np.float32([[-0.5, -0.5], [3.5, 7.5], [11.5, 11.5]]))


def test_election_by_hand() -> None:
    cells = np.array([[8, 8], [0, 0], [8, 8], [8, 8], [-0.0, 0.0]])
    bins = np.array([[9, 9], [1, 1], [7, 7], [7, 7], [2, 2]])
    election = elect_keypoints(cells, bins, np.array([0.75, 0.5, 0.25, 0.625, 0.5]))
    np.testing.assert_array_equal(election.keypoints, [[7, 7], [1, 1]])  # a tie: the first bin
    np.testing.assert_array_equal(election.scores, [0.875, 0.5])
    np.testing.assert_array_equal(election.ids, [0, 1, 0, 0, 1])


@given(
    seed=seeds,
    num_points=st.integers(0, 30),
    num_keypoints=st.integers(0, 30),
    max_error=st.sampled_from([0, 0.3, 1, 2, 7.3]),
    extent=st.sampled_from([3, 30, 3000]),
    is_integer=st.booleans(),
)
def test_assignment_equals_exhaustive_search(
    seed: int,
    num_points: int,
    num_keypoints: int,
    max_error: float,
    extent: float,
    is_integer: bool,
) -> None:
    rng = np.random.default_rng(seed)
    points, keypoints = (
        rng.uniform(-extent, extent, (count, 2)).astype(np.float32)
        for count in (num_points, num_keypoints)
    )
    if is_integer:  # equal distances, distances of exactly max_error, twins
        points, keypoints = np.round(points), np.round(keypoints)
    expected = np.full(num_points, -1)
    if num_keypoints:
        difference = points[:, None].astype(np.float64) - keypoints[None]
        distance = np.sqrt((difference**2).sum(axis=2))
        nearest = distance.argmin(axis=1)
        is_near = distance[np.arange(num_points), nearest] <= max_error
        expected = np.where(is_near, nearest, -1)
    np.testing.assert_array_equal(assign_to_keypoints(points, keypoints, max_error), expected)


@given(seed=seeds, num_rows=st.integers(0, 40))
def test_matches_are_mutual_best(seed: int, num_rows: int) -> None:
    rng = np.random.default_rng(seed)
    ids0, ids1 = rng.integers(-1, 12, (2, num_rows))
    scores = rng.integers(1, 8, num_rows) / 8
    expected = [
        row
        for row in range(num_rows)
        if ids0[row] >= 0
        and ids1[row] >= 0
        and not any(
            (scores[other], -other) > (scores[row], -row)
            for other in range(num_rows)
            if ids0[other] >= 0
            and ids1[other] >= 0
            and (ids0[other] == ids0[row] or ids1[other] == ids1[row])
        )
    ]
    np.testing.assert_array_equal(unique_matches(ids0, ids1, scores), expected)
    matches0, scores0 = matches0_from_ids(ids0, ids1, scores, num_keypoints0=12)
    np.testing.assert_array_equal(np.flatnonzero(matches0 >= 0), np.sort(ids0[expected]))
    np.testing.assert_array_equal(scores0[ids0[expected]], scores[expected])


# ---------------------------------------------------------------------------------------------
# All pairs


@settings(deadline=None)
@given(seed=seeds, grid=grids, limit=limits)
def test_matches_are_one_to_one_and_refer_to_keypoints(seed: int, grid: tuple, limit: int) -> None:
    correspondences = random_correspondences(seed)
    images, matches = collect(correspondences, AggregationOptions(*grid, limit))
    assert images.keys() == set(NAMES)
    assert matches.keys() == set(PAIRS)
    for image in images.values():
        assert image.keypoints.shape == (len(image.scores), 2)
        assert limit is None or len(image.scores) <= limit
    for (name0, name1), result in matches.items():
        matched = result.matches0[result.matches0 >= 0]
        assert len(result.matches0) == len(images[name0].keypoints)
        assert len(np.unique(matched)) == len(matched)
        assert (matched < len(images[name1].keypoints)).all()
        assert (result.matching_scores0[result.matches0 < 0] == 0).all()


@settings(deadline=None)
@given(seed=seeds, grid=grids, limit=limits, order=st.permutations(PAIRS))
def test_order_of_pairs_does_not_matter(
    seed: int, grid: tuple, limit: int, order: list[Pair]
) -> None:
    correspondences = random_correspondences(seed)
    options = AggregationOptions(*grid, limit)
    permuted = {pair: correspondences[pair] for pair in order}
    assert_same(collect(permuted, options), collect(correspondences, options))


@settings(deadline=None)
@given(seed=seeds, grid=st.sampled_from([(1, 1), (2, 8), (4, 4)]))
def test_assembling_again_on_finished_keypoints_gives_the_same_matches(
    seed: int, grid: tuple
) -> None:
    correspondences = random_correspondences(seed)
    options = AggregationOptions(*grid)
    images, matches = collect(correspondences, options)
    fixed = {name: image.keypoints for name, image in images.items()}
    assert_same(collect(correspondences, options, fixed), ({}, matches))


def test_query_points_stay_exact_in_localization() -> None:
    query, reference = "query/1.jpg", "db/1.jpg"
    points = np.array([[10.1, 10.2], [10.3, 10.2], [30.7, 5.0]], np.float32)
    correspondences = {(query, reference): (points, points + 1, np.float32([0.9, 0.8, 0.7]))}
    fixed = {reference: np.array([[11, 11], [32, 6]], np.float32)}

    exact, _ = collect(correspondences, AggregationOptions(2, 8, max_keypoints=None), fixed)
    np.testing.assert_array_equal(exact[query].keypoints, points)
    snapped, _ = collect(correspondences, AggregationOptions(2, 8, max_keypoints=100), fixed)
    np.testing.assert_array_equal(snapped[query].keypoints, np.float32([[9.5, 9.5], [31.5, 5.5]]))
    both_new, _ = collect(correspondences, AggregationOptions(2, 8, max_keypoints=None))
    np.testing.assert_array_equal(both_new[query].keypoints, snapped[query].keypoints)


def test_truncation_assigns_points_to_keypoints_that_were_kept() -> None:
    """Without truncation the first point stays with its cell, with it the neighbour takes it."""
    points0 = np.array([[11.4, 10], [11.6, 10], [11.6, 10]], np.float32)
    points1 = np.array([[50, 50], [80, 80], [80, 80]], np.float32)
    correspondences = {("a", "b"): (points0, points1, np.float32([0.5, 0.9, 0.9]))}
    images, matches = collect(correspondences, AggregationOptions(2, 8, None))
    assert len(images["a"].keypoints) == 2
    np.testing.assert_array_equal(matches["a", "b"].matches0, [0, 1])
    images, matches = collect(correspondences, AggregationOptions(2, 8, 1))
    np.testing.assert_array_equal(images["a"].keypoints, np.float32([[11.5, 9.5]]))
    np.testing.assert_array_equal(matches["a", "b"].matches0, [0])


def test_truncation_prefers_the_first_of_equal_scores() -> None:
    points = np.arange(600, dtype=np.float32).reshape(300, 2) + 0.5
    scores = np.tile(np.float32([0.25, 0.5, 0.75]), 100)
    images, _ = collect({("a", "b"): (points, points, scores)}, AggregationOptions(1, 1, 150))
    np.testing.assert_array_equal(images["a"].keypoints[:100], points[2::3])
    np.testing.assert_array_equal(images["a"].keypoints[100:], points[1:150:3])


def test_pairs_of_fixed_images_do_not_change_new_images() -> None:
    """Such a pair is assembled or not depending on what earlier runs have left."""
    fixed = {name: np.zeros((1, 2), np.float32) for name in "abcd"}
    correspondences = random_correspondences(0, [("q", "a"), ("q", "b"), ("a", "c"), ("a", "d")])
    options = AggregationOptions(2, 8, max_keypoints=None)
    needed = {pair: arrays for pair, arrays in correspondences.items() if "q" in pair}
    all_images, _ = collect(correspondences, options, fixed)
    needed_images, _ = collect(needed, options, fixed)
    assert_same((all_images,), (needed_images,))


def test_each_pair_is_read_twice() -> None:
    reads: Counter[Pair] = Counter()

    class Recorded(dict):
        def __getitem__(self, pair: Pair) -> Correspondences:
            reads[pair] += 1
            return super().__getitem__(pair)

    list(assemble(Recorded(random_correspondences(0)), COARSE))
    assert reads == dict.fromkeys(PAIRS, 2)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda points0, points1, scores: (points0[1:], points1, scores), "differ in length"),
        (lambda points0, points1, scores: (points0, points1 * np.nan, scores), "not finite"),
        (lambda points0, points1, scores: (points0, points1, scores * np.inf), "not finite"),
    ],
)
def test_damaged_correspondences_are_named(damage, message: str) -> None:
    points = np.ones((3, 2), np.float32)
    correspondences = {("a.jpg", "b.jpg"): damage(points, points, np.ones(3, np.float32))}
    with pytest.raises(InputError, match=f"'a.jpg', 'b.jpg' .*{message}"):
        list(assemble(correspondences, COARSE))


@pytest.mark.parametrize("values", [{"max_error": -1}, {"cell_size": -1}, {"max_keypoints": 0}])
def test_options_out_of_range(values: dict) -> None:
    with pytest.raises(InputError):
        AggregationOptions(**values)


# ---------------------------------------------------------------------------------------------
# Files


def write_correspondences(
    folder: Path, correspondences: dict[Pair, Correspondences], version: str = ""
) -> None:
    folder.mkdir(exist_ok=True)
    with h5py.File(folder / "correspondences.h5", "a") as file:
        for pair, arrays in correspondences.items():
            if names_to_pair(*pair) in file:
                del file[names_to_pair(*pair)]
            group = file.create_group(names_to_pair(*pair))
            group.attrs["fingerprint"] = version
            for key, array in zip(("keypoints0", "keypoints1", "scores"), arrays, strict=True):
                group[key] = array


def run(
    folder: Path,
    pairs: Sequence[Pair] = PAIRS,
    options: AggregationOptions = COARSE,
    **arguments: Any,
) -> AggregationSummary:
    """Aggregate the three files of a folder."""
    paths = [folder / f"{stem}.h5" for stem in ("correspondences", "features", "matches")]
    return aggregate(pairs, *paths, options, SIZES, **arguments)


def read_results(folder: Path) -> dict[str, list]:
    """Return every dataset of the feature file and the match file, by file and path."""
    found: dict[str, list] = {}

    def visit(prefix: str, name: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset):
            found[f"{prefix}/{name}"] = item[()].tolist()

    for stem in ("features", "matches"):
        with h5py.File(folder / f"{stem}.h5", "r") as file:
            file.visititems(partial(visit, stem))
    return found


def run_fresh(folder: Path, seed: int = 0, options: AggregationOptions = COARSE) -> dict[str, list]:
    """Return the results of one uninterrupted run in a new folder."""
    write_correspondences(folder, random_correspondences(seed))
    run(folder, options=options)
    return read_results(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the correspondences of all pairs."""
    write_correspondences(tmp_path / "work", random_correspondences(0))
    return tmp_path / "work"


class InterruptedRunError(Exception):
    """Stands for whatever kills a run."""


def interrupt_before_write(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let write or commit `number` of all staged files fail, counted from 0."""
    counter = itertools.count()

    def limit(original: Callable[..., Any]) -> Callable[..., Any]:
        def write(*arguments: Any) -> Any:
            if next(counter) == number:
                raise InterruptedRunError
            return original(*arguments)

        return write

    monkeypatch.setattr(StagedFile, "add", limit(StagedFile.add))
    monkeypatch.setattr(StagedFile, "commit", limit(StagedFile.commit))


@pytest.mark.parametrize("max_keypoints", [None, 20])
@pytest.mark.parametrize("number", range(len(NAMES) + len(PAIRS) + 2))
def test_an_interrupted_run_is_continued_to_the_same_result(
    number: int,
    max_keypoints: int | None,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stop before each write of an image or a pair and before each of the two commits."""
    monkeypatch.setattr(aggregation, "PART_BYTES", 0)
    options = AggregationOptions(2, 8, max_keypoints)
    expected = run_fresh(tmp_path / "fresh", options=options)
    with monkeypatch.context() as interrupted:
        interrupt_before_write(interrupted, number)
        with pytest.raises(InterruptedRunError):
            run(folder, options=options)
    assert not (folder / "features.h5").exists()
    run(folder, options=options)
    assert read_results(folder) == expected


@pytest.mark.parametrize("number", range(1 + 3 + 2))
def test_interrupted_localization_is_continued_to_the_same_result(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A query is added to finished database images, in the same files."""
    monkeypatch.setattr(aggregation, "PART_BYTES", 0)
    query = "query/1.jpg"
    map_pairs = [pair for pair in PAIRS if query not in pair]
    query_pairs = [(query, name) for name in NAMES if name != query]
    exact = AggregationOptions(2, 8, max_keypoints=None)
    uninterrupted, interrupted_folder = tmp_path / "uninterrupted", tmp_path / "interrupted"
    for folder in (uninterrupted, interrupted_folder):
        write_correspondences(folder, random_correspondences(0, map_pairs))
        write_correspondences(folder, random_correspondences(1, query_pairs))
        run(folder, map_pairs)
    run(uninterrupted, query_pairs, exact)
    with monkeypatch.context() as interrupted:
        interrupt_before_write(interrupted, number)
        with pytest.raises(InterruptedRunError):
            run(interrupted_folder, query_pairs, exact)
    run(interrupted_folder, query_pairs, exact)
    assert read_results(interrupted_folder) == read_results(uninterrupted)


def test_images_of_an_interrupted_run_do_not_enter_another_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aggregation, "PART_BYTES", 0)
    with monkeypatch.context() as interrupted:
        interrupt_before_write(interrupted, len(NAMES) + len(PAIRS))
        with pytest.raises(InterruptedRunError):
            run(folder)
    run(folder, PAIRS[:1])
    assert list_groups(folder / "features.h5") == sorted(PAIRS[0])
    assert list_groups(folder / "matches.h5") == [names_to_pair(*PAIRS[0])]


def test_a_finished_run_does_nothing_again(folder: Path) -> None:
    summary = run(folder)
    results = read_results(folder)
    assert (summary.num_images, summary.num_pairs) == (len(NAMES), len(PAIRS))
    assert summary.num_keypoints == sum(len(results[f"features/{name}/scores"]) for name in NAMES)
    assert summary.num_matches == sum(
        sum(index >= 0 for index in results[f"matches/{names_to_pair(*pair)}/matches0"])
        for pair in PAIRS
    )
    for existing in ("keep", "update"):
        assert sum(run(folder, existing=existing)) == 0
        assert read_results(folder) == results


def test_missing_features_are_assembled_again(folder: Path) -> None:
    run(folder)
    results = read_results(folder)
    (folder / "features.h5").unlink()
    assert run(folder).num_images == len(NAMES)
    assert read_results(folder) == results


def test_a_pair_without_matches0_is_not_done(folder: Path) -> None:
    """hloc leaves such groups behind when it is interrupted."""
    run(folder)
    results = read_results(folder)
    with h5py.File(folder / "matches.h5", "a") as file:
        group = file[names_to_pair(*PAIRS[0])]
        del group["matches0"], group.attrs["fingerprint"]
    assert run(folder).num_pairs == 1
    assert read_results(folder) == results


@pytest.mark.parametrize("existing", ["keep", "update"])
@pytest.mark.parametrize("lost", ["a pair", "the file"])
def test_lost_matches_of_refined_keypoints_are_made_again(
    folder: Path, existing: str, lost: str
) -> None:
    options = AggregationOptions(2, 8, refined=True)
    run(folder, options=options, existing=existing)
    results = read_results(folder)
    if lost == "a pair":
        with h5py.File(folder / "matches.h5", "a") as file:
            del file[names_to_pair(*PAIRS[0])]
    else:
        (folder / "matches.h5").unlink()
    run(folder, options=options, existing=existing)
    assert read_results(folder) == results


def test_keep_freezes_keypoints_and_update_rebuilds_them(folder: Path, tmp_path: Path) -> None:
    run(folder, PAIRS[:3])
    before = read_results(folder)
    assert all(f"features/{name}/keypoints" in before for name in NAMES)

    summary = run(folder)
    assert (summary.num_images, summary.num_pairs) == (0, len(PAIRS) - 3)
    after = read_results(folder)
    assert {key: after[key] for key in before} == before

    assert run(folder, existing="update").num_images == len(NAMES)
    assert read_results(folder) == run_fresh(tmp_path / "fresh")


def test_update_follows_options_and_correspondences(folder: Path, tmp_path: Path) -> None:
    run(folder)
    fine = AggregationOptions(1, 1)
    run(folder, options=fine, existing="update")
    assert read_results(folder) == run_fresh(tmp_path / "fine", options=fine)

    write_correspondences(folder, random_correspondences(1), version="second")
    run(folder, options=fine, existing="update")
    assert read_results(folder) == run_fresh(tmp_path / "second", seed=1, options=fine)


def test_update_rebuilds_all_if_one_image_is_missing(folder: Path, tmp_path: Path) -> None:
    exact = AggregationOptions(2, 8, max_keypoints=None)
    run(folder, options=exact)
    with h5py.File(folder / "features.h5", "a") as file:
        del file[NAMES[0]]
    assert run(folder, options=exact, existing="update").num_images == len(NAMES)
    assert read_results(folder) == run_fresh(tmp_path / "fresh", options=exact)


def test_overwrite_starts_clean(folder: Path, tmp_path: Path) -> None:
    run(folder)
    write_correspondences(folder, random_correspondences(1))
    run(folder, existing="overwrite")
    assert read_results(folder) == run_fresh(tmp_path / "fresh", seed=1)


def test_images_without_matches_get_empty_arrays(tmp_path: Path) -> None:
    empty = np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32), np.zeros(0, np.float32)
    write_correspondences(tmp_path, {PAIRS[0]: empty})
    assert run(tmp_path, PAIRS[:1]).num_images == 2
    with h5py.File(tmp_path / "features.h5", "r") as file:
        for name in PAIRS[0]:
            assert file[name]["keypoints"].shape == (0, 2)
            assert file[name]["scores"].shape == (0,)
            assert file[name]["image_size"][()].tolist() == [640, 480]
    with h5py.File(tmp_path / "matches.h5", "r") as file:
        assert file[names_to_pair(*PAIRS[0])]["matches0"].shape == (0,)


def test_fixed_features_are_used_and_not_copied(folder: Path) -> None:
    reference = folder / "reference.h5"
    keypoints = np.random.default_rng(5).uniform(0, 60, (30, 2)).astype(np.float16)
    with h5py.File(reference, "w") as file:
        file[f"{NAMES[0]}/keypoints"] = keypoints
    run(folder, fixed_features=[reference])
    with h5py.File(folder / "features.h5", "r") as file:
        assert NAMES[0] not in file
        assert NAMES[1] in file
    with h5py.File(folder / "matches.h5", "r") as file:
        matches0 = file[names_to_pair(*PAIRS[0])]["matches0"]
        assert (matches0.dtype, len(matches0)) == (np.int32, len(keypoints))
        assert (matches0[()] >= 0).any()


def test_pairs_may_be_reversed_and_repeated(folder: Path, tmp_path: Path) -> None:
    run(folder, [(name1, name0) for name0, name1 in PAIRS] + list(PAIRS))
    assert read_results(folder) == run_fresh(tmp_path / "fresh")


def test_missing_inputs_are_named(folder: Path) -> None:
    with pytest.raises(InputError, match=r"lacks 1 of the pairs, the first is 'new', 'db/1\.jpg'"):
        run(folder, [*PAIRS, ("new", NAMES[0])])
    with pytest.raises(InputError, match="expected one of keep, update, overwrite"):
        run(folder, existing="replace")
    correspondences, features, matches = (
        folder / f"{stem}.h5" for stem in ("correspondences", "features", "matches")
    )
    with pytest.raises(InputError, match="image_sizes lacks 2 images"):
        aggregate(PAIRS[:1], correspondences, features, matches, COARSE, {})
    with pytest.raises(InputError, match="two different files"):
        aggregate(PAIRS[:1], correspondences, features, correspondences, COARSE, SIZES)
    assert not features.exists()
    assert not matches.exists()
