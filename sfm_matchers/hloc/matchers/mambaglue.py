"""MambaGlue as a matcher of hloc; hloc imports this module as ``hloc.matchers.mambaglue``."""

from __future__ import annotations

from typing import Any

import torch
from hloc.utils.base_model import BaseModel

from sfm_matchers.files.hdf5 import UPRIGHT
from sfm_matchers.hloc.options import load_sparse

PREFIXES = (
    *("keypoints", "descriptors", "scores", "keypoint_scores", "scales", "oris"),
    *("image_size", UPRIGHT),
)


class MambaGlue(BaseModel):
    """Descriptors are (1, D, N), as in hloc; options are those of `MambaGlueConfig`."""

    default_conf = {  # noqa: RUF012 - hloc's form
        "weights": None,
        "features": "superpoint",
        "resize_max": None,
    }
    required_inputs = [  # noqa: RUF012 - hloc's form
        f"{name}{side}" for side in "01" for name in ("keypoints", "descriptors", "image_size")
    ]

    def _init(self, conf: dict[str, Any]) -> None:
        self.matcher = load_sparse(conf)
        self.network = self.matcher.network  # so that hloc's `.to(device)` finds it

    def _forward(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        device = data["keypoints0"].device
        self.matcher.device = device
        features = [
            {name: data[name + side][0].cpu().numpy() for name in PREFIXES if name + side in data}
            for side in "01"
        ]
        matches0, scores0 = self.matcher.match(*features)
        return {
            "matches0": torch.from_numpy(matches0)[None].to(device),
            "matching_scores0": torch.from_numpy(scores0)[None].to(device),
        }
