"""Which matchers there are, and how a conf becomes one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, cast

import torch

from sfm_matchers.confs import (
    Conf,
    DetectorFreeConf,
    SparseConf,
    build,
    check_options,
)
from sfm_matchers.errors import InputError
from sfm_matchers.matchers import colmap_matching
from sfm_matchers.matchers.efficient_loftr import EfficientLoFTRMatcher
from sfm_matchers.matchers.jamma import JamMaMatcher
from sfm_matchers.matchers.mambaglue import MambaGlueMatcher
from sfm_matchers.matchers.nearest_neighbor import NearestNeighborMatcher
from sfm_matchers.matchers.protocols import (
    DetectorFreeMatcher,
    SparseMatcher,
)
from sfm_matchers.networks.efficient_loftr import (
    EfficientLoFTR,
    EfficientLoFTRConfig,
)
from sfm_matchers.networks.jamma import JamMa, JamMaConfig
from sfm_matchers.networks.mambaglue import MambaGlue, MambaGlueConfig
from sfm_matchers.networks.precision import default_precision
from sfm_matchers.weights import (
    NETWORKS,
    features_of,
    find_weights,
    load_network,
    weights_fingerprint,
)

logger = logging.getLogger(__name__)


def _load_nearest_neighbor(conf: SparseConf, weights: str, device: str) -> NearestNeighborMatcher:
    where = f"conf {conf.name}, model"
    return cast(
        NearestNeighborMatcher,
        build(NearestNeighborMatcher, {**conf.options, "device": device}, where),
    )


def _load_mambaglue(conf: SparseConf, weights: str, device: str) -> MambaGlueMatcher:
    network = load_network("mambaglue", weights, **_network_options(conf, MambaGlueConfig, device))
    resize_max = conf.features.preprocessing.resize_max
    return MambaGlueMatcher(cast(MambaGlue, network).fuse(), device, resize_max)


def _network_options(conf: Conf, config_type: type, device: str) -> dict[str, Any]:
    """Return a conf's model options as keywords of a network's config, with the precision.

    Raises:
        InputError: the network takes no such option.
    """
    options = check_options(config_type, conf.options, f"conf {conf.name}, model")
    options = {"precision": default_precision(torch.device(device).type), **options}
    logger.info("%s computes in %s", conf.name, options["precision"])
    return options


SPARSE_MATCHERS: dict[str, Callable[[SparseConf, str, str], SparseMatcher]] = {
    "nearest_neighbor": _load_nearest_neighbor,
    colmap_matching.NAME: lambda conf, weights, device: colmap_matching.load(conf),
    "mambaglue": _load_mambaglue,
}


def load_sparse_matcher(conf: SparseConf, weights: str, device: str) -> SparseMatcher:
    """Build the matcher of a sparse conf.

    Raises:
        InputError: unknown matcher or option.
        WeightsError: its weights cannot be loaded.
    """
    return _loader(conf, SPARSE_MATCHERS, "sparse")(conf, weights, device)


def _load_jamma(conf: DetectorFreeConf, weights: str, device: str) -> JamMaMatcher:
    network = load_network("jamma", weights, **_network_options(conf, JamMaConfig, device))
    checkpoint = find_weights("jamma", weights).checkpoint
    is_official = checkpoint is not None and checkpoint.source == "official"
    resize_max = conf.preprocessing.resize_max
    return JamMaMatcher(cast(JamMa, network), resize_max, device, pad_to_square=is_official)


def _load_efficient_loftr(
    conf: DetectorFreeConf, weights: str, device: str
) -> EfficientLoFTRMatcher:
    network = load_network(
        "eloftr", weights, **_network_options(conf, EfficientLoFTRConfig, device)
    )
    resize_max = conf.preprocessing.resize_max
    return EfficientLoFTRMatcher(cast(EfficientLoFTR, network), resize_max, device)


DETECTOR_FREE_MATCHERS: dict[str, Callable[[DetectorFreeConf, str, str], DetectorFreeMatcher]] = {
    "jamma": _load_jamma,
    "eloftr": _load_efficient_loftr,
}


def load_detector_free_matcher(
    conf: DetectorFreeConf, weights: str, device: str
) -> DetectorFreeMatcher:
    """Build the matcher of a detector-free conf.

    Raises:
        InputError: unknown matcher or option.
        WeightsError: its weights cannot be loaded.
    """
    return _loader(conf, DETECTOR_FREE_MATCHERS, "detector-free")(conf, weights, device)


PLUGINS = "sfm_matchers.matchers"
"""Entry-point group: name of a matcher -> ``load(conf, weights, device)``, which returns a
`SparseMatcher` or a `DetectorFreeMatcher` as the conf is of either kind."""


def _loader(conf: Conf, own: Mapping[str, Callable[..., Any]], kind: str) -> Callable[..., Any]:
    """The function that loads the matcher of a conf: one of ours, or another package's.

    Raises:
        InputError: there is none of this name, or it cannot be imported.
    """
    name = conf.matcher
    if name in own:
        return own[name]
    plugins = {entry.name: entry for entry in entry_points(group=PLUGINS)}
    if name not in plugins:
        known = ", ".join([*own, *plugins])
        raise InputError(f"conf {conf.name}: unknown {kind} matcher {name!r}, there are {known}")
    try:
        return cast(Callable[..., Any], plugins[name].load())
    except (ImportError, AttributeError) as error:
        raise InputError(f"conf {conf.name}: matcher {name!r} cannot be loaded: {error}") from error


def matcher_weights_fingerprint(conf: Conf, weights: str) -> str:
    """Return a fingerprint of the weights a conf would be run with; "" if it needs none."""
    name = conf.matcher
    if name not in NETWORKS:
        return ""
    return weights_fingerprint(name, weights, features_of(name, conf.model.get("features")))


def default_device(device: str = "auto") -> str:
    """Return the torch device a user's ``--device`` means; ``auto`` prefers CUDA, then MPS.

    Raises:
        InputError: the device is not there.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        return next(name for name, is_there in available.items() if is_there)
    if not available.get(device, False):
        there = ", ".join(name for name, is_there in available.items() if is_there)
        raise InputError(f"device {device!r} is not available here, only: {there}")
    return device
