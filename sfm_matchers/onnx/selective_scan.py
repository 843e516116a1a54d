"""The selective scan as ONNX: the operator Scan, whose body is one step of time.

Unrolled, a scan over a thousand keypoints would be a graph of ten thousand nodes. This module needs
onnxscript; `onnx_export` imports it when it is needed.
"""

from __future__ import annotations

from typing import Any

import torch
from onnxscript import FLOAT, graph, script
from onnxscript import opset18 as op

import sfm_matchers.networks.selective_scan  # noqa: F401  # defines the operator


@script()
def _recurrence(u: FLOAT, delta: FLOAT, A: FLOAT, B: FLOAT, C: FLOAT) -> FLOAT:
    """h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t and y_t = C_t . h_t, delta being positive."""
    A_nd = op.Transpose(A, perm=[0, 2, 1])
    first_state = A_nd * 0.0

    @graph()
    def step(state, delta_t, input_t, B_t, C_t):  # type: ignore[no-untyped-def]
        next_state = op.Exp(delta_t * A_nd) * state + B_t * input_t
        y_t = op.MatMul(C_t, next_state)
        return next_state, y_t

    # Axes are added here, once, and not in every step.
    _, y = op.Scan(
        first_state,
        op.Unsqueeze(delta, [2]),
        op.Unsqueeze(delta * u, [2]),
        op.Unsqueeze(B, [3]),
        op.Unsqueeze(C, [2]),
        body=step,
        num_scan_inputs=4,
        scan_input_axes=[1, 1, 1, 1],
        scan_output_axes=[1],
    )
    y = op.Squeeze(y, [2])
    return y


def _selective_scan(
    u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, z: Any, delta_bias: Any, backend: Any
) -> Any:
    """See `selective_scan`; shapes are those of its backends."""
    if delta_bias is not None:
        delta = op.Add(delta, op.Unsqueeze(delta_bias, [1]))
    y = _recurrence(u, op.Softplus(delta), A, B, C)
    y = op.Add(y, op.Mul(op.Unsqueeze(D, [1]), u))
    return y if z is None else op.Mul(y, op.Mul(z, op.Sigmoid(z)))


def _stable_sort(x: Any, *, stable: bool, dim: int = -1, descending: bool = False) -> Any:
    """Of equal values TopK, too, gives the one with the lower index first."""
    count = op.Gather(op.Shape(x), [dim])
    return op.TopK(x, count, axis=dim, largest=int(descending), sorted=1)


TRANSLATIONS: dict[Any, Any] = {
    torch.ops.sfm_matchers.selective_scan.default: _selective_scan,
    torch.ops.aten.sort.stable: _stable_sort,
}
"""What torch.onnx.export does not know by itself."""
