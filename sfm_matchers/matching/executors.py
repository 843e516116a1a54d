"""Who matches the shards of a plan: this process, several, several machines, or jobs of a cluster.

A shard goes the same way everywhere, through `run_shard`: each pair is safe on disk when it is
done, and so is the shard. Nothing but names of files and pairs travels between processes; all see
one file system.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for_process
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from tqdm import tqdm

from sfm_matchers.errors import InputError, MissingExtraError, SfmMatchersError
from sfm_matchers.files.pair_lists import Pair, names_to_pair
from sfm_matchers.files.staged import StagedFile, staged_part
from sfm_matchers.machine.memory import FreedMemory, free_cached_gpu_memory, share_memory
from sfm_matchers.machine.progress import progress
from sfm_matchers.machine.threads import limit_threads, num_cores
from sfm_matchers.matching.plan import Shard

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

logger = logging.getLogger(__name__)

MatchedPair = tuple[Pair, Mapping[str, np.ndarray]]
MatchPairs = Callable[[Sequence[Pair], dict[str, str]], Iterator[MatchedPair]]
"""Matches pairs, not always in their order; notes photos that cannot be used, and why."""

LOSSES = 3  # how often a shard may lose its process before the run gives up


class MatchingTask(Protocol):
    """How pairs are matched. It is sent to each process that matches."""

    def opened(self) -> AbstractContextManager[MatchPairs]:
        """Load what is needed, once for all shards of a process."""


class Executor(Protocol):
    """Who matches.

    Attributes:
        num_workers: how many shards are worked on at once.
        shares_with_others: other runs do other shards, so the result is not complete after this
            one.
    """

    @property
    def num_workers(self) -> int: ...

    @property
    def shares_with_others(self) -> bool: ...

    def run(self, task: MatchingTask, shards: Sequence[Shard], path: Path) -> dict[str, str]:
        """Match the pairs of shards into parts of the staged file at `path`.

        Returns:
            Photos that could not be used, and why; their pairs are left out.

        Raises:
            WorkersLostError: processes die again and again.
        """


class WorkersLostError(SfmMatchersError):
    """The processes that match die."""


def run_shard(
    match: MatchPairs, shard: Shard, path: Path, advance: Callable[[int], object]
) -> dict[str, str]:
    """Match the pairs of one shard; returns photos that could not be used, and why."""
    own = StagedFile(staged_part(path, shard.name))
    fingerprints = shard.fingerprints
    todo = []
    for pair in shard.pairs:
        group = names_to_pair(*pair)
        if not own.is_current(group, fingerprints[group]):
            todo.append(pair)
    advance(len(shard.pairs) - len(todo))
    skipped: dict[str, str] = {}
    with FreedMemory() as freed:
        for pair, arrays in match(todo, skipped):
            own.add({names_to_pair(*pair): arrays}, fingerprints)
            advance(1)
            freed.give_back_now_and_then()
    own.commit()
    return skipped


def _bar(shards: Sequence[Shard]) -> tqdm[Any]:
    total = sum(len(shard.pairs) for shard in shards)
    return progress(total=total, title="Matching", unit="pair")


@dataclass(frozen=True)
class InProcess:
    """One shard after the other, in this process."""

    num_workers: ClassVar[int] = 1
    shares_with_others: ClassVar[bool] = False

    def run(self, task: MatchingTask, shards: Sequence[Shard], path: Path) -> dict[str, str]:
        """See `Executor.run`."""
        skipped: dict[str, str] = {}
        shards = [shard for shard in shards if shard.pairs]
        if shards:
            with task.opened() as match, _bar(shards) as bar:
                for shard in shards:
                    skipped |= run_shard(match, shard, path, bar.update)
        return skipped


@dataclass(frozen=True)
class OneOf:
    """Every `count`-th shard, in this process; other runs do the others, now or later.

    Args:
        number: 1 to `count`.
        count: how many runs share the work.
    """

    number: int
    count: int
    shares_with_others: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise InputError(
                f"there is no shard {self.number} of {self.count}: they count from 1 to N"
            )

    @classmethod
    def parse(cls, text: str) -> OneOf:
        """Read ``number/count``.

        Raises:
            InputError: it is something else.
        """
        number, slash, count = text.partition("/")
        if not (slash and number.isdecimal() and count.isdecimal()):
            raise InputError(f"shard {text!r}: expected I/N, such as 2/8")
        return cls(int(number), int(count))

    @property
    def num_workers(self) -> int:
        """All runs together."""
        return self.count

    def run(self, task: MatchingTask, shards: Sequence[Shard], path: Path) -> dict[str, str]:
        """See `Executor.run`."""
        return InProcess().run(task, shards[self.number - 1 :: self.count], path)


@dataclass(frozen=True)
class NobodyElse:
    """All pairs must be there already, from the shards of other runs."""

    num_workers: ClassVar[int] = 1
    shares_with_others: ClassVar[bool] = False

    def run(self, task: MatchingTask, shards: Sequence[Shard], path: Path) -> dict[str, str]:
        """Raise InputError if there is a pair to match."""
        missing = [pair for shard in shards for pair in shard.pairs]
        if missing:
            raise InputError(
                f"{len(missing)} pairs are missing, such as {missing[0]}: not all shards are done. "
                "Run those again (they know what they have done), or leave --merge away"
            )
        return {}


@dataclass(frozen=True)
class Processes:
    """Several processes of this machine. Each has its share of the CPU's cores, or a GPU.

    Args:
        num_workers: processes.
        uses_gpu: each has another one of the GPUs, as far as they go, and sees no other.
    """

    num_workers: int
    uses_gpu: bool = False
    shares_with_others: ClassVar[bool] = False

    def run(self, task: MatchingTask, shards: Sequence[Shard], path: Path) -> dict[str, str]:
        """See `Executor.run`. A shard whose process dies is given to another one."""
        skipped: dict[str, str] = {}
        todo = {shard.name: shard for shard in shards if shard.pairs}
        losses = 0
        with _bar(list(todo.values())) as bar:
            while todo:
                try:
                    for shard, unusable in self._run_pool(task, list(todo.values()), path):
                        skipped |= unusable
                        del todo[shard.name]
                        bar.update(len(shard.pairs))
                        losses = 0
                except BrokenProcessPool:
                    losses += 1
                    if losses == LOSSES:
                        raise WorkersLostError(
                            f"{losses} times a process that matches has died before it finished "
                            "anything: out of memory? Try fewer --workers. What is done is kept"
                        ) from None
                    logger.warning("a process that matches has died; others go on with its pairs")
        return skipped

    def _run_pool(
        self, task: MatchingTask, shards: Sequence[Shard], path: Path
    ) -> Iterator[tuple[Shard, dict[str, str]]]:
        """Yield shards as they are done."""
        context = multiprocessing.get_context("spawn")
        count = min(self.num_workers, len(shards))
        # Asked here: CUDA, once asked in a worker, no longer looks at what the worker may see.
        gpus = _visible_gpus() if self.uses_gpu else []
        free_cached_gpu_memory()  # of the extraction of features
        number = context.Value("i", 0)
        pool = ProcessPoolExecutor(
            count, context, _start_worker, (task, number, self.num_workers, gpus)
        )
        try:
            running: dict[Future[dict[str, str]], Shard] = {}
            for shard in shards:
                running[pool.submit(_run_in_worker, shard, path)] = shard
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    unusable = future.result()
                    yield running.pop(future), unusable
            pool.shutdown()
        except BaseException:
            _kill(pool)
            raise


def _kill(pool: ProcessPoolExecutor) -> None:
    """End the processes at once: what they have done is safe."""
    processes = list((getattr(pool, "_processes", None) or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.kill()
        process.join()


class _Worker:
    """What a worker process keeps between shards."""

    match: ClassVar[MatchPairs | None] = None
    open_things: ClassVar[ExitStack] = ExitStack()


def _start_worker(
    task: MatchingTask, counter: Synchronized[int], num_workers: int, gpus: Sequence[str]
) -> None:
    """Set up a worker process: its share of the machine, and the matcher."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's business
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with counter.get_lock():
        number = counter.value
        counter.value += 1
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    limit_threads(max(1, num_cores() // num_workers))
    share_memory(num_workers, len(gpus))
    _Worker.match = _Worker.open_things.enter_context(task.opened())
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # pycolmap's handler prints pages


def _end_with_parent() -> None:
    """A worker whose first process was killed must not go on writing."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_process([parent.sentinel])
        os._exit(1)


def _visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the GPUs that this process sees."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(number) for number in range(torch.cuda.device_count())]
    return [name.strip() for name in visible.split(",") if name.strip()]


def _run_in_worker(shard: Shard, path: Path) -> dict[str, str]:
    assert _Worker.match is not None  # set by _start_worker
    return run_shard(_Worker.match, shard, path, lambda count: None)


@dataclass(frozen=True)
class OnRay:
    """Actors of a Ray cluster. All machines must see the photos and the outputs at one path.

    Args:
        address: of the cluster; "auto" finds a running one, "local" starts one on this machine.
        count: actors; None for as many as the cluster has GPUs, or CPU cores. More actors than
            GPUs share them.
        uses_gpu: actors match on GPUs.
    """

    address: str
    count: int | None = None
    uses_gpu: bool = False
    shares_with_others: ClassVar[bool] = False

    @property
    def num_workers(self) -> int:
        """See `Executor`."""
        return self.count or max(1, int(self._resources()))

    def _resources(self) -> float:
        """How many GPUs, or CPU cores, the cluster has."""
        resources = _connect_ray(self.address).cluster_resources()
        return float(resources.get("GPU" if self.uses_gpu else "CPU", 0))

    def run(self, task: MatchingTask, shards: Sequence[Shard], path: Path) -> dict[str, str]:
        """See `Executor.run`. Each actor has one shard at a time; a lost one's goes to another."""
        ray = _connect_ray(self.address)
        free_cached_gpu_memory()
        gpus = min(1.0, self._resources() / self.num_workers) if self.uses_gpu else 0.0
        actor_class = ray.remote(num_cpus=1, num_gpus=gpus)(_RayWorker)
        waiting = [shard for shard in shards if shard.pairs]
        idle = [actor_class.remote(task) for _ in range(min(self.num_workers, len(waiting)))]
        running: dict[Any, tuple[Any, Shard]] = {}
        losses: Counter[str] = Counter()
        skipped: dict[str, str] = {}
        try:
            with _bar(waiting) as bar:
                while waiting or running:
                    while waiting and idle:
                        actor, shard = idle.pop(), waiting.pop(0)
                        running[actor.run.remote(shard, path)] = (actor, shard)
                    done = ray.wait(list(running), num_returns=1)[0][0]
                    actor, shard = running.pop(done)
                    try:
                        skipped |= ray.get(done)
                        bar.update(len(shard.pairs))
                    except ray.exceptions.RayActorError:
                        losses[shard.name] += 1
                        _check_losses(shard, losses[shard.name])
                        waiting.insert(0, shard)
                        actor = actor_class.remote(task)
                    idle.append(actor)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        finally:
            for actor in [*idle, *(actor for actor, _ in running.values())]:
                ray.kill(actor)
        return skipped


def _check_losses(shard: Shard, count: int) -> None:
    """Raise WorkersLostError if a shard has lost too many workers."""
    if count >= LOSSES:
        raise WorkersLostError(
            f"the pairs from {shard.pairs[0]} to {shard.pairs[-1]} have lost {count} Ray workers. "
            "What is done is kept"
        )
    logger.warning("a Ray worker was lost; another one goes on with its pairs")


class _RayWorker:
    """An actor that holds the matcher."""

    def __init__(self, task: MatchingTask) -> None:
        self._open_things = ExitStack()
        limit_threads(1)
        self._match = self._open_things.enter_context(task.opened())

    def run(self, shard: Shard, path: Path) -> dict[str, str]:
        return run_shard(self._match, shard, path, lambda count: None)


def _connect_ray(address: str) -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("--ray needs Ray: pip install sfm-matchers[ray]") from error
    if not ray.is_initialized():
        try:
            ray.init(
                address=address,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, ValueError) as error:
            raise InputError(f"no Ray cluster answers at {address!r}: {error}") from error
    return ray


def make_executor(
    workers: int | None,
    ray: str | None,
    device: str,
    shard: str | None = None,
    *,
    merge: bool = False,
) -> Executor:
    """Return who matches as options ask for it.

    Raises:
        InputError: they contradict each other.
    """
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
