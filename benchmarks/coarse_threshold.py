"""Precision and recall of JamMa's coarse matches by threshold, on photographs held out of training.

    python -m benchmarks.coarse_threshold --photo_dir PHOTOS --weights run/weights.safetensors

The pairs are those of the validation (easy and hard homographies, scenes with parallax), and the
same photographs in pairs that share nothing, one for each true pair. A match is right if its cell
is the one nearest to the truth, or next to it. Recall is the share of the cells with a partner.
The threshold that a weights file recommends is chosen by this table.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from sfm_matchers.networks.jamma import CELL, JamMa
from sfm_matchers.training.jamma_task import normalize
from sfm_matchers.training.pair_batch import PairBatch
from sfm_matchers.training.photographs import is_held_out, list_photographs, load_photographs
from sfm_matchers.training.schedule import validation_sets
from sfm_matchers.training.supervision import cell_truth
from sfm_matchers.weights import load_network

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


@torch.inference_mode()
def rows(network: JamMa, batch: PairBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Of the cells of image 0 of known truth: best probability, if it is right, if it could be."""
    features = (network.encode(normalize(image)) for image in (batch.image0, batch.image1))
    similarity = network.coarse_similarity(*network.coarse_features(*features))
    probability, best = similarity.softmax(-1).max(-1)
    labels0, _, unmatched0, _ = cell_truth(batch.geometry, batch.image_size, CELL, 0.0, "cpu")
    columns = batch.image_size[1] // CELL
    apart = torch.stack(
        (best // columns - labels0 // columns, best % columns - labels0 % columns)
    ).abs()
    right = (apart.amax(0) <= 1) & (labels0 >= 0)
    known = (labels0 >= 0) | unmatched0
    return probability[known], right[known], (labels0 >= 0)[known]


def batches(photo_dir: Path) -> Iterator[PairBatch]:
    """The validation's pairs, each batch followed by its photographs in wrong pairs."""
    names = [name for name in list_photographs(photo_dir) if is_held_out(name)]
    held_out = load_photographs(photo_dir, names)
    for of_kind in validation_sets(held_out, torch.device("cpu")).values():
        for batch in of_kind:
            yield batch
            yield batch.mismatched()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photo_dir", type=Path, required=True)
    parser.add_argument("--weights", default="bundled", help="default: bundled")
    options = parser.parse_args()
    network = cast(JamMa, load_network("jamma", options.weights))
    found = zip(*(rows(network, batch) for batch in batches(options.photo_dir)), strict=True)
    probability, right, has_partner = (torch.cat(parts) for parts in found)
    print("| threshold | precision | recall |\n|---|---|---|")
    for threshold in THRESHOLDS:
        kept = probability > threshold
        precision = right[kept].float().mean()
        recall = (right & kept).sum() / has_partner.sum()
        print(f"| {threshold} | {100 * precision:.1f} % | {100 * recall:.1f} % |")


if __name__ == "__main__":
    main()
