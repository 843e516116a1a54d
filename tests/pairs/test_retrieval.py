"""Global descriptors, and the search for similar photos."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfm_matchers.errors import InputError
from sfm_matchers.files.hdf5 import open_h5
from sfm_matchers.pairs.retrieval import (
    extract_vlad,
    most_similar,
    mutual_neighbours,
    ranked_by_votes,
)


def write_descriptors(path: Path, descriptors: dict[str, np.ndarray]) -> Path:
    with h5py.File(path, "w") as file:
        for name, descriptor in descriptors.items():
            file[f"{name}/global_descriptor"] = descriptor
    return path


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), num_matched=st.integers(0, 12), minimum=st.floats(-2, 2))
def test_neighbours_are_those_of_largest_dot_product(
    tmp_path_factory: pytest.TempPathFactory, seed: int, num_matched: int, minimum: float
) -> None:
    rng = np.random.default_rng(seed)
    names = [f"{index}.jpg" for index in range(9)]
    vectors = dict(zip(names, rng.normal(size=(9, 6)).astype(np.float32), strict=True))
    path = write_descriptors(tmp_path_factory.mktemp("global") / "global.h5", vectors)
    queries, database = names[:5], names[3:]  # two are both
    found = most_similar(queries, database, path, num_matched, minimum)
    assert list(found) == queries
    for query, others in found.items():
        scores = {name: float(vectors[query] @ vectors[name]) for name in database if name != query}
        best = sorted((name for name in scores if scores[name] >= minimum), key=scores.get)[::-1]
        assert others == best[:num_matched]


def test_equal_photos_are_found_in_the_order_of_the_database(tmp_path: Path) -> None:
    names = ["c.jpg", "a.jpg", "b.jpg"]
    path = write_descriptors(tmp_path / "global.h5", {name: np.ones(4) for name in names})
    assert most_similar(["a.jpg"], names, path, 5) == {"a.jpg": ["c.jpg", "b.jpg"]}


def test_the_database_may_be_in_a_file_of_its_own(tmp_path: Path) -> None:
    queries = write_descriptors(tmp_path / "queries.h5", {"a.jpg": np.array([1.0, 0.0])})
    database = write_descriptors(
        tmp_path / "database.h5", {"x.jpg": np.array([0.1, 1]), "y.jpg": np.array([0.9, 0])}
    )
    found = most_similar(["a.jpg"], ["x.jpg", "y.jpg"], queries, 2, database_path=database)
    assert found == {"a.jpg": ["y.jpg", "x.jpg"]}


def test_bad_descriptors_are_named(tmp_path: Path) -> None:
    path = write_descriptors(
        tmp_path / "global.h5",
        {
            "a.jpg": np.ones(4),
            "b.jpg": np.ones(4),
            "short.jpg": np.ones(3),
            "damaged.jpg": np.array([1, np.nan, 1, 1]),
        },
    )
    with h5py.File(path, "a") as file:
        file["local.jpg/keypoints"] = np.ones((2, 2))
    for name, message in {
        "absent.jpg": "no global descriptor of 'absent.jpg'",
        "local.jpg": "no global descriptor of 'local.jpg'",
        "short.jpg": "'short.jpg' has 3 numbers, others have 4",
        "damaged.jpg": "global_descriptor of 'damaged.jpg' are not all finite",
    }.items():
        with pytest.raises(InputError, match=message):
            most_similar([name], ["a.jpg", "b.jpg"], path, 2)
        with pytest.raises(InputError, match=message):
            most_similar(["a.jpg"], ["b.jpg", name], path, 2)
    assert most_similar(["a.jpg"], [], path, 2) == {"a.jpg": []}
    assert most_similar([], ["a.jpg"], path, 2) == {}


@pytest.mark.slow
def test_memory_of_the_search_is_that_of_the_database(tmp_path: Path) -> None:
    """512 more queries may cost their names, not their descriptors, which are 8 MB."""
    length = 4096
    vectors = {f"{index}.jpg": np.full(length, index, np.float16) for index in range(1024)}
    path = write_descriptors(tmp_path / "global.h5", vectors)
    names = list(vectors)

    def peak(queries: list[str]) -> int:
        tracemalloc.start()
        most_similar(queries, names[:4], path, 2)
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    assert peak(names) < peak(names[:512]) + 1_000_000


def write_sift(path: Path, counts: dict[str, int]) -> None:
    """Random descriptors of unit length, each photo its own whatever else is in the file."""
    with h5py.File(path, "w") as file:
        for name, count in counts.items():
            rng = np.random.default_rng(sum(name.encode()))
            descriptors = rng.random((128, count))
            descriptors /= np.linalg.norm(descriptors, axis=0) + 1e-9
            file[f"{name}/descriptors"] = descriptors.astype(np.float16)
            file[f"{name}/image_size"] = np.array([640, 480])


def read_vlad(path: Path) -> dict[str, np.ndarray]:
    with open_h5(path) as file:
        return {name: file.group(name)["global_descriptor"] for name in file.names()}


def test_queries_that_come_later_change_no_descriptor_of_the_map(tmp_path: Path) -> None:
    counts = {"map0": 200, "map1": 150, "map2": 90, "query0": 120, "query1": 0}
    write_sift(tmp_path / "sift.h5", counts)
    prints = {name: name for name in counts}
    database, everything = ["map0", "map1", "map2"], list(counts)
    path = tmp_path / "vlad.h5"

    def extract(names: list[str], vocabulary: list[str] | None) -> list[str]:
        return extract_vlad(names, tmp_path / "sift.h5", path, prints, vocabulary)

    assert extract(database, database) == database
    of_map = read_vlad(path)
    assert extract(everything, database) == ["query0", "query1"]
    later = read_vlad(path)
    for name in database:
        np.testing.assert_array_equal(later[name], of_map[name])
    assert extract(everything, database) == []
    path.unlink()
    assert extract(["query0"], database) == ["query0"]
    np.testing.assert_array_equal(read_vlad(path)["query0"], later["query0"])
    assert extract(everything, None) == everything  # another vocabulary: all are made again
    assert (read_vlad(path)["map0"] != of_map["map0"]).any()


def test_descriptors_have_unit_length_and_a_photo_without_features_has_zeros(
    tmp_path: Path,
) -> None:
    counts = {"a": 200, "empty": 0}
    write_sift(tmp_path / "sift.h5", counts)
    prints = {name: name for name in counts}
    extract_vlad(list(counts), tmp_path / "sift.h5", tmp_path / "vlad.h5", prints)
    found = read_vlad(tmp_path / "vlad.h5")
    assert found["a"].shape == found["empty"].shape == (64 * 128,)
    assert np.linalg.norm(found["a"].astype(np.float32)) == pytest.approx(1, abs=1e-3)
    assert not found["empty"].any()


def test_a_vocabulary_needs_photos(tmp_path: Path) -> None:
    write_sift(tmp_path / "sift.h5", {"a": 5})
    with pytest.raises(InputError, match="no photo to learn the vocabulary"):
        extract_vlad(["a"], tmp_path / "sift.h5", tmp_path / "vlad.h5", {"a": "a"}, [])
    with pytest.raises(InputError, match="of 'b'"):
        extract_vlad(["b"], tmp_path / "sift.h5", tmp_path / "vlad.h5", {"b": "b"})


@given(st.integers(0, 40), st.integers(0, 30), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_shared_descriptors_are_counted(shared: int, others: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    made = rng.normal(size=(128, shared + 2 * others + 4))
    made /= np.linalg.norm(made, axis=0)
    first = made[:, : shared + others + 2].astype(np.float16)
    second = np.concatenate([made[:, :shared], made[:, shared + others + 2 :]], axis=1)
    assert shared <= mutual_neighbours(first, second, "sift") <= shared + others // 3 + 2
    assert mutual_neighbours(first[:, :0], second, "sift") == 0


def test_votes_within_the_noise_leave_the_order_as_it_is() -> None:
    votes = {"similar": 3, "noise": 15, "same place": 90, "beside it": 40}
    assert ranked_by_votes(votes) == ["same place", "beside it", "similar", "noise"]
