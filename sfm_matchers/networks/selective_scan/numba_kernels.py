"""The compiled loops of the numba backend; importing this module imports numba.

Each kernel walks over time, then over the N states, and innermost over a block of `LANES` channels
that the compiler turns into vector instructions. For that the innermost loops are short (a loop
over many arrays is left scalar, since the compiler cannot prove that they do not overlap), and the
exponential makes no library call: rounding, a polynomial, the exponent bits. All is float32.

The kernels hold no Python object and release the interpreter's lock, so that threads of our own
share the work. Numba's own parallel loops are avoided: their threading layers kill a process that
forks after use or that calls from two threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

LANES = 128
BLOCK_STEPS = 16
AHEAD = 4  # steps by which inputs are asked for before they are needed
LINE = 16  # float32 in a line of a cache

f32 = np.float32
ZERO, ONE, TWO = f32(0), f32(1), f32(2)
LOG2_E, LN_2 = f32(1.4426950408889634), f32(0.6931471805599453)
# Adding 1.5 * 2^23 to a small float32 leaves its rounded value in the lowest bits.
ROUNDER = f32(12582912)
# Below this exponent of two the exponent bits leave the normal numbers.
LOWEST = f32(-125)
# What is left of a state after 2^-60 changes no sum, and is mostly still a normal number: those
# below are slow.
LOWEST_DECAY = f32(-60)
# 2^f on [-1/2, 1/2] to 1.4e-7, and exact at 0: errors of factors near 1 add up over many steps.
E1, E2, E3 = f32(0.6931470632553101), f32(0.24022294580936432), f32(0.05550699681043625)
E4, E5 = f32(0.00966899748891592), f32(0.0013266362948343158)


def _jit(function: Callable[..., Any], fastmath: tuple[str, ...] = ("contract",)) -> Any:
    """Compile without the interpreter's lock, cached on disk where a folder can be written."""
    try:
        return njit(nogil=True, error_model="numpy", cache=True, fastmath=set(fastmath))(function)
    except RuntimeError:
        return njit(nogil=True, error_model="numpy", fastmath=set(fastmath))(function)


def _inlined(function: Callable[..., Any]) -> Any:
    """A part of a kernel, put into it before it is compiled: as fast as one function."""
    return njit(nogil=True, error_model="numpy", inline="always")(function)


