"""Every backend of the selective scan against the plain definition in double precision."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from scan_operands import NAMES, operands, scan
from torch import Tensor

from sfm_matchers.errors import InputError, MissingExtraError
from sfm_matchers.networks import selective_scan as selective_scan_package
from sfm_matchers.networks.selective_scan import selective_scan

pytestmark = pytest.mark.slow

BACKENDS = ["torch", "numba"]


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
def test_errors_do_not_add_up_in_a_state_that_forgets_slowly(backend: str) -> None:
    if backend == "numba":
        pytest.importorskip("numba")
    exact = operands(2000, channels=2, per_sequence=False)
    exact["delta"] -= 4  # a thousandth: the state remembers a thousand steps
    exact |= {name: exact[name].abs() for name in ("u", "B", "C")}
    expected = scan(exact, "reference")
    actual = scan({name: value.float() for name, value in exact.items()}, backend)
    assert (actual - expected).abs().max() < 2e-6 * expected.abs().max()


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


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_groups_of_sequences_share_their_weights(backend: str) -> None:
    if backend == "numba":
        pytest.importorskip("numba")
    values = {name: value.float() for name, value in operands(9, 6, per_sequence=True).items()}
    grouped = {**values, **{name: values[name][:2] for name in ("A", "D", "delta_bias")}}
    repeated = {
        **values,
        **{name: grouped[name].repeat_interleave(3, 0) for name in ("A", "D", "delta_bias")},
    }
    assert torch.equal(scan(grouped, backend), scan(repeated, backend))
    too_many = {name: values[name][:4] for name in ("A", "D", "delta_bias")}
    with pytest.raises(InputError, match="has 4 groups, which 6 sequences lack"):
        scan({**values, **too_many}, backend)


def test_mamba_ssm_is_called_once_for_each_set_of_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for its kernel, which wants channels first and one set of weights."""
    from sfm_matchers.networks.selective_scan import mamba_ssm

    calls: list[int] = []

    def kernel(u, delta, A, B, C, D, z, delta_bias, delta_softplus):  # type: ignore[no-untyped-def]
        calls.append(len(u))
        last = [x.transpose(1, 2) for x in (u, delta, B, C, z)]
        return selective_scan(
            *last[:2], A, *last[2:4], D, z=last[4], delta_bias=delta_bias, backend="torch"
        ).transpose(1, 2)

    monkeypatch.setattr(mamba_ssm, "_selective_scan_fn", lambda: kernel)
    monkeypatch.setattr(mamba_ssm, "unusable_because", lambda device, dtype: None)
    values = {name: value.float() for name, value in operands(9, 32, per_sequence=True).items()}
    values |= {name: values[name][:4] for name in ("A", "D", "delta_bias")}
    found = scan(values, "mamba_ssm")
    assert calls == [8, 8, 8, 8]
    torch.testing.assert_close(found, scan(values, "torch"))
    values |= {name: values[name][0] for name in ("A", "D", "delta_bias")}
    torch.testing.assert_close(scan(values, "mamba_ssm"), scan(values, "torch"))
    assert calls[4:] == [32]


def test_unknown_backend_is_named() -> None:
    values = {key: value.float() for key, value in operands(3, per_sequence=False).items()}
    with pytest.raises(InputError, match="abacus"):
        scan(values, "abacus")


def test_a_backend_whose_library_is_missing_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = {key: value.float() for key, value in operands(3, per_sequence=False).items()}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"'numba' cannot run here: .*pip install"):
        scan(values, "numba")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("sequences", "channels", "states"), [(1, 64, 16), (4, 97, 3), (3, 130, 1)]
)
def test_shapes_and_strides_agree_with_the_definition(
    backend: str, sequences: int, channels: int, states: int
) -> None:
    """Channels beside the vector width, and views that are not contiguous."""
    if backend == "numba":
        pytest.importorskip("numba")
    exact = operands(37, sequences, channels, states, per_sequence=True)
    expected = torch.autograd.grad(*_square_and_leaves(exact, "reference"))
    for name in ("u", "delta", "B", "C", "z"):
        exact[name] = exact[name].transpose(1, 2).contiguous().transpose(1, 2)
    single = {name: value.float() for name, value in exact.items()}
    found = torch.autograd.grad(*_square_and_leaves(single, backend))
    for gradient, exact_gradient in zip(found, expected, strict=True):
        tolerance = 1e-5 * exact_gradient.abs().max().item()
        torch.testing.assert_close(gradient.double(), exact_gradient, rtol=0, atol=tolerance)


def _square_and_leaves(values: dict[str, Tensor], backend: str) -> tuple[Tensor, list[Tensor]]:
    leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
    return scan(leaves, backend).square().sum(), list(leaves.values())


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_no_gate_and_no_bias(backend: str) -> None:
    if backend == "numba":
        pytest.importorskip("numba")
    values = {name: value.float() for name, value in operands(20, per_sequence=False).items()}
    bias, gate = values.pop("delta_bias"), values.pop("z")
    ungated = selective_scan(**values, backend=backend)
    values["delta"] = values["delta"] - bias
    gated = selective_scan(**values, z=gate, delta_bias=bias, backend=backend)
    torch.testing.assert_close(
        gated, ungated * torch.nn.functional.silu(gate), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_keeps_a_single_precision_state(backend: str, dtype: torch.dtype) -> None:
    if backend == "numba":
        pytest.importorskip("numba")
    values = {name: value.to(dtype) for name, value in operands(70, per_sequence=False).items()}
    found = scan(values, backend)
    expected = scan({name: value.double() for name, value in values.items()}, "reference")
    assert found.dtype == dtype
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), expected, rtol=rounding, atol=rounding)


