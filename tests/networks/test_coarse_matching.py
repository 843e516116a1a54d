"""Blockwise coarse matching against the same rules on the whole matrix."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from sfm_matchers.networks import coarse_matching
from sfm_matchers.networks import similarity as similarities
from sfm_matchers.networks.coarse_matching import (
    CoarseMatches,
    match_either_maximum,
    match_mutual_maximum,
)
from sfm_matchers.networks.similarity import similarity

GRID0, GRID1 = (20, 24), (16, 30)
TEMPERATURE, BORDER = 0.3, 2
RULES = {"either": 0.2, "mutual": 0.05, "mutual raw": 5.0}


def features() -> tuple[Tensor, Tensor]:
    """Two batches of cells, most of which have a noisy copy of themselves in the other image."""
    generator = torch.Generator().manual_seed(0)
    features1 = 2 * torch.randn(2, 480, 64, generator=generator)
    features0 = 2 * torch.randn(2, 480, 64, generator=generator)
    partners = torch.randperm(480, generator=generator)[:300]
    noise = torch.randn(2, 300, 64, generator=generator)
    features0[:, :300] = features1[:, partners] + 0.7 * noise
    return features0, features1


def masks() -> tuple[Tensor, Tensor]:
    mask0 = torch.zeros(2, *GRID0, dtype=torch.bool)
    mask0[0, :15], mask0[1, :, :20] = True, True
    mask1 = torch.zeros(2, *GRID1, dtype=torch.bool)
    mask1[0, :, :22], mask1[1, :13] = True, True
    return mask0, mask1


def match(
    rule: str,
    mask0: Tensor | None,
    mask1: Tensor | None,
    items: slice = slice(None),
) -> CoarseMatches:
    features0, features1 = (both[items] for both in features())
    options = {
        "threshold": RULES[rule],
        "border": BORDER,
        "temperature": TEMPERATURE,
        "mask0": mask0,
        "mask1": mask1,
    }
    if rule == "either":
        return match_either_maximum(features0, features1, GRID0, GRID1, **options)
    options["softmax"] = rule == "mutual"
    return match_mutual_maximum(features0, features1, GRID0, GRID1, **options)


def expected_matches(rule: str, mask0: Tensor | None, mask1: Tensor | None) -> CoarseMatches:
    """The definitions, on matrices."""
    logits = similarity(*features(), TEMPERATURE, mask0, mask1)
    along1, along0 = logits.softmax(2), logits.softmax(1)
    if rule == "either":
        scores = torch.maximum(along1, along0)
        chosen = (along1 == along1.amax(2, keepdim=True)) & (along1 > RULES[rule])
        chosen |= (along0 == along0.amax(1, keepdim=True)) & (along0 > RULES[rule])
    else:
        scores = along1 * along0 if rule == "mutual" else logits
        best = (scores == scores.amax(1, keepdim=True)) & (scores == scores.amax(2, keepdim=True))
        chosen = best & (scores > RULES[rule])
    inner0, inner1 = inner_cells(GRID0, mask0), inner_cells(GRID1, mask1)
    ids = (chosen & inner0[:, :, None] & inner1[:, None]).nonzero(as_tuple=True)
    return CoarseMatches(*ids, logits[ids], scores[ids])


def inner_cells(grid: tuple[int, int], mask: Tensor | None) -> Tensor:
    """(2, cells): at least BORDER cells from the border of the valid rectangle."""
    inner = torch.zeros(2, *grid, dtype=torch.bool)
    for item in range(2):
        valid = torch.ones(grid) if mask is None else mask[item]
        bottom, right = int(valid.any(1).sum()), int(valid.any(0).sum())
        inner[item, BORDER : bottom - BORDER, BORDER : right - BORDER] = True
    return inner.flatten(1)


@pytest.mark.parametrize("block_entries", [1 << 20, 3000])
@pytest.mark.parametrize("largest", [0.0, 70.0])  # beyond it rows are shifted to their maxima
@pytest.mark.parametrize("with_masks", [False, True])
@pytest.mark.parametrize("rule", list(RULES))
def test_blocks_agree_with_the_whole_matrix(
    rule: str,
    with_masks: bool,
    largest: float,
    block_entries: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(similarities, "MAX_IN_FLOAT32", largest)
    monkeypatch.setattr(similarities, "BLOCK_ENTRIES_CPU", block_entries)
    monkeypatch.setattr(similarities, "MIN_ROWS", 1)
    mask0, mask1 = masks() if with_masks else (None, None)
    found, expected = match(rule, mask0, mask1), expected_matches(rule, mask0, mask1)
    assert len(expected.ids0) > 100
    assert torch.equal(found.batch_ids, expected.batch_ids)
    assert torch.equal(found.ids0, expected.ids0)
    assert torch.equal(found.ids1, expected.ids1)
    torch.testing.assert_close(found.similarities, expected.similarities, rtol=0, atol=5e-5)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=5e-5)


@pytest.mark.parametrize("item", [0, 1])
@pytest.mark.parametrize("rule", list(RULES))
def test_a_pair_alone_is_compared_without_its_padded_cells(
    rule: str, item: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = 0

    class Counted(similarities.SimilarityBlocks):
        def _products(self, *features: Tensor) -> Iterator[tuple[slice, Tensor]]:
            nonlocal entries
            for rows, block in super()._products(*features):
                entries += block.numel()
                yield rows, block

    both, of_item = match(rule, *masks()), slice(item, item + 1)
    mask0, mask1 = (mask[of_item] for mask in masks())
    monkeypatch.setattr(coarse_matching, "SimilarityBlocks", Counted)
    alone = match(rule, mask0, mask1, of_item)
    assert entries == mask0.sum() * mask1.sum() < 0.7 * mask0.numel() * mask1.numel()
    chosen = both.batch_ids == item
    assert torch.equal(alone.ids0, both.ids0[chosen])
    assert torch.equal(alone.ids1, both.ids1[chosen])
    torch.testing.assert_close(alone.scores, both.scores[chosen], rtol=0, atol=5e-5)


def test_either_rule_gives_many_cells_one_partner() -> None:
    shared = torch.zeros(1, 64, 8)
    shared[0, [27, 28], 0] = 20.0  # two cells of image 0 look like one cell of image 1
    partner = torch.zeros(1, 64, 8)
    partner[0, 36, 0] = 20.0
    options = {"threshold": 0.2, "border": 2, "temperature": 0.1}
    either = match_either_maximum(shared, partner, (8, 8), (8, 8), **options)
    assert list(zip(either.ids0.tolist(), either.ids1.tolist(), strict=True)) == [
        (27, 36),
        (28, 36),
    ]
    mutual = match_mutual_maximum(shared, partner, (8, 8), (8, 8), **options)
    assert len(mutual.ids0) == 1
    assert mutual.ids1.tolist() == [36]


def test_border_cells_still_compete_under_the_mutual_rule() -> None:
    features0, features1 = torch.zeros(1, 64, 8), torch.zeros(1, 64, 8)
    features0[0, 27, 0], features1[0, 36, 0] = 10.0, 10.0
    options = {"threshold": 0.2, "border": 2, "temperature": 0.1}
    alone = match_mutual_maximum(features0, features1, (8, 8), (8, 8), **options)
    assert alone.ids0.tolist() == [27]
    features0[0, 0, 0] = 11.0  # a better partner, in the corner
    assert len(match_mutual_maximum(features0, features1, (8, 8), (8, 8), **options).ids0) == 0


@pytest.mark.parametrize("rule", list(RULES))
def test_nothing_valid_matches_nothing(rule: str) -> None:
    empty = torch.zeros(2, *GRID0, dtype=torch.bool)
    assert len(match(rule, empty, masks()[1]).ids0) == 0


@pytest.mark.parametrize("rule", ["either", "mutual"])
def test_scores_are_probabilities_however_large_the_similarities(rule: str) -> None:
    match_rule = match_either_maximum if rule == "either" else match_mutual_maximum
    features = 300 * torch.randn(1, 480, 64, generator=torch.Generator().manual_seed(0))
    options = {"threshold": 0.2, "border": 2, "temperature": 0.1}
    matches = match_rule(features, features[:, torch.randperm(480)], GRID0, GRID1, **options)
    assert len(matches.scores) > 100
    assert (matches.scores <= 1).all()


@pytest.mark.parametrize("spread", [0.0, 5.0, 24.0, 26.0, 200.0])
def test_probabilities_where_maxima_differ_much(spread: float) -> None:
    """Exponentials of rows serve columns only where maxima are alike."""
    generator = torch.Generator().manual_seed(0)
    features0 = torch.randn(1, 64, 32, generator=generator)
    features1 = features0[:, torch.randperm(64, generator=generator)]
    features0 = features0 * torch.linspace(1, 1 + spread / 30, 64)[:, None]
    options = {"threshold": 0.0, "border": 0, "temperature": 0.033}
    matches = match_either_maximum(features0, features1, (8, 8), (8, 8), **options)
    logits = similarity(features0.double(), features1.double(), 0.033)[0]
    probability = torch.maximum(logits.softmax(1), logits.softmax(0))
    assert len(matches.ids0) >= 64
    expected = probability[matches.ids0, matches.ids1].float()
    torch.testing.assert_close(matches.scores, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("with_masks", [False, True])
@pytest.mark.parametrize(
    ("rule", "threshold"), [("either", 0.2), ("either", 0.001), ("mutual", 0.2), ("mutual", 0.02)]
)
@pytest.mark.parametrize("temperature", [0.3, 0.06, 0.01])  # S up to 20, 100, 600
def test_products_in_bfloat16_change_few_matches(
    rule: str, threshold: float, with_masks: bool, temperature: float
) -> None:
    match_rule = match_either_maximum if rule == "either" else match_mutual_maximum
    mask0, mask1 = masks() if with_masks else (None, None)
    halves = [one.bfloat16() for one in features()]

    def scores(features0: Tensor, features1: Tensor) -> dict[tuple[int, ...], float]:
        options = {"threshold": threshold, "border": BORDER, "temperature": temperature}
        found = match_rule(features0, features1, GRID0, GRID1, mask0=mask0, mask1=mask1, **options)
        ids = torch.stack((found.batch_ids, found.ids0, found.ids1), 1).tolist()
        return dict(zip(map(tuple, ids), found.scores.tolist(), strict=True))

    rounded, exact = scores(*halves), scores(*[half.float() for half in halves])
    assert len(exact) > 100
    assert len(rounded.keys() ^ exact.keys()) <= 0.05 * len(exact)
    for ids in rounded.keys() & exact.keys():
        assert rounded[ids] == pytest.approx(exact[ids], abs=0.06)
