"""Synthetic weights of JamMa, drawn from the names of its parameters: the golden recipe."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

GAINS = {
    "final_proj.weight": 0.7,
    "fine_proj.weight": 0.3,
    "subpixel_mlp.0.weight": 0.5,
    "subpixel_mlp.2.weight": 0.5,
}


def golden_state_dict(shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Weights for every key of a state dict, given its shapes."""
    return {key: torch.from_numpy(_draw(key, tuple(shape))) for key, shape in shapes.items()}


def golden_normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The golden data's float64 noise of a given name."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)


def _draw(key: str, shape: tuple[int, ...]) -> np.ndarray:
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    return np.asarray(_values(key, golden_normal(key, shape)), dtype=np.float32)


def _values(key: str, noise: np.ndarray) -> np.ndarray:
    if key.endswith("running_mean"):
        return 0.1 * noise
    if key.endswith("running_var"):
        return np.exp(0.1 * noise)
    if key.endswith("A_log"):
        return np.log(np.arange(1, 17)) + 0.1 * noise
    if key.endswith("mixer.D"):
        return 1 + 0.1 * noise
    if key.endswith("dt_proj.bias"):
        return -4 + noise
    if key.endswith(("grn.gamma", "grn.beta")):
        return 0.2 * noise
    if key.endswith("bias"):
        return 0.05 * noise
    if noise.ndim == 1:
        return 1 + 0.1 * noise
    gain = next((gain for ending, gain in GAINS.items() if key.endswith(ending)), 1.0)
    return gain * noise / np.sqrt(np.prod(noise.shape[1:]))
