"""How JamMa is trained: initial weights and losses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfm_matchers.networks.jamma import (
    CELL,
    FINE_CELL,
    WINDOW,
    JamMa,
    JamMaFeatures,
    normalize,
)
from sfm_matchers.training.data.pair_batch import FirstPair, PairBatch, PairGeometry
from sfm_matchers.training.data.photographs import Photographs
from sfm_matchers.training.loop import TrainedNetwork
from sfm_matchers.training.losses.supervision import (
    IGNORED,
    UNMATCHED_WEIGHT,
    CellTruth,
    cell_truth,
    confident_precision,
    dual_cross_entropy,
    label_accuracy,
    sample_labelled_cells,
    unmatched_loss,
    window_labels,
    window_points,
)
from sfm_matchers.training.options import TaskOptions
from sfm_matchers.training.schedule import calibration_pairs
from sfm_matchers.training.tasks.coarse_to_fine import CoarseToFineTask, Losses

MAX_OFFSET_ERROR = 4.0  # pixels along an axis; farther off, nothing pulls


class JamMaTask(CoarseToFineTask[JamMa, "_CoarseStage"]):
    """JamMa: cross-entropy at the coarse and the fine level, regression of the offsets.

    Cells without a partner are told to the network too. The fine stage costs more than the rest per
    pair and learns faster, so it sees one pair of each batch only.
    """

    trains = TrainedNetwork("jamma", config={"coarse_threshold": 0.4})
    fine_weight = 0.5
    windows = 256  # per pair
    shifted_share = 0.3  # of the windows, at most: pairs of cells that are not quite partners
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
        batch = calibration_pairs(photographs, (96, 128), device)
        stage = _run_coarse_stage(network, batch)
        coarse = torch.cat([stage.coarse0, stage.coarse1])
        projection = network.matcher.coarse_matching.final_proj
        projected = network.matcher.coarse_matching(coarse).flatten(0, 1)
        mean = projected.mean(0)
        variance = (projected - mean).square().sum(-1).mean()
        width = projected.shape[-1] * network.config.coarse_temperature
        factor = math.sqrt(self.initial_logit_std * width / float(variance))
        projection.bias.copy_((projection.bias - mean) * factor)
        projection.weight.mul_(factor)
        cells = torch.arange(20, 100, device=device)
        maps = network.fine_maps(stage.features0, stage.features1, stage.coarse0, stage.coarse1)
        predictions = network.fine_predictions(*maps, cells * 0, cells, cells)
        fine_factor = math.sqrt(self.initial_logit_std / float(predictions.similarity.std()))
        network.matcher.fine_matching.fine_proj.weight.mul_(fine_factor)

    def coarse_stage(self, network: JamMa, batch: PairBatch) -> _CoarseStage:
        """See `CoarseToFineTask.coarse_stage`."""
        return _run_coarse_stage(network, batch)

    def coarse_losses(self, network: JamMa, stage: _CoarseStage, progress: float) -> Losses:
        """See `CoarseToFineTask.coarse_losses`."""
        similarity = network.coarse_similarity(stage.coarse0, stage.coarse1).float()
        truth, threshold = stage.truth, network.config.coarse_threshold
        loss = dual_cross_entropy(similarity, truth.labels0, truth.labels1)
        without_partner = unmatched_loss(similarity, truth.unmatched0, truth.unmatched1)
        probability = similarity.detach().softmax(-1)
        return loss + UNMATCHED_WEIGHT * without_partner, {
            "coarse_loss": loss.detach(),
            "unmatched_loss": without_partner.detach(),
            "coarse_accuracy": label_accuracy(similarity, truth.labels0),
            "coarse_precision": confident_precision(probability, truth, threshold),
        }

    def fine_losses(
        self, network: JamMa, stage: _CoarseStage, batch: PairBatch, generator: torch.Generator
    ) -> Losses | None:
        """See `CoarseToFineTask.fine_losses`; of the first pair."""
        first = stage.first_pair()
        return self._window_losses(network, first, generator) if first.has_labels else None

    def _window_losses(
        self, network: JamMa, stage: _CoarseStage, generator: torch.Generator
    ) -> Losses:
        """Cross-entropy and offset error within pairs of windows, some of them a cell apart."""
        cells0, cells1 = sample_labelled_cells(stage.truth.labels0, self.windows, generator)
        cells1 = _shift_some(cells1, stage.grid, self.shifted_share, generator)
        points0, points1 = (
            window_points(cells, stage.grid[1], CELL, FINE_CELL, WINDOW)
            for cells in (cells0, cells1)
        )
        labels0, labels1 = window_labels(stage.geometry, points0, points1, FINE_CELL)
        maps = network.fine_maps(stage.features0, stage.features1, stage.coarse0, stage.coarse1)
        pair_ids = torch.arange(len(cells0), device=cells0.device).repeat_interleave(self.windows)
        predictions = network.fine_predictions(*maps, pair_ids, cells0.flatten(), cells1.flatten())
        logits, labels0, labels1 = (
            predictions.similarity.float(),
            labels0.flatten(0, 1),
            labels1.flatten(0, 1),
        )
        fine_loss = dual_cross_entropy(logits, labels0, labels1)

        def transfer_errors(windows: Tensor, chosen0: Tensor, chosen1: Tensor) -> Tensor:
            offsets = network.subpixel_offsets(predictions.tokens, windows, chosen0, chosen1)
            exact0 = points0.flatten(0, 1)[windows, chosen0] + offsets[:, :2].float()
            exact1 = points1.flatten(0, 1)[windows, chosen1] + offsets[:, 2:].float()
            counts = pair_ids[windows].bincount(minlength=len(cells0))
            return _transfer_errors(stage.geometry, counts.tolist(), exact0, exact1)

        windows, true0 = (labels0 != IGNORED).nonzero(as_tuple=True)
        error_of_true = _mean(transfer_errors(windows, true0, labels0[windows, true0]))
        errors = transfer_errors(*network.choose_cells(logits)[:3])
        offset_loss = (error_of_true + _mean(errors)) / 2
        return fine_loss + offset_loss, {
            "fine_loss": fine_loss.detach(),
            "fine_accuracy": label_accuracy(logits, labels0),
            "offset_error": error_of_true.detach(),
            "match_error": errors.detach().median() if len(errors) else fine_loss.detach() * 0,
        }


class JamMaFineTask(JamMaTask):
    """Only what follows the coarse matches learns, from all pairs; the rest stays as it is.

    Without gradients through the coarse stage several times as many windows are seen in the same
    time.
    """

    modules = ("up2", "conv7a", "conv7b", "up3", "conv8a", "conv8b", "fine_enc", "fine_matching")

    def build_network(self, photographs: Photographs, device: torch.device) -> JamMa:
        """See `JamMaTask.build_network`; the weights to start from are loaded afterwards."""
        network = super().build_network(photographs, device).requires_grad_(False)
        for name in self.modules:
            network.matcher.get_submodule(name).requires_grad_(True)
        return network

    def losses(
        self, network: JamMa, batch: PairBatch, progress: float, generator: torch.Generator
    ) -> Losses:
        """See `TrainingTask.losses`."""
        return self._window_losses(network, _run_coarse_stage(network, batch), generator)


@dataclass
class _CoarseStage:
    """What JamMa's coarse stage computed for a batch, and the truth beside it."""

    features0: JamMaFeatures
    features1: JamMaFeatures
    coarse0: Tensor
    coarse1: Tensor
    geometry: PairGeometry
    truth: CellTruth

    @property
    def grid(self) -> tuple[int, int]:
        return self.coarse0.shape[2], self.coarse0.shape[3]

    @property
    def has_labels(self) -> bool:
        return bool((self.truth.labels0 != IGNORED).any())

    def first_pair(self) -> _CoarseStage:
        """The first pair alone."""
        features0, features1 = (
            JamMaFeatures(*(x[:1] for x in features))
            for features in (self.features0, self.features1)
        )
        return _CoarseStage(
            features0,
            features1,
            self.coarse0[:1],
            self.coarse1[:1],
            FirstPair(self.geometry, len(self.coarse0)),
            CellTruth(*(x[:1] for x in self.truth)),
        )


