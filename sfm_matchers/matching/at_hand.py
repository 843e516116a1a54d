"""What is at hand of photos while their pairs are matched.

A photo is read and encoded once for many pairs, as far as memory allows. Of what is kept, the part
that is needed last goes first, and what a pair needs that waits for its batch stays.
"""

from __future__ import annotations

import bisect
import math
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from sfm_matchers.files.pair_lists import Pair
from sfm_matchers.machine.memory import available_gpu_memory, available_memory
from sfm_matchers.matchers.pair_matcher import View
from sfm_matchers.photos.checked import StoredPhoto

Value = TypeVar("Value")
Key = tuple[str, Hashable]
"""Name of a photo, and what of it."""

SHARE_OF_FREE = 0.25  # of the memory that is free when matching begins, for what is kept
MIN_BYTES = 1 << 28
# A dozen photos of 12 megapixels; a whole run on two cores stays below 3 GB.
MAX_BYTES = 1 << 30
MAX_BYTES_GPU = 4 << 30  # two tiles of batches
SHARE_OF_WAITING = 0.5  # of what is kept; pairs that wait for their batch need no more

READ_AHEAD = 4  # photos decoded by threads while the matcher works
READ_AHEAD_BYTES = 1 << 29  # of theirs; the largest are decoded when they are needed


def bytes_to_keep(device: str) -> int:
    """Return how many bytes may be kept of photos on a torch device, with their pixels."""
    free = [available_memory()]
    if device.startswith("cuda"):
        free.append(available_gpu_memory(device))
    most = MAX_BYTES_GPU if device.startswith("cuda") else MAX_BYTES
    share = SHARE_OF_FREE * min((one for one in free if one is not None), default=math.inf)
    return int(min(most, max(MIN_BYTES, share)))


class Kept(Generic[Value]):
    """Values computed on demand, which are kept as long as they are needed and find room.

    Threads may share it: a value that one of them computes the others wait for.

    Args:
        compute: makes the value of a key.
        num_bytes: of a value.
        limit: bytes of all values; only what is held may exceed it.
    """

    def __init__(
        self, compute: Callable[[Key], Value], num_bytes: Callable[[Value], int], limit: int
    ) -> None:
        self.limit = limit
        self._compute = compute
        self._num_bytes = num_bytes
        self._values: dict[Key, Value] = {}  # the most recently used last
        self._bytes: dict[Key, int] = {}
        self._holders: Counter[Key] = Counter()
        self._uses: dict[str, list[int]] = {}
        self._now = 0
        self._coming: dict[Key, Future[Value]] = {}
        self._lock = threading.RLock()

    def __contains__(self, key: Key) -> bool:
        return key in self._values

    def expect(self, pairs: Sequence[Pair]) -> None:
        """Say which photos will be needed, in this order; `at` says how far it has come."""
        self._uses, self._now = {}, 0
        for index, pair in enumerate(pairs):
            for name in pair:
                self._uses.setdefault(name, []).append(index)

    def at(self, index: int) -> None:
        """The pair of this number is the next."""
        self._now = index

    def get(self, key: Key) -> Value:
        """Return a value."""
        with self._lock:
            if key in self._values:
                self._values[key] = self._values.pop(key)
                return self._values[key]
            coming = self._coming.get(key)
            if coming is None:
                own = self._coming[key] = Future()
        if coming is not None:
            return coming.result()
        try:
            value = self._compute(key)  # which may ask for others
        except BaseException as error:
            self._coming.pop(key)
            own.set_exception(error)
            raise
        with self._lock:
            self._values[key] = value
            self._bytes[key] = self._num_bytes(value)
            del self._coming[key]
            self._make_room(key)
        own.set_result(value)
        return value

    def hold(self, keys: Iterable[Key]) -> None:
        """Let these values stay until they are released as often as they were held."""
        with self._lock:
            self._holders.update(keys)

    def release(self, keys: Iterable[Key]) -> None:
        """See `hold`."""
        with self._lock:
            self._holders.subtract(keys)
            self._holders += Counter()  # without what nobody holds
            self._make_room()

    @property
    def num_bytes(self) -> int:
        """Of all that is kept."""
        return sum(self._bytes.values())

    @property
    def held_bytes(self) -> int:
        """Of what is held."""
        with self._lock:
            return sum(self._bytes.get(key, 0) for key in self._holders)

    def photos_that_fit(self) -> float:
        """How many photos are kept at most, if they are like those that are now."""
        names = {name for name, _ in self._values}
        return self.limit / (self.num_bytes / len(names)) if self.num_bytes else math.inf

    def shrink(self) -> None:
        """Keep half as much from now on, and nothing now but what is held."""
        with self._lock:
            kept, self.limit = self.limit, 0
            self._make_room()
            self.limit = kept // 2

    def _make_room(self, newest: Key | None = None) -> None:
        total = self.num_bytes
        while total > self.limit:
            free = [key for key in self._values if key != newest and key not in self._holders]
            if not free:
                break
            last = max(free, key=self._next_use)  # of several the least recently used
            total -= self._bytes.pop(last)
            del self._values[last]

    def _next_use(self, key: Key) -> float:
        uses = self._uses.get(key[0], [])
        index = bisect.bisect_left(uses, self._now)
        return uses[index] if index < len(uses) else math.inf


