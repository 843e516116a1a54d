"""Half precision: matrix products and convolutions in fewer bits, the rest as it is."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

from sfm_matchers.errors import InputError
from sfm_matchers.networks import onednn
from sfm_matchers.networks.processor import cpu_capabilities

PRECISIONS = ("float32", "float16", "bfloat16")
_HAS_COMPILED_PARTS = "_has_compiled_parts"
Method = TypeVar("Method", bound=Callable[..., Any])


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


def has_fast_bfloat16(device_type: str) -> bool:
    """Is bfloat16 arithmetic of the hardware: GPUs, and CPUs with AVX512-BF16 or AMX."""
    if device_type != "cpu":
        return device_type == "cuda"
    capabilities = cpu_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def default_precision(device_type: str) -> str:
    """The precision of a conf that names none: a CPU's bfloat16 where the hardware has it.

    On a GPU it stays float32: what half precision costs has not been measured there.
    """
    return "bfloat16" if device_type == "cpu" and has_fast_bfloat16("cpu") else "float32"


def in_its_precision(method: Method) -> Method:
    """Let a network's method run in `config.precision`, by the faster of torch's products."""

    @functools.wraps(method)
    def run(network: Any, *arguments: Any, **options: Any) -> Any:
        precision = network.config.precision
        device_type = next(network.parameters()).device.type
        with contextlib.ExitStack() as contexts:
            if precision != "float32":
                autocast = torch.autocast(device_type, getattr(torch, precision))
                contexts.enter_context(cast(contextlib.AbstractContextManager[None], autocast))
            if device_type == "cpu" and onednn.is_faster() and _only_computes(network):
                contexts.enter_context(onednn.products())
            return method(network, *arguments, **options)

    return cast(Method, run)


def leave_products_to_compiler(network: torch.nn.Module) -> None:
    """Parts of the network are compiled: what they call is no longer exchanged."""
    setattr(network, _HAS_COMPILED_PARTS, True)


def _only_computes(network: torch.nn.Module) -> bool:
    """Is nothing wanted of the computation but its result: no gradient, no graph."""
    is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return not (torch.is_grad_enabled() or is_traced or hasattr(network, _HAS_COMPILED_PARTS))
