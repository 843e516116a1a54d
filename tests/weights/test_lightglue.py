"""LightGlue's weights in MambaGlue: converted strictly, and the same function."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightglue_weights import CONFIG, DIM, HEADS, LAYERS, lightglue_state_dict
from torch import Tensor

from sfm_matchers.errors import WeightsError
from sfm_matchers.networks.mambaglue import LocalFeatures, MambaGlue
from sfm_matchers.weights import convert_lightglue, load_network
from sfm_matchers.weights.convert_lightglue import convert_either

RELEASED = "SFM_MATCHERS_LIGHTGLUE"  # a folder with aliked_lightglue.pth, disk_lightglue.pth


def released(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the names of LightGlue's released files."""
    names = {}
    for key in state_dict:
        parts = key.split(".")
        is_layer = parts[0] == "transformers"
        names[key] = ".".join([parts[2], parts[1], *parts[3:]]) if is_layer else key
    return {names[key]: tensor for key, tensor in state_dict.items()}


def random_features(count: int, seed: int) -> LocalFeatures:
    generator = torch.Generator().manual_seed(seed)
    return LocalFeatures(
        torch.rand(1, count, 2, generator=generator) * 300,
        F.normalize(torch.randn(1, count, 128, generator=generator), dim=-1),
        torch.tensor([[320, 240]]),
    )