@dataclass(frozen=True)
class ReadyPair:
    """A pair whose photos are encoded.

    Attributes:
        pair: names.
        views: of both photos.
        keys: what is held for it.
    """

    pair: Pair
    views: tuple[View, View]
    keys: tuple[Key, ...]


def in_batches(
    pairs: Iterable[ReadyPair], batch_size: Callable[[], int], kept: Kept[Value]
) -> Iterator[list[ReadyPair]]:
    """Put pairs together whose images have the same sizes in the network.

    The fullest batch goes before it is full where those that wait hold too much.

    Args:
        pairs: whose keys are held; they are released after their batch.
        batch_size: how many pairs make a batch now.
        kept: who holds the keys.
    """
    waiting: dict[tuple[object, object], list[ReadyPair]] = {}

    def taken(sizes: tuple[object, object]) -> Iterator[list[ReadyPair]]:
        batch = waiting.pop(sizes)
        yield batch
        kept.release(key for ready in batch for key in ready.keys)

    def fullest() -> tuple[object, object]:
        return max(waiting, key=lambda sizes: len(waiting[sizes]))

    for ready in pairs:
        sizes = (ready.views[0].encoded.network_size, ready.views[1].encoded.network_size)
        waiting.setdefault(sizes, []).append(ready)
        if len(waiting[sizes]) >= batch_size():
            yield from taken(sizes)
        while waiting and kept.held_bytes > SHARE_OF_WAITING * kept.limit:
            yield from taken(fullest())
    while waiting:
        yield from taken(fullest())


class ReadAhead:
    """Photos decoded by threads before they are asked for, `READ_AHEAD_BYTES` of them at most."""

    def __init__(
        self,
        read: Callable[[str], StoredPhoto],
        threads: ThreadPoolExecutor,
        num_bytes: Callable[[str], int],
    ) -> None:
        self._read = read
        self._threads = threads
        self._num_bytes = num_bytes
        self._bytes_coming: dict[str, int] = {}
        self._coming: dict[str, Future[StoredPhoto]] = {}
        self._lock = threading.Lock()

    def expect(self, names: Iterable[str]) -> None:
        """Begin to read photos, a few at a time."""
        with self._lock:
            for name in names:
                if name in self._coming or len(self._coming) >= READ_AHEAD:
                    continue
                num_bytes = self._num_bytes(name)
                if num_bytes + sum(self._bytes_coming.values()) <= READ_AHEAD_BYTES:
                    self._bytes_coming[name] = num_bytes
                    self._coming[name] = self._threads.submit(self._read, name)

    def get(self, name: str) -> StoredPhoto:
        """Return a photo."""
        with self._lock:
            coming = self._coming.pop(name, None)
            self._bytes_coming.pop(name, None)
        return self._read(name) if coming is None else coming.result()
