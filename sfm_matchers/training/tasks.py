"""The networks that `pipelines.train` can train."""

from __future__ import annotations

from sfm_matchers.training.jamma_task import JamMaTask
from sfm_matchers.training.loop import TrainingTask

TASKS: dict[str, type[TrainingTask]] = {"jamma": JamMaTask}
