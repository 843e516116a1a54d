"""Poses from depth scans: what is read, what is refused, and that the rest is done."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pycolmap
import pytest

from sfm_matchers.errors import InputError
from sfm_matchers.files.pair_lists import names_to_pair
from sfm_matchers.localization.in_depth_scans import (
    ScanOptions,
    interpolate_scan,
    localize_in_scans,
    read_scan,
    read_transformation,
    transformation_path,
)
from sfm_matchers.localization.poses import LocalizedQuery, Query, Status

WIDTH, HEIGHT, FOCAL_LENGTH = 80, 60, 70.0
CUTOUTS = [f"database/cutouts/DUC1/{scan:03d}/DUC_cutout_{scan:03d}_0_0.jpg" for scan in (1, 2, 3)]
QUERY_CENTER = np.array([0.4, -0.1, 0.2])  # in the frame of the building
NUM_MATCHES = 120


def camera() -> pycolmap.Camera:
    params = [FOCAL_LENGTH, WIDTH / 2, HEIGHT / 2]
    return pycolmap.Camera(model="SIMPLE_PINHOLE", width=WIDTH, height=HEIGHT, params=params)


def query_pose() -> pycolmap.Rigid3d:
    return pycolmap.Rigid3d(pycolmap.Rotation3d(), -QUERY_CENTER)


def building_from_scan(number: int) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = pycolmap.Rotation3d(np.array([0.1 * number, -0.2, 0.3])).matrix()
    matrix[:3, 3] = [number, -2.0, 0.5]
    return matrix


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Three cutouts of one wavy wall, each in the frame of its own scan, and a query."""
    rng = np.random.default_rng(0)
    transformations = tmp_path / "database/alignments/DUC1/transformations"
    transformations.mkdir(parents=True)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    features, matches = tmp_path / "features.h5", tmp_path / "matches.h5"
    with h5py.File(features, "w") as feature_file, h5py.File(matches, "w") as match_file:
        query_keypoints = []
        for number, name in enumerate(CUTOUTS):
            depth = 5 + np.sin(columns / 9) + np.cos(rows / 7 + number)
            x = (columns - WIDTH / 2) / FOCAL_LENGTH * depth + 0.1 * number
            in_building = np.stack([x, (rows - HEIGHT / 2) / FOCAL_LENGTH * depth, depth], axis=-1)
            transformation = building_from_scan(number)
            in_scan = (in_building - transformation[:3, 3]) @ transformation[:3, :3]
            path = tmp_path / f"{name}.mat"
            path.parent.mkdir(parents=True)
            with h5py.File(path, "w") as file:
                file["XYZcut"] = in_scan.astype(np.float32).T
            lines = ["header"] * 7 + [" ".join(map(str, row)) for row in transformation]
            (transformations / f"DUC_trans_{number + 1:03d}.txt").write_text("\n".join(lines))
            keypoints = rng.integers([0, 0], [WIDTH, HEIGHT], (NUM_MATCHES, 2))
            points = in_building[keypoints[:, 1], keypoints[:, 0]]
            query_keypoints.append(camera().img_from_cam(query_pose() * points) - 0.5)
            feature_file[f"{name}/keypoints"] = keypoints.astype(np.float32)
            matches0 = np.full((number + 1) * NUM_MATCHES, -1, np.int32)  # short, as hloc has it
            matches0[number * NUM_MATCHES :] = np.arange(NUM_MATCHES)
            match_file[f"{names_to_pair('q.jpg', name)}/matches0"] = matches0
        query_keypoints = np.concatenate(query_keypoints).astype(np.float32)
        feature_file["q.jpg/keypoints"] = query_keypoints
    return tmp_path


def localize(
    dataset: Path, names: list[str] | None = None, options: ScanOptions | None = None
) -> LocalizedQuery:
    names = CUTOUTS if names is None else names
    (result,) = localize_in_scans(
        dataset,
        [Query("q.jpg", camera())],
        [("q.jpg", name) for name in names],
        dataset / "features.h5",
        dataset / "matches.h5",
        options,
    )
    return result


