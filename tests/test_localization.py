"""Localization: what becomes of good and bad queries, files, memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pycolmap
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfm_matchers.errors import InputError, MissingExtraError
from sfm_matchers.localization import (
    LocalizationOptions,
    Query,
    Status,
    add_to_model,
    collect_matches,
    count_by_status,
    estimate_pose,
    localize_queries,
    read_poses,
    read_queries,
    write_queries,
    write_results,
)
from sfm_matchers.scans import interpolate_scan, read_scan, read_transformation
from sfm_matchers.storage import names_to_pair

SIZE = (640, 480)


def camera(focal_length: float = 500.0) -> pycolmap.Camera:
    params = [focal_length, SIZE[0] / 2, SIZE[1] / 2]
    return pycolmap.Camera(
        model="SIMPLE_PINHOLE", width=SIZE[0], height=SIZE[1], params=params, camera_id=1
    )


def pose(x: float) -> pycolmap.Rigid3d:
    return pycolmap.Rigid3d(pycolmap.Rotation3d(), np.array([-x, 0.0, 0.0]))


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.uniform([-2, -1.5, 4], [2, 1.5, 9], (200, 3))


@pytest.fixture(scope="module")
def model(points: np.ndarray) -> pycolmap.Reconstruction:
    """Three photos that see all points; keypoint k of each is point k."""
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(camera())
    for image_id in (1, 2, 3):
        cam_from_world = pose(0.3 * image_id)
        xy = camera().img_from_cam(cam_from_world * points)
        image = pycolmap.Image(
            name=f"db/{image_id}.jpg", keypoints=xy, camera_id=1, image_id=image_id
        )
        model.add_image_with_trivial_frame(image, cam_from_world)
    for index, xyz in enumerate(points):
        elements = [pycolmap.TrackElement(image_id, index) for image_id in (1, 2, 3)]
        model.add_point3D(xyz, pycolmap.Track(elements), np.zeros(3, np.uint8))
    return model


def keypoints_of(points: np.ndarray, x: float) -> np.ndarray:
    """Keypoints of a query in HDF5's convention."""
    return (camera().img_from_cam(pose(x) * points) - 0.5).astype(np.float32)


@pytest.fixture
def files(points: np.ndarray, tmp_path: Path) -> tuple[Path, Path]:
    """Features and matches of a few queries, good and bad."""
    rng = np.random.default_rng(1)
    everything = np.arange(200, dtype=np.int32)
    wrong = rng.permutation(200).astype(np.int32)
    matches0 = {
        "good.jpg": everything,
        "few.jpg": np.where(everything < 12, everything, -1),
        "wrong.jpg": np.where(everything < 30, wrong, -1),
        "none.jpg": np.full(200, -1, np.int32),
        "beyond.jpg": everything + 150,
    }
    features, matches = tmp_path / "features.h5", tmp_path / "matches.h5"
    with h5py.File(features, "w") as feature_file, h5py.File(matches, "w") as match_file:
        for name, matched in matches0.items():
            feature_file[f"{name}/keypoints"] = keypoints_of(points, 0.5)
            for image in ("db/1.jpg", "db/2.jpg"):
                match_file[f"{names_to_pair(name, image)}/matches0"] = matched
    return features, matches


def localize(
    model: pycolmap.Reconstruction,
    files: tuple[Path, Path],
    names: list[str],
    retrieved: list[str] | None = None,
    options: LocalizationOptions | None = None,
) -> dict[str, object]:
    retrieved = ["db/1.jpg", "db/2.jpg"] if retrieved is None else retrieved
    pairs = [(name, image) for name in names for image in retrieved]
    queries = [Query(name, camera()) for name in names]
    return {r.name: r for r in localize_queries(model, queries, pairs, *files, options)}


def test_each_query_gets_what_its_matches_allow(
    model: pycolmap.Reconstruction, files: tuple[Path, Path]
) -> None:
    names = ["good.jpg", "few.jpg", "wrong.jpg", "none.jpg", "beyond.jpg", "absent.jpg"]
    results = localize(model, files, names)
    assert list(results) == names
    good = results["good.jpg"]
    assert good.status == Status.LOCALIZED
    np.testing.assert_allclose(good.cam_from_world.translation, [-0.5, 0, 0], atol=1e-3)
    assert good.num_inliers == 200
    assert good.covariance.shape == (6, 6)
    assert results["few.jpg"].status == Status.LOW_CONFIDENCE
    for name, reason in {
        "wrong.jpg": "",
        "none.jpg": "0 matches with 3D points",
        "beyond.jpg": "other features than the map",
        "absent.jpg": "no keypoints",
    }.items():
        result = results[name]
        assert result.status in (Status.FALLBACK, Status.LOW_CONFIDENCE)
        assert reason in result.reason
        if result.status == Status.FALLBACK:
            np.testing.assert_allclose(result.cam_from_world.translation, [-0.3, 0, 0])
            assert result.num_inliers == 0


