"""The kernels of the Triton backend; importing this module imports triton.

One program walks over time with the state of one block of channels of one sequence in registers;
programs share nothing. The backward kernel forms the states of `BLOCK_STEPS` steps again from the
state at the block's border, into a scratch buffer of its own, and walks through them in reverse.
Plain loops and no `associative_scan`: its reverse direction has given wrong results on GPUs.

All pointers are to contiguous float32: u, delta, z, y and their gradients (S, L, channels), A
(S, channels, N), B and C (S, L, N), D and bias (S, channels), border states
(S, blocks, channels, N).
"""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK_STEPS = 16
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _softplus(x):  # type: ignore[no-untyped-def]
    # log(1 + y), y = exp(x), without overflow; x itself where float32 cannot tell them apart. What
    # rounding takes of a small y in w = 1 + y it takes of log(w) and of w - 1 alike.
    y = tl.exp(tl.minimum(x, 20.0))
    w = 1.0 + y
    return tl.where(x > 20.0, x, tl.where(w == 1.0, y, y * tl.log(w) / (w - 1.0)))


@triton.jit
def forward(  # type: ignore[no-untyped-def]
    u_ptr,
    delta_ptr,
    a_ptr,
    b_ptr,
    c_ptr,
    d_ptr,
    z_ptr,
    bias_ptr,
    y_ptr,
    border_ptr,
    length,
    channels,
    states,
    HAS_GATE: tl.constexpr,
    KEEP_BORDERS: tl.constexpr,
    STEPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STATES: tl.constexpr,
):
    """y from u; the state in front of every block of STEPS steps where it is to be kept."""
    sequence = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    n = tl.arange(0, STATES)
    has_channel, has_state = channel < channels, n < states
    has_both = has_channel[:, None] & has_state[None, :]
    of_channel = sequence * channels + channel
    of_both = of_channel[:, None] * states + n[None, :]
    a = tl.load(a_ptr + of_both, mask=has_both, other=0.0) * LOG2_E
    skip = tl.load(d_ptr + of_channel, mask=has_channel, other=0.0)
    bias = tl.load(bias_ptr + of_channel, mask=has_channel, other=0.0)
    blocks = tl.cdiv(length, STEPS)
    state = tl.zeros((CHANNELS, STATES), tl.float32)
    for t in range(length):
        # The outer condition is decided when the kernel is compiled.
        if KEEP_BORDERS:  # noqa: SIM102
            if t % STEPS == 0:
                border = (sequence * blocks + t // STEPS) * channels + channel
                tl.store(border_ptr + border[:, None] * states + n[None, :], state, mask=has_both)
        at = (sequence * length + t) * channels + channel
        at_state = (sequence * length + t) * states + n
        u = tl.load(u_ptr + at, mask=has_channel, other=0.0)
        step = _softplus(tl.load(delta_ptr + at, mask=has_channel, other=0.0) + bias)
        b = tl.load(b_ptr + at_state, mask=has_state, other=0.0)
        c = tl.load(c_ptr + at_state, mask=has_state, other=0.0)
        state = tl.exp2(step[:, None] * a) * state + (step * u)[:, None] * b[None, :]
        y = tl.sum(state * c[None, :], 1) + skip * u
        if HAS_GATE:
            z = tl.load(z_ptr + at, mask=has_channel, other=0.0)
            y = y * z * tl.sigmoid(z)
        tl.store(y_ptr + at, y, mask=has_channel)


@triton.jit
def _keep_states(  # type: ignore[no-untyped-def]
    u_ptr, delta_ptr, b_ptr, scratch, state, a, bias, first_row, steps, channel, n,
    channels, states, has_channel, has_state, TILE: tl.constexpr,
):  # fmt: skip
    """The states after each step of a block, into scratch tiles of TILE numbers."""
    for i in range(steps):
        at = (first_row + i) * channels + channel
        at_state = (first_row + i) * states + n
        u = tl.load(u_ptr + at, mask=has_channel, other=0.0)
        step = _softplus(tl.load(delta_ptr + at, mask=has_channel, other=0.0) + bias)
        b = tl.load(b_ptr + at_state, mask=has_state, other=0.0)
        state = tl.exp2(step[:, None] * a * LOG2_E) * state + (step * u)[:, None] * b[None, :]
        tl.store(scratch + i * TILE, state)


@triton.jit
def _before_gate(  # type: ignore[no-untyped-def]
    z_ptr, grad_z_ptr, at, has_channel, y, grad_y
):
    """The gradient of y before its gate, from that after it; stores the gate's."""
    z = tl.load(z_ptr + at, mask=has_channel, other=0.0)
    gate = tl.sigmoid(z)
    grad_z = grad_y * y * gate * (1.0 + z * (1.0 - gate))
    tl.store(grad_z_ptr + at, grad_z, mask=has_channel)
    return grad_y * z * gate


@triton.jit
def _undo_step(  # type: ignore[no-untyped-def]
    u_ptr, delta_ptr, b_ptr, c_ptr, z_ptr, grad_y_ptr,
    grad_u_ptr, grad_delta_ptr, grad_b_ptr, grad_c_ptr, grad_z_ptr,
    state, before, grad_state, a, skip, bias, row, partial_row, channel, n,
    channels, states, has_channel, has_state, HAS_GATE: tl.constexpr,
):  # fmt: skip
    """Store the gradients of a step; return those of the state before it, A's and D's."""
    at = row * channels + channel
    at_state = row * states + n
    u = tl.load(u_ptr + at, mask=has_channel, other=0.0)
    raw = tl.load(delta_ptr + at, mask=has_channel, other=0.0) + bias
    step = _softplus(raw)
    b = tl.load(b_ptr + at_state, mask=has_state, other=0.0)
    c = tl.load(c_ptr + at_state, mask=has_state, other=0.0)
    grad_y = tl.load(grad_y_ptr + at, mask=has_channel, other=0.0)
    if HAS_GATE:
        y = tl.sum(state * c[None, :], 1) + skip * u
        grad_y = _before_gate(z_ptr, grad_z_ptr, at, has_channel, y, grad_y)
    grad_state += grad_y[:, None] * c[None, :]
    decay = tl.exp2(step[:, None] * a * LOG2_E)
    by_exponent = grad_state * decay * before
    by_input = tl.sum(grad_state * b[None, :], 1)
    grad_u = grad_y * skip + step * by_input
    grad_step = tl.sum(by_exponent * a, 1) + u * by_input
    tl.store(grad_u_ptr + at, grad_u, mask=has_channel)
    tl.store(grad_delta_ptr + at, grad_step * tl.sigmoid(raw), mask=has_channel)
    partial = partial_row * states + n
    grad_b = tl.sum(grad_state * (step * u)[:, None], 0)
    grad_c = tl.sum(state * grad_y[:, None], 0)
    tl.store(grad_b_ptr + partial, grad_b, mask=has_state)
    tl.store(grad_c_ptr + partial, grad_c, mask=has_state)
    return decay * grad_state, by_exponent * step[:, None], grad_y * u


@triton.jit
def backward(  # type: ignore[no-untyped-def]
    u_ptr, delta_ptr, a_ptr, b_ptr, c_ptr, d_ptr, z_ptr, bias_ptr, border_ptr, grad_y_ptr,
    scratch_ptr, grad_u_ptr, grad_delta_ptr, grad_a_ptr, grad_b_ptr, grad_c_ptr, grad_d_ptr,
    grad_z_ptr, length, channels, states, HAS_GATE: tl.constexpr, STEPS: tl.constexpr,
    CHANNELS: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """All gradients; those of B and C (S, channel blocks, L, N) are to be summed over the blocks.

    The scratch buffer holds (S, channel blocks, STEPS, CHANNELS, STATES).
    """
    sequence, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = group * CHANNELS + tl.arange(0, CHANNELS)
    n = tl.arange(0, STATES)
    has_channel, has_state = channel < channels, n < states
    has_both = has_channel[:, None] & has_state[None, :]
    of_channel = sequence * channels + channel
    of_both = of_channel[:, None] * states + n[None, :]
    a = tl.load(a_ptr + of_both, mask=has_both, other=0.0)
    skip = tl.load(d_ptr + of_channel, mask=has_channel, other=0.0)
    bias = tl.load(bias_ptr + of_channel, mask=has_channel, other=0.0)
    program = sequence * tl.num_programs(1) + group
    tile = tl.arange(0, CHANNELS)[:, None] * STATES + n[None, :]
    scratch = scratch_ptr + program * (STEPS * CHANNELS * STATES) + tile
    blocks = tl.cdiv(length, STEPS)
    grad_state = tl.zeros((CHANNELS, STATES), tl.float32)
    grad_a = tl.zeros((CHANNELS, STATES), tl.float32)
    grad_skip = tl.zeros((CHANNELS,), tl.float32)
    for reverse_block in range(blocks):
        block = blocks - 1 - reverse_block
        steps = tl.minimum(STEPS, length - block * STEPS)
        border = ((sequence * blocks + block) * channels + channel)[:, None] * states + n[None, :]
        first = tl.load(border_ptr + border, mask=has_both, other=0.0)
        row = sequence * length + block * STEPS
        tl.debug_barrier()
        _keep_states(
            u_ptr, delta_ptr, b_ptr, scratch, first, a, bias, row, steps, channel, n,
            channels, states, has_channel, has_state, CHANNELS * STATES,
        )  # fmt: skip
        # Other threads of the program may read what one of them has written.
        tl.debug_barrier()
        for reverse_step in range(steps):
            i = steps - 1 - reverse_step
            state = tl.load(scratch + i * (CHANNELS * STATES))
            before = first
            if i > 0:
                before = tl.load(scratch + (i - 1) * (CHANNELS * STATES))
            grad_state, of_a, of_skip = _undo_step(
                u_ptr, delta_ptr, b_ptr, c_ptr, z_ptr, grad_y_ptr,
                grad_u_ptr, grad_delta_ptr, grad_b_ptr, grad_c_ptr, grad_z_ptr,
                state, before, grad_state, a, skip, bias,
                row + i, program * length + block * STEPS + i, channel, n,
                channels, states, has_channel, has_state, HAS_GATE,
            )  # fmt: skip
            grad_a += of_a
            grad_skip += of_skip
    tl.store(grad_a_ptr + of_both, grad_a, mask=has_both)
    tl.store(grad_d_ptr + of_channel, grad_skip, mask=has_channel)
