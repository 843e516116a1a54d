"""A training run: photographs in, checkpoint and weights out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from sfm_matchers.errors import InputError
from sfm_matchers.evaluation.pair_lists import read_posed_pairs
from sfm_matchers.networks.table import NETWORKS
from sfm_matchers.runs.options import check_numbers
from sfm_matchers.training.data.held_out import is_held_out
from sfm_matchers.training.data.megadepth import load_megadepth
from sfm_matchers.training.data.photographs import Photographs, list_photographs, load_photographs
from sfm_matchers.training.loop import Trainer
from sfm_matchers.training.options import RunOptions, Start, TaskOptions, TrainingOptions
from sfm_matchers.training.tasks.table import make_task
from sfm_matchers.training.teacher import SparseTeacher, load_teacher_pairs

logger = logging.getLogger("sfm_matchers.train")


def train(run: RunOptions, options: TrainingOptions) -> None:
    """Train a matcher on the photographs of a folder, or go on where its output stands.

    Args:
        run: what to train, and on what.
        options: how the run goes.

    Raises:
        InputError: unknown matcher, a number that makes no sense, no photographs, a checkpoint of
            another run in the output, or a teacher for a matcher of features.
    """
    check_numbers(options)
    if run.init is not None and not run.init.is_file():
        raise InputError(f"no file {run.init}: give a checkpoint or weights to start from")
    is_sparse = run.matcher in NETWORKS and NETWORKS[run.matcher].takes == "features"
    if is_sparse and run.teacher_dir is not None:
        raise InputError(f"{run.matcher} learns from no teacher: leave --teacher_dir out")
    start = None
    if is_sparse and run.init is not None:
        start = Start(run.init, run.inherited_rate, run.stay_close)
    kept = run.output / "features"
    task = make_task(run.matcher, TaskOptions(run.features, start, kept), only_fine=run.only_fine)
    device = run.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    training, validation = _load_photographs(run.photo_dir, device)
    if run.megadepth_dir is not None:
        indices = run.scene_info_dir or run.megadepth_dir / "scene_info"
        training.posed, validation.posed = load_megadepth(run.megadepth_dir, indices, run.hold_out)
    measure = None
    if run.validation_pairs is not None:
        conf = f"{run.features}+{run.matcher}" if is_sparse else run.matcher
        measure = _pose_measure(conf, run.validation_pairs, run.validation_images, device)
    trainer = Trainer(task, options, training, run.output, torch.device(device))
    if trainer.resume():
        logger.info("going on from step %d of %d", trainer.step, options.steps)
    elif run.init is not None and not is_sparse:
        trainer.load_initial_weights(run.init)
    if run.teacher_dir is not None:  # last: it takes long, and what is wrong should show before
        training.taught = load_teacher_pairs(
            run.teacher_dir, SparseTeacher(device), run.output / "teacher", run.hold_out, device
        )
    trainer.run(validation, measure)
    logger.info("weights after %d pairs: %s", trainer.pairs, run.output / "weights.safetensors")


def _load_photographs(photo_dir: Path, device: str) -> tuple[Photographs, Photographs]:
    """Photographs to train on, and held out ones."""
    names = list_photographs(photo_dir)
    held_out = [name for name in names if is_held_out(name)] or names[:1]
    kept = [name for name in names if name not in set(held_out)] or names
    training = load_photographs(photo_dir, kept, device=device)
    validation = load_photographs(photo_dir, held_out, device=device)
    logger.info("%d photographs to train on, %d held out", len(training), len(validation))
    return training, validation


def _pose_measure(
    conf: str, pairs_file: Path, image_dir: Path | None, device: str
) -> Callable[[Path], dict[str, float]]:
    """A function that measures exported weights on real pairs."""
    from sfm_matchers.evaluation.runs import evaluate_pairs

    image_dir = image_dir or pairs_file.parent
    read_posed_pairs(pairs_file, image_dir)  # a bad list should not stop a run hours later

    def measure(weights: Path) -> dict[str, float]:
        result = evaluate_pairs(pairs_file, image_dir, conf, weights=str(weights), device=device)
        logger.info("%s", result.summary())
        auc5, auc10, auc20 = result.auc["OpenCV MAGSAC++"]
        areas = {"pose_auc5": auc5, "pose_auc10": auc10, "pose_auc20": auc20}
        return areas | {"precision": result.precision, "matches": result.num_matches}

    return measure
