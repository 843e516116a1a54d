"""The largest memory a process has held."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak_memory() -> float:
    """Return the peak resident memory of this process in GB (2^30 bytes)."""
    status = Path("/proc/self/status")
    if status.exists():  # a child's ru_maxrss begins with that of its parent on Linux
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / (1 << 20)
    unit = 1 << 30 if sys.platform == "darwin" else 1 << 20  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
