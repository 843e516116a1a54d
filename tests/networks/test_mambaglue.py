"""MambaGlue: what must hold for any weights. Agreement with the authors: test_mambaglue_golden."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfm_matchers.errors import InputError, WeightsError
from sfm_matchers.networks.mambaglue import (
    FRONT_ENDS,
    LocalFeatures,
    MambaGlue,
    MambaGlueConfig,
    MambaGlueMatches,
    MambaMixer,
    filter_matches,
)
from sfm_matchers.training.losses.mambaglue import (
    IGNORED,
    UNMATCHED,
    GroundTruthMatches,
    ground_truth_matches,
    mambaglue_loss,
)
from sfm_matchers.weights import load_network
from sfm_matchers.weights.convert_mambaglue import convert

IMAGE_SIZE = (640.0, 480.0)


@lru_cache
def small_network(**choices: Any) -> MambaGlue:
    """A random network in double precision, so that no decision hangs on rounding.

    Its weights are large enough for every part to matter, and for confidences and matchabilities
    that spread over 0..1: pairs stop, and points are pruned, at different layers.
    """
    config = MambaGlueConfig(**{"num_layers": 4, "dim": 32, "num_heads": 2, **choices})
    network = MambaGlue(config).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1 and not name.endswith("A_log"):
                fan = parameter[0].numel()
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(1.2 * noise / math.sqrt(fan))
            elif name.endswith("dt_proj.bias"):
                parameter.fill_(-1.0)
            elif name.endswith("bias"):
                parameter.zero_()
        network.input_proj.weight.mul_(16)
        for layer, regressor in enumerate(network.token_confidence):
            regressor.token[2].bias.fill_(layer)
    return network


def random_features(
    seed: int, counts: tuple[int, ...], front_end: str = "superpoint", most: int | None = None
) -> LocalFeatures:
    """Random keypoints of a batch of images; padding is NaN, to show where it leaks."""
    generator = torch.Generator().manual_seed(seed)
    most = max(counts, default=0) if most is None else most
    shape = (len(counts), most)

    def uniform(*more: int) -> Tensor:
        return torch.rand(*shape, *more, generator=generator, dtype=torch.float64)

    descriptors = F.normalize(uniform(FRONT_ENDS[front_end].descriptor_dim) - 0.5, dim=-1)
    arrays = {
        "keypoints": uniform(2) * torch.tensor(IMAGE_SIZE),
        "descriptors": descriptors,
        "scores": uniform(),
    }
    if FRONT_ENDS[front_end].has_scale_and_orientation:
        arrays |= {"scales": uniform() * 10, "oris": (uniform() - 0.5) * 2 * math.pi}
    padding = torch.arange(most) >= torch.tensor(counts)[:, None]
    for array in arrays.values():
        array[padding] = math.nan
    return LocalFeatures(
        **arrays,
        image_size=torch.tensor(IMAGE_SIZE).expand(len(counts), 2),
        num_keypoints=torch.tensor(counts),
    )


def pair_of(features: LocalFeatures, pair: int) -> LocalFeatures:
    """One pair of a batch, without padding."""
    count = int(features.counts[pair])
    chosen = {
        field.name: getattr(features, field.name)[pair : pair + 1]
        for field in fields(features)
        if getattr(features, field.name) is not None and field.name != "num_keypoints"
    }
    cut = {k: v if k == "image_size" else v[:, :count] for k, v in chosen.items()}
    return LocalFeatures(**cut)


def reordered(features: LocalFeatures, order: Tensor) -> LocalFeatures:
    """The keypoints of an unpadded pair in another order."""
    moved = {
        field.name: getattr(features, field.name)[:, order]
        for field in fields(features)
        if getattr(features, field.name) is not None
        and field.name not in ("image_size", "num_keypoints")
    }
    return LocalFeatures(**moved, image_size=features.image_size)


@torch.inference_mode()
def match(
    network: MambaGlue, features0: LocalFeatures, features1: LocalFeatures
) -> MambaGlueMatches:
    return network(features0, features1)


def assert_batch_equals_alone(
    network: MambaGlue, features0: LocalFeatures, features1: LocalFeatures
) -> MambaGlueMatches:
    together = match(network, features0, features1)
    for pair, (count0, count1) in enumerate(
        zip(features0.counts.tolist(), features1.counts.tolist(), strict=True)
    ):
        alone = match(network, pair_of(features0, pair), pair_of(features1, pair))
        for name, count in (("0", count0), ("1", count1)):
            for field in ("matches", "prune", "matching_scores"):
                batched = getattr(together, field + name)[pair]
                single = getattr(alone, field + name)[0]
                torch.testing.assert_close(batched[:count], single, rtol=0, atol=1e-9)
            assert (getattr(together, "matches" + name)[pair, count:] == -1).all()
            assert (getattr(together, "prune" + name)[pair, count:] == 0).all()
        assert together.stop[pair] == alone.stop[0]
    return together


# The network


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    counts=st.lists(st.tuples(st.integers(0, 14), st.integers(0, 14)), min_size=1, max_size=4),
    depth=st.sampled_from([-1.0, 0.3, 0.6]),
    width=st.sampled_from([-1.0, 0.3, 0.6]),
    order=st.sampled_from(["as_is", "score"]),
    front_end=st.sampled_from(["superpoint", "sift"]),
    seed=st.integers(0, 1000),
)
def test_mambaglue_gives_a_pair_the_same_result_in_any_batch(
    counts: list[tuple[int, int]],
    depth: float,
    width: float,
    order: str,
    front_end: str,
    seed: int,
) -> None:
    network = small_network(
        features=front_end, depth_confidence=depth, width_confidence=width, keypoint_order=order
    )
    counts0, counts1 = zip(*counts, strict=True)
    assert_batch_equals_alone(
        network,
        random_features(seed, counts0, front_end),
        random_features(seed + 1, counts1, front_end, most=20),
    )


def test_mambaglue_stops_and_prunes_each_pair_of_a_batch_by_itself() -> None:
    network = small_network(depth_confidence=0.5, width_confidence=0.6)
    together = assert_batch_equals_alone(
        network,
        random_features(1, (14, 9, 3, 12, 0, 1)),
        random_features(2, (8, 16, 5, 13, 7, 1)),
    )
    assert len(set(together.stop[:4].tolist())) > 1
    assert len(set(together.prune0.flatten().tolist())) > 2


@pytest.mark.parametrize("width", [-1.0, 0.6])
def test_mambaglue_swapping_the_images_swaps_the_result(width: float) -> None:
    network = small_network(depth_confidence=0.6, width_confidence=width)
    image0, image1 = random_features(3, (12, 7)), random_features(4, (10, 13))
    forth, back = match(network, image0, image1), match(network, image1, image0)
    assert (forth.matches0 >= 0).any()
    for field in ("matches", "matching_scores", "prune"):
        for one, other in (("0", "1"), ("1", "0")):
            torch.testing.assert_close(getattr(forth, field + one), getattr(back, field + other))
    assert forth.stop.tolist() == back.stop.tolist()


def test_mambaglue_scores_change_with_the_order_of_the_keypoints() -> None:
    """Unlike LightGlue: the scan and the convolutions run along the list of keypoints."""
    image0, image1 = random_features(5, (12,)), random_features(6, (10,))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    given = match(small_network(), image0, image1)
    permuted = match(small_network(), reordered(image0, order), image1)
    change = (given.matching_scores0[:, order] - permuted.matching_scores0).abs().max()
    assert change > 1e-3


def test_mambaglue_order_by_score_makes_the_given_order_irrelevant() -> None:
    network = small_network(keypoint_order="score", width_confidence=0.6)
    image0, image1 = random_features(5, (12,)), random_features(6, (10,))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    given = match(network, image0, image1)
    permuted = match(network, reordered(image0, order), image1)
    for field in ("matches0", "matching_scores0", "prune0"):
        torch.testing.assert_close(getattr(given, field)[:, order], getattr(permuted, field))
    by_score0, by_score1 = (
        image.require("scores")[0].argsort(descending=True) for image in (image0, image1)
    )
    sorted_before = match(
        small_network(width_confidence=0.6),
        reordered(image0, by_score0),
        reordered(image1, by_score1),
    )
    torch.testing.assert_close(given.matching_scores0[:, by_score0], sorted_before.matching_scores0)
    torch.testing.assert_close(given.matching_scores1[:, by_score1], sorted_before.matching_scores1)


def plain_mamba_mixer(mixer: MambaMixer, states: Tensor, bias_copies: int) -> tuple[Tensor, Tensor]:
    """The Mamba branch for one image (M, dim), written as loops."""
    length, dim = states.shape
    projected = states @ mixer.in_proj.weight.T
    branches = []
    for kernel, values in zip(
        (mixer.conv1d_x.weight, mixer.conv1d_z.weight), projected.split(dim, dim=1), strict=True
    ):
        convolved = torch.zeros_like(values)
        for t in range(length):
            for tap in range(5):
                if 0 <= t + tap - 2 < length:
                    convolved[t] += kernel[:, 0, tap] * values[t + tap - 2]
        branches.append(convolved * torch.sigmoid(convolved))
    x, z = branches
    low_rank, B, C = (x @ mixer.x_proj.weight.T).split([mixer.rank, 16, 16], dim=1)
    step = low_rank @ mixer.dt_proj.weight.T + bias_copies * mixer.dt_proj.bias
    step = torch.log1p(step.exp())
    hidden, outputs = torch.zeros(dim, 16, dtype=states.dtype), []
    for t in range(length):
        decay = torch.exp(-step[t, :, None] * mixer.A_log.exp())
        hidden = decay * hidden + (step[t] * x[t])[:, None] * B[t]
        outputs.append(hidden @ C[t] + mixer.D * x[t])
    return torch.stack(outputs) @ mixer.out_proj.weight.T, z @ mixer.out_proj.weight.T


@pytest.mark.parametrize("length", [1, 2, 3, 4, 11])
def test_mambaglue_mamba_branch_is_its_definition_with_the_step_bias_added_twice(
    length: int,
) -> None:
    mixer = small_network().transformermambas[0].mamba_selfattn_mixer.mamba_mixer
    states = torch.randn(1, length, 32, generator=torch.Generator().manual_seed(7)).double()
    with torch.inference_mode():
        scanned, unscanned = mixer(states, None)
        twice, expected_unscanned = plain_mamba_mixer(mixer, states[0], bias_copies=2)
        once, _ = plain_mamba_mixer(mixer, states[0], bias_copies=1)
    torch.testing.assert_close(scanned[0], twice)
    torch.testing.assert_close(unscanned[0], expected_unscanned)
    assert (once - twice).abs().max() > 1e-2


@pytest.mark.parametrize("count0", [1, 2, 3, 4])
@pytest.mark.parametrize("count1", [1, 4])
def test_mambaglue_matches_fewer_points_than_the_kernel_is_wide(count0: int, count1: int) -> None:
    result = match(small_network(), random_features(8, (count0,)), random_features(9, (count1,)))
    assert result.stop.tolist() == [4]
    assert result.matching_scores0.isfinite().all()
    assert 1 <= int((result.matching_scores0 > 0).sum()) <= min(count0, count1)


@pytest.mark.parametrize(("count0", "count1"), [(0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("with_size", [True, False])
def test_mambaglue_image_without_keypoints_has_no_matches(
    count0: int, count1: int, with_size: bool
) -> None:
    image0, image1 = (
        pair_of(random_features(seed, (count,)), 0) for seed, count in ((1, count0), (2, count1))
    )
    if not with_size:
        image0, image1 = (LocalFeatures(f.keypoints, f.descriptors) for f in (image0, image1))
    result = match(small_network(), image0, image1)
    assert result.matches0.tolist() == [[-1] * count0]
    assert result.matching_scores1.tolist() == [[0.0] * count1]
    assert result.prune0.tolist() == [[4] * count0]
    assert result.stop.tolist() == [1]
    pruning = match(small_network(width_confidence=0.5), image0, image1)
    assert pruning.prune1.tolist() == [[1] * count1]


def test_mambaglue_spares_small_images_from_pruning() -> None:
    image0, image1 = random_features(1, (14, 10)), random_features(2, (8, 6))
    network = small_network(width_confidence=0.6, pruning_min_keypoints=10)
    result = assert_batch_equals_alone(network, image0, image1)
    assert (result.prune0[0] > 1).any()
    assert (result.prune0[1, :10] == 1).all()
    assert (result.prune1[0, :8] == 1).all()
    unpruned = match(small_network(), image0, image1)
    torch.testing.assert_close(result.matching_scores0[1], unpruned.matching_scores0[1])


def test_mambaglue_without_image_size_uses_the_extent_of_the_keypoints() -> None:
    image0, image1 = (
        replace(random_features(seed, (9, 5)), image_size=None, scores=None) for seed in (1, 2)
    )
    result = assert_batch_equals_alone(small_network(), image0, image1)
    sized = []
    for image in (pair_of(image0, 1), pair_of(image1, 1)):
        extent = 1 + image.keypoints.amax(dim=1) - image.keypoints.amin(dim=1)
        sized.append(replace(image, image_size=extent))
    expected = match(small_network(), *sized)
    torch.testing.assert_close(result.matching_scores0[1:, :5], expected.matching_scores0)


def test_mambaglue_takes_half_precision_descriptors() -> None:
    network = MambaGlue(MambaGlueConfig(num_layers=2, dim=32, num_heads=2)).eval()
    image0, image1 = (pair_of(random_features(seed, (9,)), 0) for seed in (1, 2))
    halves = [
        LocalFeatures(f.keypoints.float(), f.descriptors.half(), f.image_size)
        for f in (image0, image1)
    ]
    assert match(network, *halves).matching_scores0.dtype == torch.float32


def test_mambaglue_filter_keeps_mutual_matches_above_the_threshold() -> None:
    scores = torch.tensor([[0.6, 0.1, 0.0], [0.5, 0.2, 0.0], [0.0, 0.3, 0.3]])
    log_assignment = F.pad(scores.log(), (0, 1, 0, 1))[None]
    lowest = float(scores[2, 1].log().exp())
    matches0, matches1, scores0, scores1 = filter_matches(log_assignment, threshold=lowest)
    assert matches0.tolist() == [[0, -1, -1]]  # row 2 and column 1 are mutual, but at the threshold
    assert matches1.tolist() == [[0, -1, -1]]
    torch.testing.assert_close(scores0, torch.tensor([[0.6, 0.0, 0.3]]))
    torch.testing.assert_close(scores1, torch.tensor([[0.6, 0.3, 0.0]]))
    just_below = filter_matches(log_assignment, threshold=lowest - 1e-6)
    assert just_below[0].tolist() == [[0, -1, 1]]  # of equal scores, the first column
    assert just_below[1].tolist() == [[0, 2, -1]]


def test_mambaglue_initial_weights_follow_the_seed_and_mamba() -> None:
    network = MambaGlue(MambaGlueConfig(num_layers=2, dim=64))
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        network.init_weights()
        states.append({key: tensor.clone() for key, tensor in network.state_dict().items()})
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    mixer = network.transformermambas[0].mamba_selfattn_mixer.mamba_mixer
    step = F.softplus(mixer.dt_proj.bias).detach()
    assert float(step.min()) > 0.000999
    assert float(step.max()) < 0.1001
    torch.testing.assert_close(mixer.A_log.exp()[0], torch.arange(1.0, 17))
    assert 0.8 < float(network.posenc.Wr.weight.std().detach()) < 1.2


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"features": "orb"}, "unknown features 'orb'"),
        ({"keypoint_order": "raster"}, "unknown order 'raster'"),
        ({"dim": 30}, "multiple of 4"),
        ({"num_layers": 0}, "at least 1"),
    ],
)
def test_mambaglue_config_refuses(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MambaGlueConfig(**choices)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keypoints": torch.rand(1, 5, 3)}, "keypoints of image 0 have shape"),
        ({"descriptors": torch.rand(1, 128, 5)}, r"expected \(1, 5, 128\) for sift"),
        ({"image_size": torch.tensor([640.0, 480.0])}, "image_size of image 0"),
        ({"scales": None}, "lack scales"),
        ({"oris": torch.rand(1, 4)}, "oris of image 0"),
        ({"num_keypoints": torch.tensor([6])}, "exceeds the 5 keypoints"),
        ({"scores": None}, "lack scores"),
    ],
)
def test_mambaglue_refuses_features_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    network = small_network(features="sift", keypoint_order="score")
    image = random_features(1, (5,), "sift")
    given_fields = {field.name: getattr(image, field.name) for field in fields(image)}
    with pytest.raises(InputError, match=message):
        match(network, LocalFeatures(**(given_fields | changes)), image)


def test_mambaglue_refuses_unequal_batches() -> None:
    with pytest.raises(InputError, match="2 images 0 cannot be paired with 1 images 1"):
        match(small_network(), random_features(1, (5, 4)), random_features(2, (5,)))


# Training


class Plane:
    """A plane seen twice, the second time `scale` times as large and 10 pixels to the right.

    Attributes:
        hidden: (M,) bool, keypoints of image 0 that are hidden in image 1.
        unknown: (M,) bool, keypoints of image 0 whose position in image 1 is not known.
    """

    def __init__(self, hidden: list[bool], unknown: list[bool], scale: float = 1.0) -> None:
        self.hidden, self.unknown = torch.tensor(hidden), torch.tensor(unknown)
        self.scale, self.shift = scale, torch.tensor([10.0, 0.0])

    def warp(self, points: Tensor, source: int) -> tuple[Tensor, Tensor]:
        if source == 1:
            visible = torch.ones(points.shape[:2], dtype=torch.bool)
            return (points - self.shift) / self.scale, visible
        visible = ~(self.hidden | self.unknown).expand(points.shape[:2])
        warped = points * self.scale + self.shift
        return warped.masked_fill(self.unknown[:, None], math.nan), visible


def keypoints_at(positions: list[tuple[float, float]]) -> LocalFeatures:
    """Keypoints of which the last is padding."""
    keypoints = torch.tensor(positions, dtype=torch.float32)[None]
    number = torch.tensor([len(positions) - 1])
    return LocalFeatures(keypoints, torch.zeros(1, len(positions), 256), num_keypoints=number)


def test_mambaglue_ground_truth_of_a_shift() -> None:
    cases = [  # keypoint of image 0, keypoint of image 1, hidden, unknown, truth 0, truth 1
        ((0, 0), (10, 2), False, False, 0, 0),  # 2 px off
        ((50, 0), (61.4, 0), False, False, IGNORED, 2),  # its neighbour has a nearer partner
        ((51, 0), (300, 0), False, False, 1, UNMATCHED),
        ((100, 0), (114, 0), False, False, IGNORED, IGNORED),  # 4 px: neither a match nor none
        ((150, 0), (160, 0), True, False, IGNORED, IGNORED),  # hidden, though something lies there
        ((200, 0), (500, 0), False, True, IGNORED, UNMATCHED),  # position unknown
        ((400, 0), (700, 0), False, False, UNMATCHED, UNMATCHED),
        ((690, 0), (410, 0), False, False, IGNORED, IGNORED),  # padding, not a partner for 400, 700
    ]
    positions0, positions1, hidden, unknown, truth0, truth1 = map(list, zip(*cases, strict=True))
    truth = ground_truth_matches(
        keypoints_at(positions0),
        keypoints_at(positions1),
        Plane(hidden, unknown),
        positive_threshold=3,
        negative_threshold=5,
    )
    assert truth.matches0.tolist() == [truth0]
    assert truth.matches1.tolist() == [truth1]


def test_mambaglue_ground_truth_asks_for_small_errors_in_both_images() -> None:
    image0 = keypoints_at([(0, 0), (50, 0), (0, 0)])
    image1 = keypoints_at([(10, 4), (110, 2), (0, 0)])
    truth = ground_truth_matches(image0, image1, Plane([False] * 3, [False] * 3, scale=2))
    assert truth.matches0.tolist() == [[UNMATCHED, 1, IGNORED]]  # 4 px in image 1
    assert truth.matches1.tolist() == [[IGNORED, 1, IGNORED]]  # 2 px in image 0


def random_truth(seed: int, counts0: tuple[int, ...], counts1: tuple[int, ...]) -> Any:
    """The first points match each other; of the rest, some are unmatched and some ignored."""
    generator = torch.Generator().manual_seed(seed)
    matches0, matches1 = (
        torch.randint(IGNORED, 0, (len(counts), max(counts)), generator=generator)
        for counts in (counts0, counts1)
    )
    for pair, (count0, count1) in enumerate(zip(counts0, counts1, strict=True)):
        matched = torch.arange(min(count0, count1) // 2)
        matches0[pair, matched] = matches1[pair, matched] = matched
        matches0[pair, count0:] = matches1[pair, count1:] = IGNORED
    return GroundTruthMatches(matches0, matches1)


def test_mambaglue_loss_of_a_padded_batch_is_the_mean_over_its_pairs() -> None:
    counts0, counts1 = (12, 5, 8), (7, 10, 8)
    image0, image1 = random_features(1, counts0), random_features(2, counts1)
    truth = random_truth(3, counts0, counts1)
    network = small_network()
    together = mambaglue_loss(network.forward_layers(image0, image1), truth)
    alone = [
        mambaglue_loss(
            network.forward_layers(pair_of(image0, pair), pair_of(image1, pair)),
            GroundTruthMatches(
                truth.matches0[pair : pair + 1, :count0], truth.matches1[pair : pair + 1, :count1]
            ),
        )
        for pair, (count0, count1) in enumerate(zip(counts0, counts1, strict=True))
    ]
    for field in fields(together):
        mean = torch.stack([getattr(loss, field.name) for loss in alone]).mean(dim=0)
        torch.testing.assert_close(getattr(together, field.name), mean)


def test_mambaglue_gradients_are_finite_and_keep_the_regressor_apart() -> None:
    counts0, counts1 = (12, 5), (7, 10)
    network = small_network(dim=16)
    outputs = network.forward_layers(random_features(1, counts0), random_features(2, counts1))
    loss = mambaglue_loss(outputs, random_truth(3, counts0, counts1))
    regressor = set(network.token_confidence.parameters())
    for part, trained in ((loss.confidence.mean(), True), (loss.assignment.mean(), False)):
        network.zero_grad()
        part.backward(retain_graph=True)
        for parameter in network.parameters():
            assert (parameter.grad is not None) == ((parameter in regressor) == trained)
            assert parameter.grad is None or parameter.grad.isfinite().all()


@pytest.mark.parametrize("order", ["as_is", "score"])
def test_mambaglue_layer_outputs_lead_to_the_matches(order: str) -> None:
    network = small_network(keypoint_order=order)
    image0, image1 = random_features(1, (12, 6)), random_features(2, (9, 11))
    with torch.inference_mode():
        outputs = network.forward_layers(image0, image1)
    expected = match(network, image0, image1)
    _, _, scores0, scores1 = filter_matches(outputs.log_assignments[-1], threshold=0.01)
    torch.testing.assert_close(scores0, expected.matching_scores0)
    torch.testing.assert_close(scores1, expected.matching_scores1)
    assert len(outputs.log_assignments) == len(outputs.confidence_logits0) + 1 == 4


@pytest.mark.slow
def test_mambaglue_learns_one_pair() -> None:
    torch.manual_seed(0)
    network = MambaGlue(MambaGlueConfig(num_layers=2, dim=32, num_heads=2))
    image0, image1 = (pair_of(random_features(seed, (16,)), 0) for seed in (1, 2))
    image0, image1 = (
        LocalFeatures(f.keypoints.float(), f.descriptors.float(), f.image_size)
        for f in (image0, image1)
    )
    partners = torch.randperm(16)[None]
    truth = GroundTruthMatches(partners, partners.argsort())
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(40):
        loss = mambaglue_loss(network.forward_layers(image0, image1), truth)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert match(network.eval(), image0, image1).matches0.tolist() == partners.tolist()


def test_mambaglue_training_refuses_images_without_keypoints() -> None:
    with pytest.raises(InputError, match="no keypoints"):
        small_network().forward_layers(random_features(1, (5, 0)), random_features(2, (5, 4)))


# Checkpoints


def released_layout(network: MambaGlue) -> dict[str, Tensor]:
    """The state dict as the authors released it: old names, inside a pipeline, no thresholds."""
    released = {"extractor.conv1a.weight": torch.zeros(64, 1, 3, 3)}
    for key, tensor in network.state_dict().items():
        if key != "confidence_thresholds":
            key = key.replace("transformermambas.", "transformers.")
            released["matcher." + key.replace("mamba_selfattn_mixer", "mamba_self_attn")] = tensor
    return released


@pytest.mark.parametrize("wrapper", ["", "module.", "model."])
def test_mambaglue_checkpoint_in_the_released_layout_loads(tmp_path: Path, wrapper: str) -> None:
    config = {"num_layers": 2, "dim": 32, "num_heads": 2}
    network = MambaGlue(MambaGlueConfig(**config))
    model = {wrapper + key: tensor for key, tensor in released_layout(network).items()}
    path = tmp_path / "superpoint_mambaglue.tar"
    torch.save({"model": model, "epoch": 3, "optimizer": {"state": {}}, "eval": {"auc": 0.5}}, path)
    loaded = load_network("mambaglue", str(path), **config).state_dict()
    for key, tensor in network.state_dict().items():
        torch.testing.assert_close(loaded[key], tensor, rtol=0, atol=0)


def test_mambaglue_conversion_leaves_our_own_state_dict_as_it_is() -> None:
    state = MambaGlue(MambaGlueConfig(features="sift", num_layers=2, dim=32)).state_dict()
    converted = convert(state)
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[key], state[key]) for key in state)


@pytest.mark.parametrize(
    "key",
    [
        "matcher.transformers.0.mamba_self_attn.mamba_mixer.conv1d_x.bias",
        "matcher.surprise",
        "backbone.weight",
    ],
)
def test_mambaglue_conversion_names_a_key_it_does_not_understand(key: str) -> None:
    network = MambaGlue(MambaGlueConfig(num_layers=1, dim=32, num_heads=2))
    with pytest.raises(WeightsError, match=key):
        convert({**released_layout(network), key: torch.zeros(1)})


def test_mambaglue_checkpoint_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    config = {"num_layers": 1, "dim": 32, "num_heads": 2}
    model = released_layout(MambaGlue(MambaGlueConfig(**config)))
    del model["matcher.transformers.0.cross_attn.to_v.bias"]
    torch.save({"model": model}, tmp_path / "incomplete.tar")
    with pytest.raises(WeightsError, match=r"to_v\.bias"):
        load_network("mambaglue", str(tmp_path / "incomplete.tar"), **config)
