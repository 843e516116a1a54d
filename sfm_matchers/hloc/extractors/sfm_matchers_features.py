"""Our front-ends as extractors of hloc; imported as ``hloc.extractors.sfm_matchers_features``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hloc.utils.base_model import BaseModel

from sfm_matchers.features.extraction import load_extractor
from sfm_matchers.hloc.options import hloc_device


class SfmMatchersFeatures(BaseModel):
    """The conf names the front-end and its options; images are RGB."""

    default_conf = {"front_end": "sift"}  # noqa: RUF012 - hloc's form
    required_inputs = ["image"]  # noqa: RUF012 - hloc's form

    def _init(self, conf: dict[str, Any]) -> None:
        options = {k: v for k, v in conf.items() if k not in ("name", "front_end")}
        self.extractor = load_extractor({"name": conf["front_end"], **options}, hloc_device())

    def _forward(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        pixels = data["image"].permute(0, 2, 3, 1).cpu().numpy()
        image = np.ascontiguousarray((pixels * 255).round().clip(0, 255).astype(np.uint8))
        features = self.extractor.extract(image)[0]
        height, width = image.shape[1:3]
        arrays = features.to_arrays((width, height))
        del arrays["image_size"]  # hloc adds that of the photo
        return {
            name: torch.from_numpy(array.astype(np.float32))[None] for name, array in arrays.items()
        }
