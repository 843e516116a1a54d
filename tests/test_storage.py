"""Files in hloc's layout."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfm_matchers.errors import InputError
from sfm_matchers.storage import (
    StagedFile,
    exclusive,
    list_groups,
    name_faults,
    names_to_pair,
    open_h5,
    read_features,
    read_group,
    read_keypoints,
    read_matches,
    read_pairs,
    unique_pairs,
    write_pairs,
)

quick = settings(max_examples=40, deadline=None)

NAMES = st.text(alphabet="abcdäß/_.0", min_size=1, max_size=8).filter(lambda name: "//" not in name)


@quick
@given(st.lists(st.tuples(NAMES, NAMES), max_size=8))
def test_pairs_files_round_trip(pairs: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.txt"
        write_pairs(path, pairs)
        assert read_pairs(path) == pairs


ANY_NAMES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\ufeff"),
    min_size=1,
    max_size=6,
)


@quick
@given(st.lists(ANY_NAMES | st.sampled_from(["a", "b", " a", "a b", "b a", "#a"]), min_size=2))
def test_pairs_of_known_names_are_read_as_written_or_refused(names: list[str]) -> None:
    pairs = list(itertools.pairwise(names))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.txt"
        write_pairs(path, pairs)
        lines = [f"{name0} {name1}" for name0, name1 in pairs]
        every = [f"{name0} {name1}" for name0, name1 in itertools.product(set(names), repeat=2)]
        if any(every.count(line) > 1 for line in lines):
            with pytest.raises(InputError, match="fit in one way only"):
                read_pairs(path, names)
        else:
            assert read_pairs(path, names) == pairs


@quick
@given(st.lists(st.text("ab-/", min_size=1, max_size=4), max_size=6, unique=True))
def test_no_two_pairs_of_faultless_names_share_a_group(names: list[str]) -> None:
    usable = sorted(set(names) - name_faults(names).keys())
    groups = [names_to_pair(*pair) for pair in itertools.product(usable, repeat=2)]
    assert len(set(groups)) == len(groups)
    assert {name.replace("/", "-") for name in usable} == {n.replace("/", "-") for n in names}
    assert unique_pairs(itertools.permutations(usable, 2)) == list(
        itertools.combinations(usable, 2)
    )


@quick
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"), st.integers(0, 3), st.sampled_from(["add", "open", "commit"])
        )
    )
)
def test_a_staged_file_holds_what_was_added_last(steps: list[tuple[str, int, str]]) -> None:
    expected: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        staged = StagedFile(Path(folder) / "feats.h5")
        for name, value, step in steps:
            if step == "add":
                staged.add(
                    {f"x/{name}": {"keypoints": np.full((value, 2), value)}},
                    {f"x/{name}": str(value)},
                )
                expected[f"x/{name}"] = value
            elif step == "open":
                staged = StagedFile(staged.path)
            else:
                staged.commit()
            assert all(staged.is_current(name, str(value)) for name, value in expected.items())
        staged.commit()
        assert list_groups(staged.path) == sorted(expected)
        with open_h5(staged.path) as file:
            for name, value in expected.items():
                assert read_group(file, name)["keypoints"].tolist() == [[value, value]] * value


@quick
@given(
    st.lists(st.integers(-1, 4), max_size=6),
    st.booleans(),
    st.sampled_from(["i2", "i4", "i8"]),
)
def test_matches_round_trip_in_both_directions(
    matches0: list[int], is_reversed: bool, dtype: str
) -> None:
    names = ("b.jpg", "a/1.jpg") if is_reversed else ("a/1.jpg", "b.jpg")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "matches.h5"
        with h5py.File(path, "w") as file:
            file[f"{names_to_pair(*names)}/matches0"] = np.array(matches0, dtype)
        with open_h5(path) as file:
            matches, scores = read_matches(file, "a/1.jpg", "b.jpg")
    expected = [[index, other] for index, other in enumerate(matches0) if other >= 0]
    assert matches.tolist() == [pair[::-1] if is_reversed else pair for pair in expected]
    assert scores.tolist() == [1] * len(expected)


def test_names_with_spaces_are_split_by_what_is_known(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text("my photo.jpg other photo.jpg\n")
    known = ["my photo.jpg", "other photo.jpg"]
    assert read_pairs(path, known) == [("my photo.jpg", "other photo.jpg")]
    with pytest.raises(InputError, match="line 1"):
        read_pairs(path)


def test_names_that_collide_are_named() -> None:
    with pytest.raises(InputError, match="a-b"):
        unique_pairs([("a/b", "c"), ("a-b", "c")])


@pytest.mark.parametrize(
    ("group", "is_reversed"),
    [("a-1.jpg/b.jpg", False), ("b.jpg/a-1.jpg", True), ("a-1.jpg_b.jpg", False)],
)
def test_matches_are_found_in_hloc_order(tmp_path: Path, group: str, is_reversed: bool) -> None:
    path = tmp_path / "matches.h5"
    with h5py.File(path, "w") as file:
        file[f"{group}/matches0"] = np.array([-1, 4, 2], dtype=np.int16)
    with open_h5(path) as file:
        matches, scores = read_matches(file, "a/1.jpg", "b.jpg")
        expected = [[1, 4], [2, 2]]
        assert matches.tolist() == ([pair[::-1] for pair in expected] if is_reversed else expected)
        assert scores.tolist() == [1, 1]
        with pytest.raises(InputError, match=r"c\.jpg"):
            read_matches(file, "a/1.jpg", "c.jpg")
    assert names_to_pair("a/1.jpg", "b.jpg") == "a-1.jpg/b.jpg"


def test_hloc_keypoints_of_any_type_are_read(tmp_path: Path) -> None:
    path = tmp_path / "feats.h5"
    with h5py.File(path, "w") as file:
        file["a.jpg/keypoints"] = np.ones((3, 2), dtype=np.float16)
        file["b.jpg/keypoints"] = np.zeros(0, dtype=np.float32)
    with open_h5(path) as file:
        assert read_keypoints(file, "a.jpg").dtype == np.float32
        assert read_keypoints(file, "b.jpg").shape == (0, 2)


def test_descriptors_that_are_not_finite_are_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "features.h5", "w") as file:
        file["a.jpg/keypoints"] = np.ones((2, 2))
        file["a.jpg/descriptors"] = np.array([[1, 1], [1, np.nan]])
        with pytest.raises(InputError, match=r"descriptors of 'a.jpg' are not all finite"):
            read_features(file, "a.jpg")


def test_a_staged_file_survives_its_process(tmp_path: Path) -> None:
    path = tmp_path / "feats.h5"
    StagedFile(path).add({"x/a.jpg": {"keypoints": np.ones((1, 2))}}, {"x/a.jpg": "one"})
    assert not path.exists()
    staged = StagedFile(path)
    assert staged.is_current("x/a.jpg", "one")
    assert not staged.is_current("x/a.jpg", "other")
    staged.add({"x/a.jpg": {"keypoints": np.zeros((5, 2))}}, {"x/a.jpg": "two"})
    staged.commit()
    with open_h5(path) as file:
        assert read_group(file, "x/a.jpg")["keypoints"].shape == (5, 2)
    assert StagedFile(path).is_current("x/a.jpg", "two")
    assert not (tmp_path / "feats.h5.parts").exists()


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with exclusive(tmp_path), pytest.raises(InputError, match="another run is working in"):
        exclusive(tmp_path).__enter__()
    with exclusive(tmp_path):  # free again
        pass


def test_a_killed_run_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from sfm_matchers.storage import exclusive\n"
        "with exclusive(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    with exclusive(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to"), exclusive(tmp_path / "file" / "out"):
        pass