@intrinsic
def _times_power_of_two(typing_context, value, shifted):  # type: ignore[no-untyped-def]
    """value * 2^n, n being in the lowest bits of the float32 `shifted` (see ROUNDER)."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        integer = ir.IntType(32)
        value_bits = builder.bitcast(arguments[0], integer)
        shifted_bits = builder.bitcast(arguments[1], integer)
        exponent = builder.shl(shifted_bits, ir.Constant(integer, 23))
        return builder.bitcast(builder.add(value_bits, exponent), ir.FloatType())

    return types.float32(types.float32, types.float32), generate


@intrinsic
def _prefer_widest_vectors(typing_context):  # type: ignore[no-untyped-def]
    """LLVM uses half of AVX-512's width unless a function asks; no other processor minds."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        # llvmlite's own `add` knows only attributes without a value.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _prefetch(typing_context, array, offset):  # type: ignore[no-untyped-def]
    """Ask for the cache line of the element at `offset` of a contiguous float32 array."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        byte, integer = ir.IntType(8).as_pointer(), ir.IntType(32)
        address = builder.bitcast(builder.gep(data, [arguments[1]]), byte)
        kind = ir.FunctionType(ir.VoidType(), [byte, integer, integer, integer])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        to_read, keep, is_data = (ir.Constant(integer, value) for value in (0, 3, 1))
        builder.call(function, [address, to_read, keep, is_data])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@_jit
def exp2(x, lowest):  # type: ignore[no-untyped-def]
    """2^x for x <= 0 to about two units in the last place; never below 2^lowest; keeps NaN."""
    x = lowest if x < lowest else x
    shifted = x + ROUNDER
    f = x - (shifted - ROUNDER)
    power = ONE + f * (E1 + f * (E2 + f * (E3 + f * (E4 + f * E5))))
    return _times_power_of_two(power, shifted)  # type: ignore[call-arg]


@_jit
def sigmoid(x):  # type: ignore[no-untyped-def]
    """1 / (1 + exp(-x))."""
    e = exp2(-abs(x) * LOG2_E, LOWEST)
    return (ONE if x > ZERO else e) / (ONE + e)


@_jit
def softplus(x):  # type: ignore[no-untyped-def]
    """log(1 + exp(x)), the logarithm by the series of 2 artanh(e / (2 + e))."""
    e = exp2(-abs(x) * LOG2_E, LOWEST)
    s = e / (TWO + e)
    q = s * s
    series = f32(1 / 9) + q * (f32(1 / 11) + q * f32(1 / 13))
    series = ONE + q * (f32(1 / 3) + q * (f32(1 / 5) + q * (f32(1 / 7) + q * series)))
    return (x if x > ZERO else ZERO) + TWO * s * series


@_jit
def copy_rows(target, source):  # type: ignore[no-untyped-def]
    """target[:] = source, both (N, LANES); numba takes seconds to compile that assignment."""
    for n in range(len(target)):
        for i in range(LANES):
            target[n, i] = source[n, i]


def _dot(a, b):  # type: ignore[no-untyped-def]
    total = ZERO
    for i in range(LANES):
        total += a[i] * b[i]
    return total


# Lanes are summed in any order: without that freedom a sum cannot be vectorised.
dot = _jit(_dot, ("contract", "reassoc"))


@_jit
def forward(  # type: ignore[no-untyped-def]
    u, raw_delta, a, B, C, D, z, bias, y, block_states, first, last
):
    """Fill y (S, L, groups, LANES) for tasks first..last-1; a task is one group of one sequence.

    u, raw_delta, z: (S, L, groups, LANES), z of length 0 for no gate; a: (S, N, groups, LANES),
    A log2(e); B, C: (S, L, N); D, bias: (S, groups, LANES); block_states:
    (S, blocks of steps, N, groups, LANES) gets the state before each block unless its length is 0.
    """
    _prefer_widest_vectors()  # type: ignore[call-arg]
    length, groups = u.shape[1:3]
    states = a.shape[1]
    a_g = np.zeros((states, LANES), f32)
    h = np.zeros((states, LANES), f32)
    delta, inputs, out = np.zeros(LANES, f32), np.zeros(LANES, f32), np.zeros(LANES, f32)
    for task in range(first, last):
        s, g = task // groups, task % groups
        copy_rows(a_g, a[s, :, g])
        h[:] = ZERO
        for t in range(length):
            if len(block_states) and t % BLOCK_STEPS == 0:
                copy_rows(block_states[s, t // BLOCK_STEPS, :, g], h)
            # Where rows of a group lie far apart the processor itself sees no pattern.
            if groups > 2 and t + AHEAD < length:
                ahead = ((s * length + t + AHEAD) * groups + g) * LANES
                for line in range(ahead, ahead + LANES, LINE):
                    _prefetch(raw_delta, line)
                    _prefetch(u, line)
                if len(z):
                    for line in range(ahead, ahead + LANES, LINE):
                        _prefetch(z, line)
            for i in range(LANES):
                delta[i] = softplus(raw_delta[s, t, g, i] + bias[s, g, i])
            for i in range(LANES):
                inputs[i] = delta[i] * u[s, t, g, i]
            for i in range(LANES):
                out[i] = D[s, g, i] * u[s, t, g, i]
            for n in range(states):
                b, c = B[s, t, n], C[s, t, n]
                for i in range(LANES):
                    h_n = exp2(delta[i] * a_g[n, i], LOWEST_DECAY) * h[n, i] + b * inputs[i]
                    h[n, i] = h_n
                    out[i] += c * h_n
            if len(z):
                for i in range(LANES):
                    out[i] *= z[s, t, g, i] * sigmoid(z[s, t, g, i])
            for i in range(LANES):
                y[s, t, g, i] = out[i]


@_inlined
def _redo_block(  # type: ignore[no-untyped-def]
    u, raw_delta, a_g, B, C, D, z, bias, grad_y, grad_z, s, g, begin, steps,
    h, decay, delta, inputs, grad_core, out, sum_D,
):  # fmt: skip
    """The steps of a block as in `forward`, kept; the gradients of the gate and of D."""
    states = len(a_g)
    for k in range(steps):
        t = begin + k
        for i in range(LANES):
            delta[k, i] = softplus(raw_delta[s, t, g, i] + bias[s, g, i])
        for i in range(LANES):
            inputs[k, i] = delta[k, i] * u[s, t, g, i]
        for i in range(LANES):
            out[i] = D[s, g, i] * u[s, t, g, i]
        for i in range(LANES):
            grad_core[k, i] = grad_y[s, t, g, i]
        for n in range(states):
            b, c = B[s, t, n], C[s, t, n]
            for i in range(LANES):
                decay[k, n, i] = exp2(delta[k, i] * a_g[n, i], LOWEST_DECAY)
            for i in range(LANES):
                h_n = decay[k, n, i] * h[k, n, i] + b * inputs[k, i]
                h[k + 1, n, i] = h_n
                out[i] += c * h_n
        if len(z):
            for i in range(LANES):
                z_t = z[s, t, g, i]
                gate = sigmoid(z_t)
                slope = gate * (ONE + z_t * (ONE - gate))
                grad_z[s, t, g, i] = grad_core[k, i] * out[i] * slope
            for i in range(LANES):
                grad_core[k, i] *= z[s, t, g, i] * sigmoid(z[s, t, g, i])
        for i in range(LANES):
            sum_D[i] += grad_core[k, i] * u[s, t, g, i]


@_inlined
def _undo_block(  # type: ignore[no-untyped-def]
    u, raw_delta, a_g, B, C, D, bias, task, s, g, begin, steps,
    h, decay, delta, inputs, grad_core, carried, grad_h, grad_input, grad_exponent, sum_A,
    grad_u, grad_delta, grad_B, grad_C,
):  # fmt: skip
    """The gradients of a block's steps, the last first."""
    states = len(a_g)
    for k in range(steps - 1, -1, -1):
        t = begin + k
        grad_input[:] = ZERO
        grad_exponent[:] = ZERO
        for n in range(states):
            b, c = B[s, t, n], C[s, t, n]
            for i in range(LANES):
                grad_h[i] = carried[n, i] + c * grad_core[k, i]
                carried[n, i] = decay[k, n, i] * grad_h[i]
            for i in range(LANES):
                grad_input[i] += b * grad_h[i]
            for i in range(LANES):
                grad_exponent[i] += carried[n, i] * h[k, n, i] * a_g[n, i]
            for i in range(LANES):
                sum_A[n, i] += carried[n, i] * h[k, n, i] * delta[k, i]
            grad_B[task, t, n] = dot(grad_h, inputs[k])
            grad_C[task, t, n] = dot(grad_core[k], h[k + 1, n])
        for i in range(LANES):
            by_delta = grad_input[i] * u[s, t, g, i] + grad_exponent[i] * LN_2
            slope = sigmoid(raw_delta[s, t, g, i] + bias[s, g, i])
            grad_delta[s, t, g, i] = by_delta * slope
        for i in range(LANES):
            by_input = grad_input[i] * delta[k, i]
            grad_u[s, t, g, i] = by_input + grad_core[k, i] * D[s, g, i]


