"""What must hold of Efficient LoFTR whatever its weights. The authors' numbers: golden tests."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

import pytest
import torch
from golden_weights_eloftr import golden_state_dict
from torch import Tensor

from sfm_matchers.errors import InputError
from sfm_matchers.networks import efficient_loftr as eloftr
from sfm_matchers.networks.coarse_matching import CoarseMatches
from sfm_matchers.networks.efficient_loftr import (
    EfficientLoFTR,
    EfficientLoFTRConfig,
    EfficientLoFTROutput,
    LocalFeatureTransformer,
)

pytestmark = pytest.mark.slow

# Of these weights every pair of mutually best cells counts.
CONFIG = EfficientLoFTRConfig(coarse_threshold=-1.0, raw_threshold=-1e9, border=0)
# Pixels around a pixel of the 1/8 map on which its features depend: the stride-2 convolutions and
# 3 x 3 convolutions of the four stages, 1 + 2 * 2 + (2 + 3 * 4) + (4 + 13 * 8).
RECEPTIVE_RADIUS = 127


@functools.cache
def network(config: EfficientLoFTRConfig = CONFIG) -> EfficientLoFTR:
    with torch.device("meta"):  # no time for weights that are replaced
        one = EfficientLoFTR(config)
    one.load_state_dict(weights(), assign=True)
    return one.eval()


@functools.cache
def weights() -> dict[str, Tensor]:
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in EfficientLoFTR().state_dict().items()}
    return golden_state_dict(shapes)


def texture(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1, height // 8 + 2, width // 8 + 2, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bicubic")
    return fine[..., :height, :width].clamp(0, 1)


def feature_map(rows: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 256, rows, columns, generator=generator)


def mask(height: int, width: int, canvas: tuple[int, int]) -> Tensor:
    """Whole cells of an image of that size at the top left of a canvas (height, width)."""
    cells = torch.zeros(1, canvas[0] // 8, canvas[1] // 8, dtype=torch.bool)
    cells[:, : height // 8, : width // 8] = True
    return cells


def padded(image: Tensor, canvas: tuple[int, int]) -> Tensor:
    return torch.nn.functional.pad(
        image, (0, canvas[1] - image.shape[3], 0, canvas[0] - image.shape[2])
    )


@torch.no_grad()
def run(one: EfficientLoFTR, *inputs: Tensor | None) -> EfficientLoFTROutput:
    return one(*inputs)


def cell_pairs(output: EfficientLoFTROutput) -> set[tuple[int, int]]:
    return set(zip(output.coarse_ids0.tolist(), output.coarse_ids1.tolist(), strict=True))


def of_pair(output: EfficientLoFTROutput, pair: int) -> tuple[Tensor, Tensor, Tensor]:
    chosen = output.batch_ids == pair
    return output.keypoints0[chosen], output.keypoints1[chosen], output.scores[chosen]


def assert_same(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-3)


# Batches, sizes and padding


def test_eloftr_pairs_give_alone_what_they_give_in_a_batch() -> None:
    images0 = torch.cat([texture(96, 64, 0), texture(96, 64, 1)])
    images1 = torch.cat([texture(64, 96, 2), texture(64, 96, 3)])
    together = run(network(), images0, images1)
    for pair in range(2):
        alone = run(network(), images0[pair : pair + 1], images1[pair : pair + 1])
        assert len(alone.scores) > 3
        assert_same(of_pair(together, pair), of_pair(alone, 0))


@pytest.mark.parametrize("padding", ["crop", "pool"])
def test_eloftr_padded_pairs_give_alone_what_they_give_in_a_batch(padding: str) -> None:
    one = network(replace(CONFIG, padding=padding))
    canvas, sizes0, sizes1 = (128, 128), [(99, 128), (127, 70)], [(128, 85), (64, 101)]
    images = [
        torch.cat([padded(texture(*size, seed), canvas) for seed, size in enumerate(sizes)])
        for sizes in (sizes0, sizes1)
    ]
    masks = [torch.cat([mask(*size, canvas) for size in sizes]) for sizes in (sizes0, sizes1)]
    together = run(one, *images, *masks)
    for pair in range(2):
        item = slice(pair, pair + 1)
        alone = run(one, images[0][item], images[1][item], masks[0][item], masks[1][item])
        assert len(alone.scores) > 3
        assert_same(of_pair(together, pair), of_pair(alone, 0))
        for points, (height, width) in zip(
            of_pair(alone, 0)[:2], (sizes0[pair], sizes1[pair]), strict=True
        ):
            # Refinement moves a point by 4.5 px at most from the pixel of a valid cell.
            assert (points >= -4.5).all()
            assert (points < torch.tensor([width, height])).all()


def test_eloftr_padding_changes_the_backbone_near_it_only() -> None:
    image, canvas = texture(32, 256), (32, 320)
    with torch.no_grad():
        unpadded = network().encode(image).eighth
        at_large = network().encode(padded(image, canvas)).eighth[..., :32]
    untouched = (256 - RECEPTIVE_RADIUS) // 8
    assert_same((at_large[..., :untouched],), (unpadded[..., :untouched],))
    assert (at_large[..., -1] - unpadded[..., -1]).abs().max() > 0.1


@torch.no_grad()
def test_eloftr_crop_transforms_the_valid_whole_blocks_as_if_they_were_the_image() -> None:
    transformer = network().loftr_coarse
    map0, map1 = feature_map(12, 16, 0), feature_map(16, 8, 1)
    mask0, mask1 = mask(8 * 9, 8 * 15, (96, 128)), mask(8 * 12, 8 * 8, (128, 64))
    out0, out1 = transformer(map0, map1, mask0, mask1)
    expected0, expected1 = transformer(map0[..., :8, :12], map1[..., :12, :])
    assert_same((out0[..., :8, :12], out1[..., :12, :]), (expected0, expected1))
    assert not out0[..., 8:, :].any()
    assert not out0[..., 12:].any()
    assert not out1[..., 12:, :].any()


@torch.no_grad()
def test_eloftr_pool_lets_no_padded_block_reach_a_valid_cell() -> None:
    transformer = network(replace(CONFIG, padding="pool")).loftr_coarse
    masks = mask(64, 96, (96, 128)), mask(96, 32, (128, 64))
    maps = feature_map(12, 16, 0), feature_map(16, 8, 1)
    outputs = transformer(*maps, *masks)
    others = feature_map(12, 16, 2), feature_map(16, 8, 3)
    disturbed = [
        torch.where(valid[:, None], one, 100 * other)
        for valid, one, other in zip(masks, maps, others, strict=True)
    ]
    for valid, actual, expected in zip(
        masks, transformer(*disturbed, *masks), outputs, strict=True
    ):
        assert_same((actual * valid[:, None],), (expected * valid[:, None],))


@torch.no_grad()
def test_eloftr_masks_of_whole_images_change_nothing() -> None:
    images = texture(96, 64, 0), texture(64, 96, 1)
    masks = mask(96, 64, (96, 64)), mask(64, 96, (64, 96))
    expected = of_pair(run(network(), *images), 0)
    for given in (masks, (masks[0], None), (None, masks[1])):
        assert_same(of_pair(run(network(), *images, *given), 0), expected)
    pool = network(replace(CONFIG, padding="pool"))
    assert_same(of_pair(run(pool, *images, *masks), 0), expected)


# Coarse matches


def test_eloftr_matches_are_in_order_and_each_cell_is_matched_once() -> None:
    images0 = torch.cat([texture(64, 96, 0), texture(64, 96, 1)])
    output = run(network(), images0, images0.flip(0))
    keys = list(zip(output.batch_ids.tolist(), output.coarse_ids0.tolist(), strict=True))
    assert keys == sorted(set(keys))
    other = list(zip(output.batch_ids.tolist(), output.coarse_ids1.tolist(), strict=True))
    assert len(other) == len(set(other))


@pytest.mark.parametrize("skip_softmax", [False, True])
@torch.no_grad()
def test_eloftr_exchanging_transformed_maps_exchanges_their_matches(skip_softmax: bool) -> None:
    """The rule is symmetric; the transformer is not: image 1 attends to the updated image 0."""
    one = network(replace(CONFIG, skip_softmax=skip_softmax))
    map0, map1 = feature_map(8, 12, 0), feature_map(12, 4, 1)
    forth, back = one.match_coarse(map0, map1), one.match_coarse(map1, map0)
    assert len(forth.ids0) > 10
    pairs = set(zip(forth.ids0.tolist(), forth.ids1.tolist(), strict=True))
    assert pairs == set(zip(back.ids1.tolist(), back.ids0.tolist(), strict=True))
    transformed = one.loftr_coarse(map0, map1), one.loftr_coarse(map1, map0)
    assert (transformed[0][0] - transformed[1][1]).abs().max() > 0.01


def test_eloftr_opt_refines_the_cells_it_shares_with_full_to_the_same_points() -> None:
    images = texture(128, 128, 0), texture(128, 128, 1)
    full = run(network(), *images)
    opt = run(network(replace(CONFIG, skip_softmax=True)), *images)
    common = sorted(cell_pairs(full) & cell_pairs(opt))
    assert len(common) >= 3
    places = []
    for output in (full, opt):
        at = {
            pair: index
            for index, pair in enumerate(
                zip(output.coarse_ids0.tolist(), output.coarse_ids1.tolist(), strict=True)
            )
        }
        places.append([at[pair] for pair in common])
    assert_same(
        (opt.keypoints0[places[1]], opt.keypoints1[places[1]]),
        (full.keypoints0[places[0]], full.keypoints1[places[0]]),
    )
    assert (full.scores <= 1).all()
    assert opt.scores.max() > 1  # similarities, not probabilities


@pytest.mark.parametrize("skip_softmax", [False, True])
def test_eloftr_threshold_may_be_an_integer_and_is_exclusive(skip_softmax: bool) -> None:
    def matched(threshold: float) -> EfficientLoFTROutput:
        chosen = {"raw_threshold" if skip_softmax else "coarse_threshold": threshold}
        return run(network(replace(CONFIG, skip_softmax=skip_softmax, **chosen)), *images)

    images = texture(64, 96, 0), texture(96, 64, 1)
    threshold = 50 if skip_softmax else 0
    whole, real = matched(threshold), matched(float(threshold))
    assert len(whole.scores) > 3
    assert_same(of_pair(whole, 0), of_pair(real, 0))
    smallest = float(whole.scores.min())
    above = matched(smallest)
    assert cell_pairs(above) < cell_pairs(whole)
    assert (above.scores > smallest).all()


def test_eloftr_nothing_above_the_threshold_is_an_empty_result() -> None:
    strict = network(replace(CONFIG, coarse_threshold=1))
    output = run(strict, texture(64, 64), texture(64, 64))
    assert output.keypoints0.shape == output.keypoints1.shape == (0, 2)
    assert len(output.scores) == len(output.batch_ids) == 0
    assert output.keypoints0.dtype == torch.float32


@torch.no_grad()
def test_eloftr_cells_that_all_look_alike_do_not_match() -> None:
    blank = torch.ones(1, 256, 8, 12)
    assert len(network(EfficientLoFTRConfig.full()).match_coarse(blank, blank).ids0) == 0


# Refinement


def test_eloftr_points_of_image_1_are_between_pixels_and_stay_near_their_cells() -> None:
    output = run(network(), texture(128, 128, 0), texture(128, 128, 1))
    cells0 = eloftr.cell_position(output.coarse_ids0, 16)
    cells1 = eloftr.cell_position(output.coarse_ids1, 16)
    torch.testing.assert_close(output.keypoints0 % 1, torch.full_like(output.keypoints0, 0.5))
    assert ((output.keypoints0 - cells0).abs() <= 3.5).all()
    assert ((output.keypoints1 - cells1).abs() <= 4.5).all()
    steps = (output.keypoints1 - 0.5).frac().abs()
    assert ((steps > 1e-3) & (steps < 1 - 1e-3)).float().mean() > 0.9


def test_eloftr_chunks_of_the_refinement_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    images = texture(96, 64, 0), texture(64, 96, 1)
    whole = run(network(), *images)
    monkeypatch.setattr(eloftr, "REFINEMENT_CHUNK", 7)
    assert len(whole.scores) > 7
    assert_same(of_pair(run(network(), *images), 0), of_pair(whole, 0))


def test_eloftr_scales_multiply_the_keypoints() -> None:
    images = texture(64, 96, 0), texture(96, 64, 1)
    scales = torch.tensor([[2.0, 3.0]]), torch.tensor([[0.5, 4.0]])
    plain, scaled = run(network(), *images), run(network(), *images, None, None, *scales)
    assert_same(
        (scaled.keypoints0, scaled.keypoints1),
        (plain.keypoints0 * scales[0], plain.keypoints1 * scales[1]),
    )


# Forms, precision, gradients


def test_eloftr_fused_form_is_the_same_function() -> None:
    image0, image1 = texture(96, 128, 0), texture(128, 96, 1)
    expected = of_pair(run(network(), image0, image1), 0)
    fused = copy.deepcopy(network()).fuse()
    assert not any("rbr_dense" in name for name, _ in fused.named_parameters())
    assert_same(of_pair(run(fused, image0, image1), 0), expected)
    loaded = EfficientLoFTR(CONFIG).fuse().eval()
    loaded.load_state_dict(fused.state_dict())
    assert_same(of_pair(run(loaded, image0, image1), 0), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
def test_eloftr_half_precision_finds_most_of_the_matches(
    dtype: torch.dtype, autocast: bool
) -> None:
    images = texture(64, 64, 0), texture(64, 64, 1)
    expected = cell_pairs(run(network(), *images))
    if autocast:
        with torch.autocast("cpu", dtype):
            output = run(network(), *images)
    else:
        half = copy.deepcopy(network()).to(dtype)
        output = run(half, *(image.to(dtype) for image in images))
    assert len(cell_pairs(output) & expected) > 0.6 * len(expected)
    assert output.keypoints0.dtype == output.keypoints1.dtype == torch.float32
    assert output.keypoints1.isfinite().all()
    assert output.scores.isfinite().all()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_eloftr_blank_images_stay_finite(value: float) -> None:
    blank = torch.full((1, 1, 64, 64), value)
    for output in (run(network(), blank, texture(64, 64)), run(network(), blank, blank)):
        assert output.keypoints0.isfinite().all()
        assert output.keypoints1.isfinite().all()
        assert output.scores.isfinite().all()


def test_eloftr_fine_maps_are_whole_where_matches_are() -> None:
    one, cells0, cells1 = network(), torch.tensor([0, 9, 63]), torch.tensor([7, 30, 56])
    with torch.no_grad():
        features = one.encode_pair(texture(64, 64, 0), texture(64, 64, 1))
        coarse = one.transform(*features)
        matches = CoarseMatches(torch.zeros_like(cells0), cells0, cells1, cells0, cells0)
        some, whole = (one.fine_maps(*features, *coarse, m) for m in (matches, None))
        assert all((few == 0).any() for few in some)
        ids = (matches.batch_ids, cells0, cells1)
        found, expected = eloftr.match_windows(*some, *ids), eloftr.match_windows(*whole, *ids)
    for few, all_pixels in zip(found, expected, strict=True):
        torch.testing.assert_close(few, all_pixels, rtol=1e-4, atol=1e-5)


def test_eloftr_every_parameter_gets_a_gradient() -> None:
    one = copy.deepcopy(network())
    features = one.encode_pair(texture(64, 64, 0), texture(64, 64, 1))
    coarse = one.transform(*features)
    cells = torch.arange(64)
    windows = eloftr.match_windows(
        *one.fine_maps(*features, *coarse), torch.zeros_like(cells), cells, cells.flip(0)
    )
    confidence = eloftr.first_stage_log_confidence(*windows)
    config = EfficientLoFTRConfig(fine_temperature=1.0)
    offsets = eloftr.second_stage_offsets(*windows, cells, cells, cells.flip(0), config)
    logits = one.coarse_logits(*coarse)
    loss = logits.log_softmax(1).diagonal(0, 1, 2).mean() + confidence[:, 0, 0].mean()
    (loss + offsets.square().mean()).backward()
    for name, parameter in one.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("pixel", [0, 7, 27, 56, 63])
@pytest.mark.parametrize("offset", [(0, 0), (-1, 0), (1, 1), (0, -1)])
def test_eloftr_centred_patch_lies_around_the_matched_pixel(
    pixel: int, offset: tuple[int, int]
) -> None:
    windows0, windows1 = torch.zeros(1, 64, 64), torch.zeros(1, 10, 10, 64)
    windows0[0, 5, -1] = 1
    windows1[0, pixel // 8 + 1 + offset[1], pixel % 8 + 1 + offset[0], -1] = 1e3  # behind the ring
    found = eloftr.second_stage_offsets(
        windows0,
        windows1.flatten(1, 2),
        torch.tensor([0]),
        torch.tensor([5]),
        torch.tensor([pixel]),
        EfficientLoFTRConfig(centred_patch=True),
    )
    assert found.round().tolist() == [list(offset)]


# What is refused


@pytest.mark.parametrize(
    ("shape", "words"),
    [((1, 3, 64, 64), "grey"), ((1, 1, 60, 64), "multiples of 32"), ((1, 1, 0, 32), "multiples")],
)
def test_eloftr_refuses_a_wrong_image(shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        network()(torch.zeros(shape), torch.zeros(1, 1, 64, 64))


HOLE = mask(64, 64, (64, 96))
HOLE[0, 2, 3] = False


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (mask(64, 96, (96, 96)), r"bool of shape \(1, 8, 12\)"),
        (mask(64, 96, (64, 96)).float(), "bool of shape"),
        (HOLE, "rectangle"),
        (mask(64, 64, (64, 96)).flip(2), "rectangle"),
        (mask(64, 24, (64, 96)), "less than 32 px"),
    ],
)
def test_eloftr_refuses_a_wrong_mask(wrong: Tensor, words: str) -> None:
    transformer = LocalFeatureTransformer(CONFIG)
    with pytest.raises(InputError, match=words):
        transformer(feature_map(8, 12), feature_map(8, 12), None, wrong)


def test_eloftr_unknown_padding_is_refused() -> None:
    with pytest.raises(InputError, match="mirror"):
        EfficientLoFTRConfig(padding="mirror")  # type: ignore[arg-type]
