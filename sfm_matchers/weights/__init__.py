"""Where the numbers of the networks come from: registry, download, conversion, bundled weights."""

from sfm_matchers.weights.download import cache_dir, checkpoint_path, fetch
from sfm_matchers.weights.loading import (
    NETWORKS,
    features_of,
    find_weights,
    load_network,
    load_state_dict_file,
    save_bundled,
    weights_fingerprint,
)
from sfm_matchers.weights.registry import (
    BundledMetadata,
    Checkpoint,
    all_checkpoints,
    find_checkpoint,
    subject_name,
)

__all__ = [
    "NETWORKS",
    "BundledMetadata",
    "Checkpoint",
    "all_checkpoints",
    "cache_dir",
    "checkpoint_path",
    "features_of",
    "fetch",
    "find_checkpoint",
    "find_weights",
    "load_network",
    "load_state_dict_file",
    "save_bundled",
    "subject_name",
    "weights_fingerprint",
]
