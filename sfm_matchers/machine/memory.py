"""How much memory there is, and giving freed memory back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

TRIM_SECONDS = 10.0
# Options of glibc's malloc.h: the end of the heap that is kept, and blocks apart from it.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
KEEPING = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 1 << 30}
APART = {M_MMAP_THRESHOLD: 4 << 20}
# Where glibc's own thresholds end once large blocks were freed.
USUAL = {M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 32 << 20, M_TRIM_THRESHOLD: 64 << 20}

_processes = _processes_of_gpu = 1


def share_memory(num_processes: int, num_gpus: int = 0) -> None:
    """Say that so many processes like this one take memory at the same time, on so many GPUs."""
    global _processes, _processes_of_gpu
    _processes, _processes_of_gpu = num_processes, -(-num_processes // max(1, num_gpus))


def available_memory() -> int | None:
    """Return the bytes that this process can still take; None where the system does not tell.

    Of several processes that work together (`share_memory`) each has its share.
    """
    found = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kilobytes = {line.split(":")[0]: line.split()[1] for line in lines}
        found.append(1024 * int(kilobytes["MemAvailable"]))
        group = Path("/sys/fs/cgroup")  # a container's own limit, "max" if it has none
        limit, used = (
            (group / f"memory.{name}").read_text().strip() for name in ("max", "current")
        )
        found.append(max(0, int(limit) - int(used)))
    except (OSError, ValueError, KeyError, IndexError):
        pass
    return min(found) // _processes if found else None


def available_gpu_memory(device: str) -> int:
    """Return the bytes that torch can still take on a CUDA device."""
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free + unused) // _processes_of_gpu


def free_cached_gpu_memory() -> None:
    """Give back what torch keeps of freed GPU memory, for other processes or larger blocks."""
    torch = sys.modules.get("torch")
    if torch is None:
        return
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


class FreedMemory:
    """Memory that was freed: kept for what comes next, and given back every `TRIM_SECONDS`.

    glibc asks the system anew for each large block, whose pages are then filled with zeros: a tenth
    of the time of a pair of photos. What it keeps lies scattered between small blocks that stay:
    photos of many sizes make a long run grow by gigabytes. Other systems' allocators do both
    themselves.
    """

    def __init__(self) -> None:
        self._trim = _of_glibc("malloc_trim")
        self._trimmed_at = time.monotonic()

    def __enter__(self) -> FreedMemory:
        _set_options(KEEPING)
        return self

    def __exit__(self, *_: object) -> None:
        _set_options(USUAL)
        self._give_back()

    def give_back_now_and_then(self) -> None:
        """Give it back if the last time is long ago; some hundredths of a second."""
        if time.monotonic() - self._trimmed_at >= TRIM_SECONDS:
            self._give_back()

    def _give_back(self) -> None:
        if self._trim is not None:
            self._trim(0)
        self._trimmed_at = time.monotonic()


@contextlib.contextmanager
def large_blocks_apart() -> Iterator[None]:
    """Have each large block go back to the system as soon as it is freed.

    glibc keeps some of up to 32 MB for the thread that had them: of threads that live as long as a
    few photos, half a gigabyte lies about unused. With few large blocks it costs no time.
    """
    _set_options(APART)
    try:
        yield
    finally:
        _set_options(USUAL)


def _set_options(options: Mapping[int, int]) -> None:
    function = _of_glibc("mallopt")
    if function is not None:
        for option, value in options.items():
            function(option, value)


def _of_glibc(name: str) -> Callable[..., int] | None:
    """A function of glibc; None elsewhere."""
    try:
        function: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (TypeError, OSError, AttributeError):  # Windows, static builds, other C libraries
        return None
    return function


def peak_memory() -> float:
    """Return the peak resident memory of this process in GB (2^30 bytes)."""
    status = Path("/proc/self/status")
    if status.exists():  # a child's ru_maxrss begins with that of its parent on Linux
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / (1 << 20)
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    unit = 1 << 30 if sys.platform == "darwin" else 1 << 20  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
