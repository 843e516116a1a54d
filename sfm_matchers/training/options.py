"""What to train, for networks that leave a choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FEATURE_NETWORKS = {"aliked": "aliked-n16rot", "disk": "disk"}  # front-ends of MambaGlue


@dataclass(frozen=True)
class TrainingOptions:
    """How a run goes. The same options, seed and photographs give the same weights."""

    steps: int = 20_000  # length of the whole schedule, over all resumed parts
    batch_size: int = 4  # pairs per step
    learning_rate: float = 1e-3  # peak
    warm_up: float = 0.02  # share of the steps in which the learning rate rises from 0
    weight_decay: float = 0.01  # on matrices and kernels only
    clip_norm: float = 1.0  # largest norm of the gradient
    workers: int = 1  # threads that share a batch; on a busy CPU better than threads inside ops
    seed: int = 0
    time_budget: float | None = None  # seconds; stops with a checkpoint
    checkpoint_seconds: float = 120.0
    validate_every: int = 250  # steps
    log_seconds: float = 15.0


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


@dataclass(frozen=True)
class RunOptions:
    """What to train, and on what. The command line has the same names and defaults.

    Attributes:
        matcher: a key of `TASKS`.
        photo_dir: photographs, searched recursively.
        output: folder of checkpoint, weights and metrics.
        megadepth_dir: posed photographs with depth in the layout of `training.data.megadepth`; half
            of the batches are made of them.
        scene_info_dir: their indices; `megadepth_dir/scene_info` by default.
        hold_out: scenes of these that are kept for validation besides, and that no teacher matches.
        teacher_dir: photographs without depth, a folder for each place, which a teacher matches
            once; half of the batches are made of them, a quarter where there are posed ones too.
        validation_pairs: list of real pairs whose poses are estimated at every validation; see
            `pair_lists.read_posed_pairs`.
        validation_images: what its names are relative to; by default its own folder.
        device: auto, cpu, cuda or cuda:N.
        init: checkpoint or weights to start from; for MambaGlue LightGlue's too.
        only_fine: train what follows the coarse matches alone.
        features: front-end of MambaGlue, see `data.sparse_pairs`.
        inherited_rate: see `Start.rate`.
        stay_close: see `Start.stay_close`.
    """

    matcher: str
    photo_dir: Path
    output: Path
    megadepth_dir: Path | None = None
    scene_info_dir: Path | None = None
    hold_out: Sequence[str] = ()
    teacher_dir: Path | None = None
    validation_pairs: Path | None = None
    validation_images: Path | None = None
    device: str = "auto"
    init: Path | None = None
    only_fine: bool = False
    features: str = "sift"
    inherited_rate: float = Start.rate
    stay_close: float = Start.stay_close
