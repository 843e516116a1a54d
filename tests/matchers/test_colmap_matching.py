"""COLMAP's matcher through a temporary database: its own matches, in any company, resumable."""

from __future__ import annotations

import threading
from itertools import combinations
from pathlib import Path

import h5py
import numpy as np
import pycolmap
import pytest

from sfm_matchers.confs import SparseConf, load_conf
from sfm_matchers.errors import InputError
from sfm_matchers.files import scratch
from sfm_matchers.files.pair_lists import Pair
from sfm_matchers.files.staged import StagedFile
from sfm_matchers.matchers import colmap_matching
from sfm_matchers.matchers.colmap_matching import ColmapNearestNeighborMatcher
from sfm_matchers.matchers.protocols import SparseMatches
from sfm_matchers.matchers.registry import load_sparse_matcher
from sfm_matchers.matching import match_features

COUNTS = {"a.jpg": 900, "b.jpg": 700, "c.jpg": 530, "d.jpg": 200}


def to_bytes(descriptors: np.ndarray) -> np.ndarray:
    """COLMAP's bytes of descriptors (N, 128) of any length."""
    lengths = np.linalg.norm(descriptors, axis=1, keepdims=True)
    return np.rint(512 * descriptors / lengths).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def photos() -> dict[str, np.ndarray]:
    """Bytes (N, 128) of photos that see the same points, each a little otherwise; more than 512
    have an index of cells in COLMAP, fewer a flat one."""
    points = np.random.default_rng(0).gamma(0.5, size=(1000, 128))
    found = {}
    for seed, (name, count) in enumerate(COUNTS.items()):
        rng = np.random.default_rng(seed)
        seen = points[rng.permutation(len(points))[:count]]
        found[name] = to_bytes(seen * rng.uniform(0.6, 1.4, seen.shape))
    return found


