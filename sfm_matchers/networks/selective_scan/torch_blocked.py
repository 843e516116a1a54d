"""The selective scan in plain torch, 32 steps at a time; runs on every device.

The exponentials and products of a block are formed at once with the layout (step, sequence, state,
channel), so that the serial part is one fused multiply-add per step for all sequences. Only the
states at the block borders are kept for the backward pass, which forms each block again: memory
stays at a few blocks, whatever the length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_STEPS = 32
LOG2_E = math.log2(math.e)


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

    def step_sizes(steps: slice) -> Tensor:
        shifted = delta[:, steps] if delta_bias is None else delta[:, steps] + delta_bias[:, None]
        return F.softplus(shifted)

    def finished(y: Tensor, steps: slice) -> Tensor:
        y = torch.addcmul(y, D[:, None], u[:, steps])
        return y if z is None else y * F.silu(z[:, steps])

    inputs = (u, delta, A, B, C, D, z, delta_bias)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        whole = slice(None)
        return finished(_Recurrence.apply(u, step_sizes(whole), A, B, C), whole)
    # Each block is finished in the cache: whole maps between the operations would be fresh memory.
    y = torch.empty_like(u)
    for block, _, y_block in _run_blocks(u, step_sizes, _by_state(A), B, C):
        y[:, block] = finished(y_block, block)
    return y


class _Recurrence(torch.autograd.Function):
    """h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t and y_t = C_t . h_t, delta being positive."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        A_nd = _by_state(A)
        y = torch.empty_like(u)
        block_states = []
        for block, state, y_block in _run_blocks(u, lambda b: delta[:, b], A_nd, B, C):
            block_states.append(state)
            y[:, block] = y_block
        ctx.save_for_backward(u, delta, A_nd, B, C, torch.stack(block_states))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, ...]:
        u, delta, A_nd, B, C, block_states = ctx.saved_tensors
        grad_u, grad_delta = torch.empty_like(u), torch.empty_like(delta)
        grad_B, grad_C = torch.empty_like(B), torch.empty_like(C)
        grad_A = torch.zeros_like(A_nd)
        grad_state = torch.zeros_like(A_nd)  # of the loss by the state that leaves the block
        buffer = A_nd.new_empty((3, min(BLOCK_STEPS, u.shape[1]), *A_nd.shape))
        for index in reversed(range(len(block_states))):
            block = slice(index * BLOCK_STEPS, (index + 1) * BLOCK_STEPS)
            first_state = block_states[index]
            # Inside the loop time comes first: (steps, S, ...).
            u_b, delta_b, B_b, C_b, grad_y_b = (
                x[:, block].transpose(0, 1) for x in (u, delta, B, C, grad_y)
            )
            steps = _run_block(
                u[:, block], delta[:, block], A_nd, B[:, block], first_state, *buffer[:2]
            )
            decay, states, grad_states = buffer[:, :steps]

            torch.mul(C_b[..., None], grad_y_b[:, :, None], out=grad_states)
            grad_states[-1] += grad_state
            for t in range(steps - 2, -1, -1):
                grad_states[t].addcmul_(decay[t + 1], grad_states[t + 1])
            grad_state = decay[0] * grad_states[0]

            grad_C[:, block] = (states @ grad_y_b[..., None])[..., 0].transpose(0, 1)
            grad_B[:, block] = (grad_states @ (delta_b * u_b)[..., None])[..., 0].transpose(0, 1)
            grad_input = (B_b[:, :, None] @ grad_states)[:, :, 0]
            # by delta * A, the argument of the exponential: decay * h_{t-1} * grad_states
            grad_exponent = decay.mul_(grad_states)
            grad_exponent[1:] *= states[:-1]
            grad_exponent[0] *= first_state

            grad_u[:, block] = (grad_input * delta_b).transpose(0, 1)
            grad_A.add_(torch.mul(grad_exponent, delta_b[:, :, None], out=states).sum(0))
            grad_exponent *= A_nd
            grad_delta_b = grad_exponent.sum(2).div_(LOG2_E).addcmul_(grad_input, u_b)
            grad_delta[:, block] = grad_delta_b.transpose(0, 1)
        return grad_u, grad_delta, grad_A.transpose(1, 2), grad_B, grad_C


def _by_state(A: Tensor) -> Tensor:
    """A log2(e), (S, N, channels).

    To the base of 2, since torch's exp is MKL's, on AMD's processors a quarter as fast as its exp2.
    """
    return A.transpose(1, 2).contiguous() * LOG2_E


def _run_blocks(
    u: Tensor, step_sizes: Callable[[slice], Tensor], A_nd: Tensor, B: Tensor, C: Tensor
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield each block's steps, the state before it, and its y, (S, steps, channels).

    Args:
        step_sizes: delta of a block, positive, (S, steps, channels).
    """
    state = torch.zeros_like(A_nd)
    decay = A_nd.new_empty((min(BLOCK_STEPS, u.shape[1]), *A_nd.shape))
    states = torch.empty_like(decay)
    for start in range(0, u.shape[1], BLOCK_STEPS):
        block = slice(start, start + BLOCK_STEPS)
        before = state
        steps = _run_block(u[:, block], step_sizes(block), A_nd, B[:, block], state, decay, states)
        state = states[steps - 1].clone()
        C_t = C[:, block].transpose(0, 1)[:, :, None]
        yield block, before, (C_t @ states[:steps])[:, :, 0].transpose(0, 1)


def _run_block(
    u: Tensor,
    delta: Tensor,
    A_nd: Tensor,
    B: Tensor,
    state: Tensor,
    decay: Tensor,
    states: Tensor,
) -> int:
    """Fill `decay` = 2^(delta A) and `states`, both (steps, S, N, channels); return the steps."""
    steps = u.shape[1]
    delta_t = delta.transpose(0, 1)
    torch.mul(delta_t[:, :, None], A_nd, out=decay[:steps]).exp2_()
    input_t = delta_t * u.transpose(0, 1)
    torch.mul(input_t[:, :, None], B.transpose(0, 1)[..., None], out=states[:steps])
    for t in range(steps):
        state = states[t].addcmul_(decay[t], state)
    return steps
