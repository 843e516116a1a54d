"""Measure a matcher where the truth is known.

    python -m pipelines.evaluate pairs --pairs_file PAIRS --image_dir PHOTOS --matcher sift
    python -m pipelines.evaluate homographies --hpatches_dir HPATCHES --matcher sift
    python -m pipelines.evaluate poses --poses SUBMISSION --truth POSES

`pairs`: relative poses. The file is a text list with lines `image0 image1 rot0 rot1 K0 K1 T_0to1`,
the layout of SuperGlue's lists of MegaDepth-1500 and ScanNet-1500 (matrices row by row; rot0 and
rot1 count the quarter turns, counter-clockwise, that set the photos upright for matching), a
scene_info file of LoFTR's MegaDepth-1500 or the folder of them, or LoFTR's test.npz of ScanNet-1500
with intrinsics.npz beside it.

`homographies`: sequences of HPatches, folders v_* and i_* with photos 1.ppm to 6.ppm and H_1_k.

`poses`: absolute poses. Both files have lines `name qw qx qy qz tx ty tz` (world to camera); recall
is printed by condition, which is what stands before the last `_` in the name of a photo.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pipelines.command import run_guarded
from pipelines.options import Add, Parser, matcher_name, program
from sfm_matchers.files.text import write_text


def build_parser() -> Parser:
    """Return the command line of this pipeline."""
    parser = Parser(prog=program("evaluate"), description=__doc__)
    tasks = parser.add_subparsers(
        dest="task", required=True, metavar="pairs | homographies | poses"
    )
    pairs = tasks.add_parser("pairs", help="relative poses of pairs with known truth")
    homographies = tasks.add_parser("homographies", help="homographies of HPatches")
    poses = tasks.add_parser("poses", help="absolute poses of localized photos")
    _add_pairs(pairs.add_argument)
    _add_homographies(homographies.add_argument)
    for task in (pairs, homographies):
        _add_matcher(task.add_argument)
    _add_poses(poses.add_argument)
    for task in (pairs, homographies, poses):
        task.add_argument("--output", type=Path, help="write the result as JSON too")
    return parser


def _add_pairs(add: Add) -> None:
    add("--pairs_file", type=Path, required=True, help="text list, .npz file or folder of these")
    add("--image_dir", type=Path, required=True, help="what names are relative to")
    add(
        "--resize_max",
        type=int,
        help="reduce photos to this longer side in pixels before matching (default: full size)",
    )
    add(
        "--max_error",
        type=float,
        default=0.5,
        help="inlier threshold in pixels of the photo as stored (default: %(default)s)",
    )
    add(
        "--runs",
        type=int,
        default=5,
        help="estimations of each pose, with shuffled matches (default: %(default)s)",
    )
    add("--seed", type=int, default=0, help="of the shuffling (default: 0)")


def _add_homographies(add: Add) -> None:
    add("--hpatches_dir", type=Path, required=True)
    add(
        "--resize_min",
        type=int,
        default=480,
        help="shorter side of all photos in pixels (default: %(default)s)",
    )
    add(
        "--max_error",
        type=float,
        default=3.0,
        help="inlier threshold in pixels of the resized photo (default: %(default)s)",
    )
    add(
        "--max_matches",
        type=int,
        default=1000,
        help="use so many of the surest matches (default: %(default)s)",
    )


def _add_matcher(add: Add) -> None:
    add("--matcher", type=matcher_name, required=True, help="name of a conf, or a conf file")
    add("--weights", default="bundled", help="bundled, official or a file (default: bundled)")
    add("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")


def _add_poses(add: Add) -> None:
    add("--poses", type=Path, required=True, help="submission file")
    add("--truth", type=Path, required=True, help="true poses in the same form")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, or 2 for bad input."""
    options = build_parser().parse(arguments)

    def job() -> int:
        from sfm_matchers.evaluation import runs

        task, output = options.pop("task"), options.pop("output")
        result = getattr(runs, f"evaluate_{task}")(**options)
        if output:
            write_text(output, json.dumps(asdict(result), indent=2) + "\n")
        print(result.summary())
        return 0

    return run_guarded(job)


if __name__ == "__main__":
    sys.exit(main())
