"""Which processes match, as the steps take it. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ExecutorOptions:
    """Which processes match; see `make_executor`.

    Attributes:
        workers: processes; None for this one only.
        ray: address of a Ray cluster, ``auto`` or ``local``; None for none.
        shard: ``I/N``: only the I-th of N parts is matched.
        merge: go on after all shards are done.
    """

    workers: int | None = None
    ray: str | None = None
    shard: str | None = None
    merge: bool = False
