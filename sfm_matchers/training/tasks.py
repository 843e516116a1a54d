"""The networks that `pipelines.train` can train."""

from __future__ import annotations

from collections.abc import Callable

from sfm_matchers.training.efficient_loftr_task import EfficientLoFTRTask
from sfm_matchers.training.jamma_task import JamMaFineTask, JamMaTask
from sfm_matchers.training.loop import TrainingTask
from sfm_matchers.training.mambaglue_task import MambaGlueTask

TASKS: dict[str, Callable[[], TrainingTask]] = {
    "jamma": JamMaTask,
    "eloftr": EfficientLoFTRTask,
    "mambaglue": MambaGlueTask,
}

FINE_TASKS: dict[str, Callable[[], TrainingTask]] = {"jamma": JamMaFineTask}
"""Those of which the fine stage can be trained alone."""
