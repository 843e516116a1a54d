"""Weights in safetensors files: read as stored, written in half precision."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

from sfm_matchers.errors import WeightsError, one_line
from sfm_matchers.files.replacing import replacing
from sfm_matchers.weights.precision import to_half, widened


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file on the CPU: as stored, those in eight bits as float32.

    Raises:
        WeightsError: the file is absent or damaged.
    """
    try:
        return widened(safetensors.torch.load_file(path, device="cpu"))
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: no such file") from error
    except Exception as error:  # garbage can make a reader fail in any way
        raise WeightsError(f"{path}: damaged or not a checkpoint ({one_line(error)})") from error


def read_as_float32(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file, floating-point ones as float32: to train, or to take a mean.

    Raises:
        WeightsError: the file is absent or damaged.
    """
    tensors = read_safetensors(path)
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def save_half_precision(
    state_dict: Mapping[str, Tensor], path: Path, metadata: dict[str, str]
) -> None:
    """Write a state dict in the precision of `to_half`; the file appears whole."""
    halves = {key: to_half(tensor.detach().cpu()) for key, tensor in state_dict.items()}
    write_safetensors(halves, path, metadata)


def write_safetensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write tensors as they are; the file appears whole."""
    whole = {key: tensor.contiguous() for key, tensor in tensors.items()}
    with replacing(path) as temporary:
        safetensors.torch.save_file(whole, temporary, metadata=metadata)
        temporary.chmod(0o644)  # the library's files are their owner's alone
