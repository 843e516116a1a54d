"""Which processes match."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfm_matchers.errors import InputError

if TYPE_CHECKING:
    from sfm_matchers.matching import Executor


def make_executor(
    workers: int | None,
    ray: str | None,
    device: str,
    shard: str | None = None,
    *,
    merge: bool = False,
) -> Executor:
    """Return what the options of `add_executor_options` ask for.

    Raises:
        InputError: they contradict each other.
    """
    from sfm_matchers.matching import InProcess, NobodyElse, OneOf, OnRay, Processes

    if shard is not None or merge:
        if workers is not None or ray is not None or (shard is not None and merge):
            raise InputError("--shard and --merge stand alone: no --workers, no --ray")
        return NobodyElse() if shard is None else OneOf.parse(shard)
    if workers is not None and workers < 1:
        raise InputError(f"--workers {workers}: expected 1 or more")
    if ray is not None:
        return OnRay(ray, workers, uses_gpu=device == "cuda")
    # With a GPU named by its number, all processes have that one.
    return InProcess() if workers in (None, 1) else Processes(workers or 1, device == "cuda")
