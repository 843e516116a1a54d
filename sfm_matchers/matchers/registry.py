"""Which matchers there are, and how a conf becomes one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from importlib.metadata import entry_points
from typing import Any, Literal

import torch

from sfm_matchers.confs import (
    Conf,
    DetectorFreeConf,
    SparseConf,
    build,
    check_options,
)
from sfm_matchers.errors import InputError, WeightsError, about
from sfm_matchers.matchers import colmap_matching
from sfm_matchers.matchers.nearest_neighbor import NearestNeighborMatcher
from sfm_matchers.matchers.protocols import (
    DetectorFreeMatcher,
    SparseMatcher,
)
from sfm_matchers.networks.precision import default_precision
from sfm_matchers.networks.table import NETWORKS, resolve
from sfm_matchers.weights import load_network, weights_fingerprint
from sfm_matchers.weights.loading import check_weights

logger = logging.getLogger(__name__)


def _load_nearest_neighbor(conf: SparseConf, device: str) -> NearestNeighborMatcher:
    where = f"{conf.where}, model"
    return build(NearestNeighborMatcher, {**conf.options, "device": device}, where)


SPARSE_MATCHERS: dict[str, Callable[[SparseConf, str], SparseMatcher]] = {
    "nearest_neighbor": _load_nearest_neighbor,
    colmap_matching.NAME: lambda conf, device: colmap_matching.load(conf),
}
"""Those without a network; the others are in the table `NETWORKS`."""


def _load_network_matcher(conf: Conf, weights: str, device: str) -> Any:
    """Build the matcher of a network of the table.

    Raises:
        InputError: the network takes no such option.
        WeightsError: its weights cannot be loaded.
    """
    entry = NETWORKS[conf.matcher]
    options = check_options(resolve(entry.config), conf.options, f"{conf.where}, model")
    options = {"precision": default_precision(torch.device(device).type), **options}
    logger.info("%s computes in %s", conf.name, options["precision"])
    with about(conf.where):
        network = load_network(entry.name, weights, **options)
    return resolve(entry.matcher)(network, conf, device)


def load_sparse_matcher(conf: SparseConf, weights: str, device: str) -> SparseMatcher:
    """Build the matcher of a sparse conf.

    Raises:
        InputError: unknown matcher or option.
        WeightsError: its weights cannot be loaded.
    """
    if conf.matcher in SPARSE_MATCHERS:
        return SPARSE_MATCHERS[conf.matcher](conf, device)
    matcher: SparseMatcher = _loader(conf, "features", SPARSE_MATCHERS)(conf, weights, device)
    return matcher


def load_detector_free_matcher(
    conf: DetectorFreeConf, weights: str, device: str
) -> DetectorFreeMatcher:
    """Build the matcher of a detector-free conf.

    Raises:
        InputError: unknown matcher or option.
        WeightsError: its weights cannot be loaded.
    """
    matcher: DetectorFreeMatcher = _loader(conf, "images")(conf, weights, device)
    return matcher


Load = Callable[[Any, str, str], Any]
"""Returns the matcher of a conf, with weights, on a device; of the conf's kind."""

PLUGINS = "sfm_matchers.matchers"
"""Entry-point group: name of a matcher -> ``load(conf, weights, device)``, which returns a
`SparseMatcher` or a `DetectorFreeMatcher` as the conf is of either kind."""


def _loader(
    conf: Conf, takes: Literal["images", "features"], without_network: Collection[str] = ()
) -> Load:
    """The function that loads the matcher of a conf: a network of ours, or another package's.

    Raises:
        InputError: there is none of this name, or it cannot be imported.
    """
    name = conf.matcher
    networks = [entry.name for entry in NETWORKS.values() if entry.takes == takes]
    if name in networks:
        return _load_network_matcher
    plugins = {entry.name: entry for entry in entry_points(group=PLUGINS)}
    if name not in plugins:
        kind = "sparse" if takes == "features" else "detector-free"
        known = ", ".join([*networks, *without_network, *plugins])
        raise InputError(f"{conf.where}: unknown {kind} matcher {name!r}, there are {known}")
    try:
        load: Load = plugins[name].load()
    except (ImportError, AttributeError) as error:
        raise InputError(f"{conf.where}: matcher {name!r} cannot be loaded: {error}") from error
    return load


def check_matcher(conf: Conf, weights: str) -> None:
    """Look at a conf's matcher, its options and its weights, before anything takes time.

    Raises:
        InputError: unknown matcher or option.
        WeightsError: there are no such weights for it.
    """
    if isinstance(conf, SparseConf):
        if conf.matcher in SPARSE_MATCHERS:
            SPARSE_MATCHERS[conf.matcher](conf, "cpu")
            return
        load = _loader(conf, "features", SPARSE_MATCHERS)
    else:
        load = _loader(conf, "images")
    if load is not _load_network_matcher:
        return
    build(resolve(NETWORKS[conf.matcher].config), conf.options, f"{conf.where}, model")
    try:
        check_weights(conf.matcher, weights, conf.options.get("features"))
    except WeightsError as error:
        raise (WeightsError(f"{conf.file}: {error}") if conf.file else error) from error


def matcher_weights_fingerprint(conf: Conf, weights: str) -> str:
    """Return a fingerprint of the weights a conf would be run with; "" if it needs none."""
    if conf.matcher not in NETWORKS:
        return ""
    return weights_fingerprint(conf.matcher, weights, conf.options.get("features"))


def default_device(device: str = "auto") -> str:
    """Return the torch device a user's ``--device`` means; ``auto`` prefers CUDA, then MPS.

    Args:
        device: ``auto``, ``cpu``, ``mps``, ``cuda``, or ``cuda:1`` for the second GPU.

    Raises:
        InputError: the device is not there.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    available = {
        "cuda": gpus > 0,
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        return next(name for name, is_there in available.items() if is_there)
    kind, _, number = device.partition(":")
    is_one_of_several = kind == "cuda" and number.isdecimal() and int(number) < gpus
    if not (available.get(device, False) or is_one_of_several):
        there = [name for name, is_there in available.items() if is_there]
        there += [f"cuda:{index}" for index in range(gpus) if gpus > 1]
        raise InputError(f"device {device!r} is not available here, only: {', '.join(there)}")
    return device
