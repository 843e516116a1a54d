"""Precision and recall of coarse matches by threshold, on photographs held out of training.

    python -m benchmarks.coarse_threshold --matcher jamma --photo_dir PHOTOS \\
        --weights run/weights.safetensors

The pairs are those of the validation (easy and hard homographies, scenes with parallax), and the
same photographs in pairs that share nothing, one for each true pair. A match is right if its cell
is the one nearest to the truth, or next to it. Recall is the share of the cells with a partner.
The thresholds that a weights file recommends are chosen by these tables; `eloftr_opt` compares raw
scores with one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sfm_matchers.features.networks import to_gray
from sfm_matchers.networks.jamma import (
    CELL,  # Efficient LoFTR's cells are as large
    normalize,
)
from sfm_matchers.training.data.held_out import is_held_out
from sfm_matchers.training.data.pair_batch import PairBatch
from sfm_matchers.training.data.photographs import list_photographs, load_photographs
from sfm_matchers.training.losses.supervision import cell_truth
from sfm_matchers.training.schedule import UPRIGHT, validation_sets
from sfm_matchers.weights import load_network

PROBABILITIES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
RAW_SCORES = (20.0, 25.0, 30.0, 35.0, 40.0, 42.5, 45.0, 47.5, 50.0, 52.5, 55.0, 60.0)


def jamma_probability(network: nn.Module, batch: PairBatch) -> Tensor:
    """Softmax over each row; the one over columns is the same with the images exchanged."""
    features = (network.encode(normalize(image)) for image in (batch.image0, batch.image1))
    return network.coarse_similarity(*network.coarse_features(*features)).softmax(-1)


def eloftr_probability(network: nn.Module, batch: PairBatch) -> Tensor:
    """Dual softmax at the mutual maxima."""
    logits = eloftr_logits(network, batch)
    return mutual_maxima(logits.softmax(-1) * logits.softmax(-2))


def eloftr_raw_score(network: nn.Module, batch: PairBatch) -> Tensor:
    """Similarity at the mutual maxima."""
    return mutual_maxima(eloftr_logits(network, batch))


def eloftr_logits(network: nn.Module, batch: PairBatch) -> Tensor:
    """The similarity of all cells."""
    features = network.encode_pair(to_gray(batch.image0), to_gray(batch.image1))
    return network.coarse_logits(*network.transform(*features))


def mutual_maxima(scores: Tensor) -> Tensor:
    """The scores where they are the largest of their row and of their column, elsewhere -inf."""
    is_mutual = (scores == scores.amax(-1, keepdim=True)) & (
        scores == scores.amax(-2, keepdim=True)
    )
    return scores.masked_fill(~is_mutual, -torch.inf)


class Rule(NamedTuple):
    """How a matcher picks cells: its network, what is compared (B, L0, L1), and with what."""

    network: str
    scores: Callable[[nn.Module, PairBatch], Tensor]
    thresholds: tuple[float, ...]


RULES = {
    "jamma": Rule("jamma", jamma_probability, PROBABILITIES),
    "eloftr": Rule("eloftr", eloftr_probability, PROBABILITIES),
    "eloftr_opt": Rule("eloftr", eloftr_raw_score, RAW_SCORES),
}


def rows(scores: Tensor, batch: PairBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Of the cells of image 0 of known truth: best score, if it is right, if it could be."""
    best_score, best = scores.max(-1)
    labels0, _, unmatched0, _ = cell_truth(batch.geometry, batch.image_size, CELL, 0.0, "cpu")
    columns = batch.image_size[1] // CELL
    apart = torch.stack(
        (best // columns - labels0 // columns, best % columns - labels0 % columns)
    ).abs()
    right = (apart.amax(0) <= 1) & (labels0 >= 0)
    known = (labels0 >= 0) | unmatched0
    return best_score[known], right[known], (labels0 >= 0)[known]


def batches(photo_dir: Path) -> Iterator[PairBatch]:
    """The validation's pairs, each batch followed by its photographs in wrong pairs."""
    names = [name for name in list_photographs(photo_dir) if is_held_out(name)]
    held_out = load_photographs(photo_dir, names)
    for of_kind in validation_sets(held_out, torch.device("cpu"), UPRIGHT).values():
        for batch in of_kind:
            yield batch
            yield batch.mismatched()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--matcher", choices=list(RULES), required=True)
    parser.add_argument("--photo_dir", type=Path, required=True)
    parser.add_argument("--weights", default="bundled", help="default: bundled")
    options = parser.parse_args()
    rule = RULES[options.matcher]
    network = load_network(rule.network, options.weights)
    with torch.inference_mode():
        of_batches = [
            rows(rule.scores(network, batch), batch) for batch in batches(options.photo_dir)
        ]
    found = zip(*of_batches, strict=True)
    scores, right, has_partner = (torch.cat(parts) for parts in found)
    print("| threshold | precision | recall |\n|---|---|---|")
    for threshold in rule.thresholds:
        kept = scores > threshold
        precision = right[kept].float().mean()
        recall = (right & kept).sum() / has_partner.sum()
        print(f"| {threshold} | {100 * precision:.1f} % | {100 * recall:.1f} % |")


if __name__ == "__main__":
    main()
