"""How MambaGlue is trained on local features: initial weights, losses."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from sfm_matchers.errors import InputError
from sfm_matchers.files.fingerprints import file_sha256
from sfm_matchers.networks.mambaglue import (
    LayerOutputs,
    LocalFeatures,
    MambaGlue,
    MambaGlueConfig,
    MatchAssignment,
    TransformerMambaLayer,
    filter_matches,
)
from sfm_matchers.training.data.kept import Kept
from sfm_matchers.training.data.pair_batch import PairBatch
from sfm_matchers.training.data.photographs import Photographs
from sfm_matchers.training.data.sparse_pairs import (
    FeatureSource,
    SparsePairBatch,
    SparsePairs,
    batched,
)
from sfm_matchers.training.loop import TrainedNetwork
from sfm_matchers.training.losses.mambaglue import IGNORED, GroundTruthMatches, mambaglue_loss
from sfm_matchers.training.options import Start, TaskOptions
from sfm_matchers.training.schedule import (
    ANY_TURN,
    REFERENCE_AREA,
    UPRIGHT,
    calibration_pairs,
    mean_over_validation_sets,
)
from sfm_matchers.weights.convert_lightglue import convert_either
from sfm_matchers.weights.loading import check_finite, load_state_dict_file

# COLMAP orders its features octave by octave; training and use agree on the order by scale.
SIFT_CONFIG = MambaGlueConfig(features="sift", keypoint_order="score")
UPDATE_GAIN = 0.1  # of each layer's first updates of the states
SCALE_GAIN = 0.05  # of the frequencies of the scales, which are in pixels and reach tens
BRANCH = ".mamba_mixer."
UPDATE = ".mamba_selfattn_mixer.ffn.0.weight"  # its second half listens to the branch


class MambaGlueTask:
    """MambaGlue: likelihood of the true matches at every layer, and the confidence regressor.

    Args:
        config: of the network; features are SIFT, ALIKED or DISK.
        max_keypoints: most keypoints of a validation image of 240 x 320 pixels, the best ones;
            other images have more or fewer in proportion to their area.
        start: weights to start from; None starts as a matcher of descriptors.
        kept: folder in which features of networks are kept.
    """

    def __init__(
        self,
        config: MambaGlueConfig = SIFT_CONFIG,
        max_keypoints: int = 512,
        start: Start | None = None,
        kept: Path | None = None,
    ) -> None:
        self.config = config
        self.max_keypoints = max_keypoints
        self.start = start
        self.trains = TrainedNetwork("mambaglue", features=config.features)
        self.settings: Mapping[str, str] = {"features": config.features}
        if start is not None:
            self.settings = {
                **self.settings,
                "start": file_sha256(start.path),
                "rate": str(start.rate),
                "stay_close": str(start.stay_close),
            }
        # DISK's descriptors do not turn with the image.
        self.max_turn = UPRIGHT if config.features == "disk" else ANY_TURN
        self.pairs = SparsePairs(FeatureSource(config.features), Kept(kept), self.max_turn)
        self._reference: MambaGlue | None = None
        self._has_new_input = False

    def build_network(self, photographs: Photographs, device: torch.device) -> MambaGlue:
        """Make the network with the weights of the start, or as a matcher of descriptors.

        Raises:
            InputError: there are no features in the photographs.
            WeightsError: the start cannot be read, or is of another network.
        """
        network = self._matcher_of_descriptors(photographs, device)
        if self.start is None:
            return network
        try:
            inherited = convert_either(load_state_dict_file(self.start.path))
            positions = inherited["posenc.Wr.weight"]
        except KeyError as error:
            raise InputError(f"{self.start.path} holds weights of another network") from error
        check_finite(inherited, self.start.path)
        own = network.state_dict()
        self._has_new_input = positions.shape[1] != own["posenc.Wr.weight"].shape[1]
        try:
            if self._has_new_input:
                inherited |= self._new_input(network, inherited)
            network.load_state_dict(inherited)
        except RuntimeError as error:
            raise InputError(f"{self.start.path} holds weights of another network") from error
        if self.start.stay_close > 0 and not self._has_new_input:
            self._reference = copy.deepcopy(network).requires_grad_(False).eval()
        return network

    def _new_input(self, network: MambaGlue, inherited: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the descriptors and positions of another front-end need: (x, y) stay as they are.

        States get the size that the inherited layers are used to.
        """
        weight, bias = inherited["input_proj.weight"], inherited["input_proj.bias"]
        # Of descriptors of length 1 in all directions alike.
        size = (weight.square().sum() / weight.shape[1] + bias.square().sum()) / len(bias)
        projection = network.input_proj
        assert isinstance(projection, nn.Linear)
        encoding = torch.zeros_like(network.posenc.Wr.weight)
        positions = inherited["posenc.Wr.weight"][:, : encoding.shape[1]]
        encoding[:, : positions.shape[1]] = positions
        return {
            "input_proj.weight": projection.weight.detach() * size.sqrt(),
            "input_proj.bias": projection.bias.detach() * size.sqrt(),
            "posenc.Wr.weight": encoding,
        }

    def learning_rates(self, network: nn.Module) -> Mapping[str, Tensor | float]:
        """See `TrainingTask.learning_rates`: what is inherited learns slowly."""
        if self.start is None:
            return {}
        rates: dict[str, Tensor | float] = {}
        for name, parameter in network.named_parameters():
            is_new_input = self._has_new_input and name.startswith(("input_proj.", "posenc."))
            if BRANCH in name or is_new_input:
                continue
            rates[name] = self.start.rate
            if name.endswith(UPDATE):
                columns = torch.ones(parameter.shape[1], device=parameter.device)
                columns[: parameter.shape[1] // 2] = self.start.rate
                rates[name] = columns
        return rates

    def _matcher_of_descriptors(self, photographs: Photographs, device: torch.device) -> MambaGlue:
        """A network that is the dual softmax over the cosines of the descriptors.

        The states begin as the descriptors, centred on their mean over some photographs and
        turned by a rotation, with unit variance; each layer changes them
        little; every match head compares them as they are.
        """
        network = MambaGlue(self.config).to(device)
        with torch.no_grad():
            projection = network.input_proj
            assert isinstance(projection, nn.Linear)
            nn.init.orthogonal_(projection.weight)
            nn.init.zeros_(projection.bias)
            states = projection(self._some_descriptors(photographs, device))
            mean, deviation = states.mean(0), (states - states.mean(0)).square().mean().sqrt()
            projection.weight.div_(deviation)
            projection.bias.copy_(-mean / deviation)
            network.posenc.Wr.weight[:, 2:3].mul_(SCALE_GAIN)
            for layer in network.transformermambas:
                assert isinstance(layer, TransformerMambaLayer)
                for update in (layer.mamba_selfattn_mixer.ffn, layer.cross_attn.ffn):
                    update.last.weight.mul_(UPDATE_GAIN)
                    update.last.bias.zero_()
            for head in network.log_assignment:
                assert isinstance(head, MatchAssignment)
                nn.init.eye_(head.final_proj.weight)
                nn.init.zeros_(head.final_proj.bias)
        return network

    def _some_descriptors(self, photographs: Photographs, device: torch.device) -> Tensor:
        """Descriptors (N, 128) of some photographs.

        Raises:
            InputError: there are no features in them.
        """
        batch = calibration_pairs(photographs, (160, 224), device)
        found = self.pairs.source.extract(batch.image0, self.max_keypoints)
        descriptors = torch.cat([image["descriptors"] for image in found])
        if len(descriptors) < 2:
            raise InputError("no features in the photographs: give photographs with texture")
        return descriptors.to(device, torch.float32)

    def sample_batch(
        self,
        photographs: Photographs,
        batch_size: float,
        progress: float,
        generator: torch.Generator,
        device: torch.device,
    ) -> SparsePairBatch:
        """See `TrainingTask.sample_batch`."""
        return self.pairs.sample(photographs, batch_size, progress, generator, device)

    def with_features(self, batch: PairBatch) -> SparsePairBatch:
        """Extract the features of both images of each pair."""
        height, width = batch.image_size
        most = round(self.max_keypoints * height * width / REFERENCE_AREA)
        return batched(self.pairs.with_truth(batch, most), batch.image0.device)

    def losses(
        self,
        network: MambaGlue,
        batch: SparsePairBatch,
        progress: float,
        generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `TrainingTask.losses`; pairs with an image without keypoints have no part."""
        usable = (batch.features0.counts > 0) & (batch.features1.counts > 0)
        if not usable.any():
            return 0.0 * network.posenc.Wr.weight.sum(), {}
        features0, features1 = batch.features0.select(usable), batch.features1.select(usable)
        truth = GroundTruthMatches(batch.truth.matches0[usable], batch.truth.matches1[usable])
        outputs = network.forward_layers(features0, features1)
        loss = mambaglue_loss(outputs, truth)
        total = loss.total
        if self._reference is not None and self.start is not None and network.training:
            distance = _distance(self._reference, outputs, features0, features1)
            total = total + self.start.stay_close * distance
        scores = outputs.log_assignments[-1].detach()
        return total, {
            "assignment_loss": loss.assignment[-1].detach(),
            "confidence_loss": loss.confidence.detach().mean(),
            **match_measures(scores, truth, self.config.filter_threshold),
        }

    @torch.no_grad()
    def validate(
        self, network: MambaGlue, photographs: Photographs, device: torch.device
    ) -> dict[str, float]:
        """See `TrainingTask.validate`."""

        def measure(batch: PairBatch, generator: torch.Generator) -> dict[str, Tensor]:
            return self.losses(network, self.with_features(batch), 1.0, generator)[1]

        return mean_over_validation_sets(photographs, device, self.max_turn, measure)


def _distance(
    reference: MambaGlue, outputs: LayerOutputs, features0: LocalFeatures, features1: LocalFeatures
) -> Tensor:
    """Cross-entropy of the last assignment to that of another network, for each keypoint."""
    with torch.no_grad():
        known = reference.forward_layers(features0, features1, only_last=True)
        expected = known.log_assignments[-1].exp()
    found = outputs.log_assignments[-1].clamp(min=-50)  # -inf at padding, expected there 0
    keypoints = outputs.valid0.sum() + outputs.valid1.sum()
    return -(expected * found)[:, :-1].sum() / keypoints - (
        (expected * found)[:, -1].sum() / keypoints
    )


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


def task(options: TaskOptions) -> MambaGlueTask:
    """MambaGlue on the features of a front-end."""
    config = MambaGlueConfig(features=options.features, keypoint_order="score")
    return MambaGlueTask(config, start=options.start, kept=options.kept)
