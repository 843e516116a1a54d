"""What must hold of Efficient LoFTR whatever its weights."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from golden_weights_eloftr import golden_state_dict
from torch import Tensor

from sfm_matchers.errors import InputError
from sfm_matchers.networks.efficient_loftr import (
    EfficientLoFTR,
    EfficientLoFTRConfig,
    EfficientLoFTROutput,
)

# Of these weights every pair of mutually best cells counts.
CONFIG = EfficientLoFTRConfig(coarse_threshold=-1.0, border=0)


def network(config: EfficientLoFTRConfig = CONFIG) -> EfficientLoFTR:
    one = EfficientLoFTR(config)
    one.load_state_dict(weights())
    return one.eval()


@functools.cache
def weights() -> dict[str, Tensor]:
    shapes = {key: value.shape for key, value in EfficientLoFTR().state_dict().items()}
    return golden_state_dict(shapes)


def texture(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1, height // 8 + 2, width // 8 + 2, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bicubic")
    return fine[..., :height, :width].clamp(0, 1)


def mask(height: int, width: int, canvas: tuple[int, int]) -> Tensor:
    cells = torch.zeros(1, canvas[0] // 8, canvas[1] // 8, dtype=torch.bool)
    cells[:, : height // 8, : width // 8] = True
    return cells


def padded(image: Tensor, canvas: tuple[int, int]) -> Tensor:
    return torch.nn.functional.pad(
        image, (0, canvas[1] - image.shape[3], 0, canvas[0] - image.shape[2])
    )


@torch.no_grad()
def run(one: EfficientLoFTR, *inputs: Tensor) -> EfficientLoFTROutput:
    return one(*inputs)


def of_pair(output: EfficientLoFTROutput, pair: int) -> tuple[Tensor, Tensor, Tensor]:
    chosen = output.batch_ids == pair
    return output.keypoints0[chosen], output.keypoints1[chosen], output.scores[chosen]


def assert_same(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-3)


def test_eloftr_pairs_give_alone_what_they_give_in_a_batch() -> None:
    one = network()
    images0 = torch.cat([texture(96, 64, 0), texture(96, 64, 1)])
    images1 = torch.cat([texture(64, 96, 2), texture(64, 96, 3)])
    together = run(one, images0, images1)
    for pair in range(2):
        alone = run(one, images0[pair : pair + 1], images1[pair : pair + 1])
        assert len(alone.scores) > 3
        assert_same(of_pair(together, pair), of_pair(alone, 0))


@pytest.mark.parametrize("padding", ["crop", "pool"])
def test_eloftr_padded_pairs_give_alone_what_they_give_in_a_batch(padding: str) -> None:
    one = network(replace(CONFIG, padding=padding))
    canvas, sizes0, sizes1 = (192, 192), [(160, 192), (192, 96)], [(192, 128), (96, 160)]
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


def test_eloftr_fused_form_is_the_same_function() -> None:
    image0, image1 = texture(96, 128, 0), texture(128, 96, 1)
    expected = run(network(), image0, image1)
    fused = network().fuse()
    assert not any("rbr_dense" in name for name, _ in fused.named_parameters())
    assert_same(of_pair(run(fused, image0, image1), 0), of_pair(expected, 0))


def test_eloftr_opt_picks_the_cells_by_similarity() -> None:
    """Fewer rules, same refinement: a cell matched by both gets the same points."""
    image0, image1 = texture(128, 128, 0), texture(128, 128, 1)
    full = run(network(), image0, image1)
    opt = run(network(replace(CONFIG, skip_softmax=True, coarse_threshold=-1e9)), image0, image1)
    points = {
        (int(i), int(j)): (p0, p1)
        for i, j, p0, p1 in zip(
            full.coarse_ids0, full.coarse_ids1, full.keypoints0, full.keypoints1, strict=True
        )
    }
    common = 0
    for i, j, p0, p1 in zip(
        opt.coarse_ids0, opt.coarse_ids1, opt.keypoints0, opt.keypoints1, strict=True
    ):
        if (int(i), int(j)) in points:
            common += 1
            assert_same((p0, p1), points[int(i), int(j)])
    assert common >= 3


def test_eloftr_points_of_image_1_are_between_pixels() -> None:
    output = run(network(), texture(128, 128, 0), texture(128, 128, 1))
    torch.testing.assert_close(output.keypoints0 % 1, torch.full_like(output.keypoints0, 0.5))
    steps = (output.keypoints1 - 0.5).frac().abs()
    assert ((steps > 1e-3) & (steps < 1 - 1e-3)).float().mean() > 0.9


def test_eloftr_each_cell_is_matched_once() -> None:
    output = run(network(), texture(128, 160, 0), texture(160, 128, 1))
    assert output.coarse_ids0.unique().numel() == len(output.coarse_ids0)
    assert output.coarse_ids1.unique().numel() == len(output.coarse_ids1)


def test_eloftr_scales_multiply_the_keypoints() -> None:
    images = texture(64, 96, 0), texture(96, 64, 1)
    scales = torch.tensor([[2.0, 3.0]]), torch.tensor([[0.5, 4.0]])
    plain, scaled = run(network(), *images), run(network(), *images, None, None, *scales)
    assert_same(
        (scaled.keypoints0, scaled.keypoints1),
        (plain.keypoints0 * scales[0], plain.keypoints1 * scales[1]),
    )


def test_eloftr_nothing_above_the_threshold_is_an_empty_result() -> None:
    strict = network(replace(CONFIG, coarse_threshold=1.0))
    output = run(strict, texture(64, 64), texture(64, 64))
    assert output.keypoints0.shape == output.keypoints1.shape == (0, 2)
    assert len(output.scores) == len(output.batch_ids) == 0


def test_eloftr_blank_images_and_half_precision_stay_finite() -> None:
    blank = torch.zeros(1, 1, 64, 64)
    output = run(network(), blank, texture(64, 64))
    assert output.keypoints0.isfinite().all()
    assert output.scores.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        output = run(network(), texture(64, 64, 0), texture(64, 64, 1))
    assert len(output.scores) > 3
    assert output.keypoints1.isfinite().all()
    assert output.scores.isfinite().all()


@pytest.mark.parametrize(
    ("shape", "words"),
    [((1, 3, 64, 64), "grey"), ((1, 1, 60, 64), "multiples of 32"), ((1, 1, 0, 32), "multiples")],
)
def test_eloftr_refuses_a_wrong_image(shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        network()(torch.zeros(shape), torch.zeros(1, 1, 64, 64))


def test_eloftr_unknown_padding_is_refused() -> None:
    with pytest.raises(InputError, match="mirror"):
        EfficientLoFTRConfig(padding="mirror")  # type: ignore[arg-type]
