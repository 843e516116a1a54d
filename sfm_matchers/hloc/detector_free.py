"""What the detector-free matchers have in common as matchers of hloc; needs hloc."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hloc.utils.base_model import BaseModel

from sfm_matchers.confs import DetectorFreePreprocessing
from sfm_matchers.hloc.options import DETECTOR_FREE_DEFAULTS, load_detector_free
from sfm_matchers.matchers.pair_matcher import PairMatcher, Photo
from sfm_matchers.matchers.protocols import EncodedImage
from sfm_matchers.photos.resizing import turned


class DetectorFreeModel(BaseModel):
    """Images in, matched points out, in pixels of these images; image 0 is the refined one.

    The conf holds the options of the network's config, ``weights`` (``bundled``, ``official`` or a
    file), ``quarter_turns``, whether image 1 is tried in four positions,
    ``least_squares_matching``, whether points of image 1 are moved until the images agree around
    them, and ``max_num_matches``, the number of matches to keep, the surest first.
    """

    default_conf = DETECTOR_FREE_DEFAULTS
    required_inputs = ["image0", "image1"]  # noqa: RUF012 - hloc's form

    def _init(self, conf: dict[str, Any]) -> None:
        self.matcher = load_detector_free(conf)
        self.network = self.matcher.network  # so that hloc's `.to(device)` finds it

    def _forward(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.matcher.device = data["image0"].device
        switches = ("quarter_turns", "least_squares_matching")
        preprocessing = DetectorFreePreprocessing(**{key: self.conf[key] for key in switches})
        images = (_Image(data[key]) for key in ("image0", "image1"))
        matches = PairMatcher(self.matcher, preprocessing).match(*images)
        if self.conf["max_num_matches"] is not None:
            best = (-matches.scores).argsort(kind="stable")[: self.conf["max_num_matches"]]
            matches = matches.select(best)
        return {
            name: torch.from_numpy(getattr(matches, name))
            for name in ("keypoints0", "keypoints1", "scores")
        }


class _Image(Photo):
    """An image (1, 1 or 3, H, W) in 0..1, of the size that the network is to see."""

    def __init__(self, pixels: torch.Tensor) -> None:
        self.pixels, self.upright, self.mask = pixels, 0, None

    @property
    def size(self) -> tuple[int, int]:
        """See `Photo.size`."""
        return self.pixels.shape[3], self.pixels.shape[2]

    def image(self, quarters: int) -> np.ndarray:
        """See `Photo.image`."""
        pixels = (self.pixels[0].expand(3, -1, -1) * 255).round().byte()
        return turned(pixels.permute(1, 2, 0).contiguous().cpu().numpy(), quarters)

    @torch.inference_mode()
    def encode(self, matcher: Any, quarters: int) -> EncodedImage:
        """See `Photo.encode`; nothing is resized."""
        encoded: EncodedImage = matcher.encode_pixels(self.pixels.rot90(quarters, (2, 3)))
        return encoded
