"""How many threads a process may use, whether torch is loaded or not."""

from __future__ import annotations

import os
import sys

VARIABLE = "OMP_NUM_THREADS"  # torch reads it when it is loaded


def num_threads() -> int:
    """Return torch's number of threads; before torch is loaded, what it will most likely be."""
    if "torch" in sys.modules:
        return int(sys.modules["torch"].get_num_threads())
    wanted = os.environ.get(VARIABLE, "")
    if wanted.isdecimal() and int(wanted):
        return int(wanted)
    return num_cores()


def num_cores() -> int:
    """Return how many cores this process may use; where the system hides it, all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_threads(count: int) -> None:
    """Give this process so many threads."""
    os.environ[VARIABLE] = str(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)
