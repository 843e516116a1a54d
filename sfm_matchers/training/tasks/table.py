"""The networks that `pipelines.train` can train: those of the table that name a task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfm_matchers.errors import InputError
from sfm_matchers.networks.table import NETWORKS, resolve
from sfm_matchers.training.options import TaskOptions

if TYPE_CHECKING:
    from sfm_matchers.training.loop import AnyTask

TASKS = tuple(name for name, entry in NETWORKS.items() if entry.task)


def make_task(matcher: str, options: TaskOptions, *, only_fine: bool = False) -> AnyTask:
    """Return what is to be trained.

    Raises:
        InputError: there is no such network, or it has no fine stage to train alone.
    """
    entries = NETWORKS.values()
    tasks = {one.name: one.fine_task if only_fine else one.task for one in entries}
    tasks = {name: task for name, task in tasks.items() if task}
    if matcher not in tasks:
        what = "only the fine stage of " if only_fine else ""
        raise InputError(f"cannot train {what}{matcher!r}: choose one of {', '.join(tasks)}")
    task: AnyTask = resolve(tasks[matcher])(options)
    return task