def test_a_query_without_retrieval_or_of_unknown_photos_fails(
    model: pycolmap.Reconstruction, files: tuple[Path, Path]
) -> None:
    for retrieved in ([], ["db/unknown.jpg"]):
        result = localize(model, files, ["good.jpg"], retrieved)["good.jpg"]
        assert result.status == Status.FAILED
        assert result.cam_from_world is None
        assert "no photo of the map was retrieved" in result.reason
    known = localize(model, files, ["good.jpg"], ["db/unknown.jpg", "db/2.jpg"])["good.jpg"]
    assert known.status == Status.LOCALIZED
    partly = localize(model, files, ["good.jpg"], ["db/3.jpg", "db/1.jpg"])["good.jpg"]
    assert partly.status == Status.LOCALIZED  # there are no matches with db/3.jpg


def test_results_repeat(model: pycolmap.Reconstruction, files: tuple[Path, Path]) -> None:
    first, second = (localize(model, files, ["good.jpg", "wrong.jpg", "few.jpg"]) for _ in range(2))
    assert [r.to_json() for r in first.values()] == [r.to_json() for r in second.values()]


def test_clusters_are_tried_one_by_one(
    model: pycolmap.Reconstruction, files: tuple[Path, Path]
) -> None:
    options = LocalizationOptions(covisibility_clustering=True)
    assert localize(model, files, ["good.jpg"], options=options)["good.jpg"].num_inliers == 200


def test_the_focal_length_is_estimated(points: np.ndarray) -> None:
    wrong = Query("q.jpg", camera(650.0))
    keypoints = keypoints_of(points, 0.5) + 0.5
    options = LocalizationOptions(estimate_focal_length=True)
    result = estimate_pose(wrong, keypoints, points, len(points), options)
    assert result.status == Status.LOCALIZED
    assert result.camera.mean_focal_length() == pytest.approx(500, rel=1e-3)
    assert wrong.camera.mean_focal_length() == 650


def test_queries_join_the_model(model: pycolmap.Reconstruction, files: tuple[Path, Path]) -> None:
    results = localize(model, files, ["good.jpg", "none.jpg"])
    extended = add_to_model(model, results.values())
    assert model.num_images() == 3
    assert extended.num_images() == 4  # a fallback pose is not a pose
    added = next(image for image in extended.images.values() if image.name == "good.jpg")
    assert added.num_points3D == 200
    extended.update_point_3d_errors()
    assert extended.compute_mean_reprojection_error() < 0.01