@_jit
def backward(  # type: ignore[no-untyped-def]
    u, raw_delta, a, B, C, D, z, bias, block_states, grad_y,
    grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z, first, last,
):  # fmt: skip
    """The gradients of tasks first..last-1 from the states that `forward` kept.

    Shapes as in `forward`; grad_A is by A itself; grad_B, grad_C: (tasks, L, N), one part a task.
    """
    _prefer_widest_vectors()  # type: ignore[call-arg]
    length, groups = u.shape[1:3]
    states = a.shape[1]
    a_g = np.zeros((states, LANES), f32)
    sum_A = np.zeros((states, LANES), f32)
    sum_D = np.zeros(LANES, f32)
    h = np.zeros((BLOCK_STEPS + 1, states, LANES), f32)  # h[k] enters step k of the block
    decay = np.zeros((BLOCK_STEPS, states, LANES), f32)
    delta = np.zeros((BLOCK_STEPS, LANES), f32)
    inputs = np.zeros((BLOCK_STEPS, LANES), f32)
    grad_core = np.zeros((BLOCK_STEPS, LANES), f32)  # by y before the gate
    carried = np.zeros((states, LANES), f32)  # by the state before the step just undone
    grad_h, grad_input = np.zeros(LANES, f32), np.zeros(LANES, f32)
    out, grad_exponent = np.zeros(LANES, f32), np.zeros(LANES, f32)
    for task in range(first, last):
        s, g = task // groups, task % groups
        copy_rows(a_g, a[s, :, g])
        sum_A[:], sum_D[:], carried[:] = ZERO, ZERO, ZERO
        for block in range((length - 1) // BLOCK_STEPS, -1, -1):
            begin = block * BLOCK_STEPS
            steps = min(BLOCK_STEPS, length - begin)
            copy_rows(h[0], block_states[s, block, :, g])
            _redo_block(
                u, raw_delta, a_g, B, C, D, z, bias, grad_y, grad_z, s, g, begin, steps,
                h, decay, delta, inputs, grad_core, out, sum_D,
            )  # fmt: skip
            _undo_block(
                u, raw_delta, a_g, B, C, D, bias, task, s, g, begin, steps,
                h, decay, delta, inputs, grad_core, carried, grad_h, grad_input, grad_exponent,
                sum_A, grad_u, grad_delta, grad_B, grad_C,
            )  # fmt: skip
        copy_rows(grad_A[s, :, g], sum_A)
        for i in range(LANES):
            grad_D[s, g, i] = sum_D[i]
