"""What to train, for networks that leave a choice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Start:
    """Weights from which a run starts, and how it treats them.

    Attributes:
        path: LightGlue's or MambaGlue's, of this front-end or of another one.
        rate: share of the learning rate that what is inherited has; the Mamba branch has all of it.
        stay_close: weight of the cross-entropy to the start's assignment, so that nothing is
            forgotten.
    """

    path: Path
    rate: float = 0.05
    stay_close: float = 0.0


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
