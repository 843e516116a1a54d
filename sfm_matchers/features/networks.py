"""What front-ends that are networks share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sfm_matchers.errors import (
    InputError,
    WeightsError,
    one_line,
)
from sfm_matchers.features.base import Features
from sfm_matchers.weights import default_source, registered_checkpoint

if TYPE_CHECKING:
    from torch import Tensor, nn


# Smaller photos have no features: DISK halves its input four times and normalises what is left
# over the image, ALIKED pads to multiples of 32.
MIN_SIDE = 32

# Two photos of 1024 x 1024, or six of 640 x 480: ALIKED and DISK take up to 2.5 kB per pixel
# (measured on a CPU).
CUDA_BATCH_PIXELS = 2 * 1024**2

# Keypoints per photo in MambaGlue's published training on MegaDepth.
MAX_NUM_KEYPOINTS = 2048
GRAY_WEIGHTS = (0.299, 0.587, 0.114)  # of red, green and blue, as OpenCV's
MAX_LIMIT = 1_000_000  # keypoints of a photo


def to_gray(images: Tensor) -> Tensor:
    """(B, 3, H, W) RGB to (B, 1, H, W) grey, both in 0..1."""
    weights = images.new_tensor(GRAY_WEIGHTS).view(3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


class NetworkExtractor(ABC):
    """A front-end that is a network; photos with a side below `MIN_SIDE` have no features.

    Args:
        network: with its weights.
        device: torch device.
    """

    descriptor_dim: ClassVar[int]
    wants_upright = True

    def __init__(self, network: nn.Module, device: str) -> None:
        import torch

        self.network = network.eval().to(device)
        self.device = torch.device(device)
        self.batch_pixels = CUDA_BATCH_PIXELS if self.device.type == "cuda" else 0

    def extract(self, images: np.ndarray) -> list[Features]:
        """See `FeatureExtractor.extract`."""
        import torch

        if min(images.shape[1:3]) < MIN_SIDE:
            nothing = torch.zeros(0, self.descriptor_dim)
            return [to_features(nothing[:, :2], nothing, nothing[:, 0])] * len(images)
        from sfm_matchers.networks.precision import single_precision

        with torch.inference_mode(), single_precision(self.device.type):
            pixels = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).float() / 255
            return self._detect(pixels)

    @abstractmethod
    def _detect(self, images: Tensor) -> list[Features]:
        """Return the features of each of the images (B, 3, H, W), RGB in 0..1."""


def check_keypoint_limit(limit: int, name: str = "max_num_keypoints") -> None:
    """Raise InputError unless the option `name` is a number of keypoints that can be."""
    if not isinstance(limit, int) or not 1 <= limit <= MAX_LIMIT:
        raise InputError(f"{name} is {limit}, it must be a whole number, 1 to {MAX_LIMIT}")


def check_least_score(threshold: float) -> None:
    """Raise InputError unless scores, which are 0 to 1, can be above a threshold."""
    if not 0 <= threshold < 1:
        raise InputError(f"detection_threshold is {threshold}, but scores are 0 to 1")


def load_extractor_weights(network: nn.Module, name: str, constants: Iterable[str] = ()) -> None:
    """Fill a front-end with its bundled weights, else the authors' file.

    Args:
        network: changed in place.
        name: as the registry has it.
        constants: entries that the authors' files lack.

    Raises:
        WeightsError: they cannot be had, or are those of another network.
    """
    from sfm_matchers.weights import check_finite, fetch, load_state_dict_file

    path = fetch(registered_checkpoint(f"{name}/{default_source(name)}"))
    own = network.state_dict()
    state_dict = {**{key: own[key] for key in constants}, **load_state_dict_file(path)}
    check_finite(state_dict, path)
    try:
        network.load_state_dict(state_dict)
    except RuntimeError as error:
        raise WeightsError(f"{path}: not the weights of {name} ({one_line(error)})") from error


def to_features(keypoints: Tensor, descriptors: Tensor, scores: Tensor) -> Features:
    """Take keypoints (N, 2), descriptors (N, D) and scores (N,) from the device."""
    return Features(
        keypoints=keypoints.float().cpu().numpy(),
        descriptors=descriptors.half().cpu().numpy().T,
        scores=scores.float().cpu().numpy(),
    )
