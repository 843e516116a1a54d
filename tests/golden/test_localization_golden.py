"""Pieces of localization against hloc's own results (`../shared/hloc/golden`)."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import h5py
import numpy as np
import pycolmap
import pytest
from material import shared_path

from sfm_matchers.files.hdf5 import open_h5
from sfm_matchers.files.pair_lists import names_to_pair, read_pairs
from sfm_matchers.localization.in_depth_scans import interpolate_scan, read_transformation
from sfm_matchers.localization.in_model import (
    collect_matches,
    covisibility_clusters,
    group_by_query,
)
from sfm_matchers.localization.poses import LocalizedQuery, Status, write_results
from sfm_matchers.localization.query_files import read_queries
from sfm_matchers.mapping.triangulation import epipolar_errors
from sfm_matchers.pairs.policies import query_pairs


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(shared_path("hloc/golden") / name, allow_pickle=False) as file:
        return dict(file)


def golden_text() -> dict:
    return json.loads((shared_path("hloc/golden") / "text.json").read_text())


@pytest.mark.parametrize("case", ["all", "some"])
def test_localize_golden_matches_with_3d_points(case: str) -> None:
    data = golden("localize.npz")
    tables = []
    for number in data[f"{case}/db_ids"]:
        matches0 = data[f"matches_{number}"]
        index = np.flatnonzero(matches0 != -1)
        matches = np.stack([index, matches0[index]], axis=1)
        if data[f"reversed_{number}"]:
            matches = matches[:, ::-1]
        tables.append((matches, data[f"point3D_ids_{number}"]))
    keypoints, points, num_matches = collect_matches(tables)
    np.testing.assert_array_equal(keypoints, data[f"{case}/query_kp_index"])
    np.testing.assert_array_equal(points, data[f"{case}/point3D_id"])
    assert num_matches == data[f"{case}/num_matches"]
    found = data["query_keypoints"][keypoints] + np.float32(0.5)
    np.testing.assert_array_equal(found, data[f"{case}/points2D"])


def test_localize_golden_epipolar_errors() -> None:
    data = golden("localize.npz")
    pose = pycolmap.Rigid3d(pycolmap.Rotation3d(data["epi_quat_xyzw"]), data["epi_t"])
    errors0, errors1 = epipolar_errors(pose, data["epi_p0"], data["epi_p1"])
    np.testing.assert_allclose(errors0, data["epi_err0"], rtol=1e-9)
    np.testing.assert_allclose(errors1, data["epi_err1"], rtol=1e-9)


def test_inloc_golden_scan_points(tmp_path: Path) -> None:
    data = golden("inloc_scan.npz")
    points, valid = interpolate_scan(data["scan"], data["kpts"])
    np.testing.assert_array_equal(valid, data["valid"])
    np.testing.assert_allclose(points[valid], data["xyz"][valid], atol=1e-9)
    path = tmp_path / "trans.txt"
    path.write_text(str(data["transform_file"]))
    np.testing.assert_allclose(read_transformation(path), data["transform"])


def test_localize_golden_clusters() -> None:
    data = golden_text()["covisibility_clusters"]
    for frames, expected in data["result"].items():
        of_image = data["point3D_ids_per_image"]
        ids = {str(frame): np.array(of_image[frame]) for frame in ast.literal_eval(frames)}
        found = covisibility_clusters(ids)
        assert sorted(map(len, found), reverse=True) == [len(cluster) for cluster in found]
        assert sorted(sorted(map(int, cluster)) for cluster in found) == sorted(expected)


def test_localize_golden_query_list_and_retrieval(tmp_path: Path) -> None:
    data = golden_text()
    path = tmp_path / "queries.txt"
    path.write_text(data["parse_image_list"]["text"])
    found = [
        [q.name, q.camera.model.name, q.camera.width, q.camera.height, list(q.camera.params)]
        for q in read_queries(path)
    ]
    assert found == data["parse_image_list"]["with_intrinsics"]
    pairs = tmp_path / "pairs.txt"
    pairs.write_text(data["parse_retrieval"]["text"])
    assert group_by_query(read_pairs(pairs)) == data["parse_retrieval"]["result"]


@pytest.mark.parametrize("prepend", [False, True])
def test_localize_golden_submission(tmp_path: Path, prepend: bool) -> None:
    data = golden_text()
    given = data["write_poses_input"]
    pose = pycolmap.Rigid3d(pycolmap.Rotation3d(np.array(given["quat_xyzw"])), given["t"])
    camera = pycolmap.Camera.create_from_model_name(1, "PINHOLE", 1.0, 2, 2)
    result = LocalizedQuery(given["name"], Status.LOCALIZED, camera, pose)
    write_results(tmp_path / "poses.txt", [result], prepend_camera_name=prepend)
    expected = data[f"write_poses_prepend_{prepend}"]
    name, *numbers = (tmp_path / "poses.txt").read_text().split()
    assert name == expected.split()[0]
    np.testing.assert_allclose(
        [float(n) for n in numbers], [float(n) for n in expected.split()[1:]]
    )


def test_retrieval_golden_choice(tmp_path: Path) -> None:
    data = golden_text()["retrieval"]
    names, path = data["names"], tmp_path / "global.h5"
    with h5py.File(path, "w") as file:
        for name, descriptor in zip(names, data["descriptors"], strict=True):
            file[f"{name}/global_descriptor"] = np.array(descriptor)
    every = query_pairs(names, names, path, 3, min_similarity=0.0)
    lines = sorted(f"{name} {other}" for name, other in every)
    assert lines == sorted(data["all_vs_all_top3_unordered_lines"])
    database = [name for name in names if name.startswith("db")]
    for query in ("query/a.jpg", "query/b.jpg"):  # hloc does not fix the order of the queries
        best = [f"{a} {b}" for a, b in query_pairs([query], database, path, 4, min_similarity=0.0)]
        expected = data["query_prefix_query_db_prefix_db_top4"]
        assert best == [line for line in expected if line.startswith(query)]


def test_storage_golden_matches_are_read_in_both_directions(tmp_path: Path) -> None:
    data = golden_text()["get_matches"]
    with h5py.File(tmp_path / "matches.h5", "w") as file:
        for key in ("matches0", "matching_scores0"):
            file[f"{data['stored_group']}/{key}"] = np.array(data[key])
    with open_h5(tmp_path / "matches.h5") as file:
        for name0, name1 in (("a", "b"), ("b", "a")):
            matches, scores = file.matches(name0, name1)
            assert [matches.tolist(), scores.tolist()] == data[f"asked_{name0}_{name1}"]
    for name0, name1, new, old in golden_text()["names_to_pair"]:
        assert (names_to_pair(name0, name1), names_to_pair(name0, name1, "_")) == (new, old)
