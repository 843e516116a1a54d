"""ALIKED and DISK, whose networks are kornia's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfm_matchers.features.base import Features
from sfm_matchers.features.networks import (
    MAX_NUM_KEYPOINTS,
    NetworkExtractor,
    check_keypoint_limit,
    check_least_score,
    load_extractor_weights,
    to_features,
)

if TYPE_CHECKING:
    from torch import Tensor


class AlikedExtractor(NetworkExtractor):
    """ALIKED (Zhao et al., IEEE TIM 2023) by kornia, with the authors' weights.

    Order: best first. Keypoints are sub-pixel. A photo without any keypoint above the threshold
    gives those above its mean score, as in the authors' code.

    Args:
        max_num_keypoints: the best ones stay.
        detection_threshold: score 0..1 of a keypoint before its sub-pixel refinement; the authors'
            default. 0 gives the best `max_num_keypoints`, whatever their scores.
        device: torch device.
        name: which of the authors' networks: ``aliked-n16``, or ``aliked-n16rot``, trained on
            turned photos too.

    Raises:
        WeightsError: the weights are missing or damaged; the message says what to do.
    """

    descriptor_dim = 128

    def __init__(
        self,
        max_num_keypoints: int = MAX_NUM_KEYPOINTS,
        detection_threshold: float = 0.2,
        device: str = "cpu",
        *,
        name: str = "aliked-n16",
    ) -> None:
        from kornia.feature import ALIKED

        from sfm_matchers.features.aliked import prepare

        check_keypoint_limit(max_num_keypoints)
        check_least_score(detection_threshold)
        network = ALIKED(name, max_num_keypoints, detection_threshold)
        # A constant of kornia's detector, which the authors' file does not hold.
        load_extractor_weights(network, name, constants=("dkd.hw_grid",))
        self._aliked = prepare(network)
        super().__init__(self._aliked, device)

    def _detect(self, images: Tensor) -> list[Features]:
        from sfm_matchers.features.aliked import detect_and_describe

        found = detect_and_describe(self._aliked, images)
        return [to_features(*one).best_first() for one in found]


class DiskExtractor(NetworkExtractor):
    """DISK (Tyszkiewicz et al., NeurIPS 2020) by kornia, the weights trained with depth.

    Order: row by row, also where the limit cuts. Keypoints are whole pixels, scores are logits.

    Args:
        max_num_keypoints: the best ones stay.
        detection_threshold: least logit of a keypoint; LightGlue's and hloc's default.
        device: torch device.

    Raises:
        WeightsError: the weights are missing or damaged; the message says what to do.
    """

    descriptor_dim = 128

    def __init__(
        self,
        max_num_keypoints: int = MAX_NUM_KEYPOINTS,
        detection_threshold: float = 0.0,
        device: str = "cpu",
    ) -> None:
        from kornia.feature import DISK

        check_keypoint_limit(max_num_keypoints)
        network = DISK()
        load_extractor_weights(network, "disk")
        super().__init__(network, device)
        self.max_num_keypoints = max_num_keypoints
        self.detection_threshold = detection_threshold

    def _detect(self, images: Tensor) -> list[Features]:
        found_in_all = self.network(
            images,
            n=self.max_num_keypoints,
            score_threshold=self.detection_threshold,
            pad_if_not_divisible=True,
        )
        return [
            to_features(found.keypoints, found.descriptors, found.detection_scores)
            for found in found_in_all
        ]
