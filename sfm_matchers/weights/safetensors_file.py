"""Weights as half-precision safetensors, without the library, so that a bare machine can train."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from sfm_matchers.errors import InputError
from sfm_matchers.files.replacing import replacing
from sfm_matchers.weights.precision import to_half, widened

_DTYPE_NAMES = {
    torch.float16: "F16",
    torch.float32: "F32",
    torch.int64: "I64",
    torch.int8: "I8",
}


def save_half_precision(
    state_dict: dict[str, Tensor], path: Path, metadata: dict[str, str]
) -> None:
    """Write a state dict in the safetensors format, in the precision of `to_half`.

    The format: length of the header (8 bytes, little endian), a JSON header with dtype, shape and
    byte range of each tensor, then the raw data.
    """
    header: dict[str, object] = {"__metadata__": metadata}
    chunks: list[bytes] = []
    position = 0
    for name, tensor in sorted(state_dict.items()):
        tensor = to_half(tensor.detach().cpu())
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
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        file.writelines(chunks)


def load_half_precision(path: Path) -> dict[str, Tensor]:
    """Read what `save_half_precision` wrote, or bundled weights; all comes back as float32.

    Raises:
        InputError: the file is damaged, or holds other types of numbers.
    """
    content = path.read_bytes()
    dtypes = {name: dtype for dtype, name in _DTYPE_NAMES.items()}
    try:
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        header.pop("__metadata__", None)
        state_dict = {}
        for name, entry in header.items():
            first, last = (start + offset for offset in entry["data_offsets"])
            data = torch.frombuffer(bytearray(content[first:last]), dtype=dtypes[entry["dtype"]])
            tensor = data.view(entry["shape"])
            state_dict[name] = tensor.float() if tensor.is_floating_point() else tensor
    except (ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"{path} is damaged, or no fp16 safetensors file") from error
    return widened(state_dict)
