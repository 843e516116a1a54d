"""hloc's own steps with our confs and files, and ours with hloc's; only where hloc is installed."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pycolmap
import pytest
from rendered_room import photograph_room

from pipelines.hloc import main
from sfm_matchers import hloc as plugin
from sfm_matchers.files.pair_lists import read_pairs, write_pairs
from sfm_matchers.localization.poses import Query, read_poses
from sfm_matchers.localization.query_files import write_queries

pytestmark = pytest.mark.slow

if not plugin.is_installed():
    pytest.skip(f"hloc is not installed ({plugin.INSTALL})", allow_module_level=True)
if importlib.util.find_spec("torchvision") is None:
    pytest.skip("hloc needs torchvision, which is not installed", allow_module_level=True)

SIFT = "feats-sift-n2048"
NUM_PHOTOS = 5


def step(name: str) -> Any:
    """A module of hloc, with our plugin registered."""
    plugin.register()
    return importlib.import_module(f"hloc.{name}")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of a map and a query in ``images``, and the true models."""
    folder = tmp_path_factory.mktemp("hloc")
    photograph_room(folder, NUM_PHOTOS, subfolder="db")
    return photograph_room(folder, 1, seed=2, subfolder="query")


@pytest.fixture(scope="module")
def theirs(photos: Path) -> tuple[Path, Path, Path]:
    """Pairs, features in float16 and matches, made by hloc's steps: our SIFT, its matcher."""
    out = photos / "theirs"
    extract = step("extract_features")
    features = extract.main(extract.confs["sift-n2048"], photos / "images", out)
    pairs = out / "pairs.txt"
    step("pairs_from_exhaustive").main(pairs, features=features)
    match = step("match_features")
    return pairs, features, match.main(match.confs["NN-ratio"], pairs, SIFT, out)


def test_hloc_matches_with_jamma_as_we_do(photos: Path, tmp_path: Path) -> None:
    """The same conf by hloc's `match_dense` and by ours; resizing differs by rounding only."""
    write_pairs(tmp_path / "pairs.txt", [("db/0000.jpg", "db/0001.jpg")])
    dense = step("match_dense")
    conf, images = dense.confs["jamma"], photos / "images"
    features, matches = dense.main(conf, tmp_path / "pairs.txt", images, tmp_path)
    arguments = ["--image_dir", images, "--pairs", tmp_path / "pairs.txt"]
    arguments += ["--export_dir", tmp_path / "ours"]
    assert main(["match_dense", *map(str, arguments)]) == 0
    with (
        h5py.File(tmp_path / "ours" / features.name) as ours,
        h5py.File(features) as theirs,
    ):
        found = {tuple(point) for point in ours["db/0000.jpg/keypoints"][()].tolist()}
        expected = {tuple(point) for point in theirs["db/0000.jpg/keypoints"][()].tolist()}
    assert len(found & expected) > 0.95 * len(expected) > 20
    assert (tmp_path / "ours" / matches.name).is_file()


def test_hloc_runs_mambaglue(photos: Path, theirs: tuple[Path, Path, Path], tmp_path: Path) -> None:
    import torch

    from sfm_matchers.networks.mambaglue import MambaGlue, MambaGlueConfig

    torch.manual_seed(0)
    network = MambaGlue(MambaGlueConfig(features="sift"))
    torch.save(network.state_dict(), tmp_path / "random.pt")
    write_pairs(tmp_path / "pairs.txt", [("db/0000.jpg", "db/0001.jpg")])
    match = step("match_features")
    conf = match.confs["sift+mambaglue"]
    model = {**conf["model"], "weights": str(tmp_path / "random.pt"), "filter_threshold": 0.0}
    features = theirs[1]
    path = match.main(
        {**conf, "model": model}, tmp_path / "pairs.txt", features, matches=tmp_path / "m.h5"
    )
    with h5py.File(path) as file, h5py.File(features) as keypoints:
        matches0 = file["db-0000.jpg/db-0001.jpg/matches0"][()]
        assert len(matches0) == len(keypoints["db/0000.jpg/keypoints"])
        assert matches0.max() < len(keypoints["db/0001.jpg/keypoints"])


@pytest.mark.parametrize(
    "option", [{}, {"skip_geometric_verification": True}, {"estimate_two_view_geometries": True}]
)
def test_hloc_triangulates(
    photos: Path, theirs: tuple[Path, Path, Path], tmp_path: Path, option: dict[str, bool]
) -> None:
    """Without the plugin the first two give no point on pycolmap 4.2.1."""
    reference, pairs = _map_pairs(photos, theirs, tmp_path)
    features, matches = theirs[1:]
    model = step("triangulation").main(
        tmp_path / "sfm", reference, photos / "images", pairs, features, matches, **option
    )
    assert model.num_points3D() > 100


