"""Efficient LoFTR against the authors' network, stage by stage."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import torch
from efficient_loftr_supervision import efficient_loftr_loss
from golden_weights_eloftr import golden_state_dict
from material import shared_path
from torch import Tensor, nn

from sfm_matchers.networks import efficient_loftr as eloftr
from sfm_matchers.networks.efficient_loftr import EfficientLoFTR, EfficientLoFTRConfig
from sfm_matchers.training.data.depth_geometry import DepthGeometry
from sfm_matchers.weights import convert_efficient_loftr

pytestmark = pytest.mark.slow

GOLDEN = "networks/eloftr/golden"
CASES = sorted(
    path.stem
    for path in shared_path(GOLDEN).glob("*_*.npz")
    if path.stem.startswith(("full", "opt"))
)
FEATURES = 2e-4
CONFIDENCE = {"full": 1e-4, "opt": 5e-4}
POINTS = 1e-4  # pixels


@functools.cache
def load(name: str) -> dict[str, np.ndarray]:
    with np.load(shared_path(f"{GOLDEN}/{name}.npz")) as arrays:
        return dict(arrays)


@functools.cache
def golden_weights() -> dict[str, Tensor]:
    shapes = {key: value.shape for key, value in EfficientLoFTR().state_dict().items()}
    return golden_state_dict(shapes)


def golden_network(config: EfficientLoFTRConfig | None = None) -> EfficientLoFTR:
    network = EfficientLoFTR(config)
    network.load_state_dict(golden_weights())
    return network.eval()


def network_of(case: str) -> EfficientLoFTR:
    meta = json.loads(str(load(case)["meta"])) if "meta" in load(case) else {}
    matching, npe = meta["match_coarse"], meta["npe"]
    return golden_network(
        EfficientLoFTRConfig(
            coarse_threshold=matching["thr"],
            raw_threshold=matching["thr"],
            border=matching["border_rm"],
            skip_softmax=matching["skip_softmax"],
            train_hw=(npe[0], npe[1]),
            test_hw=(npe[2], npe[3]),
            # The authors crop a padded pair, and pool the masks of a padded batch.
            padding="pool" if case.endswith("_b2") else "crop",
        )
    )


def inputs(case: str) -> tuple[list[Tensor], dict[str, Tensor]]:
    meta = json.loads(str(load(case)["meta"]))
    stored = load("images")
    images, options = [], {}
    for side in "01":
        crops = [stored[name] for name in meta[f"images{side}"]]
        shape = (192, 192) if meta["masked"] else crops[0].shape
        batch = torch.zeros(len(crops), 1, *shape)
        mask = torch.zeros(len(crops), shape[0] // 8, shape[1] // 8, dtype=torch.bool)
        for index, crop in enumerate(crops):
            height, width = crop.shape
            batch[index, 0, :height, :width] = torch.from_numpy(crop.astype(np.float32) / 255)
            mask[index, : height // 8, : width // 8] = True
        images.append(batch)
        if meta["masked"]:
            options[f"mask{side}"] = mask
        if f"scale{side}" in meta["extra"]:
            options[f"scale{side}"] = torch.tensor(meta["extra"][f"scale{side}"])
    return images, options


def assert_close(actual: Tensor, expected: np.ndarray, tolerance: float) -> None:
    assert tuple(actual.shape) == expected.shape
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=0, atol=tolerance)


def record_layers(network: EfficientLoFTR) -> dict[str, Tensor]:
    """Fill a dictionary, when the network runs, with what leaves each layer for each image."""
    seen: dict[str, Tensor] = {}

    def hook(index: int) -> object:
        def record(module: nn.Module, arguments: object, output: Tensor) -> None:
            side = 0 if f"tr{index}_f0" not in seen else 1
            seen[f"tr{index}_f{side}"] = output

        return record

    for index, layer in enumerate(network.loftr_coarse.layers):
        layer.register_forward_hook(hook(index))
    return seen


def test_eloftr_golden_weights_and_keys() -> None:
    listed = json.loads(shared_path("networks/eloftr/state_dict.json").read_text())
    weights = golden_weights()
    assert set(weights) == {entry["key"] for entry in listed["train_form"]}
    check = load("weights_check")
    for key, total in zip(check["keys"], check["sum"], strict=True):
        assert weights[str(key)].double().sum().item() == pytest.approx(total, abs=1e-4)
    fused = EfficientLoFTR().fuse().state_dict()
    assert {key: list(value.shape) for key, value in fused.items()} == {
        entry["key"]: entry["shape"] for entry in listed["deploy_form"]
    }


@pytest.mark.parametrize("layout", ["authors", "transformers", "older transformers"])
def test_eloftr_golden_checkpoint_layouts(layout: str) -> None:
    listed = json.loads(shared_path("networks/eloftr/state_dict.json").read_text())
    weights = golden_weights()
    names = {}
    for entry in listed["train_form"]:
        names[entry["key"]] = {
            "authors": f"matcher.{entry['key']}",
            "transformers": entry["transformers_key"],
            "older transformers": entry["transformers_key"].replace("efficientloftr.", "model.", 1),
        }[layout]
    converted = convert_efficient_loftr.convert({names[key]: weights[key] for key in weights})
    assert all(converted[key] is weights[key] for key in weights)
    assert len(converted) == len(weights)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_eloftr_golden_features_and_matches(case: str) -> None:
    if "meta" not in load(case):
        pytest.fail(f"{case}.npz lacks its description")
    data, network = load(case), network_of(case)
    images, options = inputs(case)
    layers = record_layers(network)
    features0, features1 = network.encode_pair(*images)
    names = (("bb_x1", 0, 8, 7), ("bb_x2", 1, 16, 4), ("bb_c", 2, 16, 2))
    for name, index, channels, pixels in names:
        maps = {"bb_": torch.cat((features0[index], features1[index]))} if name in data else {}
        if name.replace("bb_", "bb0_") in data:
            maps = {"bb0_": features0[index], "bb1_": features1[index]}
        for prefix, feature_map in maps.items():
            expected = data[name.replace("bb_", prefix)]
            assert_close(feature_map[:, ::channels, ::pixels, ::pixels], expected, FEATURES)

    masks = (options.get("mask0"), options.get("mask1"))
    coarse = network.transform(features0, features1, *masks)
    for name, output in [*layers.items(), ("tr_out_f0", coarse[0]), ("tr_out_f1", coarse[1])]:
        if name in data:
            assert_close(output[:, ::16, ::2, ::2], data[name], FEATURES)

    confidence = network.coarse_logits(*coarse, *masks)
    if case.startswith("full"):
        confidence = confidence.softmax(1) * confidence.softmax(2)
    tolerance = CONFIDENCE[case.split("_")[0]]
    if options.get("mask0") is None:
        assert_close(confidence[:, ::5, ::5], data["conf_sub"], tolerance)
        assert_close(confidence.amax(2), data["conf_rowmax"], tolerance)
        assert_close(confidence.amax(1), data["conf_colmax"], tolerance)

    output = network(*images, **options)
    for key, actual in (
        ("b_ids", output.batch_ids),
        ("i_ids", output.coarse_ids0),
        ("j_ids", output.coarse_ids1),
    ):
        np.testing.assert_array_equal(actual.numpy(), data[key])
    assert_close(output.scores, data["mconf"], tolerance)
    assert_close(output.keypoints0, data["mkpts0_f"], POINTS)
    assert_close(output.keypoints1, data["mkpts1_f"], POINTS)


@torch.no_grad()
def test_eloftr_golden_pair_windows() -> None:
    data, network = load("full_pair"), network_of("full_pair")
    images, _ = inputs("full_pair")
    features = network.encode_pair(*images)
    fine = network.fine_maps(*features, *network.transform(*features))
    ids = [torch.from_numpy(data[key]).long() for key in ("b_ids", "i_ids", "j_ids")]
    windows0, windows1 = eloftr.match_windows(*fine, *ids)
    assert_close(windows0[:4], data["win0"], FEATURES)
    assert_close(windows1[:4], data["win1"], FEATURES)
    confidence = eloftr.first_stage_log_confidence(windows0, windows1).exp()
    assert_close(confidence[:4], data["conf_f"], 1e-4)
    best = confidence.flatten(1).argmax(1)
    np.testing.assert_array_equal((best // 64).numpy(), data["idx_l"])
    np.testing.assert_array_equal((best % 64).numpy(), data["idx_r"])


@torch.no_grad()
def test_eloftr_golden_fine_unit() -> None:
    data = load("fine_unit")
    windows0, windows1 = torch.from_numpy(data["f0"]), torch.from_numpy(data["f1"])
    confidence = eloftr.first_stage_log_confidence(windows0, windows1).exp()
    assert_close(confidence[0], data["conf_f_0"], 1e-5)
    best = confidence.flatten(1).argmax(1)
    pixels0, pixels1 = best // 64, best % 64
    np.testing.assert_array_equal(pixels0.numpy(), data["idx_l"])
    np.testing.assert_array_equal(pixels1.numpy(), data["idx_r"])
    ids = torch.arange(len(best))
    offsets = eloftr.second_stage_offsets(
        windows0, windows1, ids, pixels0, pixels1, EfficientLoFTRConfig()
    )
    assert_close(offsets, data["expec"], 1e-5)
    corner1 = torch.from_numpy(data["mkpts1_coarse"])
    final = corner1 + eloftr.window_position(pixels1) + offsets
    assert_close(final, data["mkpts1_f"], POINTS)


def test_eloftr_golden_rotary_tables() -> None:
    data = load("rope")
    rows, columns = data["rows"], data["cols"]
    for name in ("832_832_832_832", "832_832_1152_1152", "832_832_1152_640"):
        npe = [int(number) for number in name.split("_")]
        scale = (npe[0] / npe[2], npe[1] / npe[3])
        table = eloftr.rotary_table((9, 12), scale, like=torch.zeros(()))
        for key, values in (("sin", table.sin), ("cos", table.cos)):
            grid = values.view(9, 12, -1)[rows][:, columns].repeat_interleave(2, -1)
            assert_close(grid, data[f"{key}_{name}"].astype(np.float32), 1e-3)
    x = torch.from_numpy(data["x"])
    table = eloftr.rotary_table(tuple(x.shape[1:3]), (1.0, 1.0), like=x)
    rotated = eloftr.rotate(x.flatten(1, 2), table).view_as(x)
    assert_close(rotated, data["x_rot_832"], 2e-3)


@torch.no_grad()
def test_eloftr_golden_fused_form() -> None:
    data = load("deploy")
    network = golden_network(EfficientLoFTRConfig(coarse_threshold=0.1)).fuse()
    state_dict = network.state_dict()
    for key, norm in zip(data["keys"], data["l2"], strict=True):
        tensor = state_dict[f"backbone.{str(key).removeprefix('backbone.')}"]
        assert tensor.double().norm().item() == pytest.approx(norm, rel=1e-5)
    output = network(*inputs("full_pair")[0])
    np.testing.assert_array_equal(output.coarse_ids0.numpy(), data["pair_i_ids"])
    np.testing.assert_array_equal(output.coarse_ids1.numpy(), data["pair_j_ids"])
    assert_close(output.scores, data["pair_mconf"], 1e-4)
    assert_close(output.keypoints1, data["pair_mkpts1_f"], POINTS)


def plane_depth(
    size: np.ndarray, intrinsics: np.ndarray, normal: np.ndarray, distance: float
) -> np.ndarray:
    height, width = size
    v, u = np.mgrid[:height, :width].astype(np.float64)
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(intrinsics).T
    return (distance / (rays @ normal)).astype(np.float32)


@pytest.mark.parametrize("case", ["loss_b2", "loss_mask_b1"])
def test_eloftr_golden_losses(case: str) -> None:
    data = load(case)
    depths: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for item in range(len(data["plane_d"])):
        size, normal = data["orig_hw"][item], data["plane_n"][item]
        height, width = size
        pose = data["in_T_0to1"][item].astype(np.float64)
        normal1 = pose[:3, :3] @ normal
        distance1 = data["plane_d"][item] + normal1 @ pose[:3, 3]
        depth0 = plane_depth(size, data["in_K0"][item], normal, data["plane_d"][item])
        depth1 = plane_depth(size, data["in_K1"][item], normal1, distance1)
        depth0[height // 2 : height // 2 + 30, width // 4 : width // 4 + 40] = 0
        depth1[height // 3 : height // 3 + 40, width // 2 : width // 2 + 50] *= 0.5
        depths[0].append(depth0)
        depths[1].append(depth1)
        check = (depth0.sum(dtype=np.float64), depth1.sum(dtype=np.float64))
        np.testing.assert_allclose(check, data["depth_check"][item][:2], rtol=1e-5)
    geometry = DepthGeometry(
        torch.from_numpy(np.stack(depths[0])),
        torch.from_numpy(np.stack(depths[1])),
        *(torch.from_numpy(data[f"in_{key}"]) for key in ("K0", "K1", "T_0to1")),
    )
    network = golden_network(EfficientLoFTRConfig(coarse_threshold=0.1))
    images = [torch.from_numpy(data[f"in_image{side}"])[:, None].float() / 255 for side in "01"]
    options = {
        key: torch.from_numpy(data[f"in_{key}"])
        for key in ("scale0", "scale1", "mask0", "mask1")
        if f"in_{key}" in data
    }
    loss = efficient_loftr_loss(network, *images, geometry, **options)
    assert loss.coarse.item() == pytest.approx(float(data["loss_c"]), rel=1e-4)
    assert loss.fine.item() == pytest.approx(float(data["loss_f"]), rel=1e-4)
    assert loss.local.item() == pytest.approx(float(data["loss_l"]), rel=1e-4)
    assert loss.total.item() == pytest.approx(float(data["loss"]), rel=1e-4)
    loss.total.backward()
    gradients = dict(network.named_parameters())
    for key, norm in zip(data["grad_keys"], data["grad_l2"], strict=True):
        gradient = gradients[str(key)].grad
        assert gradient is not None
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-2, abs=1e-6)
