"""What the detector-free matchers have in common as matchers of hloc; needs hloc."""

from __future__ import annotations

from typing import Any

import torch
from hloc.utils.base_model import BaseModel

from .options import load_detector_free


class DetectorFreeModel(BaseModel):
    """Images in, matched points out, in pixels of these images; image 0 is the refined one.

    The conf holds the options of the network's config, ``weights`` (``bundled``, ``official`` or a
    file) and ``max_num_matches``, the number of matches to keep, the surest first.
    """

    default_conf = {"weights": None, "max_num_matches": None}  # noqa: RUF012 - hloc's form
    required_inputs = ["image0", "image1"]  # noqa: RUF012 - hloc's form

    def _init(self, conf: dict[str, Any]) -> None:
        self.matcher = load_detector_free(conf)
        self.network = self.matcher.network  # so that hloc's `.to(device)` finds it

    def _forward(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.matcher.device = data["image0"].device
        with torch.inference_mode():
            encoded = [self.matcher.encode_pixels(data[f"image{side}"]) for side in "01"]
        matches = self.matcher.match_encoded(*encoded)
        if self.conf["max_num_matches"] is not None:
            best = (-matches.scores).argsort(kind="stable")[: self.conf["max_num_matches"]]
            matches = matches.select(best)
        return {
            name: torch.from_numpy(getattr(matches, name))
            for name in ("keypoints0", "keypoints1", "scores")
        }
