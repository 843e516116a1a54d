"""Weights as fp16 safetensors, written without the library so that a bare machine can train."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from torch import Tensor

_DTYPE_NAMES = {torch.float16: "F16", torch.int64: "I64"}


def save_half_precision(
    state_dict: dict[str, Tensor], path: Path, metadata: dict[str, str]
) -> None:
    """Write a state dict in the safetensors format, floating-point tensors as fp16.

    The format: length of the header (8 bytes, little endian), a JSON header with dtype, shape and
    byte range of each tensor, then the raw data.
    """
    header: dict[str, object] = {"__metadata__": metadata}
    chunks: list[bytes] = []
    position = 0
    for name, tensor in sorted(state_dict.items()):
        tensor = tensor.detach().cpu()
        tensor = tensor.half() if tensor.is_floating_point() else tensor.long()
        data = tensor.contiguous().numpy().tobytes()
        header[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, position + len(data)],
        }
        chunks.append(data)
        position += len(data)
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    temporary = path.with_suffix(path.suffix + ".tmp")
    with temporary.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        file.writelines(chunks)
    os.replace(temporary, path)
