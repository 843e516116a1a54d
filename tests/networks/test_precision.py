"""Half precision: nearly the matches of single precision, with every network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from short_matchers import (
    eloftr_matcher,
    jamma_matcher,
    mambaglue_matcher,
    matched,
    photographs,
    sift_like,
    translated,
)

from sfm_matchers.confs import SparseConf, load_conf
from sfm_matchers.errors import InputError
from sfm_matchers.hloc import options
from sfm_matchers.matchers.protocols import Matches
from sfm_matchers.matchers.registry import load_detector_free_matcher, load_sparse_matcher
from sfm_matchers.networks.efficient_loftr import EfficientLoFTRConfig
from sfm_matchers.networks.jamma import JamMaConfig
from sfm_matchers.networks.mambaglue import MambaGlueConfig
from sfm_matchers.networks.precision import has_fast_bfloat16, single_precision

pytestmark = pytest.mark.slow


def set_precision(network: Any, precision: str) -> None:
    network.config = replace(network.config, precision=precision)


def share_found(found: Matches, expected: Matches) -> float:
    """Share of the expected matches within 1 px, in both photos, of one that was found."""
    points = [
        torch.from_numpy(np.hstack([matches.keypoints0, matches.keypoints1]))
        for matches in (found, expected)
    ]
    return float((torch.cdist(*points, p=torch.inf).min(0).values < 1).float().mean())


# Nearly random weights, whose windows are close to ties; benchmarks.precision has the bundled ones.
@pytest.mark.parametrize(("precision", "least"), [("bfloat16", 0.7), ("float16", 0.85)])
def test_detector_free_matches_in_half_precision(precision: str, least: float) -> None:
    for matcher, images in ((jamma_matcher(), photographs()), (eloftr_matcher(), translated())):
        expected = matched(matcher, images)
        set_precision(matcher.network, precision)
        found = matched(matcher, images)
        assert len(expected) > 20
        assert share_found(found, expected) > least
        assert share_found(expected, found) > least
        assert found.keypoints0.dtype == found.scores.dtype == np.float32


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mambaglue_matches_in_half_precision(precision: str) -> None:
    matcher, pair = mambaglue_matcher("score"), (sift_like(64, 1), sift_like(40, 2))
    expected, _ = matcher.match(*pair)
    set_precision(matcher.network, precision)
    found, scores = matcher.match(*pair)
    assert (found == expected).mean() > 0.9
    assert scores.dtype == np.float32


@pytest.mark.parametrize(
    ("name", "capabilities", "expected"),
    [
        ("jamma", {"cpu_name": "AMD EPYC", "avx512_bf16": True}, "bfloat16"),
        ("eloftr", {"amx_bf16": True}, "bfloat16"),
        ("sift+mambaglue", {"cpu_name": "AMD EPYC", "avx512_bf16": True}, "bfloat16"),
        ("sift+mambaglue", {"cpu_name": "Intel Xeon", "avx512_bf16": True}, "float32"),
        ("sift+mambaglue", {"avx512_f": True, "avx512_bf16": False}, "float32"),
        ("sift+mambaglue", {}, "float32"),
    ],
)
def test_a_conf_takes_bfloat16_where_the_cpu_has_it(
    name: str, capabilities: dict[str, bool | str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    conf = load_conf(name)
    load = load_sparse_matcher if isinstance(conf, SparseConf) else load_detector_free_matcher
    assert load(conf, "bundled", "cpu").network.config.precision == expected  # type: ignore
    in_single = replace(conf, model={**conf.model, "precision": "float32"})
    assert load(in_single, "bundled", "cpu").network.config.precision == "float32"  # type: ignore


def test_an_onnx_graph_is_in_float32_on_every_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    from sfm_matchers.onnx.graphs import load_graph

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    assert load_graph("jamma", size=(64, 64)).network.config.precision == "float32"  # type: ignore


@pytest.mark.parametrize("name", ["jamma", "mambaglue"])
def test_hloc_loads_matchers_for_the_device_it_runs_them_on(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[str] = []
    for loader in ("load_sparse_matcher", "load_detector_free_matcher"):
        monkeypatch.setattr(options, loader, lambda conf, weights, device: devices.append(device))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    load = options.load_sparse if name == "mambaglue" else options.load_detector_free
    load({"name": name, "weights": "bundled", "resize_max": None, "max_num_matches": None})
    assert devices == ["cuda"]


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 0), False), ((7, 5), False), ((8, 0), True), ((9, 0), True)]
)
def test_bfloat16_is_fast_on_gpus_that_have_it(
    capability: tuple[int, int], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_fast_bfloat16("cuda:1") is expected
    assert not has_fast_bfloat16("mps")


@pytest.mark.parametrize(
    ("cpu_name", "instructions", "expected"),
    [
        ("AMD EPYC", {"avx512_bf16"}, True),
        ("AMD EPYC", {"avx512_f"}, False),
        ("Intel Xeon", {"avx512_bf16"}, False),
        ("Intel Xeon", {"avx512_bf16", "amx_bf16"}, True),
        ("", set(), False),
    ],
)
def test_bfloat16_is_fast_on_cpus_with_units_for_it(
    cpu_name: str, instructions: set[str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    capabilities = {"cpu_name": cpu_name} | dict.fromkeys(instructions, True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert has_fast_bfloat16("cpu") is expected


def test_float32_is_not_rounded_in_convolutions_of_a_gpu() -> None:
    assert torch.backends.cudnn.allow_tf32
    with single_precision("cuda"):
        assert not torch.backends.cudnn.allow_tf32
        with single_precision("cuda"):
            pass
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("config", [JamMaConfig, EfficientLoFTRConfig, MambaGlueConfig])
def test_an_unknown_precision_is_refused(config: Any) -> None:
    with pytest.raises(InputError, match="unknown precision 'int8', choose one of float32, float1"):
        config(precision="int8")
