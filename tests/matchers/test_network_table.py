"""The one table of networks: its references hold, and one entry makes a matcher of ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_network

from sfm_matchers.confs import load_conf
from sfm_matchers.errors import InputError
from sfm_matchers.matchers.compiling import compile_matcher
from sfm_matchers.matchers.photo_matchers import load_matcher
from sfm_matchers.matchers.registry import load_detector_free_matcher, matcher_weights_fingerprint
from sfm_matchers.networks import efficient_loftr, jamma
from sfm_matchers.networks.table import NETWORKS, resolve
from sfm_matchers.onnx.graphs import load_graph
from sfm_matchers.training.options import TaskOptions
from sfm_matchers.training.tasks.table import make_task
from sfm_matchers.weights import WeightsMetadata, load_network, save_bundled

CONF = """
kind: detector_free
output: matches-toy
model: {name: toy, gain: 2.0}
max_error: 1
cell_size: 1
"""


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[str, str]:
    """The conf and the weights of a network that the table knows until the test ends."""
    monkeypatch.setitem(NETWORKS, "toy", toy_network.ENTRY)
    conf, weights = tmp_path / "toy.yaml", tmp_path / "toy.safetensors"
    conf.write_text(CONF)
    metadata = WeightsMetadata("toy", "nothing", steps=0, metrics={}, config={"gain": 3.0})
    save_bundled({"colours.weight": torch.tensor([[0.25, 0.5, 0.25]])}, weights, metadata)
    return str(conf), str(weights)


def test_one_entry_makes_a_matcher(toy: tuple[str, str]) -> None:
    conf, weights = toy
    assert load_network("toy", weights).config == toy_network.ToyConfig(gain=3.0)
    assert matcher_weights_fingerprint(load_conf(conf), weights)
    photos = np.zeros((2, 30, 40, 3), np.uint8)
    photos[0, 7, 11], photos[1, 9, 21] = 255, 255
    matches = load_matcher(conf, weights, "cpu").match(*photos)
    np.testing.assert_array_equal(matches.keypoints0, [[11, 7]])
    np.testing.assert_array_equal(matches.keypoints1, [[21, 9]])
    assert isinstance(make_task("toy", TaskOptions()), toy_network.ToyTask)
    with pytest.raises(InputError, match="cannot train only the fine stage of 'toy'"):
        make_task("toy", TaskOptions(), only_fine=True)
    graph = load_graph(conf, weights, size=(40, 32))
    assert isinstance(graph, toy_network.ToyGraph)
    assert graph.network.config.gain == 2.0


def test_a_new_matcher_is_compiled(toy: tuple[str, str]) -> None:
    matcher = load_detector_free_matcher(load_conf(toy[0]), toy[1], "cpu")  # type: ignore[arg-type]
    compile_matcher(matcher, backend="eager")
    assert matcher.network.colours._compiled_call_impl is not None  # type: ignore[attr-defined]


def test_all_references_of_the_table_hold() -> None:
    for entry in NETWORKS.values():
        for reference in vars(entry).values():
            if isinstance(reference, str) and ":" in reference:
                assert callable(resolve(reference))
    for name, network in (("jamma", jamma), ("eloftr", efficient_loftr)):
        assert NETWORKS[name].size_multiple == network.SIZE_MULTIPLE


def test_the_table_imports_nothing_heavy() -> None:
    code = "import sys, sfm_matchers.networks.table; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
