"""Networks compiled by torch.compile."""

from __future__ import annotations

import warnings

import torch

from sfm_matchers.errors import InputError, one_line
from sfm_matchers.matchers.protocols import (
    CompilableMatcher,
    DetectorFreeMatcher,
    SparseMatcher,
)
from sfm_matchers.networks.precision import leave_products_to_compiler


def compile_matcher(
    matcher: SparseMatcher | DetectorFreeMatcher, backend: str = "inductor"
) -> None:
    """Have torch.compile compile, on first use, the parts in which a network spends its time.

    Each part is one graph for images, or numbers of keypoints, of any size. Between the parts lies
    what depends on the data: coarse matching in blocks, the choice of windows, early exit and
    pruning. The selective scan is one operator of these graphs, run by its usual backend.

    Args:
        matcher: a `CompilableMatcher`; changed in place.
        backend: of torch.compile.

    Raises:
        InputError: the matcher is another one, or nothing can be compiled on this machine.
    """
    if not isinstance(matcher, CompilableMatcher):
        raise InputError(f"{type(matcher).__name__} has nothing to compile: leave compile away")
    device = matcher.device
    try:
        torch.compile(lambda x: x.exp() + 1, backend=backend)(torch.ones(8, device=device))
    except Exception as error:  # of the compiler's own kinds
        needed = "a C++ compiler" if device.type == "cpu" else "triton"
        raise InputError(
            f"torch.compile does not work here, leave compile away (it needs {needed} on "
            f"{device.type}): {one_line(error.__cause__ or error)}"
        ) from error
    # Tables of positions are made anew inside a graph; torch warns that it skips their cache.
    warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
    for part in matcher.parts_to_compile():
        part.compile(dynamic=True, backend=backend)
    leave_products_to_compiler(matcher.network)
