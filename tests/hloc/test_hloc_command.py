"""The command `hloc`: hloc's steps, names and files on this package's engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pycolmap
import pytest
from material import shared_path
from rendered_room import photograph_room

from pipelines.hloc import main
from sfm_matchers.files.hdf5 import list_groups
from sfm_matchers.files.pair_lists import read_pairs, write_pairs
from sfm_matchers.localization.poses import Query, read_poses
from sfm_matchers.localization.query_files import write_queries

pytestmark = pytest.mark.slow

SIFT = "feats-sift-n2048"
MATCHES = f"{SIFT}_matches-sift-NN-ratio_pairs"


def hloc(step: str, *arguments: object) -> int:
    return main([step, *map(str, arguments)])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of a map in ``images/db``, queries in ``images/query``, and the truth."""
    folder = tmp_path_factory.mktemp("hloc")
    photograph_room(folder, 6, subfolder="db")
    return photograph_room(folder, 2, seed=2, subfolder="query")


@pytest.fixture(scope="module")
def matched(photos: Path) -> Path:
    """Features of all photos and matches of all pairs, by the command."""
    out = photos / "out"
    folders = ("--image-dir", photos / "images", "--export-dir", out)
    assert hloc("extract_features", *folders, "--conf", "sift-n2048") == 0
    features = out / f"{SIFT}.h5"
    pairs = out / "pairs.txt"
    assert hloc("pairs_from_exhaustive", "--output", pairs, "--features", features) == 0
    arguments = ("--pairs", pairs, "--export_dir", out, "--conf", "sift", "--features", SIFT)
    assert hloc("match_features", *arguments) == 0
    return out


@pytest.fixture(scope="module")
def model(photos: Path, matched: Path) -> Path:
    """The photos of the map, triangulated into the true poses."""
    arguments = _triangulation(photos, matched, matched / "sfm")
    assert hloc("triangulation", *arguments) == 0
    return matched / "sfm"


def _triangulation(photos: Path, matched: Path, output: Path) -> list[object]:
    return [
        "--sfm_dir",
        output,
        "--reference_sfm_model",
        photos / "truth" / "db",
        "--image_dir",
        photos / "images",
        "--pairs",
        matched / "pairs.txt",
        "--features",
        matched / f"{SIFT}.h5",
        "--matches",
        matched / f"{MATCHES}.h5",
    ]


def test_help_lists_the_confs_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom pipelines.hloc import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'pycolmap', 'h5py', 'cv2', 'kornia') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in ("superpoint+mambaglue", "jamma", "eloftr_aachen", "sift-n2048"):
        assert f"  {name} " in run.stdout
    for line in (
        "superpoint, images; weights: official (Magic Leap, non-commercial)",
        "detector-free, images; weights: bundled (Apache-2.0), official (MIT)",
    ):
        assert line in run.stdout
    assert run.stdout.strip().endswith("[]")


def test_results_lie_where_hloc_puts_them(matched: Path) -> None:
    names = list_groups(matched / f"{SIFT}.h5")
    assert names == [f"db/000{i}.jpg" for i in range(6)] + [f"query/000{i}.jpg" for i in range(2)]
    with h5py.File(matched / f"{MATCHES}.h5") as file:
        group = file["db-0000.jpg/db-0001.jpg"]
        assert group["matches0"].dtype == np.int32
        assert len(group["matches0"]) == len(group["matching_scores0"])
    with h5py.File(matched / f"{SIFT}.h5") as file:
        assert file["db/0000.jpg/keypoints"].dtype == np.float32


def test_reconstruction_leaves_the_largest_model_in_its_folder(
    photos: Path, matched: Path, tmp_path: Path
) -> None:
    arguments = _triangulation(photos, matched, tmp_path / "sfm")
    del arguments[2:4]
    assert hloc("reconstruction", *arguments, "--camera_mode", "SINGLE") == 0
    largest = pycolmap.Reconstruction(tmp_path / "sfm")
    assert largest.num_reg_images() >= 6
    assert (tmp_path / "sfm" / "database.db").exists()
    first = pycolmap.Reconstruction(tmp_path / "sfm" / "models" / "0")
    assert first.num_reg_images() == largest.num_reg_images()


