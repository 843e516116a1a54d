"""JamMa on photographs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sfm_matchers.confs import RESIZE_MAX, DetectorFreeConf
from sfm_matchers.matchers.batching import (
    batch_size_on,
    num_bytes,
    pad_maps,
    stack_features,
)
from sfm_matchers.matchers.coarse_to_fine import CoarseToFine, EncodedPair
from sfm_matchers.matchers.protocols import EncodedImage
from sfm_matchers.networks import jamma
from sfm_matchers.networks.coarse_matching import MatchedCells
from sfm_matchers.networks.jamma import JamMa, JamMaFeatures
from sfm_matchers.photos.resizing import network_size, resize_image


class JamMaMatcher(CoarseToFine):
    """JamMa on photos of any size.

    A photo is resized so that its longer side is `resize_max` at most and both sides are multiples
    of 16. Photos of a pair that differ in size are padded to one size after the encoder, on its
    feature maps, with masks; each photo is thus encoded once, unpadded. With ``pad_to_square`` of
    the network's config each image is padded to a square of `resize_max` instead.

    Args:
        network: a `JamMa` in evaluation mode.
        resize_max: longer side in pixels that the network sees.
        device: torch device.
    """

    cell = jamma.CELL

    def __init__(
        self,
        network: JamMa,
        resize_max: int = RESIZE_MAX,
        device: str = "cpu",
    ) -> None:
        self.network = network.to(device)
        self.resize_max = resize_max
        self.device = torch.device(device)
        self.batch_size = batch_size_on(self.device)

    @torch.inference_mode()
    def encode(self, image: np.ndarray) -> EncodedImage:
        """See `DetectorFreeMatcher.encode`."""
        size = network_size((image.shape[1], image.shape[0]), self.resize_max, jamma.SIZE_MULTIPLE)
        resized = resize_image(image, size)
        pixels = torch.from_numpy(resized.pixels).to(self.device).permute(2, 0, 1).float() / 255
        return self.encode_pixels(pixels[None], resized.scale)

    def encode_pixels(
        self, pixels: torch.Tensor, scale: tuple[float, float] = (1.0, 1.0)
    ) -> EncodedImage:
        """Encode an image that has the network's size already.

        Args:
            pixels: (1, 3, H, W) RGB in 0..1, sides multiples of 16.
            scale: of the photo over the image.
        """
        normalized = jamma.normalize(pixels)
        if self.network.config.pad_to_square:
            side = -(-max(self.resize_max, *pixels.shape[2:]) // jamma.SIZE_MULTIPLE)
            normalized = pad_maps(normalized, (side * jamma.SIZE_MULTIPLE,) * 2)
        features = self.network.encode(normalized)
        grid = (pixels.shape[2] // jamma.CELL, pixels.shape[3] // jamma.CELL)
        size = (pixels.shape[3], pixels.shape[2])
        return EncodedImage((features, grid), scale, num_bytes(features), size)

    def _matched_cells(self, pairs: Sequence[EncodedPair]) -> MatchedCells[JamMaFeatures]:
        (_, grid0), (_, grid1) = (image.features for image in pairs[0])
        features0, features1 = (
            JamMaFeatures(*stack_features([image.features[0] for image in images]))
            for images in zip(*pairs, strict=True)
        )
        canvas = tuple(
            max(sides)
            for sides in zip(features0.eighth.shape[2:], features1.eighth.shape[2:], strict=True)
        )
        features0, features1 = (
            JamMaFeatures(
                pad_maps(features.fine, (2 * canvas[0], 2 * canvas[1])),
                pad_maps(features.eighth, canvas),
            )
            for features in (features0, features1)
        )
        is_padded = not grid0 == grid1 == canvas
        masks = (
            self.masks(len(pairs), grid, canvas) if is_padded else None for grid in (grid0, grid1)
        )
        return self.network.matched_cells(features0, features1, *masks)

    def _cell_points(self, cells: MatchedCells[JamMaFeatures]) -> tuple[Tensor, Tensor]:
        matches, columns = cells.matches, cells.coarse0.shape[3]
        points0 = jamma.cell_position(matches.ids0, columns)
        return points0, jamma.cell_position(matches.ids1, columns)

    def _refined(self, cells: MatchedCells[JamMaFeatures]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        output = self.network.refined(cells)
        return output.batch_ids, output.keypoints0, output.keypoints1, output.scores

    def parts_to_compile(self) -> list[torch.nn.Module]:
        """See `CompilableMatcher.parts_to_compile`."""
        pair = self.network.matcher
        parts = [self.network.backbone, pair.joint_mamba, pair.fine_enc]
        # On a CPU fine maps are made where matches are.
        return parts if self.device.type == "cpu" else [*parts, pair.up2, pair.up3]

    def masks(self, count: int, grid: tuple[int, int], canvas: tuple[int, ...]) -> torch.Tensor:
        mask = torch.zeros(count, *canvas, dtype=torch.bool, device=self.device)
        mask[:, : grid[0], : grid[1]] = True
        return mask


def load(network: JamMa, conf: DetectorFreeConf, device: str) -> JamMaMatcher:
    """Make the matcher of a conf."""
    return JamMaMatcher(network, conf.preprocessing.resize_max, device)
