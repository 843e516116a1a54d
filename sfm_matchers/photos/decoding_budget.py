"""Bytes that photos may take while they are decoded, and what else takes as many meanwhile."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

DECODING_BYTES = 1 << 30  # of all photos that are decoded at once; a larger one is decoded alone


class _Budget:
    """Bytes that threads share: who would go beyond the total waits, unless alone."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._used = 0
        self._changed = threading.Condition()
        self._holding = threading.local()

    @contextlib.contextmanager
    def share(self, num_bytes: int) -> Iterator[None]:
        """Hold so many bytes inside the ``with`` block; what a thread holds already is enough."""
        if getattr(self._holding, "is_held", False):
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + num_bytes <= self._total)
            self._used += num_bytes
        self._holding.is_held = True
        try:
            yield
        finally:
            self._holding.is_held = False
            with self._changed:
                self._used -= num_bytes
                self._changed.notify_all()


DECODING = _Budget(DECODING_BYTES)