@pytest.mark.parametrize(
    "option", [[], ["--skip_geometric_verification"], ["--estimate_two_view_geometries"]]
)
def test_triangulation_gives_points_of_the_true_scale(
    photos: Path, matched: Path, tmp_path: Path, option: list[str]
) -> None:
    assert hloc("triangulation", *_triangulation(photos, matched, tmp_path), *option) == 0
    model = pycolmap.Reconstruction(tmp_path)
    truth = pycolmap.Reconstruction(photos / "truth" / "db")
    assert model.num_points3D() > 100
    assert {i.name: i.image_id for i in model.images.values()} == {
        i.name: i.image_id for i in truth.images.values()
    }
    assert model.compute_mean_reprojection_error() < 1.0


def test_overwriting_matches_again(matched: Path, tmp_path: Path) -> None:
    """Other tools' entries are kept without it: they do not say what they were made from."""
    pairs = read_pairs(matched / "pairs.txt")[:2]
    write_pairs(tmp_path / "pairs.txt", pairs)
    group = "/".join(name.replace("/", "-") for name in pairs[0])
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file[f"{group}/matches0"] = np.zeros(1, np.int16)
    arguments = ["--pairs", tmp_path / "pairs.txt", "--features", matched / f"{SIFT}.h5"]
    arguments += ["--conf", "sift", "--matches", tmp_path / "m.h5"]
    for option, expected in ((), 1), (("--overwrite",), None):
        assert hloc("match_features", *arguments, *option) == 0
        with h5py.File(tmp_path / "m.h5") as file, h5py.File(matched / f"{MATCHES}.h5") as whole:
            assert len(list_groups(tmp_path / "m.h5")) == 2
            count = len(whole[group]["matches0"]) if expected is None else expected
            assert len(file[group]["matches0"]) == count


