"""What the detector-free matchers have in common as matchers of hloc; needs hloc."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hloc.utils.base_model import BaseModel

from sfm_matchers.hloc.options import DETECTOR_FREE_DEFAULTS, load_detector_free
from sfm_matchers.matchers.least_squares_matching import least_squares_matching
from sfm_matchers.matchers.quarter_turns import QuarterTurns, unturned_matches
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
        image0, image1 = data["image0"], data["image1"]
        self.matcher.device = image0.device
        turns = QuarterTurns(self.matcher) if self.conf["quarter_turns"] else None
        looks_closer = self.conf["least_squares_matching"]
        photos = [_as_photo(image) for image in (image0, image1)] if turns or looks_closer else []
        quarters = turns.between(*photos) if turns is not None else 0
        positioned = image1.rot90(quarters, (2, 3))
        with torch.inference_mode():
            encoded = [self.matcher.encode_pixels(image) for image in (image0, positioned)]
        matches = self.matcher.match_encoded(*encoded)
        if looks_closer:
            positioned1 = turned(photos[1], quarters)
            matches = least_squares_matching(photos[0], positioned1, matches, image0.device)
        size0, size1 = ((image.shape[3], image.shape[2]) for image in (image0, image1))
        matches = unturned_matches(matches, (0, quarters), (size0, size1))
        if self.conf["max_num_matches"] is not None:
            best = (-matches.scores).argsort(kind="stable")[: self.conf["max_num_matches"]]
            matches = matches.select(best)
        return {
            name: torch.from_numpy(getattr(matches, name))
            for name in ("keypoints0", "keypoints1", "scores")
        }


def _as_photo(image: torch.Tensor) -> np.ndarray:
    """An image (1, 1 or 3, H, W) in 0..1 as RGB (H, W, 3) uint8."""
    pixels = (image[0].expand(3, -1, -1) * 255).round().byte()
    return pixels.permute(1, 2, 0).contiguous().cpu().numpy()
