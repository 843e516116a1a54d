"""The selective scan of Mamba-1: one function, several backends held to one definition.

For each sequence and channel d, with the input-dependent step delta_t > 0 (Gu and Dao, "Mamba",
2023, eq. 2a and algorithm 2; A discretised exactly, B by Euler's rule):

    delta_t = softplus(delta_t + delta_bias)
    h_t     = exp(delta_t A) h_{t-1} + delta_t B_t u_t        state of N numbers, h_0 = 0
    y_t     = (C_t . h_t + D u_t) silu(z_t)                   the gate only where z is given

| backend     | device | when it is chosen                    | file                 |
|-------------|--------|--------------------------------------|----------------------|
| `mamba_ssm` | CUDA   | the library mamba-ssm is installed   | `mamba_ssm.py`       |
| `triton`    | CUDA   | triton is (it comes with torch there)| `triton_channels.py` |
| `numba`     | CPU    | numba is installed, dtype not double | `numba_lanes.py`     |
| `torch`     | any    | otherwise                            | `torch_blocked.py`   |
| `reference` | any    | only when asked for                  | `reference.py`       |

The argument `backend` or the environment variable `SFM_MATCHERS_SCAN` overrides the choice.

Under torch.compile and torch.export, without gradients, the scan is one opaque operator,
`torch.ops.sfm_matchers.selective_scan`: a graph needs not break at it nor hold its loop.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
from types import ModuleType

import torch
from torch import Tensor

from sfm_matchers.errors import InputError, MissingExtraError
from sfm_matchers.networks.selective_scan.reasons import NotInstalled

__all__ = ["BACKENDS", "default_backend", "selective_scan", "unusable_backends"]

logger = logging.getLogger(__name__)

# In order of preference. Each module has `unusable_because(device, dtype) -> str | None`, which is
# `NotInstalled` where a library is missing, and `scan(u, delta, A, B, C, D, z, delta_bias)` on
# operands that `selective_scan` has prepared: A, D and delta_bias for each sequence, or, where the
# module has `TAKES_GROUPS`, for each group of sequences.
BACKENDS = {
    "mamba_ssm": "mamba_ssm",
    "triton": "triton_channels",
    "numba": "numba_lanes",
    "torch": "torch_blocked",
    "reference": "reference",
}


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Run S independent selective scans of length L over `channels` channels.

    The state is float32 whatever the input's dtype, or float64 where u is float64. Differentiable
    once with respect to every tensor.

    Args:
        u: (S, L, channels) input.
        delta: (S, L, channels) step sizes before bias and softplus.
        A: (channels, N) or (G, channels, N), negative; G divides S, and each run of S / G
            sequences shares its weights.
        B: (S, L, N) input weights.
        C: (S, L, N) output weights.
        D: (channels,) or (G, channels) skip weights.
        z: (S, L, channels) gate before silu, or None for no gate.
        delta_bias: (channels,) or (G, channels) added to delta, or None.
        backend: a key of `BACKENDS`; None reads SFM_MATCHERS_SCAN, then chooses by device.

    Returns:
        (S, L, channels) in the dtype of u.

    Raises:
        InputError: shapes or devices do not fit, or the backend is unknown or cannot run them.
        MissingExtraError: the backend asked for needs a library that is not installed.

    Example:
        >>> u, delta = torch.randn(2, 10, 8), torch.randn(2, 10, 8)
        >>> B, C = torch.randn(2, 10, 4), torch.randn(2, 10, 4)
        >>> selective_scan(u, delta, -torch.ones(8, 4), B, C, torch.ones(8)).shape
        torch.Size([2, 10, 8])
    """
    _check_shapes(u, delta, A, B, C, D, z, delta_bias)
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    groups = _num_groups(A, D, delta_bias)
    scan = _run_backend
    if torch.compiler.is_compiling() and not torch.is_grad_enabled():
        scan, groups = torch.ops.sfm_matchers.selective_scan, u.shape[0]

    def grouped(weight: Tensor, shared_ndim: int) -> Tensor:
        weight = weight.to(dtype)
        return _repeated(weight[None] if weight.ndim == shared_ndim else weight, groups)

    A, D = grouped(A, 2), grouped(D, 1)
    B, C = B.to(dtype), C.to(dtype)
    z = None if z is None else z.to(dtype)
    delta_bias = None if delta_bias is None else grouped(delta_bias, 1)
    y = scan(u.to(dtype), delta.to(dtype), A, B, C, D, z, delta_bias, backend)
    return y.to(u.dtype)


