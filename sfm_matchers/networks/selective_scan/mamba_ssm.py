"""The CUDA kernel of the library mamba-ssm, where a user has it installed; never required."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from sfm_matchers.networks.selective_scan.reasons import NotInstalled

TAKES_GROUPS = True  # of sequences that share their weights


@functools.lru_cache
def _selective_scan_fn() -> Callable[..., Tensor] | None:
    try:
        interface = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    except Exception:  # a mamba-ssm built for another torch fails with more than ImportError
        return None
    return interface.selective_scan_fn


def unusable_because(device: torch.device, dtype: torch.dtype) -> str | None:
    """Needs a CUDA device, float32 or lower, and an importable mamba-ssm."""
    if device.type != "cuda":
        return f"it needs CUDA tensors, these are on {device.type}"
    if dtype == torch.float64:
        return "it has no float64 kernel"
    if _selective_scan_fn() is None:
        return NotInstalled("mamba-ssm cannot be imported, pip install 'sfm-matchers[mamba]'")
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
    """See `selective_scan`; A is (G, channels, N), D and delta_bias are (G, channels).

    The kernel wants (S, channels, L) and one set of weights, so it runs once per set.
    """
    kernel = _selective_scan_fn()
    if kernel is None:
        raise RuntimeError("mamba-ssm was usable a moment ago and is not any more")
    outputs = []
    for index in range(len(A)):
        group = slice(index * len(u) // len(A), (index + 1) * len(u) // len(A))
        outputs.append(
            kernel(
                u[group].transpose(1, 2),
                delta[group].transpose(1, 2),
                A[index],
                B[group].transpose(1, 2),
                C[group].transpose(1, 2),
                D=D[index],
                z=None if z is None else z[group].transpose(1, 2),
                delta_bias=None if delta_bias is None else delta_bias[index],
                delta_softplus=True,
            ).transpose(1, 2)
        )
    return torch.cat(outputs)
