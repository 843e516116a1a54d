"""Every backend of the selective scan against the plain definition in double precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sfm_matchers.errors import InputError
from sfm_matchers.networks.selective_scan import selective_scan

BACKENDS = ["torch", "numba"]
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def operands(
    length: int, sequences: int = 2, channels: int = 5, states: int = 16, *, per_sequence: bool
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = (sequences, channels) if per_sequence else (channels,)
    return {
        "u": normal(sequences, length, channels),
        "delta": normal(sequences, length, channels) - 3,
        "A": -torch.arange(1.0, states + 1, dtype=torch.float64) * normal(*weights, states).exp(),
        "B": normal(sequences, length, states),
        "C": normal(sequences, length, states),
        "D": normal(*weights),
        "z": normal(sequences, length, channels),
        "delta_bias": normal(*weights),
    }


def scan(values: dict[str, Tensor], backend: str) -> Tensor:
    positional = [values[name] for name in ("u", "delta", "A", "B", "C", "D")]
    return selective_scan(
        *positional, z=values["z"], delta_bias=values["delta_bias"], backend=backend
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("per_sequence", [False, True])
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 32, 33, 70])
def test_backend_agrees_with_the_definition(backend: str, per_sequence: bool, length: int) -> None:
    if backend == "numba":
        pytest.importorskip("numba")
    exact = operands(length, per_sequence=per_sequence)
    expected = scan(exact, "reference")
    single = {name: value.float() for name, value in exact.items()}
    actual = scan(single, backend)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5 * expected.abs().max())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [1, 17, 40])
def test_gradients_agree_with_the_definition(backend: str, length: int) -> None:
    if backend == "numba":
        pytest.importorskip("numba")
    exact = operands(length, per_sequence=True)
    gradients = {}
    for name, dtype in (("reference", torch.float64), (backend, torch.float32)):
        leaves = {key: value.to(dtype).clone().requires_grad_() for key, value in exact.items()}
        weights = torch.linspace(-1, 1, exact["u"].numel()).view_as(exact["u"]).to(dtype)
        (scan(leaves, name) * weights).sum().backward()
        gradients[name] = [leaves[key].grad for key in NAMES]
    for key, expected, actual in zip(
        NAMES, gradients["reference"], gradients[backend], strict=True
    ):
        assert expected is not None, key
        assert actual is not None, key
        tolerance = 1e-5 * max(expected.abs().max().item(), 1e-3)
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_steps_stay_finite(backend: str) -> None:
    if backend == "numba":
        pytest.importorskip("numba")
    values = {key: value.float() for key, value in operands(50, per_sequence=False).items()}
    values["delta"] = values["delta"] * 40
    assert scan(values, backend).isfinite().all()


def test_unknown_backend_is_named() -> None:
    values = {key: value.float() for key, value in operands(3, per_sequence=False).items()}
    with pytest.raises(InputError, match="abacus"):
        scan(values, "abacus")
