"""Pairs matched side by side by the threads of a CPU.

A network that matches one pair by several threads leaves cores idle between its operations, and
most of all while Python and OpenCV work. So each thread has a pair of its own, for which torch uses
one thread. All share the network and what is at hand of the photos.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

from sfm_matchers.machine.memory import available_memory
from sfm_matchers.machine.threads import limit_threads, num_threads

PAIR_BYTES = 3 << 28  # that a network takes for a pair, at most
SHARE_OF_FREE = 0.5  # of the memory that is free, for all pairs at work

Item = TypeVar("Item")
Result = TypeVar("Result")


class Run(Protocol):
    """What `map` does: results of items, in their order."""

    def __call__(
        self, work: Callable[[Item], Result], items: Iterable[Item], /
    ) -> Iterator[Result]: ...


def pairs_at_once(device: str, batch_size: int) -> int:
    """Return how many pairs are to be matched side by side: on a CPU one for each thread.

    Args:
        device: a torch device.
        batch_size: pairs that the matcher takes at once; with more than one it uses the threads.
    """
    memory = available_memory()
    if device != "cpu" or batch_size > 1:
        return 1
    fitting = num_threads() if memory is None else int(SHARE_OF_FREE * memory / PAIR_BYTES)
    return max(1, min(num_threads(), fitting))


@contextlib.contextmanager
def side_by_side(count: int) -> Iterator[Run]:
    """Give a `map` that works on so many items at a time and returns results in their order.

    Items are asked for when they can be worked on, by the thread that asks for results.
    """
    if count == 1:
        yield map
        return
    threads = num_threads()
    limit_threads(1)
    with ThreadPoolExecutor(count, thread_name_prefix="matching") as pool:

        def mapped(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
            waiting: deque[Future[Result]] = deque()
            try:
                for item in items:
                    waiting.append(pool.submit(work, item))
                    # One more than are at work, so that no thread waits for this one.
                    if len(waiting) > count:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

        try:
            yield mapped
        finally:
            pool.shutdown(cancel_futures=True)
            limit_threads(threads)