def _run_backend(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    delta_bias: Tensor | None,
    backend: str | None,
) -> Tensor:
    """Scan tensors of one dtype; A is (G, channels, N), D and delta_bias are (G, channels)."""
    module = _choose_backend(backend or os.environ.get("SFM_MATCHERS_SCAN"), u.device, u.dtype)
    if u.numel() == 0:
        return torch.zeros_like(u)
    if not getattr(module, "TAKES_GROUPS", False):
        A, D = _repeated(A, len(u)), _repeated(D, len(u))
        delta_bias = None if delta_bias is None else _repeated(delta_bias, len(u))
    with torch.autocast(u.device.type, enabled=False):
        return module.scan(u, delta, A, B, C, D, z, delta_bias).contiguous()


def _num_groups(A: Tensor, D: Tensor, delta_bias: Tensor | None) -> int:
    """Into how many groups of equal weights the sequences fall."""
    counts = [A.shape[0]] if A.ndim == 3 else []
    counts += [
        weight.shape[0] for weight in (D, delta_bias) if weight is not None and weight.ndim == 2
    ]
    return max(counts, default=1)


def _repeated(weight: Tensor, count: int) -> Tensor:
    """Weights of groups (G, ...) as weights of more groups (count, ...)."""
    times = count // max(1, weight.shape[0])
    return weight[:, None].expand(-1, times, *weight.shape[1:]).flatten(0, 1)


scan_operator = torch.library.custom_op(
    "sfm_matchers::selective_scan",
    _run_backend,
    mutates_args=(),
    schema="(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D, Tensor? z, "
    "Tensor? delta_bias, str? backend) -> Tensor",
)
"""The scan that torch.compile and torch.export take as it is; not differentiable."""


@scan_operator.register_fake
def _scan_shape(u: Tensor, *_: object) -> Tensor:
    return u.new_empty(u.shape)


def _check_shapes(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    if u.ndim != 3:
        raise InputError(f"u has shape {tuple(u.shape)}, expected (sequences, length, channels)")
    sequences, length, channels = u.shape
    states = A.shape[-1] if A.ndim else 0
    groups = max(1, _num_groups(A, D, delta_bias))
    if sequences % groups:
        raise InputError(
            f"A, D or delta_bias has {groups} groups, which {sequences} sequences lack"
        )
    shared_or_grouped = ((channels,), (groups, channels))
    expected: dict[str, tuple[Tensor | None, tuple[tuple[int, ...], ...]]] = {
        "delta": (delta, (tuple(u.shape),)),
        "A": (A, ((channels, states), (groups, channels, states))),
        "B": (B, ((sequences, length, states),)),
        "C": (C, ((sequences, length, states),)),
        "D": (D, shared_or_grouped),
        "z": (z, (tuple(u.shape),)),
        "delta_bias": (delta_bias, shared_or_grouped),
    }
    for name, (tensor, shapes) in expected.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) not in shapes:
            wanted = " or ".join(str(shape) for shape in shapes)
            raise InputError(f"{name} has shape {tuple(tensor.shape)}, expected {wanted}")
        if tensor.device != u.device:
            raise InputError(f"{name} is on {tensor.device}, u on {u.device}; move one of them")


def _choose_backend(name: str | None, device: torch.device, dtype: torch.dtype) -> ModuleType:
    """Return the backend's module: the one asked for, or the first usable one."""
    if name is not None:
        if name not in BACKENDS:
            raise InputError(f"unknown scan backend {name!r}, choose one of {', '.join(BACKENDS)}")
        module = _load(name)
        reason = module.unusable_because(device, dtype)
        if reason is not None:
            error = MissingExtraError if isinstance(reason, NotInstalled) else InputError
            raise error(f"the scan backend {name!r} cannot run here: {reason}")
    else:
        name = default_backend(device.type, dtype)
        module = _load(name)
    _announce(name, device.type)
    return module


def unusable_backends(device_type: str, dtype: torch.dtype = torch.float32) -> dict[str, str]:
    """Say which backends cannot run on a kind of device, and why."""
    reasons = {
        name: _load(name).unusable_because(torch.device(device_type), dtype) for name in BACKENDS
    }
    return {name: reason for name, reason in reasons.items() if reason is not None}


@functools.lru_cache
def default_backend(device_type: str, dtype: torch.dtype = torch.float32) -> str:
    """Return the backend that runs where none is asked for."""
    unusable = unusable_backends(device_type, dtype)
    return next(name for name in BACKENDS if name not in unusable)


def _load(name: str) -> ModuleType:
    return importlib.import_module(f".{BACKENDS[name]}", __name__)


@functools.lru_cache
def _announce(name: str, device_type: str) -> None:
    """Say once per process which backend runs on a kind of device."""
    logger.info("selective scan on %s uses the backend %r", device_type, name)
