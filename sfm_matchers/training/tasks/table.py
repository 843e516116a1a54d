"""The networks that `pipelines.train` can train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sfm_matchers.errors import InputError
from sfm_matchers.networks.mambaglue import MambaGlueConfig
from sfm_matchers.training.loop import TrainingTask
from sfm_matchers.training.tasks.efficient_loftr import EfficientLoFTRTask
from sfm_matchers.training.tasks.jamma import JamMaFineTask, JamMaTask
from sfm_matchers.training.tasks.mambaglue import MambaGlueTask, Start


@dataclass(frozen=True)
class TaskOptions:
    """What to train, for networks that leave a choice.

    Attributes:
        features: front-end of MambaGlue.
        start: weights from which MambaGlue starts.
        kept: folder in which features of photographs are kept.
    """

    features: str = "sift"
    start: Start | None = None
    kept: Path | None = None


def mambaglue_task(options: TaskOptions) -> MambaGlueTask:
    """MambaGlue on the features of a front-end."""
    config = MambaGlueConfig(features=options.features, keypoint_order="score")
    return MambaGlueTask(config, start=options.start, kept=options.kept)


TASKS: dict[str, Callable[[TaskOptions], TrainingTask]] = {
    "jamma": lambda options: JamMaTask(),
    "eloftr": lambda options: EfficientLoFTRTask(),
    "mambaglue": mambaglue_task,
}

FINE_TASKS: dict[str, Callable[[TaskOptions], TrainingTask]] = {
    "jamma": lambda options: JamMaFineTask()
}
"""Those of which the fine stage can be trained alone."""


def make_task(matcher: str, options: TaskOptions, *, only_fine: bool = False) -> TrainingTask:
    """Return what is to be trained.

    Raises:
        InputError: there is no such network, or it has no fine stage to train alone.
    """
    tasks = FINE_TASKS if only_fine else TASKS
    if matcher not in tasks:
        what = "only the fine stage of " if only_fine else ""
        raise InputError(f"cannot train {what}{matcher!r}: choose one of {', '.join(tasks)}")
    return tasks[matcher](options)
