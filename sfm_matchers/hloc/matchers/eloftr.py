"""EfficientLoFTR as a matcher of hloc; hloc imports this module as ``hloc.matchers.eloftr``."""

from __future__ import annotations

from typing import Any

import torch
from hloc.utils.base_model import BaseModel

from sfm_matchers.hloc.options import load_detector_free, to_prediction


class EfficientLoFTR(BaseModel):
    """Images are gray; the refined side is image 0; options are those of `EfficientLoFTRConfig`."""

    default_conf = {  # noqa: RUF012 - hloc's form
        "name": "eloftr",
        "weights": "bundled",
        "max_num_matches": None,
    }
    required_inputs = ["image0", "image1"]  # noqa: RUF012 - hloc's form

    def _init(self, conf: dict[str, Any]) -> None:
        self.matcher = load_detector_free(conf)
        self.network = self.matcher.network  # so that hloc's `.to(device)` finds it

    def _forward(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.matcher.device = data["image0"].device
        with torch.inference_mode():
            encoded = [self.matcher.encode_pixels(data[f"image{side}"]) for side in "01"]
        matches = self.matcher.match_encoded(*encoded)
        return to_prediction(matches, self.conf["max_num_matches"])