def test_hloc_localizes_in_our_model_and_we_in_its(
    photos: Path, theirs: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    reference, pairs = _map_pairs(photos, theirs, tmp_path)
    features, matches = theirs[1:]
    arguments = ["--reference_sfm_model", reference, "--sfm_dir", tmp_path / "ours"]
    files = ["--features", features, "--matches", matches]
    common = ["--image_dir", photos / "images", "--pairs", pairs, *files]
    assert main(["triangulation", *map(str, [*arguments, *common])]) == 0
    step("triangulation").main(
        tmp_path / "theirs", reference, photos / "images", pairs, features, matches
    )
    truth = pycolmap.Reconstruction(photos / "truth" / "query")
    true = next(iter(truth.images.values()))
    write_queries(tmp_path / "queries.txt", [Query(true.name, truth.cameras[true.camera_id])])
    names = [f"db/000{number}.jpg" for number in range(NUM_PHOTOS)]
    retrieval = tmp_path / "retrieval.txt"
    write_pairs(retrieval, [(true.name, name) for name in names])
    queries = tmp_path / "queries.txt"
    step("localize_sfm").main(
        tmp_path / "ours", queries, retrieval, features, matches, tmp_path / "by_hloc.txt"
    )
    arguments = ["--reference_sfm", tmp_path / "theirs", "--queries", queries, *files]
    arguments += ["--retrieval", retrieval, "--results", tmp_path / "by_us.txt"]
    assert main(["localize_sfm", *map(str, arguments)]) == 0
    for results in ("by_hloc.txt", "by_us.txt"):
        pose = read_poses(tmp_path / results)[Path(true.name).name]
        distance = pose.inverse().translation - true.cam_from_world().inverse().translation
        assert np.linalg.norm(distance) < 0.02  # metres


def _map_pairs(photos: Path, theirs: tuple[Path, Path, Path], folder: Path) -> tuple[Path, Path]:
    """The true model of the map, and the pairs of its photos."""
    pairs = [pair for pair in read_pairs(theirs[0]) if all(n.startswith("db/") for n in pair)]
    write_pairs(folder / "map.txt", pairs)
    return photos / "truth" / "db", folder / "map.txt"


def test_hloc_reconstructs_from_our_files_and_we_from_its(
    photos: Path, theirs: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    pairs, features, matches = theirs
    files = ["--pairs", pairs, "--features", features, "--matches", matches]
    arguments = ["--sfm_dir", tmp_path / "from_theirs", "--image_dir", photos / "images"]
    options = ["--camera_mode", "SINGLE"]
    assert main(["reconstruction", *map(str, [*arguments, *files, *options])]) == 0
    assert pycolmap.Reconstruction(tmp_path / "from_theirs").num_reg_images() == NUM_PHOTOS + 1

    out = tmp_path / "ours"
    arguments = ["--image_dir", photos / "images", "--export_dir", out, "--conf", "sift-n2048"]
    assert main(["extract_features", *map(str, arguments)]) == 0
    arguments = ["--pairs", pairs, "--export_dir", out, "--features", SIFT, "--conf", "sift"]
    assert main(["match_features", *map(str, arguments)]) == 0
    model = step("reconstruction").main(
        tmp_path / "from_ours",
        photos / "images",
        pairs,
        out / f"{SIFT}.h5",
        out / f"{SIFT}_matches-sift-NN-ratio_pairs.h5",
        camera_mode=pycolmap.CameraMode.SINGLE,
        mapper_options={"min_model_size": 3},
    )
    assert model.num_reg_images() == NUM_PHOTOS + 1


def test_the_command_runs_hlocs_own_confs_through_hloc(
    theirs: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs, features, expected = theirs
    arguments = ["--pairs", pairs, "--features", features, "--export-dir", tmp_path]
    assert main(["match_features", "--conf", "NN-ratio", *map(str, arguments)]) == 0
    path = Path(capsys.readouterr().out.split()[-1])
    assert path == tmp_path / expected.name
    with h5py.File(path) as found, h5py.File(expected) as file:
        for name0, name1 in read_pairs(pairs):
            group = "/".join(name.replace("/", "-") for name in (name0, name1))
            np.testing.assert_array_equal(found[group]["matches0"], file[group]["matches0"])
