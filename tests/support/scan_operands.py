"""Operands of the selective scan, and its plain definition."""

from __future__ import annotations

import torch
from torch import Tensor

from sfm_matchers.networks.selective_scan import selective_scan

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def operands(
    length: int, sequences: int = 2, channels: int = 5, states: int = 16, *, per_sequence: bool
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = (sequences, channels) if per_sequence else (channels,)
    return {
        "u": normal(sequences, length, channels),
        "delta": normal(sequences, length, channels) - 3,
        "A": -torch.arange(1.0, states + 1, dtype=torch.float64) * normal(*weights, states).exp(),
        "B": normal(sequences, length, states),
        "C": normal(sequences, length, states),
        "D": normal(*weights),
        "z": normal(sequences, length, channels),
        "delta_bias": normal(*weights),
    }


def scan(values: dict[str, Tensor], backend: str) -> Tensor:
    positional = [values[name] for name in ("u", "delta", "A", "B", "C", "D")]
    return selective_scan(
        *positional, z=values["z"], delta_bias=values["delta_bias"], backend=backend
    )