def assert_found(result: LocalizedQuery, used: list[str]) -> None:
    assert result.status == Status.LOCALIZED
    assert result.database_names == used
    assert result.num_matches == NUM_MATCHES * len(used)
    assert result.inlier_ratio > 0.99
    center = result.cam_from_world.inverse().translation
    np.testing.assert_allclose(center, QUERY_CENTER, atol=0.01)
    # Half a pixel, where it is forgotten, turns the camera by 0.6 degrees and moves it little.
    assert np.rad2deg(result.cam_from_world.rotation.angle()) < 0.05


def test_a_query_is_found_in_the_frame_of_the_building(dataset: Path) -> None:
    assert_found(localize(dataset), CUTOUTS)


def test_a_pair_stored_the_other_way_round_counts(dataset: Path) -> None:
    with h5py.File(dataset / "matches.h5", "a") as file:
        name = names_to_pair("q.jpg", CUTOUTS[1])
        matches0 = file[f"{name}/matches0"][()]
        del file[name]
        reverse = np.full(NUM_MATCHES, -1, np.int32)
        reverse[matches0[matches0 != -1]] = np.flatnonzero(matches0 != -1)
        file[f"{names_to_pair(CUTOUTS[1], 'q.jpg')}/matches0"] = reverse
    assert_found(localize(dataset), CUTOUTS)


def test_cutouts_with_few_matches_are_left_out(dataset: Path) -> None:
    with h5py.File(dataset / "matches.h5", "a") as file:
        file[names_to_pair("q.jpg", CUTOUTS[0])]["matches0"][19:] = -1
    assert_found(localize(dataset, options=ScanOptions(skip_matches=20)), CUTOUTS[1:])
    every = localize(dataset, options=ScanOptions(skip_matches=19))
    assert every.num_matches == 2 * NUM_MATCHES + 19
    none = localize(dataset, options=ScanOptions(skip_matches=NUM_MATCHES + 1))
    assert none.status == Status.FAILED


def remove_scan(dataset: Path, name: str) -> str:
    (dataset / f"{name}.mat").unlink()
    return "DUC_cutout_001_0_0.jpg.mat is missing"


def remove_transformation(dataset: Path, name: str) -> str:
    next(dataset.rglob("DUC_trans_001.txt")).unlink()
    return "DUC_trans_001.txt is missing"


def remove_pair(dataset: Path, name: str) -> str:
    with h5py.File(dataset / "matches.h5", "a") as file:
        del file[names_to_pair("q.jpg", name)]
    return "holds no matches for the pair"


def leave_pair_unfinished(dataset: Path, name: str) -> str:
    with h5py.File(dataset / "matches.h5", "a") as file:
        del file[f"{names_to_pair('q.jpg', name)}/matches0"]
    return "holds no matches for the pair"


def remove_keypoints(dataset: Path, name: str) -> str:
    with h5py.File(dataset / "features.h5", "a") as file:
        del file[name]
    return "no keypoints for image"


def match_beyond_the_cutout(dataset: Path, name: str) -> str:
    with h5py.File(dataset / "matches.h5", "a") as file:
        file[names_to_pair("q.jpg", name)]["matches0"][3] = 5000
    return "keypoint 5000"


def match_beyond_the_query(dataset: Path, name: str) -> str:
    with h5py.File(dataset / "matches.h5", "a") as file:
        group = names_to_pair("q.jpg", name)
        del file[group]
        file[f"{group}/matches0"] = np.zeros(4 * NUM_MATCHES, np.int32)
    return "of 'q.jpg', which has 360"


