"""What JamMa promises beyond the golden data."""

from __future__ import annotations

import functools

import jamma_supervision
import pytest
import torch
from golden_weights_jamma import golden_state_dict
from jamma_supervision import PairTruth
from torch import Tensor

from sfm_matchers.errors import InputError
from sfm_matchers.networks import jamma
from sfm_matchers.networks.coarse_matching import CoarseMatches
from sfm_matchers.networks.jamma import JamMa, JamMaConfig, JamMaOutput
from sfm_matchers.training.data.homographies import HomographyGeometry


@functools.cache
def network() -> JamMa:
    model = JamMa().eval()
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    model.load_state_dict(golden_state_dict(shapes))
    return model


def textured(height: int, width: int, count: int = 1, seed: int = 0) -> Tensor:
    """Smooth random images, (count, 3, height, width)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, height // 8, width // 8, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")


def assert_same(found: JamMaOutput, expected: JamMaOutput) -> None:
    assert torch.equal(found.coarse_ids, expected.coarse_ids)
    torch.testing.assert_close(found.keypoints0, expected.keypoints0, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.keypoints1, expected.keypoints1, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-4)


def test_cached_features_give_the_matches_of_the_images() -> None:
    image0, image1 = textured(96, 128), textured(96, 128).roll(8, dims=3)
    direct = network()(image0, image1)
    with torch.no_grad():
        cached = network().match(network().encode(image0), network().encode(image1))
    assert len(direct.scores) > 20
    assert_same(cached, direct)


def test_a_batch_gives_what_its_pairs_give() -> None:
    image0 = textured(96, 128, count=2)
    image1 = image0.roll(8, dims=3)
    both = network()(image0, image1)
    for item in range(2):
        alone = network()(image0[item : item + 1], image1[item : item + 1])
        mine = both.batch_ids == item
        assert len(alone.scores) > 20
        torch.testing.assert_close(both.keypoints1[mine], alone.keypoints1, rtol=0, atol=1e-3)


def test_chunks_of_windows_do_not_change_the_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    image0, image1 = textured(96, 128), textured(96, 128).roll(8, dims=3)
    whole = network()(image0, image1)
    monkeypatch.setattr(jamma, "WINDOW_CHUNK", 7)
    assert_same(network()(image0, image1), whole)


def test_scales_multiply_the_keypoints() -> None:
    image0, image1 = textured(96, 128), textured(96, 128).roll(8, dims=3)
    plain = network()(image0, image1)
    scale0, scale1 = torch.tensor([[2.0, 3.0]]), torch.tensor([[0.5, 4.0]])
    scaled = network()(image0, image1, scale0=scale0, scale1=scale1)
    torch.testing.assert_close(scaled.keypoints0, plain.keypoints0 * scale0)
    torch.testing.assert_close(scaled.keypoints1, plain.keypoints1 * scale1)


def test_no_match_touches_the_padding() -> None:
    image0, image1 = textured(96, 128), textured(96, 128).roll(8, dims=3)
    image1[..., 80:] = 0
    mask1 = torch.zeros(1, 12, 16, dtype=torch.bool)
    mask1[..., :10] = True
    output = network()(image0, image1, mask1=mask1)
    assert len(output.scores) > 5
    columns = output.coarse.ids1 % 16
    assert columns.max() < 10 - JamMaConfig().border
    assert columns.min() >= JamMaConfig().border


def test_nothing_matches_below_six_cells() -> None:
    output = network()(textured(32, 128), textured(32, 128))
    assert output.keypoints0.shape == (0, 2)
    assert output.scores.shape == output.batch_ids.shape == output.coarse_ids.shape == (0,)


def test_windows_are_cut_where_the_formula_says() -> None:
    """Against torch's unfold with the zero padding of the released code."""
    fine_map = torch.randn(2, 64, 16, 24)
    unfolded = torch.nn.functional.unfold(fine_map, 5, padding=2, stride=4)
    expected = unfolded.view(2, 64, 25, 4 * 6).permute(0, 3, 2, 1)
    batch_ids = torch.arange(2).repeat_interleave(24)
    cells = torch.arange(24).repeat(2)
    found = jamma.fine_windows(fine_map, batch_ids, cells)
    assert torch.equal(found, expected.flatten(0, 1))


