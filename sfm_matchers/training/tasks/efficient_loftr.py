"""How Efficient LoFTR is trained: initial weights and losses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfm_matchers.features.networks import to_gray
from sfm_matchers.networks.efficient_loftr import (
    CELL,
    COARSE_DIM,
    AggregatedAttentionLayer,
    EfficientLoFTR,
    EfficientLoFTRConfig,
    EfficientLoFTRFeatures,
    RepVGGBlock,
    first_stage_log_confidence,
    match_windows,
)
from sfm_matchers.training.data.pair_batch import PairBatch
from sfm_matchers.training.data.photographs import Photographs
from sfm_matchers.training.loop import TrainedNetwork
from sfm_matchers.training.losses.efficient_loftr import (
    LOCAL_WEIGHT,
    CoarseTruth,
    coarse_loss,
    coarse_truth,
    fine_loss,
    fine_truth,
    local_loss,
)
from sfm_matchers.training.losses.supervision import (
    UNMATCHED_WEIGHT,
    CellTruth,
    cell_truth,
    confident_precision,
    dual_cross_entropy,
    label_accuracy,
    unmatched_loss,
)
from sfm_matchers.training.options import TaskOptions
from sfm_matchers.training.schedule import calibration_pairs
from sfm_matchers.training.tasks.coarse_to_fine import CoarseToFineTask, Losses

# Mean over standard deviation of the positive half of a normal distribution: the shift after
# normalisation that keeps such values positive, so that a ReLU leaves them alone.
HALF_NORMAL_MEAN = 0.68
BRANCH_GAIN = 0.1  # of the convolutions beside an identity branch
UPDATE_GAIN = 0.1  # of the transformer's first updates
INITIAL_SELF_SIMILARITY = 4.0  # mean coarse logit of a cell with itself
INITIAL_FINE_LOGIT_STD = 1.5


class EfficientLoFTRTask(CoarseToFineTask[EfficientLoFTR, "_CoarseStage"]):
    """Efficient LoFTR: the authors' losses, after a warm-up with a plainer coarse one.

    At first the coarse loss is the cross-entropy over the rows and the columns of the logits, then
    the authors' focal loss of the dual softmax; cells without a partner are told to the network
    throughout. The fine stages see true pairs of cells only, and
    a share of the batches: they cost two thirds of the rest and learn faster.
    """

    trains = TrainedNetwork(
        "eloftr", config={"coarse_threshold": 0.1, "raw_threshold": 46.0, "centred_patch": True}
    )
    cross_entropy_until = 0.9  # of the run
    fine_share = 0.4  # of the batches
    windows = 128  # pairs of cells per pair of images

    def build_network(self, photographs: Photographs, device: torch.device) -> EfficientLoFTR:
        """Start as a matcher of random local features.

        The blocks of the backbone with an identity branch begin close to the identity, so that the
        features stay local; the transformer changes them little, and its last shift centres them;
        coarse and fine features are scaled so that the logits have a useful spread.
        """
        network = EfficientLoFTR(EfficientLoFTRConfig(centred_patch=True)).to(device)
        for module in network.backbone.modules():
            if isinstance(module, RepVGGBlock) and module.rbr_identity is not None:
                nn.init.constant_(module.rbr_identity.bias, HALF_NORMAL_MEAN)
                for branch in (module.rbr_dense, module.rbr_1x1):
                    nn.init.constant_(branch.bn.weight, BRANCH_GAIN)
        for layer in network.loftr_coarse.layers:
            assert isinstance(layer, AggregatedAttentionLayer)
            nn.init.constant_(layer.norm2.weight, UPDATE_GAIN)
        self._calibrate(network, photographs, device)
        return network

    @torch.no_grad()
    def _calibrate(
        self, network: EfficientLoFTR, photographs: Photographs, device: torch.device
    ) -> None:
        """Centre the coarse features and scale both levels' logits, on some pairs."""
        batch = calibration_pairs(photographs, (96, 128), device)
        layer, block = network.loftr_coarse.layers[-1], network.backbone.layer3[-1]
        last = network.fine_preprocess.layer1_outconv2[-1]
        assert isinstance(layer, AggregatedAttentionLayer)
        assert isinstance(last, nn.Conv2d)
        assert isinstance(block, RepVGGBlock)
        assert block.rbr_identity is not None
        shift = layer.norm2.bias
        # The spread of the updates does not follow the features' scale: a few rounds settle it.
        for _ in range(3):
            coarse = _run_coarse_stage(network, batch).coarse1
            mean = coarse.mean((0, 2, 3))
            variance = (coarse - mean[:, None, None]).square().sum(1).mean()
            width = COARSE_DIM * network.config.coarse_temperature
            factor = math.sqrt(INITIAL_SELF_SIMILARITY * width / float(variance))
            shift.copy_((shift - mean) * factor)
            for norm in (block.rbr_identity, block.rbr_dense.bn, block.rbr_1x1.bn):
                norm.weight.mul_(factor)
                norm.bias.mul_(factor)
        stage = _run_coarse_stage(network, batch)
        windows = match_windows(*stage.fine_maps(network), *_all_pairs(stage.truth))
        spread = float((windows[0] @ windows[1].mT).std()) / windows[0].shape[-1]
        last.weight.mul_(math.sqrt(INITIAL_FINE_LOGIT_STD / spread))

    def coarse_stage(self, network: EfficientLoFTR, batch: PairBatch) -> _CoarseStage:
        """See `CoarseToFineTask.coarse_stage`."""
        return _run_coarse_stage(network, batch)

    def coarse_losses(
        self, network: EfficientLoFTR, stage: _CoarseStage, progress: float
    ) -> Losses:
        """See `CoarseToFineTask.coarse_losses`; at first that of the warm-up."""
        logits, cells = stage.logits, stage.cells
        if progress < self.cross_entropy_until:
            loss = dual_cross_entropy(logits, cells.labels0, cells.labels1)
        else:
            loss = coarse_loss(logits, stage.truth)
        without_partner = unmatched_loss(logits, cells.unmatched0, cells.unmatched1)
        values = logits.detach()
        probability = values.softmax(-1) * values.softmax(-2)
        return loss + UNMATCHED_WEIGHT * without_partner, {
            "coarse_loss": loss.detach(),
            "unmatched_loss": without_partner.detach(),
            "coarse_accuracy": label_accuracy(logits, cells.labels0),
            "coarse_precision": confident_precision(
                probability, cells, network.config.coarse_threshold
            ),
        }

    def fine_losses(
        self,
        network: EfficientLoFTR,
        stage: _CoarseStage,
        batch: PairBatch,
        generator: torch.Generator,
    ) -> Losses | None:
        """The authors' losses of both refinement stages within true pairs of windows."""
        if not len(stage.truth.ids0):
            return None
        candidates = torch.stack(_all_pairs(stage.truth))
        count = self.windows * len(batch)
        drawn = torch.randint(candidates.shape[1], (count,), generator=generator)
        batch_ids, ids0, ids1 = candidates[:, drawn.to(candidates.device)].unbind()
        windows0, windows1 = match_windows(*stage.fine_maps(network), batch_ids, ids0, ids1)
        scale = batch.image0.new_ones(len(batch), 2)
        geometry, grid = batch.geometry, stage.grid
        truth = fine_truth(geometry, batch_ids, ids0, ids1, grid, grid, scale0=scale, scale1=scale)
        fine = fine_loss(windows0, windows1, truth)
        local = local_loss(windows0, windows1, truth, network.config)
        confidence = first_stage_log_confidence(windows0.detach(), windows1.detach())
        best = confidence[truth.window_ids, truth.pixels0].argmax(-1)
        return fine + LOCAL_WEIGHT * local, {
            "fine_loss": fine.detach(),
            "fine_accuracy": (best == truth.pixels1).sum() / max(len(best), 1),
            "offset_loss": local.detach(),
        }


