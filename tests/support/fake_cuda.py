"""CUDA tensors that hold no data: shapes, types and devices of all that runs on a GPU.

torch's FakeTensorMode runs each operation on shapes alone. A torch built for CPUs asks for a guard
of CUDA devices first, so one that does nothing is compiled. Where a value decides what comes next,
it is made up: so many entries are not zero, so large is each number that Python asks for.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

NOT_ZERO = 8  # entries of each tensor that is asked where it is not zero
NUMBER = 1  # each number

GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
static c10::impl::DeviceGuardImplRegistrar registrar(
    c10::DeviceType::CUDA, new c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>());
"""

aten = torch.ops.aten


@functools.lru_cache
def _guard_failure() -> str | None:
    """Load the guard; returns why it cannot be."""
    if torch.backends.cuda.is_built():
        return None
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None or sys.platform != "linux":
        return "no C++ compiler"
    home = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "guard.cpp"), Path(folder, "guard.so")
        source.write_text(GUARD)
        command = [compiler, "-shared", "-fPIC", "-std=c++20", f"-I{home / 'include'}"]
        command += [str(source), "-o", str(library), f"-L{home / 'lib'}", "-lc10"]
        compiled = subprocess.run(command, capture_output=True, text=True)
        if compiled.returncode:
            return f"the guard of CUDA devices does not compile: {compiled.stderr[:200]}"
        ctypes.CDLL(str(library))
    return None


class MadeUpValues(TorchDispatchMode):
    """Answers what depends on values.

    Args:
        truth: each answer to whether something is so.
    """

    def __init__(self, truth: bool) -> None:
        super().__init__()
        self.truth = truth

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        options = options or {}
        if function is aten.nonzero.default:
            (tensor,) = arguments
            return tensor.new_empty((min(NOT_ZERO, tensor.numel()), tensor.ndim), dtype=torch.int64)
        if function is aten._local_scalar_dense.default:
            dtype = arguments[0].dtype
            return (
                self.truth
                if dtype == torch.bool
                else NUMBER * (1.0 if dtype.is_floating_point else 1)
            )
        if function in _INDEXING:
            places = [place for index in arguments[1] for place in _places(index)]
            arguments = (arguments[0], places, *arguments[2:])
        if function is aten.bincount.default:
            return arguments[0].new_empty(options.get("minlength", NOT_ZERO), dtype=torch.int64)
        if function is aten.masked_select.default:
            return arguments[0].new_empty(NOT_ZERO)
        if (
            torch.is_inference_mode_enabled()
            and function.namespace == "aten"
            and function._can_decompose()
        ):
            with self:  # as autograd does it elsewhere
                return function.decompose(*arguments, **options)
        return function(*arguments, **options)


_INDEXING = (
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index_put.default,
)


def _places(index: Any) -> list[Any]:
    """Indices for each axis of a mask; others as they are."""
    if index is None or index.dtype != torch.bool:
        return [index]
    count = min(NOT_ZERO, index.numel())
    return [index.new_empty(count, dtype=torch.int64) for _ in range(index.ndim)]


class _Fake(FakeTensorMode):
    avoid_device_init = True  # though torch is told that there is a GPU


@contextlib.contextmanager
def fake_cuda(monkeypatch: pytest.MonkeyPatch, *caches: Any, truth: bool = True) -> Iterator[None]:
    """Tensors made inside have no data and may be on "cuda".

    Args:
        caches: functions whose `lru_cache` holds tensors; they are emptied before and after.
        truth: each answer to whether something is so.
    """
    reason = _guard_failure()
    if reason is not None:
        pytest.skip(reason)
    for name, answer in (("is_available", True), ("is_bf16_supported", True), ("device_count", 1)):
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    # It draws again until no number lies outside, which never ends where there are no numbers.
    monkeypatch.setattr(torch.nn.init, "trunc_normal_", lambda tensor, *_, **options: tensor)
    monkeypatch.setenv("SFM_MATCHERS_SCAN", "torch")
    _empty(caches)
    try:
        with _Fake(allow_non_fake_inputs=True), MadeUpValues(truth):
            yield
    finally:
        _empty(caches)


def _empty(caches: Any) -> None:
    for cache in caches:
        cache.cache_clear()


def is_on_gpu(*tensors: Any) -> bool:
    """Are all of them tensors without data on the GPU."""
    return all(isinstance(one, FakeTensor) and one.device.type == "cuda" for one in tensors)
