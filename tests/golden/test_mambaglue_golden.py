"""MambaGlue against the golden data: states of every layer, decisions, matches and losses."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from golden_weights_mambaglue import golden_state_dict
from material import shared_path
from torch import Tensor, nn

from sfm_matchers.networks.mambaglue import (
    LocalFeatures,
    MambaGlue,
    MambaGlueConfig,
    MambaGlueMatches,
    normalize_keypoints,
)
from sfm_matchers.networks.selective_scan import selective_scan
from sfm_matchers.training.losses.mambaglue import GroundTruthMatches, mambaglue_loss

pytestmark = pytest.mark.slow

GOLDEN = "networks/mambaglue/golden"
Arrays = dict[str, np.ndarray]

STATE_TOLERANCE = 1e-4
PROBABILITY_TOLERANCE = 1e-5
LOG_ASSIGNMENT_TOLERANCE = 2e-3


@lru_cache
def arrays(name: str) -> Arrays:
    with np.load(shared_path(f"{GOLDEN}/{name}.npz")) as file:
        return {key: file[key] for key in file.files}


@lru_cache
def golden_network(features: str = "superpoint") -> MambaGlue:
    network = MambaGlue(MambaGlueConfig(features=features)).eval()
    shapes = {key: tensor.shape for key, tensor in network.state_dict().items()}
    network.load_state_dict(golden_state_dict(shapes))
    return network


def configured(network: MambaGlue, **choices: Any) -> MambaGlue:
    """The network with other choices that do not touch its weights."""
    other = MambaGlue(MambaGlueConfig(features=network.config.features, **choices)).eval()
    other.load_state_dict(network.state_dict())
    return other


def features_of(data: Arrays, image: int) -> LocalFeatures:
    suffix = str(image)
    fields = {
        key[3:-1]: torch.from_numpy(value)
        for key, value in data.items()
        if key.startswith("in_") and key.endswith(suffix)
    }
    return LocalFeatures(**fields)


def recorded_run(
    network: MambaGlue, features0: LocalFeatures, features1: LocalFeatures
) -> tuple[MambaGlueMatches, dict[str, Any]]:
    """Run the network and note what its modules return, under the names of the golden data."""
    seen: dict[str, Any] = defaultdict(list)
    handles = []

    def listen(module: nn.Module, name: str) -> None:
        handles.append(
            module.register_forward_hook(lambda _m, _i, output: seen[name].append(output))
        )

    for number, layer in enumerate(network.transformermambas):
        listen(layer.mamba_selfattn_mixer, f"L{number}_mixer")
        listen(layer, f"L{number}_cross")
        listen(network.log_assignment[number], "log_assignment")
    first = network.transformermambas[0].mamba_selfattn_mixer
    listen(first.out_proj, "L0_attn")
    listen(first.mamba_mixer, "L0_mamba")
    with torch.inference_mode():
        matches = network(features0, features1)
        layers_run = sum(bool(seen[f"L{number}_cross"]) for number in range(9))
        for number in range(layers_run):
            head, states = network.log_assignment[number], seen[f"L{number}_cross"][0]
            seen[f"L{number}_match"] = [head.point_matchability(s) for s in states]
            if number < 8:
                regressor = network.token_confidence[number]
                seen[f"L{number}_conf"] = [regressor(s).sigmoid() for s in states]
    for handle in handles:
        handle.remove()
    return matches, seen


def assert_close(actual: Tensor, expected: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=tolerance)


def assert_matches(matches: MambaGlueMatches, data: Arrays, prefix: str = "out_") -> None:
    for name in ("matches0", "matches1", "prune0", "prune1"):
        np.testing.assert_array_equal(getattr(matches, name).numpy(), data[prefix + name])
    assert matches.stop.tolist() == [int(data[prefix + "stop"])] * len(matches.stop)
    for name in ("matching_scores0", "matching_scores1"):
        assert_close(getattr(matches, name), data[prefix + name], STATE_TOLERANCE)
    for pair in range(len(matches.stop)):
        indices, scores = matches.of_pair(pair)
        empty = f"{prefix}matches_empty" in data
        listed = "empty" if empty else f"b{pair}"
        expected_indices, expected_scores = (
            data[f"{prefix}{kind}_{listed}"][0 if empty else slice(None)]
            for kind in ("matches", "scores")
        )
        np.testing.assert_array_equal(indices.numpy(), expected_indices)
        assert_close(scores, expected_scores, STATE_TOLERANCE)


def assert_states(seen: dict[str, Any], data: Arrays) -> None:
    """Compare every recorded state, confidence and matchability that the golden data holds."""
    for key, expected in data.items():
        name = re.fullmatch(r"(L\d_(mixer|cross|conf|match))([01])", key)
        if name is None:
            continue
        stage, kind, image = name[1], name[2], int(name[3])
        outputs = seen[stage]
        actual = outputs[0][image] if kind == "cross" else outputs[image]
        if kind in ("mixer", "cross"):
            thinning = actual.shape[-1] // expected.shape[-1]
            assert_close(actual[..., ::thinning], expected, STATE_TOLERANCE)
        else:
            assert_close(actual, expected, PROBABILITY_TOLERANCE)


def test_mambaglue_golden_weights_follow_the_recipe() -> None:
    checks = json.loads(shared_path(f"{GOLDEN}/weights_check.json").read_text())
    for features in ("superpoint", "aliked", "sift"):
        expected = checks["superpoint"] | checks.get(f"{features}_differs", {})
        state = golden_network(features).state_dict()
        assert set(state) == set(expected)
        for key, (shape, _, total, absolute, first) in expected.items():
            values = state[key].double()
            assert list(values.shape) == shape
            assert values.sum().item() == pytest.approx(total, abs=1e-6)
            assert values.abs().sum().item() == pytest.approx(absolute, rel=1e-9)
            assert values.flatten()[: len(first)].tolist() == pytest.approx(first, rel=1e-12)


@pytest.mark.parametrize("features", ["superpoint", "disk", "aliked", "sift", "doghardnet"])
def test_mambaglue_golden_state_dict_has_the_authors_keys_and_shapes(features: str) -> None:
    listing = json.loads(shared_path("networks/mambaglue/state_dict.json").read_text())
    same_shapes = {"disk": "aliked", "doghardnet": "sift"}.get(features, features)
    expected = listing["superpoint"]["tensors"] | listing[same_shapes]["differs"]
    state = MambaGlue(MambaGlueConfig(features=features)).state_dict()
    assert {key: list(tensor.shape) for key, tensor in state.items()} == {
        key: shape for key, (shape, _) in expected.items()
    }
    parameters = sum(t.numel() for k, t in state.items() if k != "confidence_thresholds")
    assert parameters == listing[same_shapes]["n_params"]


def test_mambaglue_golden_scan_of_layer_0() -> None:
    data = {key: torch.from_numpy(value) for key, value in arrays("mamba_layer0").items()}
    y = selective_scan(
        *(data[key].transpose(1, 2) for key in ("u", "delta")),
        data["A"],
        *(data[key].transpose(1, 2) for key in ("B", "C")),
        data["D"],
        delta_bias=data["delta_bias"],
    )
    assert_close(y.transpose(1, 2), data["y"].numpy(), STATE_TOLERANCE)


def test_mambaglue_golden_mamba_branch_of_layer_0() -> None:
    data = arrays("mamba_layer0")
    branch = golden_network().transformermambas[0].mamba_selfattn_mixer.mamba_mixer
    with torch.inference_mode():
        scanned, unscanned = branch(torch.from_numpy(data["hidden"]), None)
    assert_close(scanned, data["out_y"], STATE_TOLERANCE)
    assert_close(unscanned, data["out_z"], STATE_TOLERANCE)


def test_mambaglue_golden_positional_encoding() -> None:
    data = arrays("sp_full")
    normalized = normalize_keypoints(features_of(data, 0))
    assert_close(normalized, data["norm_keypoints0"], 1e-6)
    with torch.inference_mode():
        assert_close(golden_network().posenc(normalized), data["posenc0"], PROBABILITY_TOLERANCE)


def test_mambaglue_golden_full_run_agrees_at_every_stage() -> None:
    data = arrays("sp_full")
    matches, seen = recorded_run(golden_network(), features_of(data, 0), features_of(data, 1))
    assert_states(seen, data)
    for image in (0, 1):
        scanned, unscanned = seen["L0_mamba"][image]
        assert_close(scanned, data[f"L0_mamba_y{image}"], STATE_TOLERANCE)
        assert_close(unscanned, data[f"L0_mamba_z{image}"], STATE_TOLERANCE)
        assert_close(seen["L0_attn"][image], data[f"L0_attn{image}"], STATE_TOLERANCE)
    assert_close(seen["log_assignment"][0], data["log_assignment"], LOG_ASSIGNMENT_TOLERANCE)
    head, (states0, states1) = golden_network().log_assignment[8], seen["L8_cross"][0]
    with torch.inference_mode():
        similarity = head.final_proj(states0) @ head.final_proj(states1).transpose(1, 2) / 16
    assert_close(similarity, data["sim"], LOG_ASSIGNMENT_TOLERANCE)
    assert_matches(matches, data)


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("sp_batch2", "superpoint"),
        ("aliked_full", "aliked"),
        ("sift_full", "sift"),
        ("sp_tiny_1_1", "superpoint"),
        ("sp_tiny_1_5", "superpoint"),
        ("sp_tiny_3_2", "superpoint"),
    ],
)
@pytest.mark.parametrize("fused", [False, True])
def test_mambaglue_golden_run_without_adaptation(name: str, features: str, fused: bool) -> None:
    data = arrays(name)
    network = golden_network(features)
    if fused:
        network = configured(network).fuse()
    matches, seen = recorded_run(network, features_of(data, 0), features_of(data, 1))
    assert_states(seen, data)
    assert_close(seen["log_assignment"][0], data["log_assignment"], LOG_ASSIGNMENT_TOLERANCE)
    assert_matches(matches, data)


def test_mambaglue_golden_run_without_image_size() -> None:
    data = arrays("aliked_full")
    sizeless = {key: value for key, value in data.items() if not key.startswith("in_image_size")}
    matches, seen = recorded_run(
        golden_network("aliked"), features_of(sizeless, 0), features_of(sizeless, 1)
    )
    expected = data["nosize_log_assignment"]
    assert_close(seen["log_assignment"][0], expected, LOG_ASSIGNMENT_TOLERANCE)
    assert_matches(matches, data, prefix="nosize_")


@pytest.mark.parametrize(
    "name", ["sp_stop", "sp_prune", "sp_prune_stop", "sp_prune_all", "sp_th02"]
)
def test_mambaglue_golden_adaptive_run(name: str) -> None:
    inputs, data = arrays("sp_full"), arrays(name)
    depth, width, threshold = data["conf"].tolist()
    network = configured(
        golden_network(),
        depth_confidence=depth,
        width_confidence=width,
        filter_threshold=threshold,
    ).fuse()
    matches, seen = recorded_run(network, features_of(inputs, 0), features_of(inputs, 1))
    assert_states(seen, data)
    for image in (0, 1):
        left = [
            seen[f"L{number}_mixer"][image].shape[1]
            for number in range(9)
            if seen[f"L{number}_mixer"]
        ]
        assert left == data[f"kept{image}"].tolist()
    if "log_assignment" in data:
        assert_close(seen["log_assignment"][0], data["log_assignment"], LOG_ASSIGNMENT_TOLERANCE)
    assert_matches(matches, data)


def test_mambaglue_golden_order_of_keypoints_matters() -> None:
    inputs, data = arrays("sp_full"), arrays("sp_permuted")
    order = data["perm"]
    permuted = dict(inputs)
    for key in ("in_keypoints0", "in_descriptors0"):
        permuted[key] = inputs[key][:, order]
    with torch.inference_mode():
        matches = golden_network()(features_of(permuted, 0), features_of(permuted, 1))
    assert_matches(matches, data)
    assert (inputs["out_matches0"][:, order] != data["out_matches0"]).any()


def test_mambaglue_golden_image_without_keypoints() -> None:
    data = arrays("sp_empty0")
    with torch.inference_mode():
        assert_matches(golden_network()(features_of(data, 0), features_of(data, 1)), data)


def test_mambaglue_golden_training_loss() -> None:
    inputs, data = arrays("sp_full"), arrays("sp_loss")
    truth = GroundTruthMatches(
        torch.from_numpy(data["gt_matches0"]), torch.from_numpy(data["gt_matches1"])
    )
    with torch.no_grad():
        outputs = golden_network().forward_layers(features_of(inputs, 0), features_of(inputs, 1))
    loss = mambaglue_loss(outputs, truth)
    assert_close(loss.assignment, data["nll_per_layer"], STATE_TOLERANCE)
    assert_close(loss.matched, data["nll_pos_per_layer"], STATE_TOLERANCE)
    assert_close(loss.unmatched, data["nll_neg_per_layer"], STATE_TOLERANCE)
    assert_close(loss.confidence, data["confidence_bce_per_layer"], STATE_TOLERANCE)
    assert_close(loss.total, data["total_training_loss"], STATE_TOLERANCE)
    final = outputs.log_assignments[-1]
    assert final.exp()[:, :-1].sum(dim=2).mean().item() == pytest.approx(
        float(data["row_norm"]), abs=STATE_TOLERANCE
    )
