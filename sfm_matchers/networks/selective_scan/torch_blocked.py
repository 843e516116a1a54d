"""The selective scan in plain torch, 32 steps at a time; runs on every device.

The exponentials and products of a block are formed at once with the layout (step, sequence, state,
channel), so that the serial part is one fused multiply-add per step for all sequences. Only the
states at the block borders are kept for the backward pass, which forms each block again: memory
stays at a few blocks, whatever the length.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_STEPS = 32


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
    y = torch.addcmul(_Recurrence.apply(u, F.softplus(delta), A, B, C), D[:, None], u)
    return y if z is None else y * F.silu(z)


class _Recurrence(torch.autograd.Function):
    """h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t and y_t = C_t . h_t, delta being positive."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        A_nd = A.transpose(1, 2).contiguous()
        state = torch.zeros_like(A_nd)
        y = torch.empty_like(u)
        decay = A_nd.new_empty((min(BLOCK_STEPS, u.shape[1]), *A_nd.shape))
        states = torch.empty_like(decay)
        block_states = []
        for start in range(0, u.shape[1], BLOCK_STEPS):
            block = slice(start, start + BLOCK_STEPS)
            block_states.append(state)
            steps = _run_block(
                u[:, block], delta[:, block], A_nd, B[:, block], state, decay, states
            )
            state = states[steps - 1].clone()
            C_t = C[:, block].transpose(0, 1)[:, :, None]
            y[:, block] = (C_t @ states[:steps])[:, :, 0].transpose(0, 1)
        if any(ctx.needs_input_grad):
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
            grad_delta_b = grad_exponent.mul_(A_nd).sum(2).addcmul_(grad_input, u_b)
            grad_delta[:, block] = grad_delta_b.transpose(0, 1)
        return grad_u, grad_delta, grad_A.transpose(1, 2), grad_B, grad_C


def _run_block(
    u: Tensor,
    delta: Tensor,
    A_nd: Tensor,
    B: Tensor,
    state: Tensor,
    decay: Tensor,
    states: Tensor,
) -> int:
    """Fill `decay` = exp(delta A) and `states`, both (steps, S, N, channels); return the steps."""
    steps = u.shape[1]
    delta_t = delta.transpose(0, 1)
    torch.mul(delta_t[:, :, None], A_nd, out=decay[:steps]).exp_()
    input_t = delta_t * u.transpose(0, 1)
    torch.mul(input_t[:, :, None], B.transpose(0, 1)[..., None], out=states[:steps])
    for t in range(steps):
        state = states[t].addcmul_(decay[t], state)
    return steps
