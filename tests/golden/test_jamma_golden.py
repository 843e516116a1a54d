"""JamMa against the authors' network, stage by stage."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from jamma_golden_data import (
    CASES,
    POINT_TOLERANCE,
    assert_close,
    golden_network,
    inputs,
    load,
    network_with,
    normalized,
    unit_input,
)
from jamma_supervision import PairTruth, coarse_truth, fine_truth, jamma_loss
from material import shared_path
from torch import Tensor

from sfm_matchers.networks import jamma
from sfm_matchers.networks.jamma import JamMaConfig
from sfm_matchers.networks.mamba import run_side_by_side
from sfm_matchers.networks.selective_scan import selective_scan
from sfm_matchers.photos.resizing import network_size, resize_image
from sfm_matchers.training.data.depth_geometry import DepthGeometry

pytestmark = pytest.mark.slow


def test_jamma_golden_weights_and_keys() -> None:
    listed = json.loads(shared_path("networks/jamma/state_dict.json").read_text())
    state_dict = golden_network().state_dict()
    assert len(state_dict) == listed["n_keys"]
    check = load("weights_check")
    sums = {key: state_dict[key].double().sum().item() for key in state_dict}
    for key, total in zip(check["keys"], check["sum"], strict=True):
        assert sums[str(key)] == pytest.approx(total, abs=1e-6)


@pytest.mark.parametrize("case", ["a", "b", "c"])
@torch.no_grad()
def test_jamma_golden_stages(case: str) -> None:
    data, step = load(CASES[case][0]), CASES[case][2]
    network = golden_network()
    images, options = inputs(case)
    both = torch.cat(images)
    batch = len(images[0])
    quarter, eighth = network.backbone.cnn(both)
    assert_close(quarter[:, ::step], data["enc4"])
    assert_close(eighth[:, ::step], data["enc8"])
    features = network.encode(both)
    assert_close(network.backbone(both)[0][:, :: 2 * step], data["feat4"])
    assert_close(features.eighth[:, ::step], data["feat8"])

    features0, features1 = (
        jamma.JamMaFeatures(*(x[part] for x in features))
        for part in (slice(None, batch), slice(batch, None))
    )
    grid = (features.eighth.shape[2], features.eighth.shape[3])
    code = network.matcher.kenc(grid, like=features.eighth)
    assert_close(code.flatten(2)[:, ::step].expand(data["kenc"].shape), data["kenc"])
    with_code = (features0.eighth + code, features1.eighth + code)
    merged = network.matcher.joint_mamba.scan_and_merge(*with_code)
    assert_close(merged[:, ::step], data["merged"])
    order = jamma.scan_order(grid)
    cells = merged.flatten(2).transpose(1, 2)
    cells = torch.cat((cells[:batch], cells[batch:]), dim=1)
    assert_close(cells[:, order][..., ::step], data["seq_out"])

    coarse0, coarse1 = network.coarse_features(features0, features1)
    assert_close(torch.cat((coarse0, coarse1))[:, ::step], data["aggregated"])
    project = network.matcher.coarse_matching
    assert_close(project(coarse0)[..., ::step], data["coarse_proj0"])
    assert_close(project(coarse1)[..., ::step], data["coarse_proj1"])
    masks = (options.get("mask0"), options.get("mask1"))
    similarity = network.coarse_similarity(coarse0, coarse1, *masks)
    assert_close(similarity[:, ::16], data["sim_rows"])
    assert_close(similarity.amax(2), data["sim_row_max"])
    assert_close(similarity.amax(1), data["sim_col_max"])
    assert_close(similarity.softmax(2).amax(2), data["p01_row_max"])
    assert_close(similarity.softmax(1).amax(1), data["p10_col_max"])
    for axis, key in ((2, "row"), (1, "col")):
        is_valid = data[f"sim_{key}_max"] > -1e8  # rows of padding are all equal
        found = similarity.argmax(axis).numpy()[is_valid]
        np.testing.assert_array_equal(found, data[f"sim_{key}_argmax"][is_valid])

    fine0, fine1 = network.fine_maps(features0, features1, coarse0, coarse1)
    assert_close(torch.cat((fine0, fine1))[:, :: 2 * step], data["fine_map"])
    ids = [torch.from_numpy(data[f"t0_{key}_ids"]).long() for key in "bij"]
    logits, tokens = network.fine_predictions(fine0, fine1, *ids)
    assert_close(tokens[:12].transpose(1, 2), data["mixer_out_first12"])
    probability = logits.softmax(1) * logits.softmax(2)
    assert_close(probability[:12], data["fine_conf_first12"])
    best, best_ids = probability.flatten(1).max(1)
    assert_close(best, data["fine_conf_max"])
    np.testing.assert_array_equal(best_ids.numpy(), data["fine_conf_argmax"])


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("threshold", range(4))
def test_jamma_golden_matches(case: str, threshold: int) -> None:
    data = load(CASES[case][0])
    prefix = f"t{threshold}"
    if f"{prefix}_thr" not in data:
        assert case in "cd"
        assert threshold >= 2
        return
    coarse_threshold, fine_threshold = data[f"{prefix}_thr"].tolist()
    network = network_with(
        replace(JamMaConfig(), coarse_threshold=coarse_threshold, fine_threshold=fine_threshold)
    )
    images, options = inputs(case)
    output = network(*images, **options)

    for key, actual in (
        ("b_ids", output.coarse.batch_ids),
        ("i_ids", output.coarse.ids0),
        ("j_ids", output.coarse.ids1),
    ):
        np.testing.assert_array_equal(actual.numpy(), data[f"{prefix}_{key}"])
    assert_close(output.coarse.similarities, data[f"{prefix}_mconf"])
    columns = CASES[case][1][1] // jamma.CELL
    for side, ids in (("0", output.coarse.ids0), ("1", output.coarse.ids1)):
        points = jamma.cell_position(ids, columns)
        if f"scale{side}" in options:
            points = points * options[f"scale{side}"][output.coarse.batch_ids]
        assert_close(points, data[f"{prefix}_mkpts{side}_c"], POINT_TOLERANCE)
    if fine_threshold == pytest.approx(0.999):
        # Where nothing passes, the authors' code reports the first coarse match, whatever it is,
        # with score 1. Ours reports nothing.
        assert data[f"{prefix}_mconf_f"].tolist() == [1.0]
        assert len(output.scores) == 0
        return
    np.testing.assert_array_equal(output.batch_ids.numpy(), data[f"{prefix}_m_bids"])
    assert_close(output.keypoints0, data[f"{prefix}_mkpts0_f"], POINT_TOLERANCE)
    assert_close(output.keypoints1, data[f"{prefix}_mkpts1_f"], POINT_TOLERANCE)
    assert_close(output.scores, data[f"{prefix}_mconf_f"])


def test_jamma_golden_scan_maps() -> None:
    maps = load("scan_maps")
    grids = [key.removeprefix("scan_") for key in maps if key.startswith("scan_")]
    assert grids
    for name in grids:
        height, width = map(int, name.split("x"))
        order = jamma.scan_order((height, width))
        np.testing.assert_array_equal(order.numpy(), maps[f"scan_{name}"])
        np.testing.assert_array_equal(order.flatten().argsort().numpy(), maps[f"merge_{name}"])


def test_jamma_golden_selective_scan() -> None:
    units = load("units")

    def channels_last(key: str) -> Tensor:
        return torch.from_numpy(units[f"scan_in_{key}"]).transpose(1, 2).contiguous()

    y = selective_scan(
        channels_last("u"),
        channels_last("delta"),
        torch.from_numpy(units["scan_in_A"]),
        channels_last("B"),
        channels_last("C"),
        torch.from_numpy(units["scan_in_D"]),
        z=channels_last("z"),
        delta_bias=torch.from_numpy(units["scan_in_delta_bias"]),
    )
    assert_close(y.transpose(1, 2), units["scan_out"])


@torch.no_grad()
def test_jamma_golden_units() -> None:
    units, network = load("units"), golden_network()
    matcher, cnn = network.matcher, network.backbone.cnn
    sequence = unit_input("mamba_in", (2, 37, 256))
    blocks = list(matcher.joint_mamba.layers)
    assert_close(blocks[0].norm(sequence)[..., ::4], units["rmsnorm_out"])
    mixed = run_side_by_side(blocks, sequence.expand(4, -1, -1, -1))
    assert_close(mixed[0][..., ::2], units["block_out"])
    for layer in (1, 2, 3):
        assert_close(mixed[layer][..., ::8], units[f"block_out_layer{layer}"])
    assert_close((mixed[0] - sequence)[..., ::2], units["mixer_out"])

    aggregated = matcher.joint_mamba.aggregator(unit_input("agg_in", (1, 256, 6, 8)))
    assert_close(aggregated, units["agg_out"])
    coarse = unit_input("up2_in", (1, 256, 4, 6))
    assert_close(matcher.up2(coarse), units["up2_out"])
    quarter = unit_input("feat4_in", (1, 128, 8, 12))
    assert_close(matcher.fine_map(matcher.image_share(quarter), coarse), units["fpn_out"])
    tokens = unit_input("mixer_in", (3, 64, 50)).transpose(1, 2)
    assert_close(matcher.fine_enc[0](tokens).transpose(1, 2), units["mlpmixer0_out"])
    block = cnn.stages[0][0](unit_input("convnext_in", (1, 80, 9, 11)))
    assert_close(block, units["convnext_block_out"])
    stem = cnn.downsample_layers[0](unit_input("stem_in", (1, 3, 24, 32)))
    assert_close(stem, units["stem_out"])


@torch.no_grad()
def test_jamma_golden_positions() -> None:
    units, network = load("units"), golden_network()
    sizes = [key.removeprefix("kpt_norm_") for key in units if key.startswith("kpt_norm_")]
    assert sizes
    for name in sizes:
        height, width = map(int, name.split("x"))
        grid = (height // jamma.CELL, width // jamma.CELL)
        assert_close(jamma.normalized_positions(grid), units[f"kpt_norm_{name}"], 1e-6)
        code = network.matcher.kenc(grid, like=torch.zeros(()))
        assert_close(code[0].flatten(1)[::16], units[f"kenc_{name}"])


def test_jamma_golden_supervision_losses_and_gradients() -> None:
    data = load("case_t_supervision_loss_96x96")
    images = []
    for side in "01":
        batch = torch.zeros(2, 3, 96, 96)
        for item in range(2):
            image = normalized(data[f"image{side}_{item}"])
            batch[item, :, : image.shape[1], : image.shape[2]] = image
        images.append(batch)
    tensors = {key: torch.from_numpy(data[key]) for key in data if data[key].dtype.kind in "fb"}
    truth = PairTruth(
        geometry=DepthGeometry(
            *(tensors[key] for key in ("depth0", "depth1", "K0", "K1", "T_0to1"))
        ),
        intrinsics0=tensors["K0"],
        intrinsics1=tensors["K1"],
        cam1_from_cam0=tensors["T_0to1"],
        scale0=tensors["scale0"],
        scale1=tensors["scale1"],
        mask0=tensors["mask0"],
        mask1=tensors["mask1"],
    )
    for actual, key in zip(coarse_truth(truth, (12, 12)), "bij", strict=True):
        np.testing.assert_array_equal(actual.numpy(), data[f"spv_{key}_ids"])
    ids = [torch.from_numpy(data[f"{key}_ids"]).long() for key in "bij"]
    pairs = fine_truth(truth, (12, 12), *ids).nonzero().numpy()
    np.testing.assert_array_equal(pairs, data["fine_gt_nonzero"])

    network = network_with(JamMaConfig())
    loss = jamma_loss(network, images[0], images[1], truth)
    assert loss.coarse.item() == pytest.approx(float(data["scalar_loss_c"]), abs=1e-4)
    assert loss.fine.item() == pytest.approx(float(data["scalar_loss_f"]), abs=1e-4)
    assert 1e4 * loss.subpixel.item() == pytest.approx(float(data["scalar_loss_sub"]), abs=1e-4)
    assert loss.total.item() == pytest.approx(float(data["scalar_loss"]), abs=2e-4)
    loss.total.backward()
    gradients = {name: weight.grad for name, weight in network.named_parameters()}
    for key, norm in zip(data["grad_keys"], data["grad_l2"], strict=True):
        gradient = gradients[str(key)]
        assert gradient is not None
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-7)
    for key in (key for key in data if key.startswith("grad::")):
        gradient = gradients[key.removeprefix("grad::")]
        assert gradient is not None
        scale = np.abs(data[key]).max()
        np.testing.assert_allclose(gradient.numpy(), data[key], rtol=0, atol=1e-3 * scale)


def test_jamma_golden_preprocessing() -> None:
    """Resizing as the authors' loader does it, by Pillow: at most a grey level apart."""
    data = load("preprocess")
    for name in sorted({key.rpartition("_raw")[0] for key in data if key.endswith("_raw")}):
        raw, (resize_max, multiple) = data[f"{name}_raw"], data[f"{name}_args"].tolist()
        image = raw if raw.ndim == 3 else np.repeat(raw[..., None], 3, axis=2)
        size = network_size((raw.shape[1], raw.shape[0]), resize_max, multiple, enlarge=True)
        assert [size[1], size[0]] == data[f"{name}_hw"].tolist()
        resized = resize_image(image, size)
        np.testing.assert_allclose(resized.scale, data[f"{name}_scale"], rtol=1e-6)
        expected = data[f"{name}_out"]
        canvas = torch.zeros(3, *data[f"{name}_out_shape"][2:])
        canvas[:, : size[1], : size[0]] = normalized(resized.pixels)
        grey_level = 1 / 255 / min(jamma.IMAGE_STD)
        assert_close(canvas[:, ::2, ::2], expected, 1.01 * grey_level)