def test_double_precision_runs_in_double_precision() -> None:
    exact = operands(40, per_sequence=True)
    torch.testing.assert_close(scan(exact, "torch"), scan(exact, "reference"), rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_not_a_number_is_not_hidden(backend: str) -> None:
    if backend == "numba":
        pytest.importorskip("numba")
    for name in ("u", "delta"):
        values = {key: value.float() for key, value in operands(20, per_sequence=False).items()}
        values[name][0, 7, 3] = torch.nan
        y = scan(values, backend)
        assert y[0, 7:, 3].isnan().all()
        assert y[0, :7].isfinite().all()
        assert y[1].isfinite().all()


def test_no_steps_give_no_output() -> None:
    values = {name: value.float() for name, value in operands(0, per_sequence=False).items()}
    for backend in ("reference", "torch", None):
        assert selective_scan(**values, backend=backend).shape == (2, 0, 5)


def test_numba_gives_the_same_bits_with_one_thread_and_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("numba")
    from sfm_matchers.networks.selective_scan import numba_lanes

    values = {
        name: value.float() for name, value in operands(50, 3, 200, per_sequence=True).items()
    }
    results = []
    for threads, smallest in ((1, 1 << 60), (3, 0)):
        monkeypatch.setattr(numba_lanes, "MIN_PARALLEL_WORK", smallest)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        loss, leaves = _square_and_leaves(values, "numba")
        results.append([loss, *torch.autograd.grad(loss, leaves)])
    for alone, shared in zip(*results, strict=True):
        assert torch.equal(alone, shared)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_numba_works_in_a_forked_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent's thread pool has no threads in the child."""
    pytest.importorskip("numba")
    from sfm_matchers.networks.selective_scan import numba_lanes

    monkeypatch.setattr(numba_lanes, "MIN_PARALLEL_WORK", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    values = {
        name: value.float() for name, value in operands(50, 3, 200, per_sequence=True).items()
    }
    for name in ("A", "D", "delta_bias"):  # leaves no torch operation of weight to the child
        values[name] = values[name].contiguous()
    expected = scan(values, "numba")
    child = multiprocessing.get_context("fork").Process(
        target=_exit_unless_equal, args=(values, expected)
    )
    child.start()
    child.join(60)
    assert child.exitcode == 0


def _exit_unless_equal(values: dict[str, Tensor], expected: Tensor) -> None:
    torch.set_num_threads(1)
    os._exit(0 if torch.equal(scan(values, "numba"), expected) else 1)


def test_the_environment_names_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {key: value.float() for key, value in operands(3, per_sequence=False).items()}
    monkeypatch.setenv("SFM_MATCHERS_SCAN", "mamba_ssm")
    with pytest.raises(InputError, match="'mamba_ssm' cannot run here: it needs CUDA tensors"):
        selective_scan(**values)
    monkeypatch.setenv("SFM_MATCHERS_SCAN", "reference")
    assert torch.equal(selective_scan(**values), selective_scan(**values, backend="reference"))


def test_numba_refuses_double_precision() -> None:
    with pytest.raises(InputError, match="float32 only"):
        scan(operands(3, per_sequence=False), "numba")


@pytest.mark.parametrize("name", ["delta", "A", "B", "C", "D", "z", "delta_bias"])
def test_a_wrong_shape_is_named(name: str) -> None:
    values = operands(6, per_sequence=False)
    values[name] = values[name][..., :-1]
    with pytest.raises(InputError, match=f"^[{name[0]}BC]"):
        scan(values, "torch")


def test_the_choice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    selective_scan_package._announce.cache_clear()
    values = {key: value.float() for key, value in operands(3, per_sequence=False).items()}
    with caplog.at_level("INFO", logger="sfm_matchers"):
        scan(values, "torch")
        scan(values, "torch")
    assert [record.message for record in caplog.records] == [
        "selective scan on cpu uses the backend 'torch'"
    ]


def test_a_triton_that_cannot_launch_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there is no compiler: the kernel is tried once, and another backend runs."""
    pytest.importorskip("triton", reason="triton is not installed")
    from sfm_matchers.networks.selective_scan import triton_channels

    def fail(*operands: Tensor) -> Tensor:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    monkeypatch.setattr(triton_channels, "scan", fail)
    monkeypatch.setattr(torch, "ones", lambda *shape, device: Tensor())
    triton_channels._launch_failure.cache_clear()
    unusable = selective_scan_package.unusable_backends("cuda")
    triton_channels._launch_failure.cache_clear()
    assert "cannot be launched (Failed to find C compiler. Please" in unusable["triton"]
    assert "torch" not in unusable


def test_triton_kernels_agree_with_the_definition() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    environment = dict(os.environ)
    if not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    cases = Path(__file__).parents[1] / "support" / "triton_scan_cases.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout[-3000:]
