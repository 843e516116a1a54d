"""A training run: photographs in, checkpoint and weights out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from sfm_matchers.errors import InputError
from sfm_matchers.evaluation.pair_lists import read_posed_pairs
from sfm_matchers.networks.table import NETWORKS
from sfm_matchers.training.data.held_out import is_held_out
from sfm_matchers.training.data.megadepth import load_megadepth
from sfm_matchers.training.data.photographs import list_photographs, load_photographs
from sfm_matchers.training.loop import Trainer, TrainingOptions
from sfm_matchers.training.options import Start, TaskOptions
from sfm_matchers.training.tasks.table import make_task

logger = logging.getLogger("sfm_matchers.train")


def train(
    matcher: str,
    photo_dir: Path,
    output: Path,
    options: TrainingOptions,
    *,
    megadepth_dir: Path | None = None,
    scene_info_dir: Path | None = None,
    hold_out: Sequence[str] = (),
    validation_pairs: Path | None = None,
    validation_images: Path | None = None,
    device: str = "auto",
    initial_weights: Path | None = None,
    only_fine: bool = False,
    features: str = "sift",
    inherited_rate: float = Start.rate,
    stay_close: float = Start.stay_close,
) -> None:
    """Train `matcher` on the photographs of a folder, or go on where `output` stands.

    Args:
        matcher: a key of `TASKS`.
        photo_dir: photographs, searched recursively.
        output: folder of checkpoint, weights and metrics.
        options: how the run goes.
        megadepth_dir: posed photographs with depth in the layout of `training.megadepth`; half of
            the batches are made of them.
        scene_info_dir: their indices; `megadepth_dir/scene_info` by default.
        hold_out: scenes of these that are kept for validation besides.
        validation_pairs: list of real pairs whose poses are estimated at every validation; see
            `benchmark_pairs.read_posed_pairs`.
        validation_images: what its names are relative to; by default its own folder.
        device: auto, cpu, cuda or cuda:N.
        initial_weights: checkpoint or weights to start from; for MambaGlue LightGlue's too.
        only_fine: train what follows the coarse matches alone.
        features: front-end of MambaGlue, see `data.sparse_pairs`.
        inherited_rate: see `Start.rate`.
        stay_close: see `Start.stay_close`.

    Raises:
        InputError: unknown matcher, no photographs, or a checkpoint of another run in `output`.
    """
    if initial_weights is not None and not initial_weights.is_file():
        raise InputError(f"no file {initial_weights}: give a checkpoint or weights to start from")
    is_sparse = matcher in NETWORKS and NETWORKS[matcher].takes == "features"
    start = None
    if is_sparse and initial_weights is not None:
        start = Start(initial_weights, inherited_rate, stay_close)
    options_of_task = TaskOptions(features, start, output / "features")
    task = make_task(matcher, options_of_task, only_fine=only_fine)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    names = list_photographs(photo_dir)
    held_out = [name for name in names if is_held_out(name)] or names[:1]
    kept = [name for name in names if name not in set(held_out)] or names
    training = load_photographs(photo_dir, kept, device=device)
    validation = load_photographs(photo_dir, held_out, device=device)
    logger.info("%d photographs to train on, %d held out", len(training), len(validation))
    if megadepth_dir is not None:
        scene_info_dir = scene_info_dir or megadepth_dir / "scene_info"
        training.posed, validation.posed = load_megadepth(megadepth_dir, scene_info_dir, hold_out)
    measure = None
    if validation_pairs is not None:
        image_dir = validation_images or validation_pairs.parent
        conf = f"{features}+{matcher}" if is_sparse else matcher
        measure = _pose_measure(conf, validation_pairs, image_dir, device)
    trainer = Trainer(task, options, training, output, torch.device(device))
    if trainer.resume():
        logger.info("going on from step %d of %d", trainer.step, options.steps)
    elif initial_weights is not None and not is_sparse:
        trainer.load_initial_weights(initial_weights)
    trainer.run(validation, measure)
    logger.info("weights after %d pairs: %s", trainer.pairs, output / "weights.safetensors")


def _pose_measure(
    conf: str, pairs_file: Path, image_dir: Path, device: str
) -> Callable[[Path], dict[str, float]]:
    """A function that measures exported weights on real pairs."""
    from sfm_matchers.evaluation.runs import evaluate_pairs

    read_posed_pairs(pairs_file, image_dir)  # a bad list should not stop a run hours later

    def measure(weights: Path) -> dict[str, float]:
        result = evaluate_pairs(pairs_file, image_dir, conf, weights=str(weights), device=device)
        logger.info("%s", result.summary())
        auc5, auc10, auc20 = result.auc["OpenCV MAGSAC++"]
        areas = {"pose_auc5": auc5, "pose_auc10": auc10, "pose_auc20": auc20}
        return areas | {"precision": result.precision, "matches": result.num_matches}

    return measure
