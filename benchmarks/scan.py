"""The backends of the selective scan against its definition: time, error, gradients.

    python -m benchmarks.scan
    python -m benchmarks.scan --device cuda

The cases are those of the networks. All backends that run on the device take turns in one process,
on one thread; times are the least of the rounds, in CPU milliseconds (on a GPU in wall
milliseconds). `plain` is how mamba-ssm's own reference goes about it: one sequence after the other,
with all exponentials at first, on operands that lie as its block hands them over, step after step
of a channel. Errors are those of the float32 results against the definition in
float64, over the largest true value. Last come the CPU seconds of numba's first call, in processes
of their own.
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sfm_matchers.networks.selective_scan import BACKENDS, selective_scan, unusable_backends

STATES = 16
PLAIN = "plain"


@dataclass(frozen=True)
class Case:
    """A scan as a network runs it."""

    label: str
    sequences: int
    length: int
    channels: int
    gated: bool


CASES = (
    Case("JamMa at 832 x 832", 4, 5408, 512, True),
    Case("JamMa at 640 x 480", 4, 2400, 512, True),
    Case("MambaGlue, 2048 keypoints", 1, 2048, 256, False),
    Case("MambaGlue, 512 keypoints", 1, 512, 256, False),
)


def make_inputs(case: Case, device: str) -> dict[str, Tensor]:
    """Operands like those of a new network."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    rows = (case.sequences, case.length)
    inputs = {
        "u": normal(*rows, case.channels),
        "delta": 0.5 * normal(*rows, case.channels),
        "A": -torch.arange(1.0, STATES + 1, device=device).repeat(case.channels, 1),
        "B": normal(*rows, STATES),
        "C": normal(*rows, STATES),
        "D": torch.ones(case.channels, device=device),
        "delta_bias": normal(case.channels) - 4,
    }
    return inputs | ({"z": normal(*rows, case.channels)} if case.gated else {})


def forward(inputs: dict[str, Tensor], backend: str) -> list[Tensor]:
    """The outputs alone."""
    with torch.inference_mode():
        if backend == PLAIN:
            return [plain_scan(inputs)]
        return [selective_scan(**inputs, backend=backend)]


def plain_scan(inputs: dict[str, Tensor]) -> Tensor:
    """Decays and inputs (1, channels, L, N) of all steps, then a loop; each sequence by itself.

    Operands as `channels_first` lays them out; the result is (sequences, L, channels).
    """
    delta = F.softplus(inputs["delta"] + inputs["delta_bias"][:, None])
    by_sequence = [x.split(1) for x in (inputs["u"], delta, inputs["B"], inputs["C"])]
    outputs = []
    for u, delta, B, C in zip(*by_sequence, strict=True):
        decays = torch.exp(torch.einsum("bdl,dn->bdln", delta, inputs["A"]))
        driven = torch.einsum("bdl,bnl,bdl->bdln", delta, B, u)
        state, sums = torch.zeros_like(inputs["A"][None]), []
        for t in range(u.shape[2]):
            state = decays[:, :, t] * state + driven[:, :, t]
            sums.append(torch.einsum("bdn,bn->bd", state, C[:, :, t]))
        outputs.append(torch.stack(sums, dim=2))
    y = torch.cat(outputs) + inputs["D"][:, None] * inputs["u"]
    return (y * F.silu(inputs["z"]) if "z" in inputs else y).transpose(1, 2)


def channels_first(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The operands with sequences (channels, L), as mamba-ssm's block makes and wants them."""
    return {
        name: value.transpose(1, 2).contiguous() if value.ndim == 3 else value
        for name, value in inputs.items()
    }


def forward_and_backward(inputs: dict[str, Tensor], backend: str) -> list[Tensor]:
    """The gradients of a fixed sum of the outputs."""
    inputs = {name: value.detach().requires_grad_() for name, value in inputs.items()}
    outputs = selective_scan(**inputs, backend=backend)
    weights = torch.linspace(-1, 1, outputs.numel(), device=outputs.device).view_as(outputs)
    return list(torch.autograd.grad((outputs * weights.to(outputs)).sum(), list(inputs.values())))


Work = Callable[[dict[str, Tensor], str], list[Tensor]]


def measure(
    case: Case, work: Work, names: list[str], device: str, rounds: int
) -> dict[str, tuple[float, float]]:
    """Least milliseconds and largest error of each backend."""
    inputs = make_inputs(case, device)
    double = {name: value.double() for name, value in inputs.items()}
    truth = work(double, "reference")
    laid_out = {name: channels_first(inputs) if name == PLAIN else inputs for name in names}
    errors = {name: _error(work(laid_out[name], name), truth) for name in names}  # also warms up
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            times[name].append(_milliseconds(functools.partial(work, laid_out[name], name), device))
    return {name: (min(times[name]), errors[name]) for name in names}


def _error(found: list[Tensor], truth: list[Tensor]) -> float:
    return max(
        float((one - true).abs().max() / true.abs().max())
        for one, true in zip(found, truth, strict=True)
    )


def _milliseconds(run: Callable[[], object], device: str) -> float:
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return 1000 * (clock() - start)


FIRST_CALL = """
import time
import torch
from sfm_matchers.networks.selective_scan import selective_scan
rows, states = torch.ones(1, 8, 128), torch.ones(1, 8, 16)
start = time.process_time()
selective_scan(rows, rows, -torch.ones(128, 16), states, states, rows[0, 0], backend="numba")
print(f"{time.process_time() - start:.2f}")
"""


def first_calls() -> tuple[str, str]:
    """CPU seconds of the first call where it compiles, and where it finds what was compiled."""
    with tempfile.TemporaryDirectory() as folder:
        call = functools.partial(
            subprocess.check_output,
            [sys.executable, "-c", FIRST_CALL],
            env=os.environ | {"NUMBA_CACHE_DIR": folder},
            text=True,
        )
        return call().strip(), call().strip()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="default: cpu")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    options = parser.parse_args()
    torch.set_num_threads(1)
    unusable = unusable_backends(options.device)
    names = [name for name in BACKENDS if name not in unusable]
    print("| case | work | backend | ms | the definition / this | plain / this | error |")
    print("|---|---|---|---|---|---|---|")
    for case in CASES:
        works: dict[str, Work] = {"forward": forward}
        if case.sequences == 1:  # of the others the definition's graph fills the memory
            works["and backward"] = forward_and_backward
        for label, work in works.items():
            candidates = [*names, PLAIN] if work is forward else names
            found = measure(case, work, candidates, options.device, options.rounds)
            for name, (milliseconds, error) in found.items():
                ratios = [
                    f"{found[base][0] / milliseconds:.1f}" if base in found else ""
                    for base in ("reference", PLAIN)
                ]
                print(
                    f"| {case.label} | {label} | {name} | {milliseconds:.1f} | "
                    f"{' | '.join(ratios)} | {error:.1e} |",
                    flush=True,
                )
    if "numba" in names:
        compiled, cached = first_calls()
        print(f"\nnumba's first call: {compiled} CPU s, {cached} once it is in the cache")


if __name__ == "__main__":
    main()
