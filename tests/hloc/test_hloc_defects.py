"""What goes wrong in hloc 1.5 does not go wrong here: one test for each known defect.

The numbers are those of the list that this package was planned by. Networks are played back, maps
are synthetic; all runs through the command `hloc`.
"""

from __future__ import annotations

import json
import multiprocessing.process
import time
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pycolmap
import pytest
import recorded_matcher
from recorded_matcher import IMAGE_SIZE, RecordedMatcher

from pipelines.hloc import main
from sfm_matchers.confs import conf_names, load_conf
from sfm_matchers.files.pair_lists import names_to_pair, unique_pairs, write_pairs
from sfm_matchers.hloc import dense_confs, sparse_confs
from sfm_matchers.keypoints.assembly import assemble
from sfm_matchers.keypoints.grid import AggregationOptions
from sfm_matchers.localization.in_depth_scans import query_camera
from sfm_matchers.localization.poses import Query, read_poses
from sfm_matchers.localization.query_files import write_queries
from sfm_matchers.mapping import mapper

NAMES = ["db/a.png", "db/b.png", "db/c.png", "db/blank.png"]
PAIRS = [("db/a.png", "db/b.png"), ("db/a.png", "db/c.png"), ("db/b.png", "db/blank.png")]


def hloc(step: str, *arguments: object) -> int:
    return main([step, *map(str, arguments)])


