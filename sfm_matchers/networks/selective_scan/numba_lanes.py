"""The selective scan on CPUs with numba: vector lanes over channels, threads over channel blocks.

The fastest backend on a CPU, forward and backward; float32 only. The state at every
`BLOCK_STEPS`-th step is kept for the backward pass, which forms the steps between again.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sfm_matchers.networks.selective_scan.reasons import NotInstalled

LOG2_E = 1.4426950408889634
# Below this many state updates handing work to threads costs more than it saves.
MIN_PARALLEL_WORK = 10_000_000


def unusable_because(device: torch.device, dtype: torch.dtype) -> str | None:
    """Needs numba, CPU tensors and float32 or lower."""
    if device.type != "cpu":
        return f"it needs CPU tensors, these are on {device.type}"
    if dtype == torch.float64:
        return "it computes in float32 only"
    if importlib.util.find_spec("numba") is None:
        return NotInstalled("numba is not installed, pip install 'sfm-matchers[fast]'")
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
    return _LaneScan.apply(u, delta, A, B, C, D, z, delta_bias)


class _LaneScan(torch.autograd.Function):
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
        operands = (
            _group_channels(u),
            _group_channels(delta),
            _group_channels(A.transpose(1, 2) * LOG2_E),
            B.contiguous(),
            C.contiguous(),
            _group_channels(D),
            u.new_empty(0, 0, 0, 0) if z is None else _group_channels(z),
            _group_channels(torch.zeros_like(D) if delta_bias is None else delta_bias),
        )
        sequences, length, groups, lanes = operands[0].shape
        keep = any(ctx.needs_input_grad)
        blocks = -(-length // kernels.BLOCK_STEPS)
        block_states = u.new_empty((sequences * keep, blocks, A.shape[-1], groups, lanes))
        y = torch.empty_like(operands[0])
        _run_tasks(kernels.forward, (*operands, y, block_states), A.shape[-1])
        if keep:
            ctx.save_for_backward(*operands, block_states)
            ctx.has_gate, ctx.has_bias = z is not None, delta_bias is not None
            ctx.channels = u.shape[-1]
        return _ungroup_channels(y, u.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, a, B, C, D, z, bias, block_states = ctx.saved_tensors
        sequences, length, groups, _ = u.shape
        states = a.shape[1]
        grad_u, grad_delta, grad_z = (torch.empty_like(x) for x in (u, delta, z))
        grad_A, grad_D = torch.empty_like(a), torch.empty_like(D)
        grad_B = u.new_empty((sequences * groups, length, states))
        grad_C = torch.empty_like(grad_B)
        inputs = (u, delta, a, B, C, D, z, bias, block_states, _group_channels(grad_y))
        gradients = (grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z)
        _run_tasks(_kernels().backward, (*inputs, *gradients), states)
        ungroup = functools.partial(_ungroup_channels, channels=ctx.channels)
        return (
            ungroup(grad_u),
            ungroup(grad_delta),
            ungroup(grad_A).transpose(1, 2),
            grad_B.view(sequences, groups, length, states).sum(1),
            grad_C.view(sequences, groups, length, states).sum(1),
            ungroup(grad_D),
            ungroup(grad_z) if ctx.has_gate else None,
            ungroup(grad_delta.sum(1)) if ctx.has_bias else None,
        )


def _kernels() -> ModuleType:
    return importlib.import_module(".numba_kernels", __package__)


def _group_channels(x: Tensor) -> Tensor:
    """(..., channels) to contiguous (..., groups, LANES), the last group filled up with zeros."""
    lanes = _kernels().LANES
    missing = -x.shape[-1] % lanes
    x = F.pad(x, (0, missing)) if missing else x.contiguous()
    return x.view(*x.shape[:-1], -1, lanes)


def _ungroup_channels(x: Tensor, channels: int) -> Tensor:
    return x.flatten(-2)[..., :channels]


def _run_tasks(kernel: Callable[..., None], tensors: tuple[Tensor, ...], states: int) -> None:
    """Run a kernel over all (sequence, channel group) tasks, in equal shares per thread."""
    sequences, _, groups, _ = tensors[0].shape
    tasks = sequences * groups
    arrays = [tensor.detach().numpy() for tensor in tensors]
    threads = min(torch.get_num_threads(), tasks)
    if tensors[0].numel() * states < MIN_PARALLEL_WORK or threads == 1:
        kernel(*arrays, 0, tasks)
        return
    borders = np.linspace(0, tasks, threads + 1).round().astype(int)
    pool = _thread_pool(threads)
    shares = [
        pool.submit(kernel, *arrays, int(first), int(last))
        for first, last in itertools.pairwise(borders)
    ]
    for share in shares:
        share.result()


@functools.lru_cache(maxsize=1)
def _thread_pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="selective-scan")


# A forked child has the pool's object but none of its threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_thread_pool.cache_clear)
