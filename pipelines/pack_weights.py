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
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.command import run_guarded
from pipelines.options import Parser, program
from sfm_matchers.errors import InputError

if TYPE_CHECKING:
    from sfm_matchers.weights.registry import WeightsMetadata


def bundle(
    weights: Sequence[Path],
    output: Path,
    *,
    trained_on: str | None = None,
    eight_bits: bool = False,
    licence: str,
    note: str = "",
) -> None:
    """Write the weights of training runs, or their mean, with what the file is to say of itself.

    Args:
        weights: ``weights.safetensors`` of the runs.
        output: the file to write.
        trained_on: what they were trained on in all; what the last of the files says if None.
        eight_bits: see `save_bundled`.
        licence: under which the weights are given away.
        note: a line on them, shown where weights are listed.

    Raises:
        InputError: a file is missing or not one that training has written, or they are of several
            networks.
        WeightsError: it is damaged.
    """
    import torch

    from sfm_matchers.weights import save_bundled
    from sfm_matchers.weights.safetensors_file import read_as_float32

    metadata = [_metadata(path) for path in weights]
    state_dicts = [read_as_float32(path) for path in weights]
    shapes = [{name: tensor.shape for name, tensor in each.items()} for each in state_dicts]
    if any(each != shapes[0] for each in shapes):
        raise InputError(f"{weights[0]} and the others are not of one network")
    mean = {
        name: torch.stack([each[name] for each in state_dicts]).mean(0)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in state_dicts[-1].items()
    }
    measured = metadata[0].metrics if len(weights) == 1 else {}  # of no run is it the mean's
    described = replace(
        metadata[-1],
        trained_on=trained_on or metadata[-1].trained_on,
        metrics={name: round(v, 3) for name, v in measured.items() if "loss" not in name},
        licence=licence,
        note=note,
    )
    save_bundled(mean, output, described, eight_bits=eight_bits)


def bundle_official(name: str, output: Path) -> None:
    """Write the authors' weights of a network in half precision, under their licence.

    Args:
        name: a network with an official checkpoint in the registry.
        output: the file to write.

    Raises:
        InputError: there is none.
        WeightsError: it cannot be had.
    """
    from sfm_matchers.weights import (
        WeightsMetadata,
        fetch,
        find_checkpoint,
        load_state_dict_file,
        save_bundled,
    )

    checkpoint = find_checkpoint(f"{name}/official")
    if checkpoint is None:
        raise InputError(f"there are no official weights of {name!r}")
    described = WeightsMetadata(
        checkpoint.network,
        checkpoint.trained_on,
        steps=0,
        metrics={},
        features=checkpoint.features,
        licence=checkpoint.licence,
        note="the authors' weights, in half precision",
        config=checkpoint.config,
    )
    save_bundled(load_state_dict_file(fetch(checkpoint)), output, described)


def _metadata(weights: Path) -> WeightsMetadata:
    from sfm_matchers.weights.registry import WeightsMetadata

    if not weights.is_file():
        raise InputError(f"no file {weights}: give weights.safetensors of a training run")
    metadata = WeightsMetadata.from_file(weights)
    if metadata is None:
        raise InputError(
            f"{weights} does not say what it is: give what pipelines.train has written"
        )
    return metadata


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
        if given.official:
            bundle_official(given.official, given.output)
        else:
            bundle(
                given.weights,
                given.output,
                trained_on=given.trained_on,
                eight_bits=given.eight_bits,
                licence=given.licence,
                note=given.note,
            )
        print(f"{given.output}: {given.output.stat().st_size / 1e6:.1f} MB")
        return 0

    return run_guarded(job)


if __name__ == "__main__":
    sys.exit(main())
