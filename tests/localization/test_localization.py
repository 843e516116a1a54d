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
from material import photo_fingerprints, shared_path

from sfm_matchers.confs import FrontEnd, Preprocessing, load_conf
from sfm_matchers.errors import InputError
from sfm_matchers.evaluation.absolute_poses import pose_errors
from sfm_matchers.features.extraction import extract_features
from sfm_matchers.files.pair_lists import names_to_pair
from sfm_matchers.localization.in_model import (
    add_to_model,
    collect_matches,
    estimate_pose,
    localize_queries,
)
from sfm_matchers.localization.poses import (
    LocalizationOptions,
    LocalizedQuery,
    Query,
    Status,
    count_by_status,
    read_poses,
    write_results,
)
from sfm_matchers.localization.query_files import read_queries, write_queries
from sfm_matchers.mapping.triangulation import triangulate
from sfm_matchers.matchers.registry import load_sparse_matcher
from sfm_matchers.matching import match_features
from sfm_matchers.pairs.policies import exhaustive_pairs
from tests.support.point_models import add_image, add_tracks

pytestmark = pytest.mark.slow

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
        add_image(model, image_id, f"db/{image_id}.jpg", cam_from_world, xy)
    add_tracks(model, points, {i: [(k, i) for k in (1, 2, 3)] for i in range(len(points))})
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
    # Half a pixel, where it is forgotten, turns the camera by 0.08 degrees and moves it little.
    assert np.rad2deg(good.cam_from_world.rotation.angle()) < 0.005
    assert good.num_inliers == 200
    assert good.covariance.shape == (6, 6)
    assert results["few.jpg"].status == Status.LOW_CONFIDENCE
    for name, reason in {
        "wrong.jpg": "",
        "none.jpg": "0 matches with 3D points",
        "beyond.jpg": "keypoint 349 of 'db/1.jpg', which has 200",
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


def rewrite(path: Path, key: str, data: np.ndarray) -> None:
    with h5py.File(path, "a") as file:
        del file[key]
        file[key] = data


def test_a_bad_pair_leaves_the_good_ones(
    model: pycolmap.Reconstruction, files: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Matches of other features, on either side and stored in either direction, or unfinished."""
    matches = files[1]
    everything = np.arange(200, dtype=np.int32)
    pair, turned = names_to_pair("good.jpg", "db/1.jpg"), names_to_pair("db/1.jpg", "good.jpg")
    bad_pairs = [
        (pair, everything + 7, "keypoint 206 of 'db/1.jpg', which has 200"),
        (pair, np.zeros(300, np.int32), "keypoint 299 of 'good.jpg', which has 200"),
        (turned, everything + 7, "keypoint 206 of 'good.jpg', which has 200"),
        (turned, np.zeros(300, np.int32), "keypoint 299 of 'db/1.jpg', which has 200"),
    ]
    for group, matches0, message in bad_pairs:
        with h5py.File(matches, "a") as file:
            for name in (pair, turned):
                if name in file:
                    del file[name]
            file[f"{group}/matches0"] = matches0
        assert localize(model, files, ["good.jpg"])["good.jpg"].num_inliers == 200
        assert message in caplog.text
    with h5py.File(matches, "a") as file:
        del file[f"{turned}/matches0"]  # hloc leaves this after an interruption
    assert localize(model, files, ["good.jpg"])["good.jpg"].num_inliers == 200
    alone = localize(model, files, ["good.jpg"], ["db/1.jpg"])["good.jpg"]
    assert alone.status == Status.FALLBACK
    assert "holds no matches for the pair 'good.jpg', 'db/1.jpg'" in alone.reason


def test_matches_may_be_short_or_turned(
    model: pycolmap.Reconstruction, files: tuple[Path, Path]
) -> None:
    _, matches = files
    rewrite(matches, f"{names_to_pair('good.jpg', 'db/1.jpg')}/matches0", np.arange(80))
    short = localize(model, files, ["good.jpg"], ["db/1.jpg"])["good.jpg"]
    assert short.num_inliers == short.num_matches == 80
    with h5py.File(matches, "a") as file:
        del file[names_to_pair("good.jpg", "db/1.jpg")]
        turned = np.full(200, -1, np.int16)
        turned[100:] = np.arange(100, 200)
        file[f"{names_to_pair('db/1.jpg', 'good.jpg')}/matches0"] = turned
    result = localize(model, files, ["good.jpg"], ["db/1.jpg"])["good.jpg"]
    assert result.num_inliers == result.num_matches == 100


@pytest.mark.parametrize(
    ("keypoints", "reason"),
    [
        (np.zeros((200, 3), np.float32), "have the shape (200, 3)"),
        (np.full((200, 2), np.nan, np.float32), "not all finite"),
        (np.zeros((200, 2), np.float32), "nearly all one point"),
        (np.full((200, 2), -1e6, np.float32), "far outside its"),
        (np.zeros(0, np.float32), "which has 0"),
    ],
)
def test_unusable_keypoints_do_not_stop_the_rest(
    model: pycolmap.Reconstruction, files: tuple[Path, Path], keypoints: np.ndarray, reason: str
) -> None:
    rewrite(files[0], "few.jpg/keypoints", keypoints)
    results = localize(model, files, ["few.jpg", "good.jpg"])
    assert results["few.jpg"].status == Status.FALLBACK
    assert reason in results["few.jpg"].reason
    assert results["good.jpg"].status == Status.LOCALIZED


def test_a_damaged_place_in_a_file_does_not_stop_the_rest(
    model: pycolmap.Reconstruction, files: tuple[Path, Path]
) -> None:
    features, _ = files
    with h5py.File(features, "a") as file:
        keypoints = file["few.jpg/keypoints"][()]
        del file["few.jpg/keypoints"]
        file.create_dataset("few.jpg/keypoints", data=keypoints[::-1], fletcher32=True, chunks=True)
    content = bytearray(features.read_bytes())
    content[content.find(keypoints[::-1].tobytes()[:64])] ^= 255
    features.write_bytes(content)
    results = localize(model, files, ["few.jpg", "good.jpg"])
    assert "is damaged at /few.jpg/keypoints" in results["few.jpg"].reason
    assert results["good.jpg"].status == Status.LOCALIZED


@pytest.mark.parametrize("bad", [pycolmap.Camera(), camera(0.0), camera(float("nan"))])
def test_an_unusable_camera_does_not_stop_the_rest(
    model: pycolmap.Reconstruction, files: tuple[Path, Path], bad: pycolmap.Camera
) -> None:
    queries = [Query("good.jpg", bad), Query("few.jpg", camera())]
    pairs = [(query.name, "db/1.jpg") for query in queries]
    first, second = localize_queries(model, queries, pairs, *files)
    assert first.status == Status.FALLBACK
    assert first.reason
    assert second.status == Status.LOW_CONFIDENCE


@pytest.mark.parametrize("max_error", [0.0, -1.0, float("nan")])
def test_an_impossible_threshold_is_refused(max_error: float) -> None:
    with pytest.raises(InputError, match="must be positive"):
        LocalizationOptions(max_error=max_error)


def test_low_confidence_is_what_the_options_say(
    model: pycolmap.Reconstruction, files: tuple[Path, Path]
) -> None:
    _, matches = files
    rng = np.random.default_rng(0)
    half = np.arange(200, dtype=np.int32)
    half[:100] = rng.permutation(half[:100])
    rewrite(matches, f"{names_to_pair('good.jpg', 'db/1.jpg')}/matches0", half)

    def found(**options: float) -> LocalizedQuery:
        given = LocalizationOptions(**options)
        return localize(model, files, ["good.jpg"], ["db/1.jpg"], given)["good.jpg"]

    for sure in (found(), found(confident_inliers=100, confident_ratio=0.5)):
        assert (sure.status, sure.reason) == (Status.LOCALIZED, "")
    few, small = found(confident_inliers=150), found(confident_ratio=0.75)
    assert few.status == small.status == Status.LOW_CONFIDENCE
    number = few.num_inliers
    assert few.reason == f"{number} matches fit its pose, at least 150 are asked for"
    assert small.reason == f"{number} of its 200 matches fit its pose, at least 75% are asked for"


def test_results_repeat(
    model: pycolmap.Reconstruction, files: tuple[Path, Path], points: np.ndarray
) -> None:
    """Noise as large as the threshold: another choice of samples gives another pose."""
    rng = np.random.default_rng(2)
    noisy = keypoints_of(points, 0.5) + rng.normal(0, 8, (200, 2))
    rewrite(files[0], "good.jpg/keypoints", noisy.astype(np.float32))
    half = np.where(np.arange(200) < 100, rng.permutation(200), np.arange(200))
    rewrite(files[1], f"{names_to_pair('good.jpg', 'db/1.jpg')}/matches0", half)
    names = ["few.jpg", "wrong.jpg", "good.jpg"]
    runs = [localize(model, files, order) for order in (names, names, names[::-1])]
    logs = [[run[name].to_json() for name in names] for run in runs]
    assert logs[0] == logs[1] == logs[2]


def test_the_cluster_with_most_inliers_wins(points: np.ndarray, tmp_path: Path) -> None:
    """The map is two places that share nothing; the query is matched wrongly with the larger."""
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(camera())
    places = [["a/1.jpg", "a/2.jpg", "a/3.jpg"], ["b/1.jpg", "b/2.jpg"]]
    for names in places:
        first = model.num_images() + 1
        for index, name in enumerate(names):
            cam_from_world = pose(0.3 * index)
            xy = camera().img_from_cam(cam_from_world * points)
            add_image(model, first + index, name, cam_from_world, xy)
        ids = range(first, first + len(names))
        add_tracks(model, points, {i: [(k, i) for k in ids] for i in range(len(points))})
    rng = np.random.default_rng(0)
    files = tmp_path / "features.h5", tmp_path / "matches.h5"
    with h5py.File(files[0], "w") as features, h5py.File(files[1], "w") as matches:
        features["q.jpg/keypoints"] = keypoints_of(points, 0.5)
        for name in places[0]:
            matches[f"{names_to_pair('q.jpg', name)}/matches0"] = rng.permutation(200)
        for name in places[1]:
            matches[f"{names_to_pair('q.jpg', name)}/matches0"] = np.arange(200)
    retrieved = [*places[0], *places[1]]
    options = LocalizationOptions(covisibility_clustering=True)
    clustered = localize(model, files, ["q.jpg"], retrieved, options)["q.jpg"]
    together = localize(model, files, ["q.jpg"], retrieved)["q.jpg"]
    assert (clustered.num_inliers, clustered.num_matches) == (200, 400)  # b alone
    assert clustered.database_names == retrieved
    assert together.num_matches == 1000
    assert clustered.inlier_ratio > 2 * together.inlier_ratio


def test_the_focal_length_is_estimated(points: np.ndarray) -> None:
    wrong = Query("q.jpg", camera(650.0))
    keypoints = keypoints_of(points, 0.5) + 0.5
    options = LocalizationOptions(estimate_focal_length=True)
    result = estimate_pose(wrong, keypoints, points, len(points), options)
    assert result.status == Status.LOCALIZED
    assert result.camera.mean_focal_length() == pytest.approx(500, rel=1e-3)
    assert result.covariance.shape == (6, 6)
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


def test_poses_in_a_map_of_ones_own_are_those_of_the_photos(
    model: pycolmap.Reconstruction, files: tuple[Path, Path], tmp_path: Path
) -> None:
    results = localize(model, files, ["good.jpg", "few.jpg", "none.jpg"])
    log = write_results(tmp_path / "poses.txt", list(results.values()), submission=False)
    assert list(read_poses(tmp_path / "poses.txt")) == ["good.jpg", "few.jpg"]
    assert len(log.read_text().splitlines()) == 3
    nested = LocalizedQuery("new/a.jpg", Status.LOCALIZED, camera(), pose(0.1))
    write_results(tmp_path / "poses.txt", [nested], submission=False)
    assert list(read_poses(tmp_path / "poses.txt")) == ["new/a.jpg"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("q.jpg PINHOLE 640 480 500 500 320", "takes"),
        ("q.jpg FISH 640 480 1 2 3", "unknown camera model"),
        ("q.jpg PINHOLE 640 tall 500 500 320 240", "invalid literal"),
        ("q.jpg SIMPLE_PINHOLE 640 480 -5 320 240", "must be positive"),
        ("q.jpg PINHOLE 640 480 500 -5 320 240", "must be positive"),
        ("q.jpg SIMPLE_PINHOLE 0 480 500 320 240", "must be positive"),
        ("q.jpg SIMPLE_PINHOLE 640 480 500 nan 240", "must be positive"),
        ("q.jpg SIMPLE_PINHOLE 640", "expected"),
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


def test_lists_come_back_as_they_were_written(tmp_path: Path) -> None:
    names = ["query/a.jpg", "my photo (1).jpg", "ä b.jpg"]
    write_queries(tmp_path / "queries.txt", [Query(name, camera(412.34567891)) for name in names])
    found = read_queries(tmp_path / "queries.txt")
    assert [query.name for query in found] == names
    assert {tuple(query.camera.params) for query in found} == {(412.34567891, 320.0, 240.0)}
    results = [LocalizedQuery(name, Status.LOCALIZED, camera(), pose(0.1)) for name in names]
    write_results(tmp_path / "poses.txt", results)
    poses = read_poses(tmp_path / "poses.txt")
    assert list(poses) == ["a.jpg", *names[1:]]
    assert poses["ä b.jpg"].translation.tolist() == [-0.1, 0, 0]


def test_a_photo_that_is_listed_twice_is_taken_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "queries.txt"
    write_queries(path, [Query("a.jpg", camera(500.0)), Query("a.jpg", camera(600.0))])
    assert [query.camera.params[0] for query in read_queries(path)] == [500.0]
    assert "line 2: a.jpg is listed before" in caplog.text


def test_lists_from_windows_and_files_that_are_no_lists(tmp_path: Path) -> None:
    path = tmp_path / "queries.txt"
    path.write_bytes("\ufeffa.jpg SIMPLE_PINHOLE 640 480 500 320 240\r\n".encode())
    assert [query.name for query in read_queries(path)] == ["a.jpg"]
    path.write_bytes(b"\xff\xd8\xff\xe0 a photo")
    with pytest.raises(InputError, match="is not a text file"):
        read_queries(path)


def test_photos_that_share_a_name_in_the_submission_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["day/left/1.jpg", "day/right/1.jpg"]
    results = [LocalizedQuery(name, Status.LOCALIZED, camera(), pose(0.1)) for name in names]
    write_results(tmp_path / "poses.txt", results, prepend_camera_name=True)
    assert caplog.text == ""
    assert list(read_poses(tmp_path / "poses.txt")) == ["left/1.jpg", "right/1.jpg"]
    write_results(tmp_path / "poses.txt", results)
    assert "2 photos are called 1.jpg there" in caplog.text


@pytest.mark.parametrize(
    "line", ["a.jpg 1 0 0 0 1 2", "a.jpg 0 0 0 0 1 2 3", "a.jpg nan 0 0 0 1 2 3"]
)
def test_a_wrong_line_of_poses_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "poses.txt"
    path.write_text(f"b.jpg 1.00001 0 0 0 1 2 3\n{line}\n")
    with pytest.raises(InputError, match=r"poses.txt, line 2: expected 'name qw"):
        read_poses(path)
    path.write_text("b.jpg 1.00001 0 0 0 1 2 3\n")
    assert read_poses(path)["b.jpg"].rotation.norm() == pytest.approx(1, abs=1e-12)


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
    count = 100
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
    early, late = peak_of(results, 10, 20), peak_of(results, 10, 60)
    assert late < 1.5 * early + 100_000


def test_a_real_photo_is_localized_among_its_neighbours(tmp_path: Path) -> None:
    """Herz-Jesu by SIFT against its measured poses: from matches to points to new poses."""
    photos = shared_path("photos/herz_jesus_p8")
    truth = pycolmap.Reconstruction(photos / "colmap_gt")
    names = {image.name: image.image_id for image in truth.images.values()}
    query, database = "0003.jpg", ["0002.jpg", "0004.jpg", "0005.jpg"]
    reference = pycolmap.Reconstruction()
    reference.add_camera_with_trivial_rig(truth.cameras[1])
    for name in database:
        image = truth.images[names[name]]
        add_image(reference, image.image_id, image.name, image.cam_from_world())
    pairs, loc_pairs = exhaustive_pairs(database), [(query, name) for name in database]
    features, matches = tmp_path / "features.h5", tmp_path / "matches.h5"
    conf = load_conf("sift")
    sift = FrontEnd("sift", {"max_num_features": 1500}, preprocessing=Preprocessing(800))
    wanted = photo_fingerprints(photos / "images", (query, *database))
    extract_features(sift, photos / "images", wanted, features)
    match_features(
        conf,
        lambda: load_sparse_matcher(conf, "bundled", "cpu"),
        [*pairs, *loc_pairs],
        features,
        matches,
    )
    model = triangulate(reference, tmp_path / "map", photos / "images", pairs, features, matches)
    assert model.compute_mean_reprojection_error() < 1
    queries = [Query(query, truth.cameras[1])]
    (result,) = localize_queries(model, queries, loc_pairs, features, matches)
    assert result.status == Status.LOCALIZED
    true_pose = truth.images[names[query]].cam_from_world()
    errors = pose_errors({query: result.cam_from_world}, {query: true_pose})
    metres, degrees = errors[query]
    assert metres < 0.015
    assert degrees < 0.06
