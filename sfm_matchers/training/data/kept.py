"""What is computed once before a step needs it, and kept over the run and those that go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import safetensors.torch
from torch import Tensor

from sfm_matchers.files.replacing import replacing


class Kept:
    """Tensors that are made once and kept, in memory and in a folder.

    Args:
        folder: has a file for each key; None keeps them in memory alone.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._entries: dict[str, dict[str, Tensor]] = {}

    def get(self, key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the tensors of a key, made by `make` where there are none yet."""
        if key in self._entries:
            return self._entries[key]
        path = None if self.folder is None else self.folder / f"{key}.safetensors"
        if path is not None and path.is_file():
            entry = safetensors.torch.load_file(path)
        else:
            entry = {
                name: tensor.clone() for name, tensor in make().items()
            }  # a file shares nothing
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path) as temporary:
                    safetensors.torch.save_file(entry, temporary)
        self._entries[key] = entry
        return entry