def test_files_of_results_keep_statuses_apart(
    model: pycolmap.Reconstruction, files: tuple[Path, Path], tmp_path: Path
) -> None:
    results = [
        *localize(model, files, ["good.jpg", "few.jpg", "none.jpg"]).values(),
        *localize(model, files, ["absent.jpg"], []).values(),
    ]
    log = write_results(tmp_path / "poses.txt", results)
    assert list(read_poses(tmp_path / "poses.txt")) == ["good.jpg", "few.jpg", "none.jpg"]
    logged = [json.loads(line) for line in log.read_text().splitlines()]
    statuses = ["localized", "low confidence", "fallback", "failed"]
    assert [entry["status"] for entry in logged] == statuses
    assert count_by_status(results) == dict.fromkeys(statuses, 1)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("q.jpg PINHOLE 640 480 500 500 320", "takes"),
        ("q.jpg FISH 640 480 1 2 3", "unknown camera model"),
        ("q.jpg PINHOLE 640 tall 500 500 320 240", "invalid literal"),
        ("q.jpg SIMPLE_PINHOLE 640 480 -5 320 240", "must be positive"),
        ("q.jpg", "expected"),
    ],
)
def test_a_wrong_line_of_queries_is_named(
    line: str, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "day_queries.txt"
    write_queries(path, [Query("a.jpg", camera())])
    path.write_text(path.read_text() + "\n# comment\n" + line + "\n")
    with pytest.raises(InputError, match=r"day_queries.txt, line 4") as error:
        read_queries(path)
    assert reason in str(error.value)
    assert [q.name for q in read_queries(path, skip_bad_lines=True)] == ["a.jpg"]
    assert "line 4" in caplog.text
    assert len(read_queries(tmp_path / "*_queries.txt", skip_bad_lines=True)) == 1
    with pytest.raises(InputError, match="no such list"):
        read_queries(tmp_path / "night_*.txt")


@settings(max_examples=50, deadline=None)
@given(
    tables=st.lists(
        st.lists(st.tuples(st.integers(0, 9), st.integers(0, 7)), max_size=12), max_size=4
    ),
    ids=st.lists(st.integers(-1, 5), min_size=8, max_size=8),
)
def test_matches_are_collected_as_written_down(
    tables: list[list[tuple[int, int]]], ids: list[int]
) -> None:
    """Against dictionaries: points of each keypoint in the order of their appearance."""
    expected: dict[int, list[int]] = {}
    total = 0
    for table in tables:
        for keypoint, map_keypoint in table:
            if ids[map_keypoint] != -1:
                total += 1
                points = expected.setdefault(keypoint, [])
                if ids[map_keypoint] not in points:
                    points.append(ids[map_keypoint])
    keypoints, points, num_matches = collect_matches(
        (np.array(table, dtype=np.int64).reshape(-1, 2), np.array(ids)) for table in tables
    )
    rows = [(keypoint, point) for keypoint, many in expected.items() for point in many]
    assert list(zip(keypoints.tolist(), points.tolist(), strict=True)) == rows
    assert num_matches == total


def test_memory_does_not_grow_with_the_queries(
    model: pycolmap.Reconstruction, points: np.ndarray, tmp_path: Path
) -> None:
    count = 300
    features, matches = tmp_path / "features.h5", tmp_path / "matches.h5"
    with h5py.File(features, "w") as feature_file, h5py.File(matches, "w") as match_file:
        for index in range(count):
            feature_file[f"{index}.jpg/keypoints"] = keypoints_of(points, 0.5)
            pair = names_to_pair(f"{index}.jpg", "db/1.jpg")
            match_file[f"{pair}/matches0"] = np.arange(200, dtype=np.int32)
    queries = [Query(f"{index}.jpg", camera()) for index in range(count)]
    pairs = [(query.name, "db/1.jpg") for query in queries]

    def peak_of(results: Iterator[object], skipped: int, counted: int) -> int:
        for _ in range(skipped):
            next(results)
        tracemalloc.start()
        for _ in range(counted):
            next(results)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    results = localize_queries(model, queries, pairs, features, matches)
    early, late = peak_of(results, 10, 20), peak_of(results, 200, 60)
    assert late < 1.5 * early + 100_000


def test_scans_of_both_versions_and_bad_ones(tmp_path: Path) -> None:
    savemat = pytest.importorskip("scipy.io", reason="needs the extra inloc").savemat
    points = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)
    points[1, 2] = np.nan
    savemat(tmp_path / "old.mat", {"XYZcut": points})
    with h5py.File(tmp_path / "new.mat", "w") as file:
        file["XYZcut"] = points.T
    for name in ("old.mat", "new.mat"):
        scan = read_scan(tmp_path / name)
        assert scan.dtype == np.float64
        np.testing.assert_array_equal(scan, points.astype(np.float64))
    (tmp_path / "damaged.mat").write_bytes((tmp_path / "old.mat").read_bytes()[:200])
    savemat(tmp_path / "other.mat", {"depth": points})
    savemat(tmp_path / "flat.mat", {"XYZcut": points[..., 0]})
    for name in ("damaged.mat", "other.mat", "flat.mat", "missing.mat"):
        with pytest.raises(InputError, match=name):
            read_scan(tmp_path / name)


def test_points_beyond_the_border_of_a_scan_take_its_values() -> None:
    scan = np.arange(4 * 5 * 3, dtype=float).reshape(4, 5, 3)
    outside = np.array([[-0.5, -0.5], [4.4, 3.5], [9, 1]])
    points, valid = interpolate_scan(scan, outside)
    assert valid.all()
    np.testing.assert_array_equal(points, [scan[0, 0], scan[3, 4], scan[1, 4]])


def test_a_missing_or_wrong_transformation_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is missing"):
        read_transformation(tmp_path / "DUC_trans_001.txt")
    (tmp_path / "DUC_trans_001.txt").write_text("1 2 3\n" * 20)
    with pytest.raises(InputError, match="4 x 4"):
        read_transformation(tmp_path / "DUC_trans_001.txt")


def test_old_scans_without_scipy_name_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import builtins

    real_import = builtins.__import__

    def without_scipy(name: str, *arguments: object, **options: object) -> object:
        if name.startswith("scipy"):
            raise ImportError(name)
        return real_import(name, *arguments, **options)

    (tmp_path / "old.mat").write_bytes(b"MATLAB 5.0 MAT-file" + b" " * 200)
    monkeypatch.setattr(builtins, "__import__", without_scipy)
    with pytest.raises(MissingExtraError, match=r"\[inloc\]"):
        read_scan(tmp_path / "old.mat")
