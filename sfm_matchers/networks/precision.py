"""Half precision, for GPUs: matrix products and convolutions in fewer bits, the rest as it is."""

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
