"""Synthetic weights of MambaGlue, drawn from the names of its parameters: the golden recipe."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

MATCHABILITY_BIASES = (0.6, 1.8, 0.2, -0.9, 0.6, -0.4, -1.6, 0.6, 0.6)


def golden_state_dict(shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Weights for every key of a state dict, given its shapes."""
    return {key: torch.from_numpy(_draw(key, tuple(shape))) for key, shape in shapes.items()}


def _draw(key: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    return np.asarray(_values(key, noise), dtype=np.float32)


def _values(key: str, noise: np.ndarray) -> np.ndarray:
    parts = key.split(".")
    if key == "confidence_thresholds":
        return 0.8 + 0.1 * np.exp(-4 * np.arange(9) / 9)
    if parts[-1] == "A_log":
        return np.log(np.arange(1, 17))[None] + 0.1 * noise
    if parts[-1] == "D" or key.endswith("ffn.1.weight"):
        return 1 + 0.1 * noise
    if key.endswith("dt_proj.bias"):
        return -1.5 + 0.5 * noise
    if key.endswith("ffn.1.bias"):
        return 0.1 * noise
    if key == "posenc.Wr.weight":
        return 2 * noise
    if key.endswith("token.2.bias"):
        return 0.6 * int(parts[1]) - 0.5 + 0.1 * noise
    if key.endswith("matchability.bias"):
        return MATCHABILITY_BIASES[int(parts[1])] + 0.1 * noise
    if parts[-1] == "bias":
        return 0.05 * noise
    if key.endswith("final_proj.weight"):
        return 2 * np.eye(256) + noise / 16
    return _gain(key) * noise / np.sqrt(np.prod(noise.shape[1:]))


def _gain(key: str) -> float:
    gains = {"ffn.3.weight": 0.6, "token.2.weight": 1.5, "matchability.weight": 1.2}
    return next((gain for ending, gain in gains.items() if key.endswith(ending)), 1.0)
