"""Make a file of weights to ship, of what a training run has written or of others' weights.

    python -m pipelines.pack_weights --weights RUN/weights.safetensors --output jamma.safetensors
    python -m pipelines.pack_weights --official aliked-n16rot --output aliked-n16rot.safetensors

Several files become one, their mean: of runs that began with the same weights it is often as good
as the best of them, whatever the pairs.

The package loads such a file by default if it lies among the bundled ones; `--weights FILE` of any
command takes it too.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from pipelines.command import run_guarded, say
from pipelines.options import Parser, program


def build_parser() -> Parser:
    """Return the command line of this pipeline."""
    parser = Parser(prog=program("pack_weights"), description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--weights",
        type=Path,
        nargs="+",
        help="weights.safetensors of a training run, or of several: their mean",
    )
    source.add_argument("--official", metavar="NETWORK", help="the authors' weights of a network")
    parser.add_argument("--output", type=Path, required=True, help="the file to write")
    parser.add_argument(
        "--trained_on", help="what they were trained on in all (default: what the last file says)"
    )
    parser.add_argument(
        "--eight_bits",
        action="store_true",
        help="large matrices and kernels in eight bits, which halves the file",
    )
    parser.add_argument("--licence", default="Apache-2.0", help="default: Apache-2.0")
    parser.add_argument("--note", default="", help="a line on the weights")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 if the file was written, 2 for bad input."""
    given = Namespace(**build_parser().parse(arguments))

    def job() -> int:
        from sfm_matchers.weights.packing import pack, pack_official

        if given.official:
            pack_official(given.official, given.output)
        else:
            pack(
                given.weights,
                given.output,
                trained_on=given.trained_on,
                eight_bits=given.eight_bits,
                licence=given.licence,
                note=given.note,
            )
        say(f"{given.output}: {given.output.stat().st_size / 1e6:.1f} MB")
        return 0

    return run_guarded(job)


if __name__ == "__main__":
    sys.exit(main())
