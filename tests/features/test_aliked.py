"""ALIKED without its map of features, beside kornia's own forward pass."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from kornia.feature import ALIKED
from kornia.feature.aliked.aliked import DeformableConv2d

from sfm_matchers.features.aliked import SampledConvolution, detect_and_describe, prepare


def make_network(limit: int) -> ALIKED:
    """Random weights, with offsets of some pixels."""
    torch.manual_seed(0)
    network = ALIKED("aliked-n16", limit, 0.0).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, DeformableConv2d):
                module.offset_conv.weight.mul_(20)
        network.desc_head.offset_conv[-1].weight.mul_(50)
    return network


@pytest.mark.parametrize("size", [(96, 64), (75, 101), (32, 32)])
def test_keypoints_and_descriptors_are_those_of_kornia(size: tuple[int, int]) -> None:
    network = make_network(60)
    images = torch.rand(2, 3, *size)
    with torch.inference_mode():
        expected = network(images)
        found = detect_and_describe(prepare(copy.deepcopy(network)), images)
    for (keypoints, descriptors, scores), one in zip(found, expected, strict=True):
        # Equal scores may come in another order.
        order, expected_order = (
            np.lexsort(xy.double().numpy().round(2).T) for xy in (keypoints, one.keypoints)
        )
        assert len(order) == len(expected_order)
        torch.testing.assert_close(
            keypoints[order], one.keypoints[expected_order], atol=1e-3, rtol=0
        )
        torch.testing.assert_close(
            scores[order], one.keypoint_scores[expected_order], atol=1e-4, rtol=0
        )
        torch.testing.assert_close(
            descriptors[order], one.descriptors[expected_order], atol=1e-3, rtol=0
        )


def test_the_deformable_convolution_is_that_of_kornia() -> None:
    torch.manual_seed(1)
    convolution = DeformableConv2d(6, 5).eval()
    x = torch.rand(2, 6, 13, 17)
    with torch.inference_mode():
        convolution.offset_conv.weight.mul_(10)
        torch.testing.assert_close(SampledConvolution(convolution)(x), convolution(x))


def test_a_photo_without_keypoints_has_none() -> None:
    with torch.inference_mode():
        found = detect_and_describe(prepare(make_network(60)), torch.zeros(1, 3, 64, 64))
    assert len(found[0][0]) == len(found[0][1]) == len(found[0][2])