def lightglue_states(
    tensors: dict[str, Tensor], features0: LocalFeatures, features1: LocalFeatures
) -> list[Tensor]:
    """LightGlue by its paper: states of both images (M, dim), (N, dim) after all layers."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def update(block: str, x: Tensor, message: Tensor) -> Tensor:
        hidden = linear(f"{block}.ffn.0", torch.cat([x, message], -1))
        norm = tensors[f"{block}.ffn.1.weight"], tensors[f"{block}.ffn.1.bias"]
        hidden = F.gelu(F.layer_norm(hidden, hidden.shape[-1:], *norm))
        return x + linear(f"{block}.ffn.3", hidden)

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """One head at a time, channels (N, HEADS, width)."""
        weights = torch.einsum("mhc,nhc->hmn", query, key) / math.sqrt(query.shape[-1])
        return torch.einsum("hmn,nhc->mhc", weights.softmax(-1), value).flatten(1)

    def rotated(x: Tensor, angles: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        turned = pairs * torch.polar(torch.ones_like(angles), angles)[:, None]
        return torch.view_as_real(turned).flatten(-2)

    states, angles = [], []
    for features in (features0, features1):
        size = features.require("image_size")[0].float()
        centred = (features.keypoints[0] - size / 2) / (size.max() / 2)
        states.append(linear("input_proj", features.descriptors[0]))
        angles.append(centred @ tensors["posenc.Wr.weight"].T)
    for layer in range(LAYERS):
        block = f"transformers.{layer}.self_attn"
        for image in (0, 1):
            # query, key and value of a channel stand next to each other
            qkv = linear(f"{block}.Wqkv", states[image]).unflatten(-1, (HEADS, -1, 3))
            query, key = (rotated(qkv[..., i], angles[image]) for i in (0, 1))
            message = linear(f"{block}.out_proj", attention(query, key, qkv[..., 2]))
            states[image] = update(block, states[image], message)
        block = f"transformers.{layer}.cross_attn"
        qk, value = (
            [linear(f"{block}.{name}", x).unflatten(-1, (HEADS, -1)) for x in states]
            for name in ("to_qk", "to_v")
        )
        messages = [attention(qk[i], qk[1 - i], value[1 - i]) for i in (0, 1)]
        states = [
            update(block, x, linear(f"{block}.to_out", message))
            for x, message in zip(states, messages, strict=True)
        ]
    return states


def build(state_dict: dict[str, Tensor]) -> MambaGlue:
    network = MambaGlue(CONFIG).eval()
    network.load_state_dict(convert_either(state_dict))
    return network


@torch.no_grad()
def test_the_converted_network_computes_what_lightglue_computes() -> None:
    state_dict = lightglue_state_dict()
    network = build(state_dict)
    features0, features1 = random_features(40, 0), random_features(50, 1)
    states0, states1 = lightglue_states(state_dict, features0, features1)
    expected = network.log_assignment[-1](states0[None], states1[None], None, None)
    outputs = network.forward_layers(features0, features1)
    torch.testing.assert_close(outputs.log_assignments[-1], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_confidence_regressor_is_lightglues_one_layer() -> None:
    state_dict = lightglue_state_dict()
    weight = state_dict["token_confidence.0.token.0.weight"]
    bias = state_dict["token_confidence.0.token.0.bias"]
    states = torch.randn(1, 7, DIM)
    expected = F.linear(states, weight, bias)[..., 0]
    torch.testing.assert_close(build(state_dict).token_confidence[0](states), expected)


def test_all_namings_give_the_same_network() -> None:
    state_dict = lightglue_state_dict()
    wrapped = {f"matcher.{key}": tensor for key, tensor in state_dict.items()}
    wrapped |= {"extractor.conv.weight": torch.zeros(3), "log_assignment.0.r": torch.zeros(1)}
    expected = convert_either(state_dict)
    for other in (released(state_dict), wrapped):
        found = convert_either(other)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


@torch.no_grad()
def test_a_silent_branch_is_heard_once_its_columns_are_not_zero_and_fused_away_while_they_are() -> (
    None
):
    network = build(lightglue_state_dict())
    features0, features1 = random_features(40, 0), random_features(50, 1)

    def last(some: MambaGlue) -> Tensor:
        return some.forward_layers(features0, features1).log_assignments[-1]

    before = last(network)
    assert network.has_silent_branch
    heard = build(lightglue_state_dict())
    columns = heard.transformermambas[0].mamba_selfattn_mixer.ffn[0].weight[:, 2 * DIM :]
    columns.copy_(torch.randn_like(columns))
    assert not heard.has_silent_branch
    after = last(heard)
    assert not torch.allclose(after, before, atol=1e-3)
    assert not any("mamba_mixer" in name for name, _ in network.fuse().named_parameters())
    torch.testing.assert_close(last(network), before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(last(heard.fuse()), after, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lacking", [True, False])
def test_what_is_missing_or_unknown_is_named(lacking: bool, tmp_path: Path) -> None:
    state_dict = lightglue_state_dict()
    if lacking:
        del state_dict["transformers.1.cross_attn.to_v.bias"]
    else:
        state_dict["transformers.1.cross_attn.gate"] = torch.zeros(1)
    path = tmp_path / "lightglue.pth"
    torch.save(released(state_dict), path)
    config = {"num_layers": LAYERS, "dim": DIM, "num_heads": HEADS}
    with pytest.raises(WeightsError, match=r"to_v\.bias|1\.cross_attn\.gate"):
        load_network("mambaglue", str(path), features="aliked", **config)


def test_a_layer_of_another_shape_is_named() -> None:
    state_dict = lightglue_state_dict()
    state_dict["transformers.0.self_attn.ffn.0.weight"] = torch.zeros(2 * DIM, 3 * DIM)
    with pytest.raises(WeightsError, match=r"ffn\.0\.weight"):
        convert_lightglue.convert(state_dict)


def test_weights_of_lightglue_are_announced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "lightglue.pth"
    torch.save(released(lightglue_state_dict()), path)
    with caplog.at_level(logging.WARNING):
        load_network(
            "mambaglue", str(path), features="aliked", num_layers=LAYERS, dim=DIM, num_heads=HEADS
        )
    assert "LightGlue's weights in MambaGlue's shape: the Mamba branch is silent" in caplog.text


@pytest.mark.parametrize("features", ["aliked", "disk"])
@torch.inference_mode()
def test_the_released_files_load(features: str) -> None:
    folder = os.environ.get(RELEASED)
    if not folder:
        pytest.skip(f"{RELEASED} names no folder with {features}_lightglue.pth")
    path = Path(folder) / f"{features}_lightglue.pth"
    network = load_network("mambaglue", str(path), features=features, filter_threshold=0.1)
    # Of an image with itself every keypoint is the partner of itself.
    same = random_features(200, 0)
    matches = network(same, same).matches0[0]
    assert (matches == torch.arange(200))[matches >= 0].all()
    assert (matches >= 0).sum() > 100
