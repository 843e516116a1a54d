"""Settings of the tests of training."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sfm_matchers.training.tasks.efficient_loftr import EfficientLoFTRTask
from sfm_matchers.training.tasks.jamma import JamMaTask


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads inside operations on tiny tensors mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def uncalibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks on images begin as drawn at random: to scale their logits first takes seconds."""
    for task in (EfficientLoFTRTask, JamMaTask):
        monkeypatch.setattr(task, "_calibrate", lambda *arguments: None)
