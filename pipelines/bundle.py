"""Make a file of weights to ship of what a training run has written.

    python -m pipelines.bundle --weights RUN/weights.safetensors --output jamma.safetensors

The package loads such a file by default if it lies among the bundled ones; `--weights FILE` of any
command takes it too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipelines.command import run_guarded
from sfm_matchers.errors import InputError


def bundle(
    weights: Path, output: Path, *, eight_bits: bool = False, licence: str, note: str = ""
) -> None:
    """Write the weights of a training run with what the file is to say of itself.

    Args:
        weights: ``weights.safetensors`` of the run.
        output: the file to write.
        eight_bits: see `save_bundled`.
        licence: under which the weights are given away.
        note: a line on them, shown where weights are listed.

    Raises:
        InputError: the file is missing, or not one that training has written.
        WeightsError: its header is damaged.
    """
    from sfm_matchers.training.export import load_half_precision
    from sfm_matchers.weights import save_bundled
    from sfm_matchers.weights.registry import WeightsMetadata

    if not weights.is_file():
        raise InputError(f"no file {weights}: give weights.safetensors of a training run")
    metadata = WeightsMetadata.from_file(weights)
    if metadata is None:
        raise InputError(
            f"{weights} does not say what it is: give what pipelines.train has written"
        )
    metrics = {name: round(v, 3) for name, v in metadata.metrics.items() if "loss" not in name}
    metadata = replace(metadata, metrics=metrics, licence=licence, note=note)
    save_bundled(load_half_precision(weights), output, metadata, eight_bits=eight_bits)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--weights", type=Path, required=True, help="weights.safetensors of a training run"
    )
    parser.add_argument("--output", type=Path, required=True, help="the file to write")
    parser.add_argument(
        "--eight_bits",
        action="store_true",
        help="large matrices and kernels in eight bits, which halves the file",
    )
    parser.add_argument("--licence", default="Apache-2.0", help="default: Apache-2.0")
    parser.add_argument("--note", default="", help="a line on the weights")
    given = parser.parse_args(arguments)

    def job() -> int:
        bundle(
            given.weights,
            given.output,
            eight_bits=given.eight_bits,
            licence=given.licence,
            note=given.note,
        )
        print(f"{given.output}: {given.output.stat().st_size / 1e6:.1f} MB")
        return 0

    return run_guarded(job)


if __name__ == "__main__":
    sys.exit(main())
