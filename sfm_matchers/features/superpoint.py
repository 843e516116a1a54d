"""SuperPoint, whose licence is non-commercial."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sfm_matchers.errors import (
    InputError,
    MissingExtraError,
)
from sfm_matchers.features.base import Features
from sfm_matchers.features.networks import (
    MAX_NUM_KEYPOINTS,
    NetworkExtractor,
    check_keypoint_limit,
    check_least_score,
    load_extractor_weights,
    to_features,
    to_gray,
)
from sfm_matchers.weights import registered_checkpoint

if TYPE_CHECKING:
    from torch import Tensor


SUPERPOINT_VARIABLE = "SFM_MATCHERS_ACCEPT_SUPERPOINT_LICENSE"
SUPERPOINT_CELL = 8  # pixels; what does not fill a cell at the right or bottom is not looked at
SUPERPOINT_BORDER = 4  # pixels without keypoints along every side, Magic Leap's value


class SuperPointExtractor(NetworkExtractor):
    """SuperPoint (DeTone et al., CVPRW 2018) by transformers, with Magic Leap's weights.

    Their licence excludes commercial use: nothing runs before the user has accepted it.

    Order: best first. Keypoints are whole pixels.

    Args:
        max_num_keypoints: the best ones stay.
        detection_threshold: least score 0..1; the value of Magic Leap's SuperGlue code and hloc.
        nms_radius: no two keypoints are closer than so many pixels; Magic Leap's default.
        device: torch device.

    Raises:
        InputError: the licence is not accepted.
        MissingExtraError: transformers is not installed.
        WeightsError: the weights are missing or damaged; the message says what to do.
    """

    descriptor_dim = 256

    def __init__(
        self,
        max_num_keypoints: int = MAX_NUM_KEYPOINTS,
        detection_threshold: float = 0.005,
        nms_radius: int = 4,
        device: str = "cpu",
    ) -> None:
        check_keypoint_limit(max_num_keypoints)
        check_least_score(detection_threshold)
        _require_superpoint_licence()
        try:
            from transformers import SuperPointConfig, SuperPointForKeypointDetection
        except ImportError as error:
            raise MissingExtraError(
                "superpoint needs transformers: pip install 'sfm-matchers[superpoint]'"
            ) from error
        # The border and the limit are applied here: transformers leaves keypoints at the right and
        # bottom border, which Magic Leap's code removes before it counts.
        config = SuperPointConfig(
            keypoint_threshold=detection_threshold,
            nms_radius=nms_radius,
            max_keypoints=-1,
            border_removal_distance=0,
        )
        network = SuperPointForKeypointDetection(config)
        load_extractor_weights(network, "superpoint")
        super().__init__(network, device)
        self.max_num_keypoints = max_num_keypoints

    def _detect(self, images: Tensor) -> list[Features]:
        gray = to_gray(images)
        output = self.network(gray)
        size = gray.new_tensor([gray.shape[3], gray.shape[2]])
        end = size // SUPERPOINT_CELL * SUPERPOINT_CELL - SUPERPOINT_BORDER
        # Keypoints come as fractions of the size of the image, padded to the most of the batch.
        keypoints = (output.keypoints * size).round()
        chosen = ((keypoints >= SUPERPOINT_BORDER) & (keypoints < end)).all(2) & output.mask.bool()
        return [
            to_features(*(values[is_kept] for values in found)).best_first(self.max_num_keypoints)
            for *found, is_kept in zip(
                keypoints, output.descriptors, output.scores, chosen, strict=True
            )
        ]


def _require_superpoint_licence() -> None:
    if os.environ.get(SUPERPOINT_VARIABLE) != "1":
        checkpoint = registered_checkpoint("superpoint/official")
        raise InputError(
            f"superpoint's licence ({checkpoint.licence}) allows {checkpoint.allows}: "
            f"set {SUPERPOINT_VARIABLE}=1 to accept it, or use sift, aliked-n16 or disk"
        )
