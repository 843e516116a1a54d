"""Files of weights to ship, made of what a training has written or of others' weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from sfm_matchers.errors import InputError
from sfm_matchers.weights.download import fetch
from sfm_matchers.weights.loading import load_state_dict_file, save_bundled
from sfm_matchers.weights.registry import WeightsMetadata, find_checkpoint
from sfm_matchers.weights.safetensors_file import read_as_float32


def pack(
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


def pack_official(name: str, output: Path) -> None:
    """Write the authors' weights of a network in half precision, under their licence.

    Args:
        name: a network with an official checkpoint in the registry.
        output: the file to write.

    Raises:
        InputError: there is none.
        WeightsError: it cannot be had.
    """
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
    if not weights.is_file():
        raise InputError(f"no file {weights}: give weights.safetensors of a training run")
    metadata = WeightsMetadata.from_file(weights)
    if metadata is None:
        raise InputError(
            f"{weights} does not say what it is: give what pipelines.train has written"
        )
    return metadata
