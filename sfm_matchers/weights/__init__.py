"""Where the numbers of the networks come from: registry, download, conversion, bundled weights."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sfm_matchers.weights.registry import (
    Checkpoint,
    WeightsMetadata,
    all_checkpoints,
    default_source,
    find_checkpoint,
    needs_weights,
    registered_checkpoint,
    subject_name,
)

if TYPE_CHECKING:
    from sfm_matchers.weights.download import cache_dir, checkpoint_path, fetch
    from sfm_matchers.weights.loading import (
        check_finite,
        find_weights,
        load_network,
        load_state_dict_file,
        save_bundled,
        weights_fingerprint,
    )

__all__ = [
    "Checkpoint",
    "WeightsMetadata",
    "all_checkpoints",
    "cache_dir",
    "check_finite",
    "checkpoint_path",
    "default_source",
    "fetch",
    "find_checkpoint",
    "find_weights",
    "load_network",
    "load_state_dict_file",
    "needs_weights",
    "registered_checkpoint",
    "save_bundled",
    "subject_name",
    "weights_fingerprint",
]

_OF_DOWNLOAD = ("cache_dir", "checkpoint_path", "fetch")


def __getattr__(name: str) -> Any:
    """Import what needs torch on first use: the registry answers without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "download" if name in _OF_DOWNLOAD else "loading"
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