@pytest.mark.parametrize(
    "break_it",
    [
        remove_scan,
        remove_transformation,
        remove_pair,
        leave_pair_unfinished,
        remove_keypoints,
        match_beyond_the_cutout,
        match_beyond_the_query,
    ],
)
def test_what_is_wrong_with_one_cutout_is_said_and_the_others_do(
    dataset: Path, break_it: object, caplog: pytest.LogCaptureFixture
) -> None:
    message = break_it(dataset, CUTOUTS[0])
    assert_found(localize(dataset), CUTOUTS[1:])
    assert message in caplog.text
    alone = localize(dataset, CUTOUTS[:1])
    assert alone.status == Status.FAILED
    assert alone.cam_from_world is None
    assert message in alone.reason


def test_a_query_without_cutouts_or_keypoints_fails(dataset: Path) -> None:
    assert "no photo of the data base was retrieved" in localize(dataset, []).reason
    assert_found(localize(dataset, ["unknown/db/x.jpg", *CUTOUTS]), CUTOUTS)
    with h5py.File(dataset / "features.h5", "a") as file:
        del file["q.jpg"]
    result = localize(dataset)
    assert result.status == Status.FAILED
    assert "no keypoints for image 'q.jpg'" in result.reason


def test_holes_and_borders_of_scans_lose_only_their_own_points(dataset: Path) -> None:
    with h5py.File(dataset / f"{CUTOUTS[0]}.mat", "a") as file:
        points = file["XYZcut"][()]
        points[:, :, :30] = np.nan  # half of the rows
        file["XYZcut"][...] = points
    with h5py.File(dataset / "features.h5", "a") as file:
        in_hole = (file[f"{CUTOUTS[0]}/keypoints"][:, 1] < 30).sum()
        file[f"{CUTOUTS[1]}/keypoints"][0] = [-0.5, -0.5]
    result = localize(dataset)
    assert result.status == Status.LOCALIZED
    assert result.num_matches == 3 * NUM_MATCHES - in_hole
    with h5py.File(dataset / "features.h5", "a") as file:
        file[f"{CUTOUTS[1]}/keypoints"][1] = np.nan  # and the photo is left out
    result = localize(dataset)
    assert result.status == Status.LOCALIZED
    assert result.num_matches == 2 * NUM_MATCHES - in_hole


# ---------------------------------------------------------------------------------------------
# Files


@pytest.mark.parametrize("dtype", ["f2", "f4", ">f8", "i2"])
@pytest.mark.parametrize("compressed", [False, True])
def test_scans_of_both_versions_and_any_type(tmp_path: Path, dtype: str, compressed: bool) -> None:
    savemat = pytest.importorskip("scipy.io", reason="needs the extra dev").savemat
    points = np.random.default_rng(0).normal(0, 30, (4, 5, 3)).astype(dtype)
    content = {"short": 1, "XYZcut": points.astype("f4") if dtype == "f2" else points}
    savemat(tmp_path / "old.mat", content, do_compression=compressed)
    with h5py.File(tmp_path / "new.mat", "w", userblock_size=512) as file:  # as MATLAB writes
        file["XYZcut"] = points.T
    for name in ("old.mat", "new.mat"):
        scan = read_scan(tmp_path / name)
        assert scan.dtype == np.float64
        np.testing.assert_array_equal(scan, points.astype(np.float64))


