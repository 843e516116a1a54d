"""How JamMa is trained: initial weights and losses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from sfm_matchers.networks.jamma import (
    CELL,
    FINE_CELL,
    IMAGE_MEAN,
    IMAGE_STD,
    WINDOW,
    JamMa,
    JamMaFeatures,
)
from sfm_matchers.training.homographies import sample_homography_pairs
from sfm_matchers.training.pair_batch import FirstPair, PairBatch, PairGeometry
from sfm_matchers.training.photographs import Photographs
from sfm_matchers.training.schedule import (
    EASIEST,
    VALIDATION_SEED,
    mean_over_validation_sets,
    sample_scheduled_pairs,
)
from sfm_matchers.training.supervision import (
    IGNORED,
    coarse_labels,
    dual_cross_entropy,
    label_accuracy,
    sample_labelled_cells,
    window_labels,
    window_points,
)


def normalize(images: Tensor) -> Tensor:
    """RGB in 0..1 to ImageNet's zero mean and unit variance."""
    mean = images.new_tensor(IMAGE_MEAN).view(3, 1, 1)
    return (images - mean) / images.new_tensor(IMAGE_STD).view(3, 1, 1)


class JamMaTask:
    """JamMa: cross-entropy at the coarse and the fine level, regression of the offsets.

    The fine stage costs more than the rest per pair and learns faster, so it sees one pair of a
    share of the batches only.
    """

    fine_share = 0.5  # of the batches
    fine_weight = 0.5
    windows = 256  # per pair
    initial_logit_std = 1.5

    def build_network(self, photographs: Photographs, device: torch.device) -> JamMa:
        """Start as a matcher of random local features, which is well above chance at once.

        The encoder keeps the variance of its input, the aggregator begins as the identity on
        each channel (GELU(x) * x), the position code at zero, and the projections are rotations
        scaled so that the logits have a useful spread.
        """
        network = JamMa().to(device)
        matcher = network.matcher
        for module in network.backbone.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
            elif isinstance(module, nn.Conv2d):
                if module.groups > 1:
                    nn.init.normal_(module.weight, std=0.1)
                else:
                    nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        nn.init.orthogonal_(network.backbone.lin_8.weight)
        aggregator = matcher.joint_mamba.aggregator
        for convolution in (aggregator.W, aggregator.V, aggregator.W2):
            nn.init.dirac_(convolution.weight)
            convolution.weight.data += 0.01 * torch.randn_like(convolution.weight)
        for block in matcher.joint_mamba.layers:
            block.get_parameter("mixer.out_proj.weight").data *= 0.1
        nn.init.zeros_(matcher.kenc.encoder[-1].get_parameter("weight"))
        nn.init.orthogonal_(matcher.coarse_matching.final_proj.weight)
        nn.init.orthogonal_(matcher.fine_matching.fine_proj.weight)
        self._calibrate(network, photographs, device)
        return network

    @torch.no_grad()
    def _calibrate(self, network: JamMa, photographs: Photographs, device: torch.device) -> None:
        """Centre the projected coarse features and scale both levels' logits, on some pairs."""
        batch = sample_homography_pairs(
            photographs,
            8,
            (96, 128),
            strength=EASIEST,
            generator=torch.Generator().manual_seed(VALIDATION_SEED),
            device=device,
        )
        stages = _run_coarse_stage(network, batch)
        coarse = torch.cat([stages.coarse0, stages.coarse1])
        projection = network.matcher.coarse_matching.final_proj
        projected = network.matcher.coarse_matching(coarse).flatten(0, 1)
        mean = projected.mean(0)
        variance = (projected - mean).square().sum(-1).mean()
        width = projected.shape[-1] * network.config.coarse_temperature
        factor = math.sqrt(self.initial_logit_std * width / float(variance))
        projection.bias.copy_((projection.bias - mean) * factor)
        projection.weight.mul_(factor)
        cells = torch.arange(20, 100, device=device)
        maps = network.fine_maps(*stages.first_pair())
        predictions = network.fine_predictions(*maps, cells * 0, cells, cells)
        fine_factor = math.sqrt(self.initial_logit_std / float(predictions.similarity.std()))
        network.matcher.fine_matching.fine_proj.weight.mul_(fine_factor)

    def sample_batch(
        self,
        photographs: Photographs,
        batch_size: float,
        progress: float,
        generator: torch.Generator,
        device: torch.device,
    ) -> PairBatch:
        """See `TrainingTask.sample_batch`."""
        return sample_scheduled_pairs(photographs, batch_size, progress, generator, device)

    def losses(
        self, network: nn.Module, batch: PairBatch, progress: float, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `TrainingTask.losses`."""
        network = cast(JamMa, network)
        stages = _run_coarse_stage(network, batch)
        coarse_loss = dual_cross_entropy(stages.similarity, stages.labels0, stages.labels1)
        metrics = {
            "coarse_loss": coarse_loss.detach(),
            "coarse_accuracy": label_accuracy(stages.similarity, stages.labels0),
        }
        drawn = float(torch.rand((), generator=generator)) < self.fine_share
        if not drawn or not stages.first_pair_has_labels:
            return coarse_loss, metrics
        fine_loss, fine_metrics = self._fine_losses(network, stages, batch, generator)
        return coarse_loss + self.fine_weight * fine_loss, metrics | fine_metrics

    def _fine_losses(
        self, network: JamMa, stages: _CoarseStage, batch: PairBatch, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy and offset error within true pairs of windows of the first pair."""
        geometry = FirstPair(batch.geometry, len(batch))
        columns = batch.image_size[1] // CELL
        cells = sample_labelled_cells(stages.labels0[:1], self.windows, generator)
        points0, points1 = (window_points(one, columns, CELL, FINE_CELL, WINDOW) for one in cells)
        labels0, labels1 = window_labels(geometry, points0, points1, FINE_CELL)
        maps = network.fine_maps(*stages.first_pair())
        cells0, cells1 = cells[0][0], cells[1][0]
        predictions = network.fine_predictions(*maps, torch.zeros_like(cells0), cells0, cells1)
        logits = predictions.similarity.float()
        fine_loss = dual_cross_entropy(logits, labels0[0], labels1[0])

        windows, chosen0, chosen1 = _draw_true_cells(labels0[0], generator)
        offsets = network.subpixel_offsets(predictions.tokens[windows], chosen0, chosen1).float()
        exact0 = points0[0, windows, chosen0] + offsets[:, :2]
        exact1 = points1[0, windows, chosen1] + offsets[:, 2:]
        offset_loss = _transfer_error(geometry, exact0, exact1)
        return fine_loss + offset_loss, {
            "fine_loss": fine_loss.detach(),
            "fine_accuracy": label_accuracy(logits, labels0[0]),
            "offset_error": offset_loss.detach(),
        }

    @torch.no_grad()
    def validate(
        self, network: nn.Module, photographs: Photographs, device: torch.device
    ) -> dict[str, float]:
        """See `TrainingTask.validate`: shares of visible cells that find their exact partner."""
        network = cast(JamMa, network)

        def measure(batch: PairBatch, generator: torch.Generator) -> dict[str, Tensor]:
            stages = _run_coarse_stage(network, batch)
            metrics = {"coarse_accuracy": label_accuracy(stages.similarity, stages.labels0)}
            if stages.first_pair_has_labels:
                metrics |= self._fine_losses(network, stages, batch, generator)[1]
            return metrics

        return mean_over_validation_sets(photographs, device, measure)


@dataclass
class _CoarseStage:
    """What JamMa's coarse stage computed for a batch, and the truth beside it."""

    features0: JamMaFeatures
    features1: JamMaFeatures
    coarse0: Tensor
    coarse1: Tensor
    similarity: Tensor
    labels0: Tensor
    labels1: Tensor

    @property
    def first_pair_has_labels(self) -> bool:
        return bool((self.labels0[0] != IGNORED).any())

    def first_pair(self) -> tuple[JamMaFeatures, JamMaFeatures, Tensor, Tensor]:
        """The arguments of `JamMa.fine_maps` for the first pair."""
        features0, features1 = (
            JamMaFeatures(*(x[:1] for x in features))
            for features in (self.features0, self.features1)
        )
        return features0, features1, self.coarse0[:1], self.coarse1[:1]


def _run_coarse_stage(network: JamMa, batch: PairBatch) -> _CoarseStage:
    features = network.encode(normalize(torch.cat([batch.image0, batch.image1])))
    features0 = JamMaFeatures(*(x[: len(batch)] for x in features))
    features1 = JamMaFeatures(*(x[len(batch) :] for x in features))
    coarse0, coarse1 = network.coarse_features(features0, features1)
    similarity = network.coarse_similarity(coarse0, coarse1).float()
    labels0, labels1 = coarse_labels(batch.geometry, batch.image_size, CELL, 0.0, coarse0.device)
    return _CoarseStage(features0, features1, coarse0, coarse1, similarity, labels0, labels1)


def _draw_true_cells(labels0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """One true pair of fine cells from each window that has any.

    Args:
        labels0: (M, 25) from `window_labels`.
        generator: CPU generator.

    Returns:
        (m,) windows, (m,) cells of image 0, (m,) their partners.
    """
    weights = (labels0 != IGNORED).float()
    drawn = torch.multinomial((weights + 1e-9).cpu(), 1, generator=generator).to(labels0.device)
    windows = weights.amax(1).nonzero()[:, 0]
    cells0 = drawn[windows, 0]
    return windows, cells0, labels0[windows, cells0]


def _transfer_error(geometry: PairGeometry, points0: Tensor, points1: Tensor) -> Tensor:
    """Mean distance along x plus y, in pixels, between (m, 2) points and their partners carried
    over, both ways; the side that is carried over is held fixed."""
    target1, _ = geometry.warp(points0.detach()[None], 0)
    target0, _ = geometry.warp(points1.detach()[None], 1)
    # A partner behind an edge may lie anywhere: its pull is bounded.
    error0 = (points0 - target0[0]).abs().clamp(max=4).sum(-1)
    error1 = (points1 - target1[0]).abs().clamp(max=4).sum(-1)
    return (error0 + error1).sum() / (2 * max(len(points0), 1))