# ---------------------------------------------------------------------------------------------
# Detector-free matching of three photos and a blank one


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos, pairs, a conf, and recorded matches; the blank photo has none."""
    recorded_matcher.install(monkeypatch, tmp_path, NAMES)
    recorded_matcher.record(monkeypatch, random_matches(seed=0))
    recorded_matcher.write_conf(tmp_path / "recorded.yaml")
    write_pairs(tmp_path / "pairs.txt", PAIRS)
    return tmp_path


def random_matches(seed: int) -> dict[tuple[str, str], recorded_matcher.Correspondences]:
    rng = np.random.default_rng(seed)
    recorded = {}
    for pair in PAIRS:
        count = 0 if "db/blank.png" in pair else 60
        points = 400 * rng.random((2, count, 2), dtype=np.float32)
        recorded[pair] = (points[0], points[1], rng.random(count, dtype=np.float32))
    return recorded


def match_dense(folder: Path, *options: object) -> tuple[Path, Path]:
    """Run the step; return the feature file and the match file."""
    out = folder / "out"
    arguments = ("--pairs", folder / "pairs.txt", "--image_dir", folder / "images")
    conf = ("--conf", folder / "recorded.yaml", "--export_dir", out)
    assert hloc("match_dense", *arguments, *conf, *options) == 0
    return out / "feats_matches-recorded.h5", out / "matches-recorded_pairs.h5"


def read(path: Path, name: str) -> np.ndarray:
    with h5py.File(path) as file:
        return np.asarray(file[name][()])


def group(pair: tuple[str, str], dataset: str) -> str:
    return f"{names_to_pair(*pair)}/{dataset}"


def test_defect_03_matches0_is_as_long_as_the_keypoints(folder: Path) -> None:
    features, matches = match_dense(folder)
    for pair in PAIRS:
        count = len(read(features, f"{pair[0]}/keypoints"))
        assert len(read(matches, group(pair, "matches0"))) == count
        assert len(read(matches, group(pair, "matching_scores0"))) == count


def test_defect_04_an_image_without_matches_has_no_keypoints_of_two_columns(folder: Path) -> None:
    features, _ = match_dense(folder)
    assert read(features, "db/blank.png/keypoints").shape == (0, 2)


def test_defect_05_scores_are_called_scores_and_both_names_are_taken(
    folder: Path, tmp_path: Path
) -> None:
    features, matches = match_dense(folder)
    scores = read(features, "db/a.png/scores")
    assert scores.shape == (len(read(features, "db/a.png/keypoints")),)
    theirs = tmp_path / "theirs.h5"
    with h5py.File(features) as ours, h5py.File(theirs, "w") as file:
        for name in NAMES:
            file[f"{name}/keypoints"] = ours[name]["keypoints"][()]
            file[f"{name}/score"] = ours[name]["scores"][()].astype(np.float64)
    before = read(matches, group(PAIRS[0], "matches0"))
    features.unlink()
    matches.unlink()
    match_dense(folder, "--features_ref", theirs)
    np.testing.assert_array_equal(read(matches, group(PAIRS[0], "matches0")), before)


def test_defect_06_what_an_interrupted_run_has_left_out_is_made(folder: Path) -> None:
    features, matches = match_dense(folder)
    expected = {pair: read(matches, group(pair, "matches0")) for pair in PAIRS}
    with h5py.File(matches, "a") as file:
        del file[group(PAIRS[0], "matches0")], file[group(PAIRS[0], "matching_scores0")]
    match_dense(folder)
    np.testing.assert_array_equal(read(matches, group(PAIRS[0], "matches0")), expected[PAIRS[0]])
    features.unlink()
    match_dense(folder)
    for pair in PAIRS:
        np.testing.assert_array_equal(read(matches, group(pair, "matches0")), expected[pair])
    assert len(RecordedMatcher.calls) == len(PAIRS)  # nothing was matched twice


def test_defect_07_overwriting_starts_clean(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    features, _ = match_dense(folder)
    recorded_matcher.record(monkeypatch, random_matches(seed=1))
    match_dense(folder, "--overwrite")
    fresh = tmp_path / "fresh"
    files = ("--features", fresh / "feats.h5", "--matches", fresh / "matches.h5")
    match_dense(folder, *files)
    for name in NAMES:
        expected = read(fresh / "feats.h5", f"{name}/keypoints")
        np.testing.assert_array_equal(read(features, f"{name}/keypoints"), expected)


def test_defect_08_of_two_keypoints_in_one_place_all_matches_take_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either side of the border of two cells of 8 px is nearest to the same bin of 2 px."""
    left, right = np.array([[3.4, 100]], np.float32), np.array([[3.6, 100]], np.float32)
    one = np.ones(1, np.float32)
    sides = dict(zip(PAIRS, ((left, right, one), (right, left, one)), strict=False))
    recorded_matcher.record(monkeypatch, {**random_matches(seed=0), **sides})
    recorded_matcher.write_conf(folder / "recorded.yaml", max_error=2, cell_size=8)
    features, matches = match_dense(folder)
    keypoints = read(features, "db/a.png/keypoints")
    assert len(keypoints) == 2  # hloc has both, and so have we
    np.testing.assert_array_equal(keypoints[0], keypoints[1])
    used = [np.flatnonzero(read(matches, group(pair, "matches0")) >= 0) for pair in PAIRS[:2]]
    np.testing.assert_array_equal(used[0], used[1])


def test_defect_09_numbers_are_wide_enough(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far = np.array([[2049.5, 3001.5]], np.float32)  # float16 has steps of 2 there
    for name in PAIRS[0]:
        path = str(folder / "images" / name)
        cv2.imwrite(path, cv2.resize(cv2.imread(path), (2100, 3100), interpolation=0))
    recorded = {**random_matches(seed=0), PAIRS[0]: (far, far, np.ones(1, np.float32))}
    recorded_matcher.record(monkeypatch, recorded)
    features, matches = match_dense(folder)
    assert (read(features, "db/b.png/keypoints") == far).all(1).any()
    assert read(features, "db/b.png/keypoints").dtype == np.float32
    assert read(matches, group(PAIRS[0], "matches0")).dtype == np.int32


def test_defect_10_no_worker_processes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refuse)
    match_dense(folder)


