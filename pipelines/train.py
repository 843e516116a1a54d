"""Train a network on photographs.

    python -m pipelines.train --matcher jamma --photo_dir PHOTOS --output RUN

Run again with the same arguments to go on from the checkpoint in the output folder.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from pipelines.command import run_guarded
from pipelines.options import Parser, program


def build_parser() -> Parser:
    """Return the command line of this pipeline."""
    from sfm_matchers.training.data.sparse_pairs import MODELS
    from sfm_matchers.training.loop import TrainingOptions
    from sfm_matchers.training.options import Start
    from sfm_matchers.training.tasks.table import TASKS

    defaults = TrainingOptions()
    parser = Parser(prog=program("train"), description=__doc__)
    parser.add_argument("--matcher", type=str.lower, required=True, choices=list(TASKS))
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
        choices=("sift", *MODELS),
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
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 if it went to the end, 2 for bad input."""
    options = Namespace(**build_parser().parse(arguments, times=True))
    return run_guarded(lambda: _run(options))


def _run(arguments: Namespace) -> int:
    import torch

    from sfm_matchers.training.loop import TrainingOptions
    from sfm_matchers.training.run import train

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    train(
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
    sys.exit(main())
