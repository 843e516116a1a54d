"""What is particular to each network: sizes, initial weights, supervision."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sfm_matchers.networks.jamma import (
    CELL,
    FINE_CELL,
    IMAGE_MEAN,
    IMAGE_STD,
    WINDOW,
    WINDOW_CELLS,
    JamMa,
    JamMaFeatures,
)
from sfm_matchers.training.homographies import sample_homography_pairs
from sfm_matchers.training.loop import TrainingTask
from sfm_matchers.training.pair_batch import PairBatch
from sfm_matchers.training.parallax import sample_parallax_pairs
from sfm_matchers.training.photographs import Photographs
from sfm_matchers.training.supervision import (
    IGNORED,
    coarse_labels,
    dual_cross_entropy,
    label_accuracy,
    sample_labelled_cells,
    window_labels,
    window_points,
)

REFERENCE_AREA = 240 * 320  # pixels of an image for which the batch size is meant
SMALL_SIZES = [(160, 224), (224, 160), (192, 192), (160, 160)]
LARGE_SIZES = [(240, 320), (320, 240), (256, 256), (320, 320), (288, 384), (384, 288)]
SMALL_SIZES_UNTIL = 0.5  # of the run; small images show more photographs for the same work
EASIEST, HARDEST = 0.35, 1.0  # strength of the warps at the beginning and from HARDEST_FROM on
HARDEST_FROM = 0.6  # of the run
PARALLAX_SHARE = 0.4  # of the batches
VALIDATION_SIZE = (240, 320)
VALIDATION_SEED = 20_000_000


def sample_scheduled_pairs(
    photographs: Photographs,
    batch_size: float,
    progress: float,
    generator: torch.Generator,
    device: torch.device,
) -> PairBatch:
    """Pairs that grow larger and harder with the run, at constant work per batch."""
    sizes = SMALL_SIZES if progress < SMALL_SIZES_UNTIL else LARGE_SIZES
    size = sizes[int(torch.randint(len(sizes), (), generator=generator))]
    count = max(1, round(batch_size * REFERENCE_AREA / (size[0] * size[1])))
    strength = EASIEST + (HARDEST - EASIEST) * min(1.0, progress / HARDEST_FROM)
    with_parallax = float(torch.rand((), generator=generator)) < PARALLAX_SHARE
    sample = sample_parallax_pairs if with_parallax else sample_homography_pairs
    return sample(photographs, count, size, strength=strength, generator=generator, device=device)


def validation_sets(
    photographs: Photographs, device: torch.device
) -> dict[str, list[PairBatch]]:
    """Always the same pairs of the held-out photographs, by kind."""
    kinds = {
        "easy": (sample_homography_pairs, 0.5),
        "hard": (sample_homography_pairs, 1.0),
        "parallax": (sample_parallax_pairs, 0.7),
    }
    return {
        name: [
            sample(
                photographs,
                4,
                VALIDATION_SIZE,
                strength=strength,
                generator=torch.Generator().manual_seed(VALIDATION_SEED + index),
                device=device,
            )
            for index in range(2)
        ]
        for name, (sample, strength) in kinds.items()
    }


def normalize(images: Tensor) -> Tensor:
    """RGB in 0..1 to ImageNet's zero mean and unit variance."""
    mean = images.new_tensor(IMAGE_MEAN).view(3, 1, 1)
    return (images - mean) / images.new_tensor(IMAGE_STD).view(3, 1, 1)


