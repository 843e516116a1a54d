"""From hloc's confs of models to our matchers; used by the modules that hloc imports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sfm_matchers.confs import DetectorFreeConf, FrontEnd, Preprocessing, SparseConf
from sfm_matchers.hloc import default_weights
from sfm_matchers.matchers.registry import load_detector_free_matcher, load_sparse_matcher

# Options of a detector-free model; all others are its network's.
DETECTOR_FREE_DEFAULTS = {
    "weights": None,
    "quarter_turns": False,
    "least_squares_matching": False,
    "max_num_matches": None,
}


def hloc_device() -> str:
    """The device to which hloc moves its models; precision is chosen for it."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_sparse(conf: Mapping[str, Any]) -> Any:
    """Load the sparse matcher of a ``model`` conf of hloc's `match_features`."""
    options = dict(conf)
    weights = options.pop("weights") or default_weights(conf)
    resize_max = options.pop("resize_max")
    front_end = FrontEnd("", preprocessing=Preprocessing(resize_max))
    ours = SparseConf(options["name"], "", options, front_end)
    return load_sparse_matcher(ours, weights, hloc_device())


def load_detector_free(conf: Mapping[str, Any]) -> Any:
    """Load the detector-free matcher of a ``model`` conf of hloc's `match_dense`."""
    options = {k: v for k, v in conf.items() if k not in DETECTOR_FREE_DEFAULTS}
    weights = conf["weights"] or default_weights(conf)
    ours = DetectorFreeConf(options["name"], "", options, 1.0, 1.0)
    return load_detector_free_matcher(ours, weights, hloc_device())
