"""Half precision: matrix products and convolutions in fewer bits, the rest as it is."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Concatenate, ParamSpec, Protocol, TypeVar, cast

import torch

from sfm_matchers.errors import InputError
from sfm_matchers.networks import onednn
from sfm_matchers.networks.processor import cpu_capabilities, is_amd

PRECISIONS = ("float32", "float16", "bfloat16")
FIRST_WITH_BFLOAT16 = (8, 0)  # compute capability: A100, RTX 30
_HAS_COMPILED_PARTS = "_has_compiled_parts"


def check_positive(**values: float) -> None:
    """Refuse what must be above 0 and is not, by its name.

    Raises:
        InputError: it is not.
    """
    for name, value in values.items():
        if not value > 0:
            raise InputError(f"{name} is {value}, it must be above 0")


def check_precision(precision: str) -> None:
    """Refuse what is not one of `PRECISIONS`.

    Raises:
        InputError: it is not.
    """
    if precision not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise InputError(f"unknown precision {precision!r}, choose one of {known}")


def has_fast_bfloat16(device: torch.device | str) -> bool:
    """Is bfloat16 faster than float32: on GPUs since Ampere, CPUs with AMX, AMD's with AVX512-BF16.

    Intel's AVX512-BF16 does as much a cycle as float32 does, and converting comes on top: without
    AMX, as on many rented machines, convolutions and products take half as long again.
    """
    device = torch.device(device)
    if device.type == "cuda":  # torch emulates it on older ones
        return torch.cuda.get_device_capability(device) >= FIRST_WITH_BFLOAT16
    if device.type != "cpu":
        return False
    capabilities = cpu_capabilities()
    return bool(capabilities.get("amx_bf16") or (capabilities.get("avx512_bf16") and is_amd()))


def default_precision(device_type: str) -> str:
    """The precision of a conf that names none: a CPU's bfloat16 where the hardware has it.

    On a GPU it stays float32: what half precision costs has not been measured there.
    """
    return "bfloat16" if device_type == "cpu" and has_fast_bfloat16("cpu") else "float32"


@contextlib.contextmanager
def single_precision(device_type: str) -> Iterator[None]:
    """Let float32 be float32 on GPUs too.

    There torch rounds what convolutions take to 10 bits (TF32), and does not round products of
    matrices. Who wants speed has half precision, which is faster than TF32 and as exact.
    """
    if device_type != "cuda":
        yield
        return
    _EXACT_CONVOLUTIONS.enter()
    try:
        yield
    finally:
        _EXACT_CONVOLUTIONS.leave()


class _ExactConvolutions:
    """The switch of torch, which all threads share: as it was when the last has left."""

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, True

    def enter(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = self._exchange(False)
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._exchange(self._before)

    def _exchange(self, allowed: bool) -> bool:
        try:
            before = torch.backends.cudnn.allow_tf32
        except RuntimeError:  # set by a user, by torch's newer switches: that stays
            return False
        torch.backends.cudnn.allow_tf32 = allowed
        return before


_EXACT_CONVOLUTIONS = _ExactConvolutions()


class _HasPrecision(Protocol):
    @property
    def precision(self) -> str: ...


class _PreciseNetwork(Protocol):
    @property
    def config(self) -> _HasPrecision: ...

    def parameters(self) -> Iterator[torch.nn.Parameter]: ...


Network = TypeVar("Network", bound=_PreciseNetwork)
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def in_its_precision(
    method: Callable[Concatenate[Network, Arguments], Result],
) -> Callable[Concatenate[Network, Arguments], Result]:
    """Let a network's method run in `config.precision`, by the faster of torch's products."""

    @functools.wraps(method)
    def run(network: Network, *arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        precision = network.config.precision
        device_type = next(network.parameters()).device.type
        with contextlib.ExitStack() as contexts:
            if precision == "float32":
                contexts.enter_context(single_precision(device_type))
            else:
                autocast = torch.autocast(device_type, getattr(torch, precision))
                contexts.enter_context(cast(contextlib.AbstractContextManager[None], autocast))
            if device_type == "cpu" and onednn.is_faster() and _only_computes(network):
                contexts.enter_context(onednn.products())
            return method(network, *arguments, **options)

    return run


def leave_products_to_compiler(network: torch.nn.Module) -> None:
    """Parts of the network are compiled: what they call is no longer exchanged."""
    setattr(network, _HAS_COMPILED_PARTS, True)


def _only_computes(network: object) -> bool:
    """Is nothing wanted of the computation but its result: no gradient, no graph."""
    is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return not (torch.is_grad_enabled() or is_traced or hasattr(network, _HAS_COMPILED_PARTS))
