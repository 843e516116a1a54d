"""Files in hloc's layout."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfm_matchers.errors import InputError
from sfm_matchers.files.fingerprints import content_hash, file_sha256
from sfm_matchers.files.hdf5 import (
    Hdf5File,
    list_groups,
    open_h5,
)
from sfm_matchers.files.locks import exclusive
from sfm_matchers.files.names import in_natural_order, name_fault
from sfm_matchers.files.pair_lists import (
    name_faults,
    names_to_pair,
    read_pairs,
    unique_pairs,
    write_pairs,
)
from sfm_matchers.files.seals import tell_changed
from sfm_matchers.files.staged import StagedFile
from sfm_matchers.files.text import read_text, write_text
from sfm_matchers.localization.poses import read_poses
from sfm_matchers.localization.query_files import read_image_names, read_queries

quick = settings(max_examples=40, deadline=None)

NAMES = st.text(alphabet="abcdäß/_.0", min_size=1, max_size=8).filter(
    lambda name: "//" not in name and name_fault(name) is None
)


@quick
@given(st.lists(st.tuples(NAMES, NAMES), max_size=8))
def test_pairs_files_round_trip(pairs: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.txt"
        write_pairs(path, pairs)
        assert read_pairs(path) == pairs


ANY_NAMES = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufeff"),
    min_size=1,
    max_size=6,
).filter(lambda name: name_fault(name) is None)


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
    safe = [name for name in names if name_fault(name) is None]
    assert {name.replace("/", "-") for name in usable} == {n.replace("/", "-") for n in safe}
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
                assert file.group(name)["keypoints"].tolist() == [[value, value]] * value


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
            matches, scores = file.matches("a/1.jpg", "b.jpg")
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
        matches, scores = file.matches("a/1.jpg", "b.jpg")
        expected = [[1, 4], [2, 2]]
        assert matches.tolist() == ([pair[::-1] for pair in expected] if is_reversed else expected)
        assert scores.tolist() == [1, 1]
        with pytest.raises(InputError, match=r"c\.jpg"):
            file.matches("a/1.jpg", "c.jpg")
    assert names_to_pair("a/1.jpg", "b.jpg") == "a-1.jpg/b.jpg"


def test_hloc_keypoints_of_any_type_are_read(tmp_path: Path) -> None:
    path = tmp_path / "feats.h5"
    with h5py.File(path, "w") as file:
        file["a.jpg/keypoints"] = np.ones((3, 2), dtype=np.float16)
        file["b.jpg/keypoints"] = np.zeros(0, dtype=np.float32)
    with open_h5(path) as file:
        assert file.keypoints("a.jpg").dtype == np.float32
        assert file.keypoints("b.jpg").shape == (0, 2)


@pytest.mark.parametrize("key", ["descriptors", "scores", "scales", "oris"])
def test_features_that_are_not_finite_are_named(tmp_path: Path, key: str) -> None:
    features = {"keypoints": np.ones((2, 2)), "descriptors": np.ones((3, 2))} | {
        name: np.ones(2) for name in ("scores", "scales", "oris")
    }
    features[key][..., 1] = np.nan
    with h5py.File(tmp_path / "features.h5", "w") as file:
        for name, array in features.items():
            file[f"a.jpg/{name}"] = array
    with (
        open_h5(tmp_path / "features.h5") as file,
        pytest.raises(InputError, match=f"{key} of 'a.jpg' are not all finite"),
    ):
        file.features("a.jpg")


@pytest.mark.parametrize("size", [(np.inf, 48.0), (64.0, np.nan)])
def test_sizes_that_are_not_finite_are_named(tmp_path: Path, size: tuple[float, float]) -> None:
    with h5py.File(tmp_path / "features.h5", "w") as file:
        file["a.jpg/keypoints"] = np.ones((2, 2))
        file["a.jpg/image_size"] = np.array(size)
    with (
        open_h5(tmp_path / "features.h5") as file,
        pytest.raises(InputError, match=r"image_size of 'a.jpg' are not all finite"),
    ):
        file.keypoints("a.jpg")


def test_entries_that_have_changed_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "features.h5"
    staged = StagedFile(path)
    names = ("a.jpg", "b.jpg")
    arrays = {"keypoints": np.ones((20, 2), np.float32)}
    staged.add(dict.fromkeys(names, arrays), dict.fromkeys(names, "source"))
    staged.commit()
    tell_changed(path)
    assert not caplog.text
    with h5py.File(path, "r+") as file:
        file["a.jpg/keypoints"][3, 1] = 1.5
        file.create_group("c.jpg")["keypoints"] = np.ones((2, 2))  # of another tool
    tell_changed(path)
    assert f"{path} is not as it was written: 1 of 3 entries have changed" in caplog.text


def test_scores_that_are_not_finite_are_named(tmp_path: Path) -> None:
    group = names_to_pair("a.jpg", "b.jpg")
    with h5py.File(tmp_path / "matches.h5", "w") as file:
        file[f"{group}/matches0"] = np.array([0, -1])
        file[f"{group}/matching_scores0"] = np.array([np.inf, 0])
        file[f"{group}/keypoints0"] = file[f"{group}/keypoints1"] = np.ones((1, 2))
        file[f"{group}/scores"] = np.array([np.nan])
    with open_h5(tmp_path / "matches.h5") as file:
        with pytest.raises(InputError, match=r"matching_scores0 of 'a.jpg/b.jpg' are not all fin"):
            file.matches("a.jpg", "b.jpg")
        with pytest.raises(InputError, match=r"scores of 'a.jpg/b.jpg' are not all finite"):
            file.correspondences("a.jpg", "b.jpg")


def test_indices_that_16_bits_do_not_hold_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "matches.h5", "w") as file:
        matches0 = np.array([-1, 40_000, 7]).astype(np.int16)
        file[f"{names_to_pair('a.jpg', 'b.jpg')}/matches0"] = matches0
    with (
        open_h5(tmp_path / "matches.h5") as file,
        pytest.raises(
            InputError, match=r"'a.jpg/b.jpg' hold -25536, which is no keypoint.*16 bits"
        ),
    ):
        file.matches("a.jpg", "b.jpg")


@pytest.mark.parametrize("matches0", [np.array([0.0, -1.0]), np.array([False, True])])
def test_matches_that_are_no_indices_are_refused(tmp_path: Path, matches0: np.ndarray) -> None:
    with h5py.File(tmp_path / "matches.h5", "w") as file:
        file[f"{names_to_pair('a.jpg', 'b.jpg')}/matches0"] = matches0
    with (
        open_h5(tmp_path / "matches.h5") as file,
        pytest.raises(InputError, match=r"matches0 of 'a.jpg/b.jpg' are not whole numbers"),
    ):
        file.matches("a.jpg", "b.jpg")


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
        assert file.group("x/a.jpg")["keypoints"].shape == (5, 2)
    assert StagedFile(path).is_current("x/a.jpg", "two")
    assert not (tmp_path / "feats.h5.parts").exists()


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with exclusive(tmp_path), pytest.raises(InputError, match="another run is working in"):
        exclusive(tmp_path).__enter__()
    with exclusive(tmp_path):  # free again
        pass


def test_a_killed_run_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from sfm_matchers.files.locks import exclusive\n"
        "with exclusive(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -9
    with exclusive(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to"), exclusive(tmp_path / "file" / "out"):
        pass


def add_external_link(file: h5py.File, other: Path) -> None:
    file["a.jpg/keypoints"] = h5py.ExternalLink(str(other), "b.jpg/keypoints")


def add_external_group(file: h5py.File, other: Path) -> None:
    file["a.jpg"] = h5py.ExternalLink(str(other), "b.jpg")


def add_soft_link(file: h5py.File, other: Path) -> None:
    file["a.jpg/keypoints"] = h5py.SoftLink("/c.jpg/keypoints")
    file["c.jpg"] = h5py.ExternalLink(str(other), "b.jpg")


def add_external_storage(file: h5py.File, other: Path) -> None:
    file.create_dataset("a.jpg/keypoints", (4, 2), "f4", external=[(str(other), 0, 32)])


def add_virtual_dataset(file: h5py.File, other: Path) -> None:
    layout = h5py.VirtualLayout((4, 2), "f4")
    layout[:] = h5py.VirtualSource(str(other), "b.jpg/keypoints", (4, 2))
    file.create_virtual_dataset("a.jpg/keypoints", layout)


def add_huge_dataset(file: h5py.File, other: Path) -> None:
    file.create_dataset("a.jpg/keypoints", (1 << 31, 2), "f4", chunks=(1024, 2))


@pytest.mark.parametrize(
    ("add", "reason"),
    [
        (add_external_link, "is a link"),
        (add_external_group, "is a link"),
        (add_soft_link, "is a link"),
        (add_external_storage, "is stored in other files"),
        (add_virtual_dataset, "is stored in other files"),
        (add_huge_dataset, "numbers; 67108864 at most"),
    ],
)
def test_hdf5_files_that_point_at_others_are_refused(
    tmp_path: Path, add: Callable[[h5py.File, Path], None], reason: str
) -> None:
    other, path = tmp_path / "other.h5", tmp_path / "features.h5"
    with h5py.File(other, "w") as file:
        file["b.jpg/keypoints"] = np.zeros((4, 2), np.float32)
    with h5py.File(path, "w") as file:
        add(file, other)
    uses: list[Callable[[Hdf5File], object]] = [
        lambda file: list_groups(path),
        lambda file: file.keypoints("a.jpg"),
        lambda file: file.group("a.jpg"),
    ]
    with open_h5(path) as file:
        for use in uses:
            with pytest.raises(InputError, match=reason) as caught:
                use(file)
            assert str(caught.value).startswith(str(path))


def test_a_pipe_is_no_hdf5_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "features.h5")
    with pytest.raises(InputError, match="is no file"):
        list_groups(tmp_path / "features.h5")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (np.nan, "are not all finite"),
        (np.inf, "are not all finite"),
        (-1e6, "lie far outside its 640 x 480 pixels, such as"),
        (3e38, "lie far outside its 640 x 480 pixels, such as"),
    ],
)
def test_keypoints_that_cannot_be_those_of_the_photo_are_named(
    tmp_path: Path, change: float, reason: str
) -> None:
    path = tmp_path / "features.h5"
    keypoints = np.random.default_rng(0).uniform(0, 480, (40, 2)).astype(np.float32)
    keypoints[7, 1] = change
    with h5py.File(path, "w") as file:
        file["a.jpg/keypoints"] = keypoints
        file["a.jpg/image_size"] = np.array([640, 480])
        file["same/keypoints"] = np.full((40, 2), 7, np.float32)
        file["one/keypoints"] = np.full((1, 2), 7, np.float32)
    with open_h5(path) as file:
        with pytest.raises(InputError, match=rf"keypoints of 'a.jpg' {reason}"):
            file.keypoints("a.jpg")
        with pytest.raises(InputError, match="'same' are 40, nearly all one point"):
            file.keypoints("same")
        assert len(file.keypoints("one")) == 1


BAD_NAMES = {
    "../../a.jpg": "leads out of its folder",
    "day/../../a.jpg": "leads out of its folder",
    "day\\..\\a.jpg": "leads out of its folder",
    "/etc/a.jpg": "is not relative",
    "\\\\server\\a.jpg": "is not relative",
    "C:\\a.jpg": "is not relative",
    "a\x1b[2J.jpg": "contains a control character",
    "a\x00.jpg": "contains a control character",
}


@pytest.mark.parametrize(("name", "fault"), BAD_NAMES.items())
def test_names_that_lead_elsewhere_are_refused_in_lists(
    tmp_path: Path, name: str, fault: str
) -> None:
    path = tmp_path / "list.txt"
    path.write_text(f"a.jpg {name}\n", encoding="utf-8")
    with pytest.raises(InputError, match=fault) as caught:
        read_pairs(path)
    assert str(caught.value).startswith(f"{path}, line 1")
    path.write_text(f"{name}\n", encoding="utf-8")
    for read in (read_image_names, read_queries, read_poses):
        path.write_text(f"{name} PINHOLE 640 480 500 500 320 240\n", encoding="utf-8")
        with pytest.raises(InputError):
            read(path)
    assert name_faults([name, "b.jpg"]).keys() == {name}


@pytest.mark.parametrize("name", [name for name in BAD_NAMES if "\0" not in name])
def test_names_that_lead_elsewhere_are_refused_in_hdf5(tmp_path: Path, name: str) -> None:
    path = tmp_path / "features.h5"
    with h5py.File(path, "w") as file:
        file[f"{name}/keypoints"] = np.zeros((4, 2), np.float32)
    if name.startswith("/"):  # of the root group, so that it is relative
        assert list_groups(path) == [name[1:]]
        return
    with pytest.raises(InputError, match=BAD_NAMES[name]):
        list_groups(path)


def test_a_folder_whose_name_is_not_utf8_is_told_as_it_is_named(tmp_path: Path) -> None:
    folder = os.fsdecode(b"B\xff")
    write_text(tmp_path / "report.html", f"outputs in {folder}, Gr\u00f6\u00dfe")
    assert read_text(tmp_path / "report.html") == "outputs in B\\udcff, Gr\u00f6\u00dfe"


def test_numbers_in_names_count_as_numbers() -> None:
    names = ["b/10.jpg", "b/9.jpg", "a12.jpg", "a2.jpg", "a02.jpg", "3.jpg"]
    expected = ["3.jpg", "a02.jpg", "a2.jpg", "a12.jpg", "b/9.jpg", "b/10.jpg"]
    assert in_natural_order(names) == expected


def test_the_short_hash_begins_the_sha256_of_what_no_database_is(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    assert content_hash(tmp_path / "a") == file_sha256(tmp_path / "a")[:16]
