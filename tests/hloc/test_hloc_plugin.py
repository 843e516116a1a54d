"""The plugin, in hloc where it is installed, else in a stand-in that enforces hloc's rules.

The stand-in, `tests/support/standins/hloc`, loads models as hloc does: by importing
``hloc.matchers.<name>`` and taking the one class that is defined in it and derives from hloc's
`BaseModel`. What only hloc itself can show is in `test_hloc_real`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pycolmap
import pytest
import torch
from golden_weights_eloftr import golden_state_dict

from sfm_matchers import hloc as plugin
from sfm_matchers.errors import MissingExtraError
from sfm_matchers.hloc import is_installed
from sfm_matchers.hloc.two_view_geometries import complete_before
from sfm_matchers.matchers.photo_matchers import load_matcher
from sfm_matchers.networks.efficient_loftr import EfficientLoFTR
from sfm_matchers.networks.mambaglue import MambaGlue, MambaGlueConfig
from sfm_matchers.photos.resizing import turned
from sfm_matchers.synthetic import Camera, camera_path, make_scene, render

pytestmark = pytest.mark.slow


@pytest.fixture
def hloc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """hloc, or its stand-in; forgotten afterwards."""
    if not is_installed():  # the folder of these tests is called so too
        monkeypatch.syspath_prepend(Path(__file__).parents[1] / "support" / "standins")
    yield
    for name in list(sys.modules):
        if name.partition(".")[0] == "hloc" or name == "sfm_matchers.hloc.detector_free":
            del sys.modules[name]


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    scene = make_scene(seed=1, kind="street", texture_size=256)
    camera = Camera.from_field_of_view(192, 128)
    return [render(scene, camera, pose).image for pose in camera_path(scene, count=24)[:2]]


def load(package: str, conf: dict[str, Any]) -> Any:
    base_model = importlib.import_module("hloc.utils.base_model")
    root = importlib.import_module(f"hloc.{package}")
    return base_model.dynamic_load(root, conf["name"])(conf).eval().to("cpu")


def as_input(photo: np.ndarray, *, gray: bool) -> torch.Tensor:
    pixels = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    return (pixels * weights).sum(1, keepdim=True) if gray else pixels


def random_weights(network: torch.nn.Module, path: Path) -> str:
    torch.save(network.state_dict(), path)
    return str(path)


def test_hloc_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "_folder", lambda: None)
    with pytest.raises(MissingExtraError, match=r"pip install git\+https"):
        plugin.register()


@pytest.mark.parametrize("name", ["hloc/photos.txt", "hloc.py"])
def test_not_all_that_is_called_hloc_is_hloc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert importlib.util.find_spec("hloc") is not None
    assert not plugin.is_installed()
    assert plugin.names_in_hloc("match_features") == []


def test_confs_name_weights_that_there_are(hloc: None) -> None:
    sparse, dense = plugin.sparse_confs(), plugin.dense_confs()
    assert sparse["superpoint+mambaglue"]["model"]["weights"] == "official"
    assert dense["eloftr"]["model"]["weights"] == "bundled"
    assert dense["jamma"]["model"]["weights"] == "bundled"


def test_names_of_hlocs_confs_are_read_from_its_source(hloc: None) -> None:
    for module in ("extract_features", "match_features", "match_dense"):
        expected = importlib.import_module(f"hloc.{module}").confs
        assert plugin.names_in_hloc(module) == list(expected)


def test_a_step_completes_the_geometries_of_its_database_first(tmp_path: Path) -> None:
    """hloc 1.5 writes them without a kind, and pycolmap 4.2.1 leaves such out."""
    kinds = pycolmap.TwoViewGeometryConfiguration
    database_path = tmp_path / "database.db"
    options = pycolmap.SyntheticDatasetOptions(num_rigs=1, num_frames_per_rig=3)
    with pycolmap.Database.open(database_path) as database:
        pycolmap.synthesize_dataset(options, database)
        pair_ids, geometries = database.read_two_view_geometries()
        for pair_id, geometry in zip(pair_ids, geometries, strict=True):
            geometry.config = kinds.UNDEFINED
            ids = pycolmap.pair_id_to_image_pair(pair_id)
            database.update_two_view_geometry(*ids, geometry)

    def run_step(sfm_dir: Path, database_path: Path) -> list[pycolmap.TwoViewGeometry]:
        with pycolmap.Database.open(database_path) as database:
            return list(database.read_two_view_geometries()[1])

    module = ModuleType("hloc.step")
    module.run_step = run_step  # type: ignore[attr-defined]
    complete_before(module, "run_step")
    once = module.run_step
    complete_before(module, "run_step")
    assert module.run_step is once
    assert {geometry.config for geometry in run_step(tmp_path, database_path)} == {kinds.UNDEFINED}
    completed = module.run_step(tmp_path, database_path=database_path)
    assert {geometry.config for geometry in completed} == {kinds.CALIBRATED}
    for before, after in zip(geometries, completed, strict=True):
        assert len(before.inlier_matches) > 0
        np.testing.assert_array_equal(before.inlier_matches, after.inlier_matches)


@pytest.mark.parametrize("module", ["reconstruction", "triangulation"])
def test_the_steps_of_hloc_that_need_it_do_so(hloc: None, module: str) -> None:
    plugin.register()
    step = getattr(importlib.import_module(f"hloc.{module}"), f"run_{module}")
    assert step.completes_geometries
    assert step.__module__ == f"hloc.{module}"


def test_confs_are_added_once_and_overwrite_nothing(hloc: None) -> None:
    match_dense = importlib.import_module("hloc.match_dense")
    before = set(match_dense.confs)
    mine = {"output": "mine"}
    match_dense.confs["jamma"] = mine
    plugin.register()
    plugin.register()
    assert match_dense.confs["jamma"] is mine
    assert before < set(match_dense.confs)
    assert {"eloftr", "eloftr_opt", "eloftr_aachen", "jamma_aachen"} <= set(match_dense.confs)
    sparse = importlib.import_module("hloc.match_features").confs
    assert {"sift+mambaglue", "aliked+mambaglue", "disk+mambaglue"} <= set(sparse)
    assert "sift-n2048" in importlib.import_module("hloc.extract_features").confs
    path = importlib.import_module("hloc.matchers").__path__
    assert len(set(path)) == len(list(path))
    outputs = [conf["output"] for conf in match_dense.confs.values()]
    ours = [name for name in plugin.dense_confs() if name != "jamma"]
    assert all(outputs.count(match_dense.confs[name]["output"]) == 1 for name in ours)


@pytest.mark.parametrize("quarters", [0, 3])
def test_jamma_gives_hloc_what_it_gives_us(
    hloc: None, photos: list[np.ndarray], quarters: int
) -> None:
    plugin.register()
    photos = [photos[0], turned(photos[1], quarters)]
    conf = plugin.dense_confs()["jamma"]
    model = load("matchers", conf["model"])
    assert conf["preprocessing"]["grayscale"] is False
    assert all(side % conf["preprocessing"]["dfactor"] == 0 for side in photos[0].shape[:2])
    data = {f"image{side}": as_input(photos[side], gray=False) for side in range(2)}
    output = model(data)
    expected = load_matcher("jamma").match(*photos)
    assert len(expected) > 20
    np.testing.assert_allclose(output["keypoints0"], expected.keypoints0, atol=1e-3)
    np.testing.assert_allclose(output["keypoints1"], expected.keypoints1, atol=1e-3)
    assert output["scores"].dtype == torch.float32
    best = load("matchers", {**conf["model"], "max_num_matches": 5})(data)
    np.testing.assert_allclose(best["scores"], np.sort(expected.scores)[::-1][:5], atol=1e-4)
    with pytest.raises(AssertionError):
        model({"image0": data["image0"]})


def test_jamma_takes_images_of_two_sizes(hloc: None, photos: list[np.ndarray]) -> None:
    plugin.register()
    model = load("matchers", plugin.dense_confs()["jamma"]["model"])
    small = np.ascontiguousarray(photos[1][:96, :160])
    output = model(
        {"image0": as_input(photos[0], gray=False), "image1": as_input(small, gray=False)}
    )
    assert len(output["keypoints0"]) == len(output["keypoints1"]) == len(output["scores"])


def test_eloftr_refines_image_0(hloc: None, photos: list[np.ndarray], tmp_path: Path) -> None:
    plugin.register()
    network = EfficientLoFTR()
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    network.load_state_dict(golden_state_dict(shapes))
    weights = random_weights(network, tmp_path / "eloftr.pt")
    conf = plugin.dense_confs()["eloftr_aachen"]  # nothing is done to the network's points
    options = {"weights": weights, "coarse_threshold": -1.0, "border": 0}
    model = load("matchers", {**conf["model"], **options})
    assert conf["preprocessing"]["grayscale"] is True
    data = {f"image{side}": as_input(photos[side], gray=True) for side in range(2)}
    output = model(data)
    assert len(output["scores"]) > 0
    on_grid = (output["keypoints1"] * 2) % 1
    torch.testing.assert_close(on_grid, torch.zeros_like(on_grid))  # half pixels
    assert ((output["keypoints0"] * 2) % 1 > 1e-3).any()


def test_mambaglue_keeps_to_hlocs_inputs(hloc: None, tmp_path: Path) -> None:
    plugin.register()
    torch.manual_seed(0)
    network = MambaGlue(MambaGlueConfig(features="sift"))
    conf = dict(plugin.sparse_confs()["sift+mambaglue"]["model"])
    conf |= {"weights": random_weights(network, tmp_path / "mg.pt"), "filter_threshold": 0.0}
    model = load("matchers", conf)
    data: dict[str, torch.Tensor] = {}
    for side, count in (("0", 30), ("1", 40)):
        data |= {
            f"keypoints{side}": 300 * torch.rand(1, count, 2),
            f"descriptors{side}": torch.rand(1, 128, count),
            f"scores{side}": torch.rand(1, count),
            f"scales{side}": 1 + torch.rand(1, count),
            f"oris{side}": 360 * torch.rand(1, count),
            f"image_size{side}": torch.tensor([[320, 300]]),
            f"image{side}": torch.empty(1, 1, 300, 320),
        }
    output = model(data)
    assert output["matches0"].shape == output["matching_scores0"].shape == (1, 30)
    assert (output["matches0"] >= 0).any()
    assert output["matches0"].max() < 40
    with pytest.raises(AssertionError):
        model({key: value for key, value in data.items() if key != "image_size1"})
    blank = {key: value[..., :0] for key, value in data.items() if key.endswith("1")}
    blank |= {"keypoints1": torch.zeros(1, 0, 2), "image_size1": data["image_size1"]}
    assert (model({**data, **blank})["matches0"] == -1).all()


def test_front_end_gives_hloc_what_it_gives_us(hloc: None, photos: list[np.ndarray]) -> None:
    from sfm_matchers.features.extraction import load_extractor

    plugin.register()
    model = load("extractors", plugin.extractor_confs()["sift-n2048"]["model"])
    output = model({"image": as_input(photos[0], gray=False)})
    expected = load_extractor({"name": "sift", "max_num_features": 4096}).extract(photos[0][None])[
        0
    ]
    np.testing.assert_allclose(output["keypoints"][0], expected.keypoints)
    assert output["descriptors"].shape == (1, 128, len(expected.keypoints))
    assert set(output) == {"keypoints", "descriptors", "scores", "scales", "oris"}
