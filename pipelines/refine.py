"""Make the tracks of a COLMAP model as long as its photos allow, and adjust it.

    python -m pipelines.refine --model sfm/sparse/0 --image_dir PHOTOS --output refined

The model may come from COLMAP, hloc or this package, of whatever features and cameras. Each point
is looked for in every photo that should show it; keypoints found anew follow those that each image
has, whose order stays. Points that turn out to be one are joined.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from pipelines.command import run_guarded, say
from pipelines.options import Parser, program
from sfm_matchers.errors import InputError, about


def build_parser() -> Parser:
    """Return the command line of this pipeline."""
    parser = Parser(prog=program("refine"), description=__doc__)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder of a COLMAP model")
    add("--image_dir", type=Path, required=True, help="its photos")
    add("--output", type=Path, required=True, help="folder for the new model; made if missing")
    add("--mask_dir", type=Path, help="masks as in sfm: nothing is added on black pixels")
    add("--rounds", type=int, default=1, help="how often points are looked for (default: 1)")
    add("--fixed_intrinsics", action="store_true", help="keep the cameras' intrinsics")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 if the model was written, 2 for bad input."""
    options = Namespace(**build_parser().parse(arguments))

    def job() -> int:
        from sfm_matchers.mapping.models import read_model, write_model
        from sfm_matchers.mapping.tracks import lengthen_tracks

        if options.rounds < 1:
            raise InputError(f"--rounds is {options.rounds}: give at least 1")
        model = read_model(options.model)
        if not model.num_points3D():
            raise InputError(f"{options.model} has no points: triangulate them first")
        with about(options.model):
            model, done = lengthen_tracks(
                model,
                options.image_dir,
                mask_dir=options.mask_dir,
                rounds=options.rounds,
                fixed_cameras=list(model.cameras) if options.fixed_intrinsics else (),
            )
        write_model(model, options.output)
        say(f"{options.output}: {done}, in {done.seconds:.0f} s")
        return 0

    return run_guarded(job)


if __name__ == "__main__":
    sys.exit(main())
