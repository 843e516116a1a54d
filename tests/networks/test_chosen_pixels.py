"""Convolutions at chosen pixels against those of whole maps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sfm_matchers.networks import chosen_pixels
from sfm_matchers.networks.chosen_pixels import ALL_PIXELS, Pixels

SIZES = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))


def random_pixels(size: tuple[int, int, int], seed: int) -> Pixels:
    """A few pixels, one at least, of a map of that batch, height and width."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(size, generator=generator) < 0.2
    mask.view(-1)[seed % mask.numel()] = True
    return Pixels(mask)


@settings(deadline=None)
@given(SIZES, st.integers(0, 1000))
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_at_chosen_pixels_is_that_of_the_map(
    bias: bool, size: tuple[int, int, int], seed: int
) -> None:
    pixels, convolution = random_pixels(size, seed), torch.nn.Conv2d(3, 5, 3, 1, 1, bias=bias)
    feature_map = torch.randn(size[0], 3, *size[1:])
    expected = convolution(feature_map)
    values = pixels.convolve(feature_map, convolution.weight, convolution.bias)
    torch.testing.assert_close(values, pixels.take(expected))
    if pixels.mask is not None:
        expected = expected * pixels.mask[:, None]
    torch.testing.assert_close(pixels.put(values), expected)


@settings(deadline=None)
@given(SIZES, st.integers(0, 1000))
def test_what_lies_outside_the_read_pixels_does_not_matter(
    size: tuple[int, int, int], seed: int
) -> None:
    kernel, feature_map = torch.randn(2, 3, 3, 3), torch.randn(size[0], 3, *size[1:])
    pixels = random_pixels(size, seed)
    read = pixels.dilated()
    torch.testing.assert_close(
        pixels.convolve(read.put(read.take(feature_map)), kernel),
        pixels.convolve(feature_map, kernel),
    )


@settings(deadline=None)
@given(SIZES, st.integers(0, 1000))
def test_upsampling_reads_the_halved_pixels(size: tuple[int, int, int], seed: int) -> None:
    batch, height, width = size
    pixels = random_pixels((batch, 2 * height, 2 * width), seed)
    small = torch.randn(batch, 3, height, width)
    read = pixels.halved()

    def upsampled(feature_map: torch.Tensor) -> torch.Tensor:
        return pixels.take(F.interpolate(feature_map, scale_factor=2, mode="bilinear"))

    torch.testing.assert_close(upsampled(read.put(read.take(small))), upsampled(small))


def test_many_pixels_are_all_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = torch.ones(1, 4, 4, dtype=torch.bool)
    mask[0, 0] = False
    assert Pixels(mask).mask is None
    monkeypatch.setattr(chosen_pixels, "DENSE_SHARE", 0.8)
    assert Pixels(mask).mask is not None
    feature_map = torch.randn(1, 2, 4, 4)
    assert ALL_PIXELS.put(ALL_PIXELS.take(feature_map)) is feature_map
    assert ALL_PIXELS.dilated().halved() is ALL_PIXELS