def test_fine_maps_are_whole_where_matches_are() -> None:
    cells0, cells1 = torch.tensor([0, 31, 95]), torch.tensor([11, 50, 84])
    matches = CoarseMatches(torch.zeros_like(cells0), cells0, cells1, cells0, cells0)
    with torch.no_grad():
        features = [network().encode(textured(64, 96, 1, seed)) for seed in (0, 1)]
        coarse = network().coarse_features(*features)
        some, whole = (network().fine_maps(*features, *coarse, m) for m in (matches, None))
    for few, all_pixels, cells in zip(some, whole, (cells0, cells1), strict=True):
        assert (few == 0).any()
        found, expected = (
            jamma.fine_windows(m, matches.batch_ids, cells) for m in (few, all_pixels)
        )
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grid", [(2, 2), (6, 10), (30, 40)])
def test_the_scan_visits_every_cell_once(grid: tuple[int, int]) -> None:
    order = jamma.scan_order(grid)
    assert order.flatten().sort().values.tolist() == list(range(2 * grid[0] * grid[1]))


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 3, 100, 128), "100 x 128 .*multiples of 16; pad"),
        ((1, 3, 96, 8), "96 x 8 "),
        ((1, 1, 96, 128), r"expected \(B, 3, H, W\)"),
        ((3, 96, 128), r"expected \(B, 3, H, W\)"),
    ],
)
def test_a_wrong_image_is_refused(shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        network().encode(torch.zeros(shape))


def test_pairs_of_unequal_size_and_wrong_masks_are_refused() -> None:
    small, large = textured(96, 128), textured(128, 128)
    with pytest.raises(InputError, match="pad the pair to one size"):
        network()(small, large)
    with torch.no_grad(), pytest.raises(InputError, match="pad the images of a pair to one size"):
        network().match(network().encode(small), network().encode(large))
    with pytest.raises(InputError, match=r"mask of shape \(1, 96, 128\), expected \(1, 12, 16\)"):
        network()(small, small, mask0=torch.ones(1, 96, 128, dtype=torch.bool))


def test_double_precision_agrees_with_single() -> None:
    image0, image1 = textured(64, 96), textured(64, 96).roll(8, dims=3)
    double = JamMa().double().eval()
    double.load_state_dict(network().state_dict())
    single, exact = network()(image0, image1), double(image0.double(), image1.double())
    assert len(single.scores) > 5
    assert torch.equal(single.coarse.ids1, exact.coarse.ids1)
    torch.testing.assert_close(
        single.keypoints1, exact.keypoints1, rtol=0, atol=1e-3, check_dtype=False
    )


def test_loss_of_true_matches_is_smaller() -> None:
    """The supervision's sense of direction: true logits are cheaper than shifted ones."""
    identity = torch.eye(3).expand(1, 3, 3)
    everywhere = torch.ones(1, 64, 96, dtype=torch.bool)
    geometry = HomographyGeometry(identity, identity, everywhere, everywhere)
    truth = PairTruth(
        geometry, identity, identity, torch.eye(4)[None], torch.ones(1, 2), torch.ones(1, 2)
    )
    grid = (8, 12)
    batch_ids, ids0, ids1 = jamma_supervision.coarse_truth(truth, grid)
    assert torch.equal(ids0, ids1)
    assert len(ids0) == grid[0] * grid[1] - 1  # the corner cell is nobody's partner
    right = 10 * torch.eye(96)[None]
    wrong = right.roll(1, dims=2)
    loss_right = jamma_supervision.coarse_loss(right, truth, grid)
    assert loss_right < 0.01 * jamma_supervision.coarse_loss(wrong, truth, grid)
    pairs = jamma_supervision.fine_truth(truth, grid, batch_ids, ids0, ids1)
    interior = pairs[40, 1:, 1:]  # cell 0 is left out
    assert torch.equal(interior, torch.eye(24, dtype=torch.bool))


def test_subpixel_loss_is_zero_on_epipolar_lines_and_ignores_outliers() -> None:
    cam1_from_cam0 = torch.eye(4)[None]
    cam1_from_cam0[0, 0, 3] = 1.0  # sideways: epipolar lines are rows
    identity = torch.eye(3)[None]
    ones = torch.ones(1, 2)
    everywhere = torch.ones(1, 8, 8, dtype=torch.bool)
    geometry = HomographyGeometry(identity, identity, everywhere, everywhere)
    truth = PairTruth(geometry, identity, identity, cam1_from_cam0, ones, ones)
    points0 = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    batch_ids = torch.zeros(2, dtype=torch.long)
    along = points0 + torch.tensor([0.25, 0.0])
    assert jamma_supervision.subpixel_loss(points0, along, batch_ids, truth) == 0
    off = along + torch.tensor([[0.0, 0.001], [0.0, 0.5]])  # the second is an outlier
    loss = jamma_supervision.subpixel_loss(points0, off, batch_ids, truth)
    torch.testing.assert_close(loss, torch.tensor(2e-6), rtol=1e-3, atol=0)
