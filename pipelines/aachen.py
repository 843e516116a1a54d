"""Aachen Day-Night: from the data set to a submission file.

    python -m pipelines.aachen --dataset datasets/aachen_v1.1 --outputs outputs/aachen \\
        --matcher jamma

The photos of the map are matched and triangulated into the poses of the reference model; each query
is matched with its most similar photos of the map and localized. Every step leaves its files in
OUTPUTS; a second run does only what is missing or has changed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pipelines.command import run_command
from pipelines.localize import print_with_verdict
from pipelines.options import (
    Parser,
    add_map_options,
    add_matching_options,
    add_retrieval_options,
    program,
    take_defaults,
)
from sfm_matchers.choices import AACHEN_VERSIONS
from sfm_matchers.runs.options import AachenOptions

CONDITIONS: dict[str, Callable[[str], bool]] = {
    "day": lambda name: "night" not in name,
    "night": lambda name: "night" in name,
}


def build_parser() -> Parser:
    """Return the command line of this pipeline."""
    parser = Parser(prog=program("aachen"), description=__doc__)
    add = parser.add_argument
    add("--dataset", type=Path, default=Path("datasets/aachen_v1.1"), help="default: %(default)s")
    add("--outputs", type=Path, default=Path("outputs/aachen"), help="default: %(default)s")
    add_matching_options(add)
    add("--version", choices=AACHEN_VERSIONS, help="default: %(default)s")
    add_map_options(add)
    add_retrieval_options(add, "photos of the map")
    take_defaults(parser, AachenOptions)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 if it went to the end, 2 for bad input."""
    options = AachenOptions(**build_parser().parse(arguments))

    def job() -> int:
        from sfm_matchers.runs.benchmarks import localize_aachen

        return print_with_verdict(localize_aachen(options), CONDITIONS)

    return run_command(options.outputs, job, name="aachen", options=options)


if __name__ == "__main__":
    sys.exit(main())