def _run_coarse_stage(network: JamMa, batch: PairBatch) -> _CoarseStage:
    features = network.encode(normalize(torch.cat([batch.image0, batch.image1])))
    features0 = JamMaFeatures(*(x[: len(batch)] for x in features))
    features1 = JamMaFeatures(*(x[len(batch) :] for x in features))
    coarse0, coarse1 = network.coarse_features(features0, features1)
    truth = cell_truth(batch.geometry, batch.image_size, CELL, 0.0, coarse0.device)
    return _CoarseStage(features0, features1, coarse0, coarse1, batch.geometry, truth)


def _shift_some(
    cells: Tensor, grid: tuple[int, int], share: float, generator: torch.Generator
) -> Tensor:
    """Move a share of the (B, N) cells to one of their eight neighbours, as far as there is one:
    coarse matches are often a cell off."""
    steps = torch.randint(-1, 2, (2, *cells.shape), generator=generator)
    steps = steps * (torch.rand(cells.shape, generator=generator) < share)
    dx, dy = steps.to(cells.device)
    x = (cells % grid[1] + dx).clamp(0, grid[1] - 1)
    y = (cells // grid[1] + dy).clamp(0, grid[0] - 1)
    return y * grid[1] + x


def _transfer_errors(
    geometry: PairGeometry, counts: list[int], points0: Tensor, points1: Tensor
) -> Tensor:
    """Distances along x plus y, in pixels, between points and their partners carried over, the
    mean of both ways: (m,). The side that is carried over is held fixed.

    Args:
        geometry: the truth of B pairs.
        counts: how many of the points are of each pair; sum m.
        points0: (m, 2) in images 0, in the order of the pairs.
        points1: (m, 2) their partners.
    """
    errors = []
    for source, (here, there) in enumerate([(points0, points1), (points1, points0)]):
        padded = nn.utils.rnn.pad_sequence(list(here.detach().split(counts)), batch_first=True)
        warped, _ = geometry.warp(padded, source)
        target = torch.cat([rows[:count] for rows, count in zip(warped, counts, strict=True)])
        # A partner behind an edge may lie anywhere: its pull is bounded.
        distance = (there - target.nan_to_num(nan=math.inf)).abs()
        errors.append(distance.clamp(max=MAX_OFFSET_ERROR).sum(-1))
    return (errors[0] + errors[1]) / 2


def _mean(errors: Tensor) -> Tensor:
    return errors.sum() / max(len(errors), 1)


def task(options: TaskOptions) -> JamMaTask:
    """See `networks.table.Network.task`; there is nothing to choose."""
    return JamMaTask()


def fine_task(options: TaskOptions) -> JamMaFineTask:
    """See `networks.table.Network.fine_task`."""
    return JamMaFineTask()