@pytest.fixture(scope="module")
def features(photos: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The same as in a feature file."""
    return {
        name: {"descriptors": array.T.astype(np.float16) / np.float16(512)}
        for name, array in photos.items()
    }


def matched(
    features: dict[str, dict[str, np.ndarray]], pairs: list[Pair], num_threads: int = -1
) -> dict[Pair, SparseMatches]:
    matcher = ColmapNearestNeighborMatcher(num_threads=num_threads)
    return dict(matcher.match_list(pairs, features.__getitem__))


def index_pairs(matches0: np.ndarray) -> list[tuple[int, int]]:
    return [(int(i), int(matches0[i])) for i in np.flatnonzero(matches0 >= 0)]


def test_matches_are_those_that_colmap_writes(
    photos: dict[str, np.ndarray], features: dict[str, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    found = matched(features, list(combinations(photos, 2)))
    path = tmp_path / "database.db"
    with pycolmap.Database.open(path) as database:
        camera = pycolmap.Camera.create_from_model_name(1, "PINHOLE", 500.0, 640, 480)
        database.write_camera(camera, use_camera_id=True)
        ids = {}
        for name, array in photos.items():
            ids[name] = database.write_image(pycolmap.Image(name=name, camera_id=1))
            database.write_keypoints(ids[name], np.zeros((len(array), 2), np.float32))
            kind = pycolmap.FeatureExtractorType.SIFT
            database.write_descriptors(ids[name], pycolmap.FeatureDescriptors(kind, array))
    pycolmap.match_exhaustive(path)
    with pycolmap.Database.open(path) as database:
        for (name0, name1), (matches0, _) in found.items():
            theirs = database.read_matches(ids[name0], ids[name1])
            assert len(theirs) > 50
            assert index_pairs(matches0) == sorted(map(tuple, theirs.tolist()))


def test_scores_are_cosines(features: dict[str, dict[str, np.ndarray]]) -> None:
    both = [features[name] for name in ("a.jpg", "b.jpg")]
    matches0, scores0 = ColmapNearestNeighborMatcher().match(*both)
    chosen = matches0 >= 0
    assert not scores0[~chosen].any()
    d0, d1 = (array["descriptors"].T.astype(np.float64) for array in both)
    d0, d1 = d0[chosen], d1[matches0[chosen]]
    cosines = (d0 * d1).sum(1) / (np.linalg.norm(d0, axis=1) * np.linalg.norm(d1, axis=1))
    np.testing.assert_allclose(scores0[chosen], cosines, atol=1e-6)


def test_a_pair_has_the_same_matches_in_any_company(
    features: dict[str, dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = list(combinations(features, 2))
    found = matched(features, pairs)
    assert set(found) == set(pairs)
    others = [matched(features, pairs[::-1], num_threads=1), matched(features, pairs[2:3])]
    monkeypatch.setattr(colmap_matching, "PHOTOS_AT_ONCE", 2)
    others.append(matched(features, pairs))
    for other in others:
        for pair, (matches0, scores0) in other.items():
            np.testing.assert_array_equal(matches0, found[pair][0])
            np.testing.assert_array_equal(scores0, found[pair][1])
    assert len(others[2]) == len(pairs)
    turned, _ = ColmapNearestNeighborMatcher().match(features["b.jpg"], features["a.jpg"])
    assert sorted((b, a) for a, b in index_pairs(turned)) == index_pairs(found["a.jpg", "b.jpg"][0])


@pytest.mark.parametrize(("count0", "count1"), [(0, 0), (0, 700), (700, 0), (1, 700), (1, 1)])
def test_few_keypoints_are_no_trouble(
    features: dict[str, dict[str, np.ndarray]], count0: int, count1: int
) -> None:
    both = [
        {"descriptors": features["b.jpg"]["descriptors"][:, :count]} for count in (count0, count1)
    ]
    matches0, scores0 = ColmapNearestNeighborMatcher().match(*both)
    assert matches0.shape == scores0.shape == (count0,)
    if count0 and count1:
        assert matches0.tolist() == [0]
        assert scores0 == pytest.approx(1, abs=1e-6)


def test_each_byte_comes_back() -> None:
    every = np.resize(np.arange(256, dtype=np.uint8), (4, 128))
    stored = {"descriptors": every.T.astype(np.float16) / np.float16(512)}
    np.testing.assert_array_equal(colmap_matching._to_bytes(stored), every)


@pytest.mark.parametrize("descriptors", [np.ones((64, 3)), -np.ones((128, 3)), np.ones((256, 0))])
def test_descriptors_of_other_kinds_are_refused(descriptors: np.ndarray) -> None:
    both = [{"descriptors": descriptors.astype(np.float16)}] * 2
    with pytest.raises(InputError, match="model is nearest_neighbor"):
        ColmapNearestNeighborMatcher().match(*both)


@pytest.mark.parametrize("option", [{"ratio": -1}, {"max_distance": 0}])
def test_options_that_cannot_be_are_named(option: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(option))):
        ColmapNearestNeighborMatcher(**option)


def test_an_interrupted_list_keeps_its_pairs_and_leaves_no_thread(
    features: dict[str, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feature_path, match_path = tmp_path / "feats.h5", tmp_path / "matches.h5"
    with h5py.File(feature_path, "w") as file:
        for name, arrays in features.items():
            count = arrays["descriptors"].shape[1]
            positions = np.arange(2 * count, dtype=np.float32).reshape(-1, 2)
            file.create_group(name)["keypoints"] = positions
            file[name]["descriptors"] = arrays["descriptors"]
    conf = load_conf("sift")
    assert isinstance(conf, SparseConf)
    pairs = list(combinations(features, 2))

    def run() -> list[Pair]:
        def load() -> ColmapNearestNeighborMatcher:
            return load_sparse_matcher(conf, "bundled", "cpu")

        return match_features(conf, load, pairs, feature_path, match_path)

    added = 0
    add = StagedFile.add

    def add_some(*arguments: object) -> None:
        nonlocal added
        if added == 4:
            raise KeyboardInterrupt
        add(*arguments)
        added += 1

    monkeypatch.setattr(StagedFile, "add", add_some)
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.undo()
    assert not [one for one in threading.enumerate() if "ThreadPool" in one.name]
    assert len(run()) == len(pairs) - 4
    assert run() == []
    with h5py.File(match_path) as file:
        for (name0, name1), (matches0, _) in matched(features, pairs).items():
            np.testing.assert_array_equal(file[name0][name1]["matches0"][()], matches0)


def test_its_database_lies_in_a_folder_that_no_kill_leaves_for_good(
    features: dict[str, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path))
    pairs = list(combinations(COUNTS, 2))
    found = ColmapNearestNeighborMatcher().match_list(pairs, features.__getitem__)
    next(found)
    (folder,) = tmp_path.iterdir()
    assert (folder / scratch._LOCK).is_file()  # by which a later process knows it
    found.close()  # type: ignore[attr-defined]
    assert not folder.exists()
