"""The Triton kernels against the plain definition; run by `test_selective_scan.py`.

Without a CUDA device Triton's interpreter runs them (slow: tiny shapes). It must be asked for
before triton is imported, so these tests have a process of their own.
"""

from __future__ import annotations

import pytest
import torch
from scan_operands import NAMES, operands, scan

from sfm_matchers.errors import InputError
from sfm_matchers.networks.selective_scan import selective_scan

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("length", "channels", "states"), [(1, 3, 4), (16, 16, 1), (19, 18, 3)])
def test_triton_agrees_with_the_definition(
    length: int, channels: int, states: int, gated: bool
) -> None:
    exact = operands(length, 2, channels, states, per_sequence=True)
    if not gated:
        exact |= {"z": None, "delta_bias": None}
    expected, expected_gradients = _with_gradients(exact, "reference", torch.float64, "cpu")
    actual, gradients = _with_gradients(exact, "triton", torch.float32, DEVICE)
    assert_relative(actual, expected)
    for name, gradient in expected_gradients.items():
        assert_relative(gradients[name], gradient)


def _with_gradients(
    values: dict[str, torch.Tensor | None], backend: str, dtype: torch.dtype, device: str
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    leaves = {
        name: None if value is None else value.to(device, dtype).clone().requires_grad_()
        for name, value in values.items()
    }
    output = scan(leaves, backend)
    weights = torch.linspace(-1, 1, output.numel()).view_as(output).to(output)
    (output * weights).sum().backward()
    return output, {name: leaves[name].grad for name in NAMES if leaves[name] is not None}


def assert_relative(actual: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = 1e-5 * max(expected.abs().max().item(), 1e-3)
    torch.testing.assert_close(actual.cpu().double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("step", [-15.0, -8.0, -1.0, 3.0, 19.9, 20.1])
def test_triton_keeps_small_steps(step: float) -> None:
    """y of one step is softplus(delta) B C u where the state begins with nothing."""
    one = torch.ones(1, 1, 1, device=DEVICE)
    y = selective_scan(one, step * one, -one[0], one, one, 0 * one[0, 0], backend="triton")
    exact = torch.nn.functional.softplus(torch.tensor(step, dtype=torch.float64)).item()
    assert y.item() == pytest.approx(exact, rel=2e-6)


def test_triton_stays_finite_at_extreme_steps() -> None:
    values = {
        name: value.float().to(DEVICE) for name, value in operands(6, 1, per_sequence=False).items()
    }
    values["delta"] = values["delta"] * 200
    assert scan(values, "triton").isfinite().all()


@pytest.mark.skipif(DEVICE == "cuda", reason="needs a machine without CUDA")
def test_triton_is_refused_on_a_cpu_without_its_interpreter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    values = {name: value.float() for name, value in operands(3, per_sequence=False).items()}
    with pytest.raises(InputError, match="needs CUDA tensors"):
        scan(values, "triton")
