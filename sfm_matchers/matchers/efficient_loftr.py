"""Efficient LoFTR on photographs."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from sfm_matchers.confs import RESIZE_MAX, DetectorFreeConf
from sfm_matchers.matchers.batching import batch_size_on, num_bytes, stack_features
from sfm_matchers.matchers.coarse_to_fine import CoarseToFine, EncodedPair
from sfm_matchers.matchers.protocols import EncodedImage
from sfm_matchers.networks import efficient_loftr
from sfm_matchers.networks.coarse_matching import MatchedCells
from sfm_matchers.networks.efficient_loftr import (
    EfficientLoFTR,
    EfficientLoFTRFeatures,
)
from sfm_matchers.photos.resizing import network_size, resize_image


class EfficientLoFTRMatcher(CoarseToFine):
    """Efficient LoFTR on photos of any size.

    A photo is resized to gray so that its longer side is `resize_max` at most and both sides are
    multiples of 32. Nothing is padded: the two images may differ in size. The network refines its
    second image, and photo 0 is given as that one, so that photo 0 has the sub-pixel points, as in
    hloc, and photo 1 the points of the 1 px grid.

    Args:
        network: an `EfficientLoFTR` in evaluation mode.
        resize_max: longer side in pixels that the network sees.
        device: torch device.
    """

    cell = efficient_loftr.CELL

    def __init__(
        self, network: EfficientLoFTR, resize_max: int = RESIZE_MAX, device: str = "cpu"
    ) -> None:
        self.network = network.to(device)
        self.resize_max = resize_max
        self.device = torch.device(device)
        self.batch_size = batch_size_on(self.device)

    @torch.inference_mode()
    def encode(self, image: np.ndarray) -> EncodedImage:
        """See `DetectorFreeMatcher.encode`."""
        gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        size = (gray.shape[1], gray.shape[0])
        size = network_size(size, self.resize_max, efficient_loftr.SIZE_MULTIPLE)
        resized = resize_image(gray, size)
        pixels = torch.from_numpy(resized.pixels).to(self.device)[None, None].float() / 255
        return self.encode_pixels(pixels, resized.scale)

    def encode_pixels(
        self, pixels: torch.Tensor, scale: tuple[float, float] = (1.0, 1.0)
    ) -> EncodedImage:
        """Encode an image that has the network's size already.

        Args:
            pixels: (1, 1, H, W) gray in 0..1, sides multiples of 32.
            scale: of the photo over the image.
        """
        features = self.network.encode(pixels)
        size = (pixels.shape[3], pixels.shape[2])
        return EncodedImage(features, scale, num_bytes(features), size)

    def _matched_cells(self, pairs: Sequence[EncodedPair]) -> MatchedCells[EfficientLoFTRFeatures]:
        features0, features1 = (
            EfficientLoFTRFeatures(*stack_features([image.features for image in images]))
            for images in zip(*pairs, strict=True)
        )
        return self.network.matched_cells(features1, features0)

    def _cell_points(self, cells: MatchedCells[EfficientLoFTRFeatures]) -> tuple[Tensor, Tensor]:
        points1 = efficient_loftr.cell_position(cells.matches.ids0, cells.coarse0.shape[3])
        points0 = efficient_loftr.cell_position(cells.matches.ids1, cells.coarse1.shape[3])
        return points0, points1

    def _refined(
        self, cells: MatchedCells[EfficientLoFTRFeatures]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        output = self.network.refined(cells)
        return output.batch_ids, output.keypoints1, output.keypoints0, output.scores

    def parts_to_compile(self) -> list[torch.nn.Module]:
        """See `CompilableMatcher.parts_to_compile`."""
        network = self.network
        parts: list[torch.nn.Module] = [network.backbone, network.loftr_coarse]
        # On a CPU fine maps are made where matches are.
        return parts if self.device.type == "cpu" else [*parts, network.fine_preprocess]


def load(network: EfficientLoFTR, conf: DetectorFreeConf, device: str) -> EfficientLoFTRMatcher:
    """Make the matcher of a conf."""
    return EfficientLoFTRMatcher(network, conf.preprocessing.resize_max, device)
