"""MambaGlue on local features in hloc's frame."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import torch

from sfm_matchers.confs import SparseConf
from sfm_matchers.errors import InputError
from sfm_matchers.features.base import set_upright
from sfm_matchers.matchers.batching import batch_size_on
from sfm_matchers.matchers.protocols import (
    Arrays,
)
from sfm_matchers.networks.mambaglue import LocalFeatures, MambaGlue


class MambaGlueMatcher:
    """MambaGlue on the features of two photos.

    Args:
        network: a `MambaGlue` in evaluation mode, made for the front-end of the features.
        device: torch device.
        resize_max: longer side, in pixels, to which larger photos were reduced for extraction;
            None: none were.
    """

    is_thread_safe = True

    def __init__(
        self, network: MambaGlue, device: str = "cpu", resize_max: int | None = None
    ) -> None:
        self.network = network.to(device)
        self.device = torch.device(device)
        self.batch_size = batch_size_on(self.device)
        self.resize_max = resize_max
        self._of_thread = threading.local()

    def match(self, features0: Arrays, features1: Arrays) -> tuple[np.ndarray, np.ndarray]:
        """See `SparseMatcher.match`. Scores are MambaGlue's assignment probabilities."""
        return self.match_batch([(features0, features1)])[0]

    @torch.inference_mode()
    def match_batch(
        self, pairs: Sequence[tuple[Arrays, Arrays]]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """See `SparseBatchMatcher.match_batch`."""
        images0, images1 = zip(*pairs, strict=True)
        output = self.network(self._features(images0), self._features(images1))
        self._of_thread.layers_run = output.stop.tolist()
        matches0 = output.matches0.to(torch.int32).cpu().numpy()
        scores0 = output.matching_scores0.float().cpu().numpy()
        scores0 = np.where(matches0 >= 0, scores0, 0)
        counts = [len(features["keypoints"]) for features in images0]
        return [
            (matches[:count], scores[:count])
            for matches, scores, count in zip(matches0, scores0, counts, strict=True)
        ]

    @property
    def layers_run(self) -> list[int]:
        """See `EarlyExitMatcher`; the last batch is that of the thread that asks."""
        return list(getattr(self._of_thread, "layers_run", []))

    def parts_to_compile(self) -> list[torch.nn.Module]:
        """See `CompilableMatcher.parts_to_compile`."""
        return list(self.network.transformermambas)

    def _features(self, images: Sequence[Arrays]) -> LocalFeatures:
        """Put the features of several images together, padded to one number."""
        needed = ("keypoints", "descriptors", "image_size")
        if any(name not in image for image in images for name in needed):
            raise InputError(f"MambaGlue needs {', '.join(needed)} of each photo")
        images = [_as_seen(image) for image in images]
        counts = torch.tensor([len(image["keypoints"]) for image in images], device=self.device)

        def stacked(name: str, transposed: bool = False) -> torch.Tensor:
            values = [torch.from_numpy(np.asarray(image[name], np.float32)) for image in images]
            values = [value.T.contiguous() if transposed else value for value in values]
            return torch.nn.utils.rnn.pad_sequence(values, batch_first=True).to(self.device)

        def tensor(name: str) -> torch.Tensor | None:
            return stacked(name) if all(name in image for image in images) else None

        image_size = stacked("image_size")
        scales, degrees = tensor("scales"), tensor("oris")
        if scales is not None and self.resize_max is not None:
            # The network knows scales in pixels of the image that the detector has seen.
            scales = scales / (image_size.amax(1, keepdim=True) / self.resize_max).clamp(min=1)
        scores = tensor("scores")
        return LocalFeatures(
            keypoints=stacked("keypoints"),
            descriptors=stacked("descriptors", transposed=True),
            image_size=image_size,
            scales=scales,
            oris=None if degrees is None else degrees.deg2rad(),
            # hloc's DISK and ALIKED call them so.
            scores=tensor("keypoint_scores") if scores is None else scores,
            num_keypoints=counts,
        )


def _as_seen(image: Arrays) -> Arrays:
    """Features in the frame that the front-end has seen, as the network looks at directions."""
    keypoints, size = set_upright(image)
    return {**image, "keypoints": keypoints, "image_size": size}


def load(network: MambaGlue, conf: SparseConf, device: str) -> MambaGlueMatcher:
    """Make the matcher of a conf."""
    return MambaGlueMatcher(network.fuse(), device, conf.features.preprocessing.resize_max)
