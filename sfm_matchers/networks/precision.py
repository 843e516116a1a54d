"""Half precision: matrix products and convolutions in fewer bits, the rest as it is."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

from sfm_matchers.errors import InputError

PRECISIONS = ("float32", "float16", "bfloat16")
Method = TypeVar("Method", bound=Callable[..., Any])


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
    # Older torch cannot tell.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def default_precision(device_type: str) -> str:
    """The precision of a conf that names none: a CPU's bfloat16 where the hardware has it.

    On a GPU it stays float32: what half precision costs has not been measured there.
    """
    return "bfloat16" if device_type == "cpu" and has_fast_bfloat16("cpu") else "float32"


def in_its_precision(method: Method) -> Method:
    """Let a network's method run in `config.precision`; float32 changes nothing around it."""

    @functools.wraps(method)
    def run(network: Any, *arguments: Any, **options: Any) -> Any:
        precision = network.config.precision
        if precision == "float32":
            return method(network, *arguments, **options)
        device_type = next(network.parameters()).device.type
        context = torch.autocast(device_type, getattr(torch, precision))
        with cast(contextlib.AbstractContextManager[None], context):
            return method(network, *arguments, **options)

    return cast(Method, run)