def test_files_that_are_no_scans_are_named(tmp_path: Path) -> None:
    savemat = pytest.importorskip("scipy.io", reason="needs the extra dev").savemat
    points = np.zeros((40, 50, 3))
    contents = {
        "other": {"depth": points},
        "flat": {"XYZcut": points[..., 0]},
        "empty": {"XYZcut": points[:0]},
        "complex": {"XYZcut": points + 1j},
        "text": {"XYZcut": "nothing"},
    }
    for name, content in contents.items():
        savemat(tmp_path / f"{name}.mat", content)
    savemat(tmp_path / "good.mat", {"XYZcut": points})
    (tmp_path / "cut.mat").write_bytes((tmp_path / "good.mat").read_bytes()[:200])
    (tmp_path / "noise.mat").write_bytes(b"not a scan")
    # An array whose numbers claim to be arrays: scipy's reader crashes on it.
    nested = bytearray((tmp_path / "good.mat").read_bytes())
    nested[192] = 14
    (tmp_path / "nested.mat").write_bytes(nested)
    with h5py.File(tmp_path / "group.mat", "w") as file:
        file.create_group("XYZcut")
    with h5py.File(tmp_path / "damaged.mat", "w") as file:
        file.create_dataset("XYZcut", data=np.full((3, 5, 4), 7.25), chunks=True, fletcher32=True)
    content = bytearray((tmp_path / "damaged.mat").read_bytes())
    content[content.find(np.full(8, 7.25).tobytes())] ^= 255
    (tmp_path / "damaged.mat").write_bytes(content)
    for name in [*contents, "cut", "noise", "nested", "group", "damaged", "missing"]:
        with pytest.raises(InputError, match=f"{name}.mat"):
            read_scan(tmp_path / f"{name}.mat")


def test_a_missing_or_wrong_transformation_is_named(tmp_path: Path) -> None:
    path = tmp_path / "DUC_trans_001.txt"
    with pytest.raises(InputError, match="is missing"):
        read_transformation(path)
    for text in ("1 2 3\n" * 20, "1 2 3 x\n" * 20, "1 2 3 4\n" * 10, ""):
        path.write_text(text)
        with pytest.raises(InputError, match="4 x 4"):
            read_transformation(path)


def test_the_transformation_of_a_cutout_is_found_by_its_name(tmp_path: Path) -> None:
    found = transformation_path(tmp_path, "database/cutouts/CSE4/017/CSE_cutout_017_30_0.jpg")
    expected = "database/alignments/CSE4/transformations/CSE_trans_017.txt"
    assert found == tmp_path / expected
    with pytest.raises(InputError, match="expected"):
        transformation_path(tmp_path, "photo.jpg")


# ---------------------------------------------------------------------------------------------
# Looking points up


def test_points_between_pixels_are_interpolated() -> None:
    rows, columns = np.mgrid[:4, :5].astype(float)
    scan = np.stack([columns, rows, 2 * columns - rows], axis=-1)  # linear: exact everywhere
    keypoints = np.array([[0.0, 0.0], [1.25, 2.5], [3.9, 2.9], [4.0, 3.0]])
    points, valid = interpolate_scan(scan, keypoints)
    assert valid.all()
    expected = np.column_stack([keypoints, 2 * keypoints[:, 0] - keypoints[:, 1]])
    np.testing.assert_allclose(points, expected, atol=1e-12)


def test_beside_a_hole_the_nearest_pixel_counts() -> None:
    scan = np.arange(60, dtype=float).reshape(4, 5, 3)
    scan[1, 2, 0] = np.nan
    scan[3, 0] = np.inf
    keypoints = np.array([[1.3, 1.0], [1.7, 1.0], [2.0, 1.0], [2.0, 2.0], [0.0, 2.8], [0.2, 2.2]])
    points, valid = interpolate_scan(scan, keypoints)
    np.testing.assert_array_equal(valid, [True, False, False, True, False, True])
    np.testing.assert_array_equal(points[[0, 3, 5]], [scan[1, 1], scan[2, 2], scan[2, 0]])


def test_points_beyond_the_border_take_its_values() -> None:
    scan = np.arange(60, dtype=float).reshape(4, 5, 3)
    outside = np.array([[-0.5, -0.5], [4.4, 3.5], [9, 1], [np.nan, 1], [1, np.inf]])
    points, valid = interpolate_scan(scan, outside)
    np.testing.assert_array_equal(valid, [True, True, True, False, False])
    np.testing.assert_array_equal(points[:3], [scan[0, 0], scan[3, 4], scan[1, 4]])
    assert interpolate_scan(scan, np.zeros((0, 2)))[0].shape == (0, 3)
