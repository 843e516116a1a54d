"""Matrices and kernels in eight bits: int8 values, and a float32 scale for each output channel.

The scale of a tensor ``name`` is stored as ``name:scale``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SCALE_SUFFIX = ":scale"


def to_eight_bits(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 values and scales (C, 1, ...): off by 1/254 of a channel's largest at most.

    Args:
        tensor: (C, ...) floating point.
    """
    values = tensor.float()
    largest = values.abs().amax(tuple(range(1, values.dim())), keepdim=True)
    scale = largest.clamp(min=torch.finfo(torch.float32).tiny) / 127
    return (values / scale).round().to(torch.int8), scale


def widened(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with a scale as float32, and the others as they are."""
    tensors = {key: tensor for key, tensor in stored.items() if not key.endswith(SCALE_SUFFIX)}
    for key, tensor in tensors.items():
        if key + SCALE_SUFFIX in stored:
            tensors[key] = tensor.float() * stored[key + SCALE_SUFFIX]
    return tensors
