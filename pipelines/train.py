"""Train a network on photographs.

    python -m pipelines.train --matcher jamma --photo_dir PHOTOS --output RUN

Run again with the same arguments to go on from the checkpoint in the output folder.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from pipelines.command import run_guarded
from pipelines.options import Add, Parser, program, take_defaults
from sfm_matchers.training.options import FEATURE_NETWORKS, RunOptions, Start, TrainingOptions
from sfm_matchers.training.tasks.table import TASKS


def build_parser() -> Parser:
    """Return the command line of this pipeline."""
    parser = Parser(prog=program("train"), description=__doc__)
    add = parser.add_argument
    add("--matcher", type=str.lower, required=True, choices=list(TASKS))
    add("--photo_dir", type=Path, required=True, help="searched recursively")
    add("--output", type=Path, required=True, help="checkpoint, weights, metrics")
    _add_truth(add)
    _add_schedule(add)
    _add_start(add)
    take_defaults(parser, TrainingOptions)
    take_defaults(parser, RunOptions)
    return parser


def _add_truth(add: Add) -> None:
    add(
        "--megadepth_dir",
        type=Path,
        help="posed photographs with depth, for half of the batches: Undistorted_SfM and phoenix",
    )
    add("--scene_info_dir", type=Path, help="their indices (default: MEGADEPTH_DIR/scene_info)")
    add(
        "--teacher_dir",
        type=Path,
        metavar="PHOTOS",
        help="photographs that overlap, a subfolder for each place: what aliked+mambaglue matches "
        "in them, kept in OUTPUT/teacher, is learned from (jamma, eloftr)",
    )
    add(
        "--validation_pairs",
        type=Path,
        help="real pairs whose pose AUC is printed at every validation; a list as for "
        "sfm-matchers evaluate",
    )
    add(
        "--validation_images",
        type=Path,
        help="what its names are relative to (default: its folder)",
    )


def _add_schedule(add: Add) -> None:
    add("--steps", type=int, help="of the whole schedule")
    add("--batch_size", type=int, help="pairs a step")
    add("--learning_rate", type=float)
    add("--seed", type=int)
    add("--time_budget", type=float, help="seconds; stops with a checkpoint")
    add("--validate_every", type=int)
    add("--device", help="auto, cpu, cuda or cuda:N")
    add("--threads", type=int, help="threads inside one operation on the CPU")
    add("--workers", type=int, help="threads that share a batch on a CPU")


def _add_start(add: Add) -> None:
    add(
        "--hold_out",
        nargs="*",
        metavar="SCENE",
        help="scenes of MEGADEPTH_DIR to validate on, besides one in ten; in TEACHER_DIR they are "
        "left out",
    )
    add(
        "--features",
        choices=("sift", *FEATURE_NETWORKS),
        help="front-end of mambaglue (default: sift); features of networks are computed once and "
        "kept in OUTPUT/features",
    )
    add(
        "--init",
        type=Path,
        help="weights to start from: checkpoint.pt or weights.safetensors of a run; for mambaglue "
        "any of MambaGlue's or LightGlue's, of the same features or others",
    )
    add(
        "--inherited_rate",
        type=float,
        help="mambaglue with --init: share of the learning rate that all but the Mamba branch has "
        f"(default: {Start.rate:g})",
    )
    add(
        "--stay_close",
        type=float,
        help="mambaglue with --init of the same features: weight of the cross-entropy to what the "
        f"start says of each keypoint (default: {Start.stay_close:g})",
    )
    add(
        "--only_fine",
        action="store_true",
        help="train what follows the coarse matches and leave the rest as it is (jamma, with "
        "--init)",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 if it went to the end, 2 for bad input."""
    given = build_parser().parse(arguments, times=True)
    return run_guarded(lambda: _run(given))


def _run(given: dict[str, Any]) -> int:
    import torch

    from sfm_matchers.training.run import train

    threads = given.pop("threads")
    if threads:
        torch.set_num_threads(threads)
    names = [field.name for field in fields(TrainingOptions) if field.name in given]
    how = TrainingOptions(**{name: given.pop(name) for name in names})
    train(RunOptions(**given), how)
    return 0


if __name__ == "__main__":
    sys.exit(main())