@dataclass
class _CoarseStage:
    """What the coarse stage computed for a batch, and the truth beside it.

    `cells` says of every visible cell which one is nearest; `truth` has the mutually nearest.
    """

    features0: EfficientLoFTRFeatures
    features1: EfficientLoFTRFeatures
    coarse0: Tensor
    coarse1: Tensor
    logits: Tensor
    cells: CellTruth
    truth: CoarseTruth

    @property
    def grid(self) -> tuple[int, int]:
        return self.coarse0.shape[2], self.coarse0.shape[3]

    def fine_maps(self, network: EfficientLoFTR) -> tuple[Tensor, Tensor]:
        return network.fine_maps(self.features0, self.features1, self.coarse0, self.coarse1)


def _run_coarse_stage(network: EfficientLoFTR, batch: PairBatch) -> _CoarseStage:
    features0, features1 = network.encode_pair(to_gray(batch.image0), to_gray(batch.image1))
    coarse0, coarse1 = network.transform(features0, features1)
    logits = network.coarse_logits(coarse0, coarse1)
    cells = cell_truth(batch.geometry, batch.image_size, CELL, 0.0, logits.device)
    grid = (coarse0.shape[2], coarse0.shape[3])
    scale = batch.image0.new_ones(len(batch), 2)
    truth = coarse_truth(batch.geometry, grid, grid, scale0=scale, scale1=scale, only_visible=True)
    return _CoarseStage(features0, features1, coarse0, coarse1, logits, cells, truth)


def _all_pairs(truth: CoarseTruth) -> tuple[Tensor, Tensor, Tensor]:
    return truth.batch_ids, truth.ids0, truth.ids1


def task(options: TaskOptions) -> EfficientLoFTRTask:
    """See `networks.table.Network.task`; there is nothing to choose."""
    return EfficientLoFTRTask()