class JamMaTask:
    """JamMa: cross-entropy at the coarse and the fine level, regression of the offsets.

    The fine stage costs more than the rest per pair and learns faster, so it sees one pair of a
    share of the batches only.
    """

    fine_from = 0.15  # of the run
    fine_share = 0.25  # of the batches
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
        for layer in matcher.joint_mamba.layers:
            layer.mixer.out_proj.weight.data *= 0.1
        nn.init.zeros_(matcher.kenc.encoder[-1].weight)
        nn.init.orthogonal_(matcher.coarse_matching.final_proj.weight)
        nn.init.orthogonal_(matcher.fine_matching.fine_proj.weight)
        self._calibrate(network, photographs, device)
        return network.to(memory_format=torch.channels_last)

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
        features0, features1 = self._encode(network, batch)
        coarse = network.coarse_features(features0, features1)
        projection = network.matcher.coarse_matching.final_proj
        projected = network.matcher.coarse_matching(torch.cat(coarse)).flatten(0, 1)
        mean = projected.mean(0)
        variance = (projected - mean).square().sum(-1).mean()
        width = projected.shape[-1] * network.config.coarse_temperature
        factor = math.sqrt(self.initial_logit_std * width / float(variance))
        projection.bias.copy_((projection.bias - mean) * factor)
        projection.weight.mul_(factor)
        fine0, fine1 = network.fine_maps(features0, features1, *coarse)
        cells = torch.arange(20, 100, device=device)
        predictions = network.fine_predictions(fine0, fine1, cells * 0, cells, cells)
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
        assert isinstance(network, JamMa)
        features0, features1 = self._encode(network, batch)
        coarse0, coarse1 = network.coarse_features(features0, features1)
        similarity = network.coarse_similarity(coarse0, coarse1).float()
        labels0, labels1 = coarse_labels(
            batch.geometry, batch.image_size, CELL, 0.0, similarity.device
        )
        coarse_loss = dual_cross_entropy(similarity, labels0, labels1)
        metrics = {
            "coarse_loss": coarse_loss.detach(),
            "coarse_accuracy": label_accuracy(similarity, labels0),
        }
        drawn = float(torch.rand((), generator=generator)) < self.fine_share
        if progress < self.fine_from or not drawn or not (labels0[0] != IGNORED).any():
            return coarse_loss, metrics
        fine_loss, fine_metrics = self._fine_losses(
            network,
            JamMaFeatures(*(x[:1] for x in features0)),
            JamMaFeatures(*(x[:1] for x in features1)),
            (coarse0[:1], coarse1[:1]),
            batch,
            labels0[:1],
            generator,
        )
        return coarse_loss + self.fine_weight * fine_loss, metrics | fine_metrics

    def _encode(self, network: JamMa, batch: PairBatch) -> tuple[JamMaFeatures, JamMaFeatures]:
        features = network.encode(normalize(torch.cat([batch.image0, batch.image1])))
        count = len(batch)
        return (
            JamMaFeatures(*(x[:count] for x in features)),
            JamMaFeatures(*(x[count:] for x in features)),
        )

    def _fine_losses(
        self,
        network: JamMa,
        features0: JamMaFeatures,
        features1: JamMaFeatures,
        coarse: tuple[Tensor, Tensor],
        batch: PairBatch,
        labels0: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy in true pairs of windows of one pair, and the offsets' error in pixels."""
        geometry = batch.geometry.first(1)
        columns = batch.image_size[1] // CELL
        cells0, cells1 = sample_labelled_cells(labels0, self.windows, generator)
        points0 = window_points(cells0, columns, CELL, FINE_CELL, WINDOW)
        points1 = window_points(cells1, columns, CELL, FINE_CELL, WINDOW)
        fine_labels0, fine_labels1 = window_labels(geometry, points0, points1, FINE_CELL)
        fine0, fine1 = network.fine_maps(features0, features1, *coarse)
        predictions = network.fine_predictions(
            fine0, fine1, torch.zeros_like(cells0[0]), cells0[0], cells1[0]
        )
        logits = predictions.similarity.float()
        fine_loss = dual_cross_entropy(logits, fine_labels0[0], fine_labels1[0])
        # One true pair of fine cells in each window that has any.
        weights = (fine_labels0[0] != IGNORED).float().cpu() + 1e-9
        chosen0 = torch.multinomial(weights, 1, generator=generator)[:, 0].to(logits.device)
        rows = torch.arange(len(chosen0), device=logits.device)
        chosen1 = fine_labels0[0][rows, chosen0]
        kept = chosen1 != IGNORED
        rows, chosen0, chosen1 = rows[kept], chosen0[kept], chosen1[kept]
        offsets = network.subpixel_offsets(predictions.tokens[kept], chosen0, chosen1).float()
        exact0 = points0[0, rows, chosen0] + offsets[:, :2]
        exact1 = points1[0, rows, chosen1] + offsets[:, 2:]
        target1, _ = geometry.warp(exact0.detach()[None], 0)
        target0, _ = geometry.warp(exact1.detach()[None], 1)
        error1 = (exact1 - target1[0]).abs().clamp(max=4).sum(-1)
        error0 = (exact0 - target0[0]).abs().clamp(max=4).sum(-1)
        offset_loss = (error0 + error1).sum() / (2 * max(len(rows), 1))
        metrics = {
            "fine_loss": fine_loss.detach(),
            "fine_accuracy": label_accuracy(logits, fine_labels0[0]),
            "offset_error": offset_loss.detach(),
        }
        return fine_loss + offset_loss, metrics

    @torch.no_grad()
    def validate(
        self, network: nn.Module, photographs: Photographs, device: torch.device
    ) -> dict[str, float]:
        """See `TrainingTask.validate`: shares of visible cells that find their exact partner."""
        assert isinstance(network, JamMa)
        metrics: dict[str, float] = {}
        for name, batches in validation_sets(photographs, device).items():
            accuracies, fine = [], []
            for batch in batches:
                features0, features1 = self._encode(network, batch)
                coarse = network.coarse_features(features0, features1)
                similarity = network.coarse_similarity(*coarse)
                labels0, _ = coarse_labels(batch.geometry, batch.image_size, CELL, 0.0, device)
                accuracies.append(float(label_accuracy(similarity, labels0)))
                if (labels0[0] != IGNORED).any():
                    _, values = self._fine_losses(
                        network,
                        JamMaFeatures(*(x[:1] for x in features0)),
                        JamMaFeatures(*(x[:1] for x in features1)),
                        (coarse[0][:1], coarse[1][:1]),
                        batch,
                        labels0[:1],
                        torch.Generator().manual_seed(VALIDATION_SEED),
                    )
                    fine.append((float(values["fine_accuracy"]), float(values["offset_error"])))
            metrics[f"{name}_coarse_accuracy"] = sum(accuracies) / len(accuracies)
            if fine:
                metrics[f"{name}_fine_accuracy"] = sum(a for a, _ in fine) / len(fine)
                metrics[f"{name}_offset_error"] = sum(e for _, e in fine) / len(fine)
        return metrics


TASKS: dict[str, type[TrainingTask]] = {"jamma": JamMaTask}
