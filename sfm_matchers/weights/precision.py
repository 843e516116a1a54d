"""The precision in which weights are stored: half, or eight bits.

Of a matrix or kernel ``name`` in eight bits the int8 values are stored under its name, and float32
scales, one per output channel, as ``name:scale``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SCALE_SUFFIX = ":scale"


def to_half(tensor: Tensor) -> Tensor:
    """Return matrices and kernels as fp16, vectors as float32, and whole numbers as they are.

    Vectors (biases, norms, running statistics) are few, and running variances need the range.
    """
    if not tensor.is_floating_point():
        return tensor
    return tensor.half() if tensor.dim() > 1 else tensor.float()


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
