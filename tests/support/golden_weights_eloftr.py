"""Synthetic weights of Efficient LoFTR, drawn from the names of its parameters.

The recipe is the golden data's own; with it the network matches translated images.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def golden_state_dict(shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Weights for every key of a training-form state dict, given its shapes."""
    return {key: torch.from_numpy(_draw(key, tuple(shape))) for key, shape in shapes.items()}


def _draw(key: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    leaf = key.rsplit(".", 1)[1]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if ".bn." in key or "rbr_identity" in key or "outconv2.1." in key:
        values = _batch_norm(leaf, noise, gain=0.5 if "rbr_identity" in key else 1.0)
    elif ".norm1." in key or ".norm2." in key:
        gain = 0.7 if ".norm2." in key else 1.0
        values = gain * (0.1 * noise + (leaf == "weight"))
    elif "aggregate" in key:
        values = 1 / 16 + 0.1 * noise
    elif len(shape) == 4:
        values = _convolution(key, noise)
    else:
        values = noise / np.sqrt(shape[1])
    return np.asarray(values, dtype=np.float32)


def _batch_norm(leaf: str, noise: np.ndarray, gain: float) -> np.ndarray:
    if leaf == "weight":
        return gain * (1 + 0.1 * noise)
    if leaf == "running_var":
        return np.exp(0.2 * noise)
    return 0.1 * noise


def _convolution(key: str, noise: np.ndarray) -> np.ndarray:
    scale = np.sqrt(2.0 / np.prod(noise.shape[1:]))
    if not key.startswith("backbone."):
        return noise * scale * 1.2
    scale *= 1.0 if "rbr_dense" in key else 0.3
    if key.startswith("backbone.layer0."):
        scale *= 3.0
    weight = noise * scale
    return weight - weight.mean(axis=(1, 2, 3), keepdims=True)
