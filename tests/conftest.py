"""Settings of all tests."""

from __future__ import annotations

import os

# The tests run in as many processes as there are cores. Threads of several processes that share a
# core wait for each other at every operation. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
