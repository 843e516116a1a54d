"""Freed memory goes back to the system."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sfm_matchers.machine import memory
from sfm_matchers.machine.memory import FreedMemory

FRAGMENTED = """
import os
from pathlib import Path
from sfm_matchers.machine.memory import FreedMemory

def resident_megabytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

# Below glibc's threshold for blocks of their own; the small ones that stay lie between them.
large, small = [], []
for _ in range(2000):
    large.append(bytearray(100_000))
    small.append(bytearray(1000))
del large
before = resident_megabytes()
with FreedMemory():
    pass
print(before - resident_megabytes())
"""


@pytest.mark.skipif(memory._of_glibc("malloc_trim") is None, reason="the C library is not glibc")
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc to measure it by")
def test_blocks_between_others_are_given_back() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FRAGMENTED], capture_output=True, text=True, check=True
    )
    assert float(ended.stdout) > 150  # of 200 MB


def test_it_is_done_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    trimmed: list[float] = []
    monkeypatch.setattr(memory.time, "monotonic", lambda: clock[0])
    glibc = {"malloc_trim": lambda pad: trimmed.append(clock[0]), "mallopt": None}
    monkeypatch.setattr(memory, "_of_glibc", glibc.get)
    freed = FreedMemory()
    for clock[0] in (101.0, 109.9, 110.0, 111.0, 119.0, 121.0):
        freed.give_back_now_and_then()
    assert trimmed == [110.0, 121.0]


LARGE = """
import resource
from sfm_matchers.machine.memory import FreedMemory

def faults_of_large_blocks():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        bytearray(50_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with FreedMemory():
    kept = faults_of_large_blocks()
print(kept, faults_of_large_blocks())
"""


@pytest.mark.skipif(memory._of_glibc("mallopt") is None, reason="the C library is not glibc")
def test_large_blocks_are_kept_meanwhile_and_not_afterwards() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LARGE], capture_output=True, text=True, check=True
    )
    kept, usual = map(int, ended.stdout.split())
    assert kept < usual / 5


OF_THREADS = """
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from sfm_matchers.machine.memory import large_blocks_apart

def resident_megabytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

def work(_):  # four blocks of 30 MB, and small ones that stay
    large = [np.ones(30 << 17) for _ in range(4)]
    return [np.ones(1000) for _ in large]

work(0)
before = resident_megabytes()
with large_blocks_apart():
    kept = []
    for _ in range(6):
        with ThreadPoolExecutor(2) as pool:
            kept += pool.map(work, range(2))
    print(resident_megabytes() - before)
"""


@pytest.mark.skipif(memory._of_glibc("mallopt") is None, reason="the C library is not glibc")
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc to measure it by")
def test_threads_that_have_ended_keep_no_large_blocks() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", OF_THREADS], capture_output=True, text=True, check=True
    )
    assert float(ended.stdout) < 60  # 240 otherwise


def test_systems_without_glibc_have_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: None) -> None:
        raise TypeError("Windows needs a name")

    monkeypatch.setattr(memory.ctypes, "CDLL", refuse)
    with FreedMemory():
        pass
