"""Train a network on photographs: `python -m pipelines.train --matcher jamma --photo_dir DIR ...`.

Run again with the same arguments to go on from the checkpoint in the output folder.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from pipelines.command import run_guarded
from sfm_matchers.errors import InputError
from sfm_matchers.evaluation.pair_lists import read_posed_pairs
from sfm_matchers.training.data.held_out import is_held_out
from sfm_matchers.training.data.megadepth import load_megadepth
from sfm_matchers.training.data.photographs import list_photographs, load_photographs
from sfm_matchers.training.data.sparse_pairs import MODELS
from sfm_matchers.training.loop import Trainer, TrainingOptions
from sfm_matchers.training.tasks.mambaglue import Start
from sfm_matchers.training.tasks.table import TASKS, TaskOptions, make_task

logger = logging.getLogger("sfm_matchers.train")

FEATURES = ("sift", *MODELS)


def main(
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
        features: front-end of MambaGlue, one of `FEATURES`.
        inherited_rate: see `Start.rate`.
        stay_close: see `Start.stay_close`.

    Raises:
        InputError: unknown matcher, no photographs, or a checkpoint of another run in `output`.
    """
    if initial_weights is not None and not initial_weights.is_file():
        raise InputError(f"no file {initial_weights}: give a checkpoint or weights to start from")
    is_sparse = matcher == "mambaglue"
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
        conf = f"{features}+mambaglue" if is_sparse else matcher
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


def _parse_arguments() -> argparse.Namespace:
    defaults = TrainingOptions()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--matcher", required=True, choices=list(TASKS))
    parser.add_argument("--photo_dir", type=Path, required=True, help="searched recursively")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint, weights, metrics")
    parser.add_argument(
        "--megadepth_dir",
        type=Path,
        help="posed photographs with depth, for half of the batches: Undistorted_SfM and phoenix",
    )
    parser.add_argument(
        "--scene_info_dir", type=Path, help="their indices (default: MEGADEPTH_DIR/scene_info)"
    )
    parser.add_argument(
        "--validation_pairs",
        type=Path,
        help="real pairs whose pose AUC is printed at every validation; a list as for "
        "pipelines.evaluate",
    )
    parser.add_argument(
        "--validation_images",
        type=Path,
        help="what its names are relative to (default: its folder)",
    )
    parser.add_argument("--steps", type=int, default=defaults.steps, help="of the whole schedule")
    parser.add_argument("--batch_size", type=int, default=defaults.batch_size, help="pairs a step")
    parser.add_argument("--learning_rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--time_budget", type=float, help="seconds; stops with a checkpoint")
    parser.add_argument("--validate_every", type=int, default=defaults.validate_every)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, help="threads inside one operation on the CPU")
    parser.add_argument(
        "--workers", type=int, default=defaults.workers, help="threads that share a batch on a CPU"
    )
    parser.add_argument(
        "--hold_out",
        nargs="*",
        default=[],
        metavar="SCENE",
        help="scenes of MEGADEPTH_DIR to validate on, besides one in ten",
    )
    parser.add_argument(
        "--features",
        choices=FEATURES,
        default="sift",
        help="front-end of mambaglue (default: sift); features of networks are computed once and "
        "kept in OUTPUT/features",
    )
    parser.add_argument(
        "--init",
        type=Path,
        help="weights to start from: checkpoint.pt or weights.safetensors of a run; for mambaglue "
        "any of MambaGlue's or LightGlue's, of the same features or others",
    )
    parser.add_argument(
        "--inherited_rate",
        type=float,
        default=Start.rate,
        help="mambaglue with --init: share of the learning rate that all but the Mamba branch has "
        f"(default: {Start.rate:g})",
    )
    parser.add_argument(
        "--stay_close",
        type=float,
        default=Start.stay_close,
        help="mambaglue with --init of the same features: weight of the cross-entropy to what the "
        f"start says of each keypoint (default: {Start.stay_close:g})",
    )
    parser.add_argument(
        "--only_fine",
        action="store_true",
        help="train what follows the coarse matches and leave the rest as it is (jamma, with "
        "--init)",
    )
    return parser.parse_args()


def _run(arguments: argparse.Namespace) -> int:
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    main(
        arguments.matcher,
        arguments.photo_dir,
        arguments.output,
        TrainingOptions(
            steps=arguments.steps,
            batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate,
            workers=arguments.workers,
            seed=arguments.seed,
            time_budget=arguments.time_budget,
            validate_every=arguments.validate_every,
        ),
        megadepth_dir=arguments.megadepth_dir,
        scene_info_dir=arguments.scene_info_dir,
        hold_out=arguments.hold_out,
        validation_pairs=arguments.validation_pairs,
        validation_images=arguments.validation_images,
        device=arguments.device,
        initial_weights=arguments.init,
        only_fine=arguments.only_fine,
        features=arguments.features,
        inherited_rate=arguments.inherited_rate,
        stay_close=arguments.stay_close,
    )
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    arguments = _parse_arguments()
    sys.exit(run_guarded(lambda: _run(arguments)))
