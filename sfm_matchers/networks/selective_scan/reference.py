"""The definition of the selective scan: one step of time after the other, autograd as it comes.

Slow (the backward pass is quadratic in the length); the tests hold every other backend to it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def unusable_because(device: torch.device, dtype: torch.dtype) -> str | None:
    """Runs everywhere."""
    return None


def scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> Tensor:
    """See `selective_scan`; A is (S, channels, N), D and delta_bias are (S, channels)."""
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    delta = F.softplus(delta)
    state = torch.zeros_like(A)
    outputs = []
    for t in range(u.shape[1]):
        decay = torch.exp(delta[:, t, :, None] * A)
        state = decay * state + (delta[:, t] * u[:, t])[..., None] * B[:, t, None, :]
        outputs.append((state * C[:, t, None, :]).sum(-1))
    y = torch.stack(outputs, dim=1) + D[:, None] * u
    return y if z is None else y * F.silu(z)
