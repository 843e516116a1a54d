"""From hloc's confs of models to ours; used by the modules that hloc imports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..confs import DetectorFreeConf, SparseConf
from ..matchers import (
    Matches,
    load_detector_free_matcher,
    load_sparse_matcher,
)


def load_sparse(conf: Mapping[str, Any]) -> Any:
    """Load the sparse matcher of a ``model`` conf of hloc's `match_features`."""
    options = dict(conf)
    weights, resize_max = options.pop("weights"), options.pop("resize_max")
    preprocessing = {} if resize_max is None else {"resize_max": resize_max}
    ours = SparseConf(options["name"], {"preprocessing": preprocessing}, "", options)
    return load_sparse_matcher(ours, weights, "cpu")


def load_detector_free(conf: Mapping[str, Any]) -> Any:
    """Load the detector-free matcher of a ``model`` conf of hloc's `match_dense`."""
    options = {k: v for k, v in conf.items() if k not in ("weights", "max_num_matches")}
    ours = DetectorFreeConf(options["name"], "", options, 1.0, 1.0)
    return load_detector_free_matcher(ours, conf["weights"], "cpu")


def to_prediction(matches: Matches, max_num_matches: int | None) -> dict[str, torch.Tensor]:
    """Matches as hloc's `match_dense` wants them, the surest first where they are limited."""
    if max_num_matches is not None:
        best = (-matches.scores).argsort(kind="stable")[:max_num_matches]
        matches = matches.select(best)
    return {
        "keypoints0": torch.from_numpy(matches.keypoints0),
        "keypoints1": torch.from_numpy(matches.keypoints1),
        "scores": torch.from_numpy(matches.scores),
    }
