"""How MambaGlue is trained on SIFT features: initial weights, features, losses."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor, nn

from sfm_matchers.errors import InputError
from sfm_matchers.networks.mambaglue import (
    LocalFeatures,
    MambaGlue,
    MambaGlueConfig,
    MatchAssignment,
    TransformerMambaLayer,
    filter_matches,
)
from sfm_matchers.training.homographies import sample_homography_pairs
from sfm_matchers.training.loop import TrainedNetwork
from sfm_matchers.training.mambaglue_supervision import (
    IGNORED,
    GroundTruthMatches,
    ground_truth_matches,
    mambaglue_loss,
)
from sfm_matchers.training.pair_batch import PairBatch
from sfm_matchers.training.photographs import Photographs
from sfm_matchers.training.schedule import (
    ANY_TURN,
    EASIEST,
    REFERENCE_AREA,
    VALIDATION_SEED,
    mean_over_validation_sets,
    sample_scheduled_pairs,
)
from sfm_matchers.training.sift_features import extract_sift

# COLMAP orders its features octave by octave; training and use agree on the order by scale.
SIFT_CONFIG = MambaGlueConfig(features="sift", keypoint_order="score")
UPDATE_GAIN = 0.1  # of each layer's first updates of the states
SCALE_GAIN = 0.05  # of the frequencies of the scales, which are in pixels and reach tens


@dataclass
class SparsePairBatch(PairBatch):
    """Pairs of images with their features.

    Attributes:
        features0: of image 0.
        features1: of image 1.
    """

    features0: LocalFeatures
    features1: LocalFeatures


class MambaGlueTask:
    """MambaGlue: likelihood of the true matches at every layer, and the confidence regressor.

    Args:
        config: of the network; its features must be SIFT.
        max_keypoints: most keypoints of an image of 240 x 320 pixels, the largest ones; other
            images have more or fewer in proportion to their area.
    """

    trains = TrainedNetwork("mambaglue", features="sift")

    def __init__(self, config: MambaGlueConfig = SIFT_CONFIG, max_keypoints: int = 512) -> None:
        self.config = config
        self.max_keypoints = max_keypoints

    def build_network(self, photographs: Photographs, device: torch.device) -> MambaGlue:
        """Start as the dual softmax over the cosines of the descriptors.

        The states begin as the descriptors, centred on their mean over some photographs and
        turned by a rotation, with unit variance; each layer changes them
        little; every match head compares them as they are.
        """
        network = MambaGlue(self.config).to(device)
        with torch.no_grad():
            projection = cast(nn.Linear, network.input_proj)
            nn.init.orthogonal_(projection.weight)
            nn.init.zeros_(projection.bias)
            states = projection(self._some_descriptors(photographs, device))
            mean, deviation = states.mean(0), (states - states.mean(0)).square().mean().sqrt()
            projection.weight.div_(deviation)
            projection.bias.copy_(-mean / deviation)
            network.posenc.Wr.weight[:, 2].mul_(SCALE_GAIN)
            for layer in network.transformermambas:
                layer = cast(TransformerMambaLayer, layer)
                for update in (layer.mamba_selfattn_mixer.ffn, layer.cross_attn.ffn):
                    last = cast(nn.Linear, update[-1])
                    last.weight.mul_(UPDATE_GAIN)
                    last.bias.zero_()
            for head in network.log_assignment:
                head = cast(MatchAssignment, head)
                nn.init.eye_(head.final_proj.weight)
                nn.init.zeros_(head.final_proj.bias)
        return network

    def _some_descriptors(self, photographs: Photographs, device: torch.device) -> Tensor:
        """Descriptors (N, 128) of some photographs.

        Raises:
            InputError: there are no features in them.
        """
        batch = sample_homography_pairs(
            photographs,
            8,
            (160, 224),
            strength=EASIEST,
            generator=torch.Generator().manual_seed(VALIDATION_SEED),
            device=device,
        )
        features = extract_sift(batch.image0, self.max_keypoints)
        descriptors = features.descriptors[features.valid]
        if len(descriptors) < 2:
            raise InputError("no SIFT features in the photographs: give photographs with texture")
        return descriptors

    def sample_batch(
        self,
        photographs: Photographs,
        batch_size: float,
        progress: float,
        generator: torch.Generator,
        device: torch.device,
    ) -> SparsePairBatch:
        """See `TrainingTask.sample_batch`."""
        batch = sample_scheduled_pairs(
            photographs, batch_size, progress, generator, device, max_turn=ANY_TURN
        )
        return self.with_features(batch)

    def with_features(self, batch: PairBatch) -> SparsePairBatch:
        """Extract the features of both images of each pair."""
        height, width = batch.image_size
        most = round(self.max_keypoints * height * width / REFERENCE_AREA)
        return SparsePairBatch(
            batch.image0,
            batch.image1,
            batch.geometry,
            extract_sift(batch.image0, most),
            extract_sift(batch.image1, most),
        )

    def losses(
        self, network: nn.Module, batch: PairBatch, progress: float, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `TrainingTask.losses`; pairs with an image without keypoints have no part."""
        network, batch = cast(MambaGlue, network), cast(SparsePairBatch, batch)
        truth = ground_truth_matches(batch.features0, batch.features1, batch.geometry)
        usable = (batch.features0.counts > 0) & (batch.features1.counts > 0)
        if not usable.any():
            return 0.0 * network.posenc.Wr.weight.sum(), {}
        features0, features1 = (_select(f, usable) for f in (batch.features0, batch.features1))
        truth = GroundTruthMatches(truth.matches0[usable], truth.matches1[usable])
        outputs = network.forward_layers(features0, features1)
        loss = mambaglue_loss(outputs, truth)
        scores = outputs.log_assignments[-1].detach()
        return loss.total, {
            "assignment_loss": loss.assignment[-1].detach(),
            "confidence_loss": loss.confidence.detach().mean(),
            **match_measures(scores, truth, self.config.filter_threshold),
        }

    @torch.no_grad()
    def validate(
        self, network: nn.Module, photographs: Photographs, device: torch.device
    ) -> dict[str, float]:
        """See `TrainingTask.validate`."""

        def measure(batch: PairBatch, generator: torch.Generator) -> dict[str, Tensor]:
            return self.losses(network, self.with_features(batch), 1.0, generator)[1]

        return mean_over_validation_sets(photographs, device, ANY_TURN, measure)


def _select(features: LocalFeatures, pairs: Tensor) -> LocalFeatures:
    """Keep the features of the pairs chosen by a (B,) mask."""
    values: dict[str, Any] = {
        field.name: value[pairs]
        for field in fields(features)
        if (value := getattr(features, field.name)) is not None
    }
    return LocalFeatures(**values)


def match_measures(
    log_assignment: Tensor, truth: GroundTruthMatches, threshold: float
) -> dict[str, Tensor]:
    """Recall and precision of mutual best partners with a score above the threshold.

    Args:
        log_assignment: (B, M + 1, N + 1) of one layer.
        truth: keypoints of which nothing is known count for neither.
        threshold: smallest score of a match, exclusive.
    """
    matches0 = filter_matches(log_assignment, threshold)[0]
    true = truth.matches0 >= 0
    correct = (matches0 == truth.matches0) & true
    known = (matches0 >= 0) & (truth.matches0 != IGNORED)
    return {
        "recall": correct.sum() / true.sum().clamp(min=1),
        "precision": correct.sum() / known.sum().clamp(min=1),
    }