def test_options_of_the_mapper_and_of_cameras(
    photos: Path, matched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = _triangulation(photos, matched, tmp_path / "sfm")
    del arguments[2:4]
    options = ["--camera-mode", "PER_FOLDER", "--image-options", "camera_model=PINHOLE"]
    options += ["--mapper-options", "max_num_models=1", "init_min_num_inliers=30"]
    assert hloc("reconstruction", *arguments, *options, "filter_max_reproj_error=3") == 0
    model = pycolmap.Reconstruction(tmp_path / "sfm")
    assert len(model.cameras) <= 2  # of the folders db and query
    assert {camera.model.name for camera in model.cameras.values()} == {"PINHOLE"}
    assert hloc("reconstruction", *arguments, "--mapper_options", "init_min_num_inlier=30") == 2
    assert "did you mean 'init_min_num_inliers'" in capsys.readouterr().err
    assert hloc("reconstruction", *arguments, "--mapper_options", "multiple_models=3") == 2
    assert "multiple_models takes bool, found '3'" in capsys.readouterr().err
    # No pair is good enough to begin with: the option has reached the mapper.
    impossible = ["--mapper_options", "init_min_num_inliers=1000000"]
    assert hloc("reconstruction", *arguments, *impossible) == 2
    assert "no model came out" in capsys.readouterr().err


def test_queries_are_localized(photos: Path, matched: Path, model: Path, tmp_path: Path) -> None:
    truth = pycolmap.Reconstruction(photos / "truth" / "query")
    images = sorted(truth.images.values(), key=lambda image: image.name)
    queries = tmp_path / "queries.txt"
    write_queries(queries, [Query(i.name, truth.cameras[i.camera_id]) for i in images])
    names = [f"db/000{i}.jpg" for i in range(6)]
    write_pairs(tmp_path / "loc.txt", [(i.name, name) for i in images for name in names])
    arguments = ("--reference-sfm", model, "--queries", queries, "--retrieval")
    files = ("--features", matched / f"{SIFT}.h5", "--matches", matched / f"{MATCHES}.h5")
    results = tmp_path / "poses.txt"
    assert hloc("localize_sfm", *arguments, tmp_path / "loc.txt", *files, "--results", results) == 0
    poses = read_poses(results)
    for image in images:
        found, true = poses[Path(image.name).name].inverse(), image.cam_from_world().inverse()
        assert np.linalg.norm(found.translation - true.translation) < 0.02  # metres
        assert np.rad2deg((found.rotation.inverse() * true.rotation).angle()) < 0.5


def test_pairs_from_a_model(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    for step in ("pairs_from_covisibility", "pairs_from_poses"):
        assert hloc(step, "--model", model, "--output", path, "--num_matched", 2) == 0
        pairs = read_pairs(path)
        assert {name for name, _ in pairs} <= {f"db/000{i}.jpg" for i in range(6)}
        assert len(pairs) >= 4
        assert all(name != other for name, other in pairs)


def test_a_model_of_which_no_pairs_come_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    pycolmap.Reconstruction().write(tmp_path / "model")
    path = tmp_path / "pairs.txt"
    for step in ("pairs_from_covisibility", "pairs_from_poses"):
        given = ("--model", tmp_path / "model", "--output", path, "--num_matched", 2)
        assert hloc(step, *given) == 2
        assert f"{tmp_path / 'model'}: no two of its images" in capsys.readouterr().err
        assert not path.exists()


def test_hlocs_files_are_read(photos: Path, matched: Path, tmp_path: Path) -> None:
    """float16 keypoints, old names of pairs, reversed pairs, short matches0."""
    with (
        h5py.File(matched / f"{SIFT}.h5") as ours,
        h5py.File(tmp_path / f"{SIFT}.h5", "w") as theirs,
    ):
        for name in list_groups(matched / f"{SIFT}.h5"):
            theirs[f"{name}/keypoints"] = ours[name]["keypoints"][()].astype(np.float16)
    pairs = read_pairs(matched / "pairs.txt")
    with (
        h5py.File(matched / f"{MATCHES}.h5") as ours,
        h5py.File(tmp_path / f"{MATCHES}.h5", "w") as theirs,
    ):
        for number, (name0, name1) in enumerate(pairs):
            group0, group1 = name0.replace("/", "-"), name1.replace("/", "-")
            matches0 = ours[f"{group0}/{group1}"]["matches0"][()]
            index0 = np.flatnonzero(matches0 >= 0)
            if number % 2:
                group0, group1 = group1, group0
                turned = np.full(max(matches0.max(initial=-1), 0) + 1, -1)
                turned[matches0[index0]] = index0
                matches0 = turned
            last = np.flatnonzero(matches0 >= 0).max(initial=-1)
            theirs[f"{group0}_{group1}/matches0"] = matches0[: last + 1].astype(np.int16)
    write_pairs(tmp_path / "pairs.txt", pairs)
    assert hloc("triangulation", *_triangulation(photos, tmp_path, tmp_path / "sfm")) == 0
    assert pycolmap.Reconstruction(tmp_path / "sfm").num_points3D() > 100


def test_hlocs_own_confs_need_hloc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sfm_matchers.hloc._folder", lambda: None)
    arguments = ["--pairs", tmp_path / "pairs.txt", "--conf", "superpoint+lightglue"]
    assert hloc("match_features", *arguments) == 2
    assert "hloc's own confs need pip install git+https" in capsys.readouterr().err


def test_features_by_the_name_of_a_whole_conf(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("db/0000.jpg\n")
    arguments = ["--image_dir", photos / "images", "--export_dir", tmp_path]
    arguments += ["--image_list", tmp_path / "names.txt"]
    assert hloc("extract_features", *arguments, "--conf", "sift+mambaglue") == 0
    assert list_groups(tmp_path / f"{SIFT}.h5") == ["db/0000.jpg"]
    assert hloc("extract_features", *arguments, "--conf", "jamma") == 2


def test_detector_free_confs_are_routed(photos: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.txt", [("db/0000.jpg", "db/0001.jpg")])
    arguments = ["--conf", "jamma", "--pairs", tmp_path / "pairs.txt", "--export_dir", tmp_path]
    assert hloc("match_features", *arguments) == 2
    assert hloc("match_features", *arguments, "--image_dir", photos / "images") == 0
    with h5py.File(tmp_path / "feats_matches-jamma.h5") as file:
        assert file["db/0000.jpg/image_size"][()].tolist() == [320, 240]
        count = len(file["db/0000.jpg/keypoints"])
    with h5py.File(tmp_path / "matches-jamma_pairs.h5") as file:
        assert len(file["db-0000.jpg/db-0001.jpg/matches0"]) == count > 20


def test_queries_keep_exact_points_against_a_map(photos: Path, tmp_path: Path) -> None:
    """hloc's rule for localization: --max_kps 0, and --features_ref for the photos of the map."""
    write_pairs(tmp_path / "map.txt", [("db/0000.jpg", "db/0001.jpg")])
    write_pairs(tmp_path / "loc.txt", [("query/0000.jpg", "db/0000.jpg")])
    common = ["--conf", "jamma", "--image_dir", photos / "images"]
    assert (
        hloc("match_dense", *common, "--pairs", tmp_path / "map.txt", "--export_dir", tmp_path) == 0
    )
    reference = tmp_path / "feats_matches-jamma.h5"
    before = reference.read_bytes()
    files = ["--features", tmp_path / "query.h5", "--matches", tmp_path / "loc.h5"]
    options = ["--features_ref", reference, "--max_kps", 0]
    assert hloc("match_dense", *common, "--pairs", tmp_path / "loc.txt", *files, *options) == 0
    assert reference.read_bytes() == before
    assert list_groups(tmp_path / "query.h5") == ["query/0000.jpg"]
    with h5py.File(tmp_path / "query.h5") as file:
        points = file["query/0000.jpg/keypoints"][()]
    assert (np.abs(points * 2 - np.rint(points * 2)) > 1e-3).any()  # not on a grid


def test_exhaustive_pairs_golden(tmp_path: Path) -> None:
    data = json.loads((shared_path("hloc/golden") / "text.json").read_text())
    for key in ("exhaustive", "exhaustive_ref"):
        case = data[key]
        (tmp_path / "names.txt").write_text("\n".join(case["names"]))
        arguments: list[object] = ["--image_list", tmp_path / "names.txt"]
        if "ref" in case:
            (tmp_path / "ref.txt").write_text("\n".join(case["ref"]))
            arguments += ["--ref_list", tmp_path / "ref.txt"]
        path = tmp_path / "pairs.txt"
        assert hloc("pairs_from_exhaustive", "--output", path, *arguments) == 0
        assert path.read_text() == case["text"]


def test_retrieval_pairs_golden(tmp_path: Path) -> None:
    data = json.loads((shared_path("hloc/golden") / "text.json").read_text())["retrieval"]
    lines = data["all_vs_all_top3_unordered_lines"]
    names = data.get("names") or sorted({name for line in lines for name in line.split()})
    with h5py.File(tmp_path / "global.h5", "w") as file:
        for name, descriptor in zip(names, data["descriptors"], strict=True):
            file[f"{name}/global_descriptor"] = np.array(descriptor)
    path = tmp_path / "pairs.txt"
    arguments = ("--descriptors", tmp_path / "global.h5", "--output", path, "--num_matched", 3)
    assert hloc("pairs_from_retrieval", *arguments) == 0
    assert sorted(path.read_text().splitlines()) == sorted(lines)
    assert (
        hloc("pairs_from_retrieval", *arguments, "--query-prefix", "query", "--db-prefix", "db")
        == 0
    )
    pairs = read_pairs(path)
    assert all(q.startswith("query/") and d.startswith("db/") for q, d in pairs)
    # The same, with a file for the queries and one for the database.
    with (
        h5py.File(tmp_path / "global.h5") as together,
        h5py.File(tmp_path / "query.h5", "w") as queries,
        h5py.File(tmp_path / "db.h5", "w") as database,
    ):
        together.copy("query", queries)
        together.copy("db", database)
    arguments = ("--descriptors", tmp_path / "query.h5", "--output", path, "--num_matched", 3)
    assert hloc("pairs_from_retrieval", *arguments, "--db-descriptors", tmp_path / "db.h5") == 0
    assert read_pairs(path) == pairs


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["match_features", "--conf", "superglu"], "no conf 'superglu'; there are aliked+"),
        (["match_features", "--conf", "sift", "--export_dir", "."], "run hloc extract_features"),
        (["match_features", "--conf", "jamma"], "give --image_dir"),
        (["match_features", "--conf", "sift", "--features", "nothing"], "give --export_dir"),
        (["match_dense", "--conf", "loftrr", "--image_dir", "."], "no conf 'loftrr'"),
        (["match_dense", "--conf", "sift", "--image_dir", "."], "run hloc match_features"),
    ],
)
def test_mistakes_are_said_in_one_line(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pairs(tmp_path / "pairs.txt", [("a.jpg", "b.jpg")])
    assert main([*arguments, "--pairs", str(tmp_path / "pairs.txt")]) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("error: ")
    assert words in message
    assert "\n" not in message
