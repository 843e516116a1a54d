"""The rest of JamMa's golden data: statistics of whole tensors, inner steps, validation mode."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jamma_golden_data import (
    CASES,
    POINT_TOLERANCE,
    TOLERANCE,
    assert_close,
    golden_network,
    inputs,
    load,
    network_with,
    normalized,
    unit_input,
)
from torch import Tensor

from sfm_matchers.networks import jamma
from sfm_matchers.networks.jamma import JamMaConfig, JamMaFeatures
from sfm_matchers.networks.mamba import run_side_by_side
from sfm_matchers.networks.selective_scan import selective_scan
from sfm_matchers.training.data.depth_geometry import DepthGeometry

CASE_T = "case_t_supervision_loss_96x96"
THRESHOLDS = [(case, number) for case in CASES for number in (0, 1)]


def assert_statistics(actual: Tensor, expected: np.ndarray) -> None:
    """Mean, standard deviation, minimum, maximum, mean of the absolute value."""
    x = actual.double().numpy()
    found = [x.mean(), x.std(), x.min(), x.max(), np.abs(x).mean()]
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@functools.cache
@torch.no_grad()
def stages(case: str) -> dict[str, Tensor]:
    """The stages before the fine one, under the names of the golden data."""
    network, (images, options) = golden_network(), inputs(case)
    both = torch.cat(images)
    enc4, enc8 = network.backbone.cnn(both)
    features = network.encode(both)
    features0 = JamMaFeatures(*(x.chunk(2)[0] for x in features))
    features1 = JamMaFeatures(*(x.chunk(2)[1] for x in features))
    grid = (enc8.shape[2], enc8.shape[3])
    code = network.matcher.kenc(grid, like=enc8)
    eighth = features.eighth + code
    cells = torch.cat(eighth.flatten(2).chunk(2), dim=2).transpose(1, 2)
    sequences = cells[:, jamma.scan_order(grid)].transpose(0, 1)
    coarse = network.coarse_features(features0, features1)
    masks = (options.get("mask0"), options.get("mask1"))
    return {
        "enc4": enc4,
        "enc8": enc8,
        "feat4": network.backbone(both)[0],
        "feat8": features.eighth,
        "kenc_0": code,
        "kenc_1": code,
        "seq_out": run_side_by_side(list(network.matcher.joint_mamba.layers), sequences),
        "merged": network.matcher.joint_mamba.scan_and_merge(*eighth.chunk(2)),
        "aggregated": torch.cat(coarse),
        "cproj_0": network.matcher.coarse_matching(coarse[0]),
        "cproj_1": network.matcher.coarse_matching(coarse[1]),
        "similarity": network.coarse_similarity(*coarse, *masks),
        "up2": network.matcher.up2(torch.cat(coarse)),
        "fine_map": torch.cat(network.fine_maps(features0, features1, *coarse)),
    }


@functools.cache
@torch.no_grad()
def fine_predictions(case: str, number: int) -> jamma.FinePredictions:
    """The fine stage on the golden coarse matches of a pair of thresholds."""
    data = load(CASES[case][0])
    ids = [torch.from_numpy(data[f"t{number}_{key}_ids"]).long() for key in "bij"]
    return golden_network().fine_predictions(*stages(case)["fine_map"].chunk(2), *ids)


@pytest.mark.parametrize("case", list(CASES))
@torch.no_grad()
def test_jamma_golden_statistics(case: str) -> None:
    data, found = load(CASES[case][0]), dict(stages(case))
    del found["similarity"]
    for direction, sequence in enumerate(found.pop("seq_out")):
        assert_statistics(sequence, data[f"stats_seq_out{direction}"])
    tokens = fine_predictions(case, 0).tokens
    found["mixer_out"] = tokens
    projected = golden_network().matcher.fine_matching.fine_proj(tokens)
    found["fproj_0"], found["fproj_1"] = projected.split(jamma.WINDOW_CELLS, dim=1)
    for name, tensor in found.items():
        assert_statistics(tensor, data[f"stats_{name}"])
    names = {key for key in data if key.startswith("stats_") and "seq_out" not in key}
    assert names == {f"stats_{name}" for name in found}


def test_jamma_golden_peaks_of_the_padded_batch() -> None:
    data, logits = load(CASES["d"][0]), stages("d")["similarity"]
    for axis, key, softmax in ((2, "row", "p01_row"), (1, "col", "p10_col")):
        value, index = logits.max(axis)
        assert_close(value, data[f"sim_{key}_max"])
        is_valid = data[f"sim_{key}_max"] > -1e8  # rows of padding are all equal
        expected = data[f"sim_{key}_argmax"][is_valid]
        np.testing.assert_array_equal(index.numpy()[is_valid], expected)
        assert_close(logits.softmax(axis).amax(axis), data[f"{softmax}_max"])
    similarity = fine_predictions("d", 0).similarity
    value, index = (similarity.softmax(1) * similarity.softmax(2)).flatten(1).max(1)
    assert_close(value, data["fine_conf_max"])
    np.testing.assert_array_equal(index.numpy(), data["fine_conf_argmax"])


@pytest.mark.parametrize(("case", "number"), THRESHOLDS)
def test_jamma_golden_points_before_the_offsets(case: str, number: int) -> None:
    data, options = load(CASES[case][0]), inputs(case)[1]
    config = JamMaConfig(fine_threshold=float(data[f"t{number}_thr"][1]))
    chosen = network_with(config).choose_cells(fine_predictions(case, number).similarity)
    kept, cells0, cells1, _ = chosen
    batch_ids = torch.from_numpy(data[f"t{number}_b_ids"]).long()[kept]
    for side, cells, key in ((0, cells0, "i"), (1, cells1, "j")):
        ids = torch.from_numpy(data[f"t{number}_{key}_ids"]).long()[kept]
        points = jamma.fine_position(ids, cells, CASES[case][1][1] // jamma.CELL)
        if f"scale{side}" in options:
            points = points * options[f"scale{side}"][batch_ids]
        assert_close(points, data[f"t{number}_mkpts{side}_f1"], POINT_TOLERANCE)


@pytest.mark.parametrize("case", ["a", "b"])
@torch.no_grad()
def test_jamma_golden_point_where_no_window_passes(case: str) -> None:
    """What the authors report then is cell 0 of both windows of the first coarse match."""
    data, options = load(CASES[case][0]), inputs(case)[1]
    zero = torch.zeros(1, dtype=torch.long)
    tokens = fine_predictions(case, 0).tokens[:1]
    offsets = golden_network().subpixel_offsets(tokens, zero, zero, zero)
    for side, key, offset in ((0, "i", offsets[:, :2]), (1, "j", offsets[:, 2:])):
        cell = torch.from_numpy(data[f"t2_{key}_ids"][:1]).long()
        point = jamma.fine_position(cell, zero, CASES[case][1][1] // jamma.CELL)
        scale = options.get(f"scale{side}", torch.ones(1, 2))
        assert_close(point * scale, data[f"t2_mkpts{side}_f1"], POINT_TOLERANCE)
        assert_close((point + offset) * scale, data[f"t2_mkpts{side}_f"], POINT_TOLERANCE)


@pytest.mark.parametrize("backend", ["reference", "torch", "numba"])
def test_jamma_golden_selective_scan_of_each_backend(backend: str) -> None:
    if backend == "numba":
        pytest.importorskip("numba")
    prefix = "scan_in_"
    values = {
        key.removeprefix(prefix): torch.from_numpy(array)
        for key, array in load("units").items()
        if key.startswith(prefix)
    }
    for key in ("u", "delta", "B", "C", "z"):
        values[key] = values[key].transpose(1, 2)
    y = selective_scan(**values, backend=backend)
    assert_close(y.transpose(1, 2), load("units")["scan_out"], 1e-5)


@torch.no_grad()
def test_jamma_golden_steps_inside_the_mamba_block() -> None:
    units, block = load("units"), golden_network().matcher.joint_mamba.layers[0]
    x, mixer = unit_input("mamba_in", (2, 37, 256)), block.mixer
    normed = block.norm(x)
    signal = F.linear(normed, mixer.in_proj.weight.chunk(2)[0]).transpose(1, 2)
    signal = F.silu(mixer.conv1d(F.pad(signal, (3, 0))))
    assert_close(signal[:, ::8], units["conv_silu_out"])
    projected = mixer.x_proj(signal.transpose(1, 2))
    assert_close(projected, units["x_proj_out"])
    assert_close(F.softplus(mixer.dt_proj(projected[..., :16]))[..., ::8], units["dt_softplus"])
    assert_close(mixer(normed)[..., ::2], units["mixer_out"])
    assert_close(block(x)[..., ::2], units["block_out"])


def test_jamma_golden_warped_grid() -> None:
    data = load(CASE_T)
    tensors = (torch.from_numpy(data[key]) for key in ("depth0", "depth1", "K0", "K1", "T_0to1"))
    points = jamma.cell_position(torch.arange(144), 12) * torch.from_numpy(data["scale0"])[:, None]
    warped, visible = DepthGeometry(*tensors).warp(points, 0)
    np.testing.assert_array_equal(visible.numpy(), (data["spv_w_pt0_i"] != 0).any(-1))
    assert_close(warped * visible[..., None], data["spv_w_pt0_i"], POINT_TOLERANCE)


def test_jamma_golden_validation_matches() -> None:
    data = load(CASE_T)
    images = [torch.zeros(2, 3, 96, 96) for _ in range(2)]
    for side, batch in enumerate(images):
        for item in range(2):
            image = normalized(data[f"image{side}_{item}"])
            batch[item, :, : image.shape[1], : image.shape[2]] = image
    names = ("mask0", "mask1", "scale0", "scale1")
    options = {name: torch.from_numpy(data[name]) for name in names}
    output = golden_network()(*images, **options)
    coarse = output.coarse
    for key, ids in (("b", coarse.batch_ids), ("i", coarse.ids0), ("j", coarse.ids1)):
        np.testing.assert_array_equal(ids.numpy(), data[f"{key}_ids"])
        np.testing.assert_array_equal(data[f"{key}_ids_fine"], data[f"{key}_ids"])  # all of them
    assert_close(coarse.scores, data["mconf"])
    np.testing.assert_array_equal(output.batch_ids.numpy(), data["m_bids"])
    assert_close(output.scores, data["mconf_f"])
    sides = ((0, output.keypoints0, coarse.ids0), (1, output.keypoints1, coarse.ids1))
    for side, points, ids in sides:
        assert_close(points, data[f"mkpts{side}_f"], POINT_TOLERANCE)
        assert_close(points, data[f"mkpts{side}_f_train"], POINT_TOLERANCE)
        corners = jamma.cell_position(ids, 12) * options[f"scale{side}"][coarse.batch_ids]
        assert_close(corners, data[f"mkpts{side}_c"], POINT_TOLERANCE)
