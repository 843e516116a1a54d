"""Matchers with few layers and inputs that they match, for the tests of ONNX and torch.compile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from golden_weights_eloftr import golden_state_dict
from torch import Tensor, nn

from sfm_matchers.matchers.efficient_loftr import EfficientLoFTRMatcher
from sfm_matchers.matchers.jamma import JamMaMatcher
from sfm_matchers.matchers.mambaglue import MambaGlueMatcher
from sfm_matchers.matchers.protocols import DetectorFreeMatcher, Matches
from sfm_matchers.networks.efficient_loftr import EfficientLoFTR, EfficientLoFTRConfig
from sfm_matchers.networks.jamma import JamMa
from sfm_matchers.networks.mambaglue import MambaGlue
from sfm_matchers.synthetic import Camera, camera_path, make_scene, render
from sfm_matchers.weights import load_network

SIZE = (128, 96)
KEYPOINTS = 64


def photographs() -> list[Tensor]:
    """Two views of a rendered room, (1, 3, H, W) RGB in 0..1."""
    scene = make_scene(1, kind="room", texture_size=128)
    camera = Camera.from_field_of_view(*SIZE)
    poses = camera_path(scene, count=40)[:2]
    images = [render(scene, camera, pose).image for pose in poses]
    return [torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 for image in images]


def jamma_matcher(*, pad_to_square: bool = False) -> JamMaMatcher:
    """The bundled weights with one layer of each kind."""
    network = cast(JamMa, load_network("jamma", coarse_threshold=0.02, fine_threshold=0.0))
    network.backbone.cnn.stages = nn.ModuleList(stage[:1] for stage in network.backbone.cnn.stages)
    network.matcher.fine_enc = network.matcher.fine_enc[:1]
    network.config = replace(network.config, pad_to_square=pad_to_square)
    return JamMaMatcher(network, max(SIZE))


def eloftr_matcher(*, skip_softmax: bool = False) -> EfficientLoFTRMatcher:
    """Matches translated images; shorter than the real one, with the same kinds of layers."""
    config = EfficientLoFTRConfig(
        coarse_threshold=0.0, raw_threshold=-1e3, border=1, skip_softmax=skip_softmax
    )
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in EfficientLoFTR().state_dict().items()}
    network = EfficientLoFTR(config)
    network.load_state_dict(golden_state_dict(shapes))
    network.eval().fuse()
    network.backbone.layer3 = network.backbone.layer3[:2]
    network.loftr_coarse.layers = network.loftr_coarse.layers[:2]
    return EfficientLoFTRMatcher(network)


def translated() -> list[Tensor]:
    """Two gray images (1, 1, H, W) of one texture, 8 and 16 px apart."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 1, 16, 20, generator=generator)
    texture = torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bicubic").clamp(0, 1)
    width, height = SIZE
    return [texture[..., y : y + height, x : x + width] for x, y in ((0, 0), (16, 8))]


def mambaglue_matcher(order: str) -> MambaGlueMatcher:
    """The first and the last layer of the bundled weights, scanned in the given order."""
    options = {"features": "sift", "keypoint_order": order, "filter_threshold": 0.001}
    network = cast(MambaGlue, load_network("mambaglue", **options))
    network.transformermambas = network.transformermambas[::8]
    network.log_assignment = network.log_assignment[::8]
    network.config = replace(network.config, num_layers=2)
    return MambaGlueMatcher(network)


def sift_like(count: int, seed: int) -> dict[str, np.ndarray]:
    """As in a feature file: the first keypoints of one list, displaced a little by the seed."""
    common, own = np.random.default_rng(0), np.random.default_rng(seed)
    keypoints = common.random((KEYPOINTS, 2)) * (640, 480)
    descriptors = common.standard_normal((128, KEYPOINTS)) + 0.2 * own.standard_normal((128, 1))
    arrays = {
        "keypoints": keypoints + 3 * own.standard_normal(2),
        "descriptors": descriptors / np.linalg.norm(descriptors, axis=0),
        "scales": 2 + 8 * common.random(KEYPOINTS),
        "oris": 360 * common.random(KEYPOINTS) - 180,
        "scores": common.random(KEYPOINTS),
    }
    cut = {name: array[..., :count] for name, array in arrays.items()}
    cut |= {"keypoints": arrays["keypoints"][:count], "image_size": np.array((640, 480))}
    return {name: array.astype(np.float32) for name, array in cut.items()}


def matched(matcher: DetectorFreeMatcher, images: Sequence[Tensor]) -> Matches:
    with torch.inference_mode():
        return matcher.match_encoded(*(matcher.encode_pixels(image) for image in images))
