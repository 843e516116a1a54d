"""InLoc: from the data set to a submission file.

    python -m pipelines.inloc --dataset datasets/inloc --outputs outputs/inloc \\
        --matcher eloftr --pairs pairs-query-netvlad40.txt

Each query is matched with the cutouts listed for it, and its pose is estimated from the points of
their depth scans. Every step leaves its files in OUTPUTS; a second run does only what is missing or
has changed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.command import run_command
from pipelines.localize import print_with_verdict
from pipelines.options import (
    Parser,
    add_matching_options,
    add_retrieval_options,
    program,
    take_defaults,
)
from sfm_matchers.runs.options import InlocOptions


def build_parser() -> Parser:
    """Return the command line of this pipeline."""
    parser = Parser(prog=program("inloc"), description=__doc__)
    add = parser.add_argument
    add("--dataset", type=Path, default=Path("datasets/inloc"), help="default: %(default)s")
    add("--outputs", type=Path, default=Path("outputs/inloc"), help="default: %(default)s")
    add_matching_options(add)
    add("--pairs", type=Path, help="file of pairs 'query cutout' instead of retrieval")
    add(
        "--skip_matches",
        type=int,
        help="leave out cutouts with fewer matches than this (default: %(default)s)",
    )
    add_retrieval_options(add, "cutouts")
    take_defaults(parser, InlocOptions)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 if it went to the end, 2 for bad input."""
    options = InlocOptions(**build_parser().parse(arguments))

    def job() -> int:
        from sfm_matchers.runs.benchmarks import localize_inloc

        return print_with_verdict(localize_inloc(options))

    return run_command(options.outputs, job, name="inloc", options=options)


if __name__ == "__main__":
    sys.exit(main())