def test_defect_11_time_grows_with_the_pairs_not_with_their_square(tmp_path: Path) -> None:
    """hloc takes 25 s to check the names of so many pairs, and 134 s for 1200 pairs of 1500."""
    many = [(f"query/{i:04d}.jpg", f"db/{j:04d}.jpg") for i in range(1040) for j in range(50)]
    start = time.process_time()
    assert len(unique_pairs(many)) == 52_000
    assert time.process_time() - start < 5

    rng = np.random.default_rng(0)
    points = 1000 * rng.random((2, 1500, 2), dtype=np.float32)
    scores = rng.random(1500, dtype=np.float32)
    images = [f"{number:02d}" for number in range(20)]
    pairs = [(first, second) for first in images for second in images if first < second]
    start = time.process_time()
    results = list(
        assemble({pair: (points[0], points[1], scores) for pair in pairs}, AggregationOptions())
    )
    assert len(results) == 20 + 190
    assert time.process_time() - start < 10  # as many of hloc's seconds would be 21


def test_defect_14_features_know_the_size_of_their_image(folder: Path) -> None:
    features, _ = match_dense(folder)
    for name in NAMES:
        assert read(features, f"{name}/image_size").tolist() == list(IMAGE_SIZE)


def test_defect_15_raw_matches_lie_apart_and_nothing_is_dead_space(folder: Path) -> None:
    features, matches = match_dense(folder)
    with h5py.File(matches) as file:
        assert set(file[names_to_pair(*PAIRS[0])]) == {"matches0", "matching_scores0"}
    size, content = matches.stat().st_size, read(features, "db/a.png/keypoints")
    raw = matches.with_name("matches-recorded_pairs_raw.h5")
    assert raw.is_file()
    for _ in range(3):
        match_dense(folder, "--overwrite")
    assert matches.stat().st_size == size
    raw.unlink()
    np.testing.assert_array_equal(read(features, "db/a.png/keypoints"), content)


def test_defect_16_options_of_one_model_do_not_reach_another() -> None:
    confs = dense_confs()
    confs["jamma"]["model"]["fine_threshold"] = 0.9
    confs["jamma"]["preprocessing"]["resize_max"] = 1
    assert dense_confs()["jamma"]["model"]["fine_threshold"] == 0.1
    assert dense_confs()["jamma_aachen"]["model"]["fine_threshold"] == 0.1
    assert dense_confs()["jamma"]["preprocessing"]["resize_max"] == 1024
    assert load_conf("jamma").model["fine_threshold"] == 0.1


def test_defect_17_no_two_confs_write_to_one_file() -> None:
    outputs = [load_conf(name).output for name in conf_names()]
    outputs += [f"matches-{name}" for name in ("loftr", "loftr_aachen")]  # hloc's
    assert len(set(outputs)) == len(outputs)
    theirs = [conf["output"] for conf in (*dense_confs().values(), *sparse_confs().values())]
    assert set(theirs) <= set(outputs)


# ---------------------------------------------------------------------------------------------
# Models and poses


@pytest.fixture(scope="module")
def synthetic() -> pycolmap.Reconstruction:
    """Ten images that see a hundred points without noise."""
    pycolmap.set_random_seed(0)
    return pycolmap.synthesize_dataset(pycolmap.SyntheticDatasetOptions())


