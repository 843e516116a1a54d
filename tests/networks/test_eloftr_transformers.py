"""The same weights here and in the library transformers: equal as far as the fine windows.

Its fine stage, in release 5.23, is not that of the paper nor of the authors' code; see
`docs/efficient_loftr.md`.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from golden_weights_eloftr import golden_state_dict
from torch import Tensor

from sfm_matchers.networks.efficient_loftr import (
    EfficientLoFTR,
    EfficientLoFTRConfig,
    EfficientLoFTROutput,
    fine_windows,
    first_stage_log_confidence,
)
from sfm_matchers.weights.convert_efficient_loftr import convert

transformers = pytest.importorskip("transformers", reason="needs the extra superpoint")

SIZE = (96, 128)  # height, width
SHIFT = (32, 0)  # of image 1 against image 0, x and y in pixels: these weights match it
THRESHOLD = 0.1


@functools.cache
def networks() -> tuple[EfficientLoFTR, Any]:
    ours = EfficientLoFTR(EfficientLoFTRConfig(coarse_threshold=THRESHOLD)).eval()
    weights = golden_state_dict({key: value.shape for key, value in ours.state_dict().items()})
    ours.load_state_dict(weights)
    config = transformers.EfficientLoFTRConfig(coarse_matching_threshold=THRESHOLD)
    theirs = transformers.EfficientLoFTRForKeypointMatching(config).eval()
    names = {key: next(iter(convert({key: value}))) for key, value in theirs.state_dict().items()}
    theirs.load_state_dict({key: weights[name] for key, name in names.items()})
    return ours, theirs


@functools.cache
def images() -> tuple[Tensor, Tensor]:
    """A texture, and what lies SHIFT further to the right and below."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 1, 40, 48, generator=generator)
    texture = torch.nn.functional.interpolate(noise, scale_factor=4, mode="bicubic").clamp(0, 1)
    height, width = SIZE
    return (
        texture[..., :height, :width].contiguous(),
        texture[..., SHIFT[1] : SHIFT[1] + height, SHIFT[0] : SHIFT[0] + width].contiguous(),
    )


@functools.cache
@torch.no_grad()
def stages() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Every stage of both, for images 0 and 1 stacked."""
    ours, theirs = networks()
    image0, image1 = images()
    features = ours.encode_pair(image0, image1)
    coarse = ours.transform(*features)
    fine0, fine1 = ours.fine_maps(*features, *coarse)
    cells = torch.arange(coarse[0][0, 0].numel())
    here = {
        "quarter": torch.cat([one.quarter for one in features]),
        "half": torch.cat([one.half for one in features]),
        "coarse": torch.cat(coarse),
        "windows0": fine_windows(fine0, torch.zeros_like(cells), cells, ring=0),
        "windows1": fine_windows(fine1, torch.zeros_like(cells), cells, ring=1),
    }
    pixels = torch.stack([image0, image1], dim=1).expand(-1, -1, 3, -1, -1)
    maps = theirs.efficientloftr(pixels).feature_maps
    windows = theirs.refinement_layer(maps[0] / 16, maps[1:])
    there = {"coarse": maps[0][0], "half": maps[-2], "quarter": maps[-1]}
    there |= {"windows0": windows[0][0], "windows1": windows[1][0]}
    return here, there


@pytest.mark.parametrize("stage", ["half", "quarter", "coarse", "windows0", "windows1"])
def test_eloftr_stages_agree_with_transformers(stage: str) -> None:
    here, there = stages()
    expected = there[stage]
    assert here[stage].shape == expected.shape
    # The released weights want rotary tables rounded to float16, which transformers does not do.
    tolerance = 1e-4 if stage in ("half", "quarter") else 2e-3
    torch.testing.assert_close(here[stage], expected, rtol=0, atol=tolerance)


@functools.cache
@torch.no_grad()
def outputs() -> tuple[EfficientLoFTROutput, Any]:
    ours, theirs = networks()
    pixels = torch.stack(images(), dim=1).expand(-1, -1, 3, -1, -1)
    return ours(*images()), theirs(pixels)


def test_eloftr_coarse_matches_are_those_of_transformers() -> None:
    here, there = outputs()
    of_cell1, of_cell0 = there.matches[0].tolist()  # by cell of image 1, by cell of image 0
    expected = {(i, j) for i, j in enumerate(of_cell0) if j >= 0 and of_cell1[j] == i}
    assert len(expected) > 30
    assert set(zip(here.coarse_ids0.tolist(), here.coarse_ids1.tolist(), strict=True)) == expected


def test_eloftr_first_stage_is_the_best_pixel_here_and_the_corner_in_transformers() -> None:
    """The best pair of pixels of two windows, by the definition, from transformers' windows."""
    here, there = outputs()
    windows = stages()[1]
    windows0, windows1 = windows["windows0"][here.coarse_ids0], windows["windows1"]
    confidence = first_stage_log_confidence(windows0, windows1[here.coarse_ids1])
    best = confidence.flatten(1).argmax(1) // 64
    offsets = torch.stack((best % 8, best // 8), dim=1) - 3.5

    columns = SIZE[1] // 8
    cells0 = torch.stack((here.coarse_ids0 % columns, here.coarse_ids0 // columns), dim=1)
    torch.testing.assert_close(here.keypoints0 - 8 * cells0, offsets)

    size = torch.tensor([SIZE[1], SIZE[0]])
    # Its list of points of image 0 goes by the matched cell of image 1.
    points = (there.keypoints[0, 0] * size)[here.coarse_ids1]
    torch.testing.assert_close(points - 8 * cells0, torch.full_like(points, -3.5))
    assert (offsets != -3.5).any(1).float().mean() > 0.5
