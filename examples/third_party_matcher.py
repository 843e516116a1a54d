"""A matcher of another package, known to sfm-matchers by an entry point.

In the other package's pyproject.toml:

    [project.entry-points."sfm_matchers.matchers"]
    patches = "third_party_matcher:load_patch_matcher"

and a conf file, patches.yaml, which every pipeline takes as ``--matcher patches.yaml``:

    kind: detector_free
    output: matches-patches
    model: {name: patches, stride: 32}
    max_error: 2
    cell_size: 8
"""

from __future__ import annotations

import cv2
import numpy as np

from sfm_matchers.confs import DetectorFreeConf
from sfm_matchers.matchers import EncodedImage, Matches


class PatchMatcher:
    """Finds each patch of a grid in photo 0 where photo 1 looks most like it."""

    def __init__(self, stride: int) -> None:
        self.stride = stride

    def encode(self, image: np.ndarray) -> EncodedImage:
        gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        return EncodedImage(features=gray, scale=(1.0, 1.0), num_bytes=gray.nbytes)

    def match_encoded(self, image0: EncodedImage, image1: EncodedImage) -> Matches:
        gray0, gray1, half = image0.features, image1.features, self.stride // 2
        rows = []
        for y in range(half, gray0.shape[0] - half, self.stride):
            for x in range(half, gray0.shape[1] - half, self.stride):
                patch = gray0[y - half : y + half, x - half : x + half]
                response = cv2.matchTemplate(gray1, patch, cv2.TM_CCOEFF_NORMED)
                _, score, _, corner = cv2.minMaxLoc(response)
                rows.append((x, y, corner[0] + half, corner[1] + half, max(score, 0)))
        table = np.array(rows, dtype=np.float32).reshape(-1, 5)
        return Matches(table[:, :2], table[:, 2:4], table[:, 4])


def load_patch_matcher(conf: DetectorFreeConf, weights: str, device: str) -> PatchMatcher:
    """What the entry point names: from a conf to a matcher."""
    return PatchMatcher(stride=int(conf.model.get("stride", 32)))
