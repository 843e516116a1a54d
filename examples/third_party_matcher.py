"""A matcher of another package, known to sfm-matchers by an entry point: OpenCV's ORB.

In that package's pyproject.toml:

    [project.entry-points."sfm_matchers.matchers"]
    orb = "third_party_matcher:load"

and a conf file, orb.yaml, which `--matcher` of the pipelines and `--conf` of `hloc` take:

    kind: detector_free
    output: matches-orb
    model: {name: orb, num_points: 2000}
    max_error: 1
    cell_size: 1
"""

import cv2
import numpy as np

from sfm_matchers.matchers.protocols import EncodedImage, Matches


class OrbMatcher:
    def __init__(self, num_points: int) -> None:
        self.orb = cv2.ORB.create(num_points)
        self.nearest = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True)

    def encode(self, image: np.ndarray) -> EncodedImage:
        """What depends on one photo, RGB; it is kept for all its pairs."""
        points, descriptors = self.orb.detectAndCompute(image, None)
        features = np.reshape(cv2.KeyPoint.convert(points), (-1, 2)), descriptors
        return EncodedImage(features, scale=(1.0, 1.0), num_bytes=40 * len(points))

    def match_encoded(self, image0: EncodedImage, image1: EncodedImage) -> Matches:
        (points0, descriptors0), (points1, descriptors1) = image0.features, image1.features
        is_empty = descriptors0 is None or descriptors1 is None
        found = () if is_empty else self.nearest.match(descriptors0, descriptors1)
        rows0, rows1 = ([getattr(one, row) for one in found] for row in ("queryIdx", "trainIdx"))
        scores = np.array([1 - one.distance / 256 for one in found], dtype=np.float32)
        return Matches(points0[rows0], points1[rows1], scores)


def load(conf, weights, device):  # what the entry point names
    return OrbMatcher(conf.model["num_points"])
