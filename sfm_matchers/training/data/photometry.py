"""Changes of appearance: exposure, colour, shade, night, blur, noise and compression."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

BLUR_KERNEL = 7  # pixels


def vary_appearance(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Change what a camera and the hour of the day change, and nothing geometric.

    Args:
        images: (B, 3, H, W) RGB in 0..1.
        strength: 0 (unchanged apart from 8-bit rounding) to 1.
        generator: CPU generator from which everything is drawn.

    Returns:
        (B, 3, H, W) RGB in 0..1, rounded to 8 bits.
    """
    images = _colour(images, strength, generator)
    images = _shade(images, strength, generator)
    images = _night(images, strength, generator)
    images = _blur(images, strength, generator)
    images = _noise(images, strength, generator)
    images = _compress(images, strength, generator)
    return (images.clamp(0, 1) * 255.0).round() / 255.0


def _uniform(images: Tensor, channels: int, generator: torch.Generator) -> Tensor:
    """(B, channels, 1, 1) draws in -1..1 on the images' device."""
    draws = torch.rand(len(images), channels, 1, 1, generator=generator) * 2 - 1
    return draws.to(images.device)


def _chosen(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """(B, 1, 1, 1) bool: which images a change applies to."""
    draws = torch.rand(len(images), 1, 1, 1, generator=generator) < share
    return draws.to(images.device)


def _colour(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    gamma = 2.0 ** (0.6 * strength * _uniform(images, 1, generator))
    contrast = 2.0 ** (0.4 * strength * _uniform(images, 1, generator))
    brightness = 0.1 * strength * _uniform(images, 1, generator)
    cast = 2.0 ** (0.25 * strength * _uniform(images, 3, generator))
    saturation = 1.0 + 0.7 * strength * _uniform(images, 1, generator)
    saturation = saturation * ~_chosen(images, 0.1 * strength, generator)
    images = images.clamp(1e-4, 1).pow(gamma) * cast
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * saturation
    mean = images.mean((1, 2, 3), keepdim=True)
    return (mean + (images - mean) * contrast + brightness).clamp(0, 1)


def _shade(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Multiply by a smooth random field: shadows and uneven light."""
    field = torch.randn(len(images), 1, 4, 4, generator=generator).to(images.device)
    field = F.interpolate(field, images.shape[-2:], mode="bicubic", align_corners=False)
    gain = torch.exp2(0.5 * strength * field)
    return torch.where(_chosen(images, 0.5, generator), images * gain, images).clamp(0, 1)


def _night(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Darken, shift to a lamp's colour, and let a few lamps light their surroundings."""
    lamps = torch.randn(len(images), 1, 6, 6, generator=generator).to(images.device)
    lamps = F.interpolate(lamps, images.shape[-2:], mode="bicubic", align_corners=False)
    light = 0.25 + 0.1 * _uniform(images, 1, generator) + 0.9 * lamps.clamp(min=0)
    colour = images.new_tensor([1.0, 0.8, 0.6]).view(1, 3, 1, 1)
    colour = colour + 0.25 * _uniform(images, 3, generator)
    gamma = 1.6 + 0.4 * _uniform(images, 1, generator)
    night = images.clamp(1e-4, 1).pow(gamma) * light * colour
    return torch.where(_chosen(images, 0.15 * strength, generator), night, images)


def _blur(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Blur by an elongated Gaussian: defocus where round, motion where thin."""
    count = len(images)
    draws = torch.rand(count, 3, generator=generator)
    sigma = 0.3 + 1.5 * strength * draws[:, 0]
    thin = torch.where(draws[:, 1] < 0.4, 0.3 / sigma, torch.ones(count))
    angle = draws[:, 2] * math.pi
    offsets = torch.arange(BLUR_KERNEL) - BLUR_KERNEL // 2
    y, x = torch.meshgrid(offsets.float(), offsets.float(), indexing="ij")
    cos, sin = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    along, across = x * cos + y * sin, y * cos - x * sin
    sigma, thin = sigma[:, None, None], thin[:, None, None]
    kernel = torch.exp(-0.5 * ((along / sigma) ** 2 + (across / (sigma * thin)) ** 2))
    kernel = (kernel / kernel.sum((1, 2), keepdim=True)).to(images.device)
    height, width = images.shape[-2:]
    kernel = kernel[:, None].repeat_interleave(3, 0)
    padded = F.pad(images, [BLUR_KERNEL // 2] * 4, mode="replicate")
    blurred = F.conv2d(padded.flatten(0, 1)[None], kernel, groups=3 * count)
    blurred = blurred.reshape(count, 3, height, width)
    return torch.where(_chosen(images, 0.4 * strength, generator), blurred, images)


def _noise(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    sigma = 0.04 * strength * (_uniform(images, 1, generator) + 1) / 2
    seed = int(torch.randint(2**62, (), generator=generator))
    # One normal draw per pixel is too many for the CPU to feed a GPU with.
    on_device = torch.Generator(images.device).manual_seed(seed)
    noise = torch.randn(images.shape, generator=on_device, device=images.device)
    return images + sigma * noise


def _compress(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Round the cosine coefficients of 8 x 8 blocks, coarser at high frequency, as JPEG does."""
    height, width = images.shape[-2:]
    index = torch.arange(8, dtype=torch.float32)
    basis = torch.cos(math.pi / 8 * (index[None] + 0.5) * index[:, None]) * 0.5
    basis[0] /= math.sqrt(2)
    basis = basis.to(images.device)
    padded = F.pad(images, [0, -width % 8, 0, -height % 8], mode="replicate")
    rows, columns = padded.shape[-2] // 8, padded.shape[-1] // 8
    blocks = padded.reshape(len(images), 3, rows, 8, columns, 8).transpose(3, 4)
    quality = (_uniform(images, 1, generator) + 1)[..., None, None] / 2
    frequency = (1.0 + index[None] + index[:, None]).to(images.device)
    step = (0.002 + 0.02 * strength * quality) * frequency
    blocks = basis @ blocks @ basis.T
    blocks = basis.T @ ((blocks / step).round() * step) @ basis
    compressed = blocks.transpose(3, 4).reshape(padded.shape)[..., :height, :width]
    return torch.where(_chosen(images, 0.5 * strength, generator), compressed, images)