@pytest.fixture
def files(
    synthetic: pycolmap.Reconstruction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[object]:
    """The model, and its photos, features, matches and pairs as arguments of the steps."""
    images = sorted(synthetic.images.values(), key=lambda image: image.name)
    recorded_matcher.install(monkeypatch, tmp_path, [image.name for image in images])
    for image in images:
        blank = np.zeros((image.camera.height, image.camera.width), np.uint8)
        cv2.imwrite(str(tmp_path / "images" / image.name), blank)
    with h5py.File(tmp_path / "feats.h5", "w") as file:
        for image in images:
            points = [point.xy for point in image.points2D]
            file[f"{image.name}/keypoints"] = np.array(points, np.float32) - np.float32(0.5)
    pairs = [(a, b) for a in images for b in images if a.name < b.name]
    with h5py.File(tmp_path / "matches.h5", "w") as file:
        for image0, image1 in pairs:
            ids0, ids1 = (
                np.array([p.point3D_id if p.has_point3D() else -1 for p in image.points2D])
                for image in (image0, image1)
            )
            row_of = {point_id: row for row, point_id in enumerate(ids1) if point_id != -1}
            matches0 = [row_of.get(point_id, -1) if point_id != -1 else -1 for point_id in ids0]
            file[group((image0.name, image1.name), "matches0")] = np.array(matches0, np.int16)
    write_pairs(tmp_path / "pairs.txt", [(a.name, b.name) for a, b in pairs])
    (tmp_path / "model").mkdir()
    synthetic.write(tmp_path / "model")
    arguments: list[object] = ["--image_dir", tmp_path / "images"]
    arguments += ["--pairs", tmp_path / "pairs.txt"]
    arguments += ["--features", tmp_path / "feats.h5", "--matches", tmp_path / "matches.h5"]
    return arguments


@pytest.mark.parametrize("option", [[], ["--skip_geometric_verification"]])
def test_defect_01_triangulation_gives_points(
    files: list[object], tmp_path: Path, option: list[str]
) -> None:
    arguments = ["--reference_model", tmp_path / "model", "--sfm_dir", tmp_path / "sfm"]
    assert hloc("triangulation", *arguments, *files, *option) == 0
    assert pycolmap.Reconstruction(tmp_path / "sfm").num_points3D() >= 95


def test_defect_02_the_largest_model_lies_in_the_folder(
    files: list[object],
    tmp_path: Path,
    synthetic: pycolmap.Reconstruction,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the order in which the mapper has made the models; beginnings of it are dropped."""
    small = pycolmap.Reconstruction(synthetic)
    for frame_id in list(small.reg_frame_ids())[3:]:
        small.deregister_frame(frame_id)
    found = [small, synthetic, small]
    made = found, pycolmap.BundleAdjustmentOptions()
    monkeypatch.setattr(mapper, "_run_mapper", lambda *_: made)
    options = ["--skip_geometric_verification", "--camera_mode", "SINGLE"]
    assert hloc("reconstruction", "--sfm_dir", tmp_path / "sfm", *files, *options) == 0
    for folder in (tmp_path / "sfm", tmp_path / "sfm" / "models" / "0"):
        assert pycolmap.Reconstruction(folder).num_reg_images() == 10
    assert [path.name for path in (tmp_path / "sfm" / "models").iterdir()] == ["0"]


def test_defect_13_no_query_is_left_out(
    files: list[object], tmp_path: Path, synthetic: pycolmap.Reconstruction
) -> None:
    """One with matches, one that retrieval does not know, one with an unknown photo of the map."""
    names = sorted(image.name for image in synthetic.images.values())
    camera = next(iter(synthetic.cameras.values()))
    queries = [Query(name, camera) for name in (names[0], "query/alone.jpg", "query/lost.jpg")]
    write_queries(tmp_path / "queries.txt", queries)
    retrieved = [(names[0], names[1]), ("query/lost.jpg", "db/unknown.jpg")]
    write_pairs(tmp_path / "retrieval.txt", retrieved)
    arguments = ["--reference_sfm", tmp_path / "model", "--queries", tmp_path / "queries.txt"]
    arguments += ["--retrieval", tmp_path / "retrieval.txt", *files[4:]]
    assert hloc("localize_sfm", *arguments, "--results", tmp_path / "poses.txt") == 0
    log = read_log(tmp_path / "poses_log.jsonl")
    assert [line["name"] for line in log] == [query.name for query in queries]
    assert [line["status"] for line in log] == ["localized", "failed", "failed"]
    found = read_poses(tmp_path / "poses.txt")
    assert list(found) == [names[0]]
    true = next(i for i in synthetic.images.values() if i.name == names[0]).cam_from_world()
    np.testing.assert_allclose(found[names[0]].matrix(), true.matrix(), atol=1e-3)


def read_log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


SCAN = "database/cutouts/DUC1/024/DUC_cutout_024_0_0.jpg"
GOOD, SAD = "query/iphone7/good.jpg", "query/iphone7/sad.jpg"


@pytest.fixture
def inloc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scanned wall, a query that sees it, and one that matches nothing that was measured."""
    images = recorded_matcher.install(monkeypatch, tmp_path, [GOOD, SAD, SCAN])
    rng = np.random.default_rng(0)
    width, height = IMAGE_SIZE
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=2) / 100.0
    scan = np.dstack([grid, 6 + np.sin(grid[..., :1]) + np.cos(grid[..., 1:])]).astype(np.float32)
    scan[240:250] = np.nan
    with h5py.File(images / f"{SCAN}.mat", "w") as file:
        file["XYZcut"] = scan.T
    folder = images / "database" / "alignments" / "DUC1" / "transformations"
    folder.mkdir(parents=True)
    rows = "\n".join(" ".join(map(str, row)) for row in np.eye(4))
    (folder / "DUC_trans_024.txt").write_text("header\n" * 7 + rows)

    columns = rng.integers(0, width, 60)
    keypoints = np.column_stack([columns, rng.integers(0, 240, 60)]).astype(np.float32)
    corners = np.array([[-0.5, -0.5], [width - 0.5, 3.0]], np.float32)  # on the border
    hole = np.array([[5.0, 245.0]], np.float32)
    keypoints = np.concatenate([keypoints, corners, hole])
    inside = np.clip(keypoints, 0, None).astype(int)
    points = scan[inside[:, 1], np.minimum(inside[:, 0], width - 1)].astype(np.float64)
    pose = pycolmap.Rigid3d(pycolmap.Rotation3d(), np.array([-3.0, -2.0, 1.0]))
    seen = query_camera(IMAGE_SIZE).img_from_cam(points[:62] + pose.translation)
    with h5py.File(tmp_path / "feats.h5", "w") as file:
        file[f"{SCAN}/keypoints"] = keypoints
        file[f"{GOOD}/keypoints"] = (np.asarray(seen) - 0.5).astype(np.float32)
        file[f"{SAD}/keypoints"] = keypoints[:70]
    with h5py.File(tmp_path / "matches.h5", "w") as file:
        file[group((SCAN, GOOD), "matches0")] = np.arange(62)  # reversed, and short
        file[group((SAD, SCAN), "matches0")] = np.array([62])  # of the hole
    write_pairs(tmp_path / "retrieval.txt", [(GOOD, SCAN), (SAD, SCAN), ("query/gone.jpg", SCAN)])
    return tmp_path


def test_defect_12_one_bad_query_does_not_stop_the_others(inloc: Path) -> None:
    """Nor do short or reversed matches, keypoints on the border, and scans in float32."""
    arguments = ["--dataset_dir", inloc / "images", "--retrieval", inloc / "retrieval.txt"]
    arguments += ["--features", inloc / "feats.h5", "--matches", inloc / "matches.h5"]
    assert hloc("localize_inloc", *arguments, "--results", inloc / "poses.txt") == 0
    log = {line["name"]: line for line in read_log(inloc / "poses_log.jsonl")}
    assert log[GOOD]["status"] == "localized"
    assert log[GOOD]["num_inliers"] >= 60
    assert log[SAD]["status"] == log["query/gone.jpg"]["status"] == "failed"
    assert "gone.jpg" in log["query/gone.jpg"]["reason"]
    translation = read_poses(inloc / "poses.txt")["good.jpg"].translation
    np.testing.assert_allclose(translation, [-3, -2, 1], atol=0.02)
