"""The selective scan on CUDA devices with Triton, forward and backward; float32 inside.

The state at every `BLOCK_STEPS`-th step is kept for the backward pass, which forms the steps
between again. With TRITON_INTERPRET=1 in the environment the kernels run on CPU tensors, for tests.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sfm_matchers.errors import one_line
from sfm_matchers.networks.selective_scan.reasons import NotInstalled

CHANNELS_PER_PROGRAM = 16


def unusable_because(device: torch.device, dtype: torch.dtype) -> str | None:
    """Needs triton, CUDA tensors (or its interpreter) and float32 or lower."""
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"it needs CUDA tensors, these are on {device.type}"
    if dtype == torch.float64:
        return "it computes in float32 only"
    if importlib.util.find_spec("triton") is None:
        return NotInstalled("triton is not installed, pip install triton")
    return _launch_failure(device) if device.type == "cuda" else None


@functools.lru_cache
def _launch_failure(device: torch.device) -> str | None:
    """Try the kernel once: triton may be there, and no compiler, or a device that it cannot use."""
    try:
        one = torch.ones(1, 1, 1, device=device)
        weights = torch.ones(1, 1, device=device)
        y = scan(one, one, -one, one, one, weights, None, None)
        return None if y.isfinite().all() else "its kernel gives no numbers on this device"
    except Exception as error:  # of triton, of a compiler, of the driver
        return f"its kernel cannot be launched ({one_line(error)})"


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
    return _ProgramPerChannels.apply(u, delta, A, B, C, D, z, delta_bias)


class _ProgramPerChannels(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        z: Tensor | None,
        delta_bias: Tensor | None,
    ) -> Tensor:
        kernels = _kernels()
        bias = torch.zeros_like(D) if delta_bias is None else delta_bias
        gate = u.new_empty(0) if z is None else z
        operands = tuple(x.contiguous() for x in (u, delta, A, B, C, D, gate, bias))
        sequences, length, channels = u.shape
        keep = any(ctx.needs_input_grad)
        blocks = -(-length // kernels.BLOCK_STEPS)
        borders = u.new_empty((sequences * keep, blocks, channels, A.shape[-1]))
        y = torch.empty_like(operands[0])
        with _device_of(u):
            kernels.forward[_grid(u)](
                *operands,
                y,
                borders,
                length,
                channels,
                A.shape[-1],
                HAS_GATE=z is not None,
                KEEP_BORDERS=keep,
                **_constants(A),
            )
        if keep:
            ctx.save_for_backward(*operands, borders)
            ctx.has_gate, ctx.has_bias = z is not None, delta_bias is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, A, B, C, D, z, bias, borders = ctx.saved_tensors
        grid, constants = _grid(u), _constants(A)
        _, length, channels = u.shape
        states = A.shape[-1]
        tile = (constants["STEPS"], constants["CHANNELS"], constants["STATES"])
        scratch = u.new_empty((*grid, *tile))
        grad_u, grad_delta, grad_z = (torch.empty_like(x) for x in (u, delta, z))
        grad_A, grad_D = torch.empty_like(A), torch.empty_like(D)
        grad_B = u.new_empty((*grid, length, states))
        grad_C = torch.empty_like(grad_B)
        inputs = (u, delta, A, B, C, D, z, bias, borders, grad_y.contiguous(), scratch)
        gradients = (grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z)
        with _device_of(u):
            _kernels().backward[grid](
                *inputs, *gradients, length, channels, states, HAS_GATE=ctx.has_gate, **constants
            )
        return (
            grad_u,
            grad_delta,
            grad_A,
            grad_B.sum(1),
            grad_C.sum(1),
            grad_D,
            grad_z if ctx.has_gate else None,
            grad_delta.sum(1) if ctx.has_bias else None,
        )


@functools.lru_cache
def _kernels() -> ModuleType:
    return importlib.import_module(".triton_kernels", __package__)


def _device_of(u: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, whatever device its operands are on."""
    return torch.cuda.device(u.device) if u.is_cuda else nullcontext()


def _grid(u: Tensor) -> tuple[int, int]:
    return u.shape[0], -(-u.shape[2] // CHANNELS_PER_PROGRAM)


def _constants(A: Tensor) -> dict[str, int]:
    states = 1 << (A.shape[-1] - 1).bit_length()  # Triton's tiles have powers of two
    return {
        "STEPS": _kernels().BLOCK_STEPS,
        "CHANNELS": CHANNELS_PER_PROGRAM,
        "STATES": states,
        "num_warps": 1,
    }
