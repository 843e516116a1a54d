"""The plugin for hloc: our matchers and front-ends as hloc's own.

    >>> from sfm_matchers.hloc import register    # doctest: +SKIP
    >>> register()                                # doctest: +SKIP
    >>> from hloc import match_dense              # doctest: +SKIP
    >>> match_dense.main(match_dense.confs["jamma"], pairs, images, outputs)    # doctest: +SKIP

hloc finds a model by importing ``hloc.matchers.<name>`` and has no hook for other packages. So
`register` adds the folders `matchers` and `extractors` beside this file to the search paths of
hloc's two packages; the modules in them are then imported as hloc's, and only then.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from pathlib import Path
from typing import Any

from ..confs import DetectorFreeConf, SparseConf, conf_names, load_conf
from ..errors import MissingExtraError

logger = logging.getLogger(__name__)

INSTALL = "pip install git+https://github.com/cvg/Hierarchical-Localization"
FRONT_END_MODEL = "sfm_matchers_features"
MATCHERS_OF_OURS = ("mambaglue", "jamma", "eloftr")
# Network, whether its images are gray, and what their sides must be a multiple of.
PIXELS = {"jamma": (False, 16), "eloftr": (True, 32)}


def register() -> None:
    """Make our matchers, front-ends and confs known to hloc; may be called again.

    A conf of the user's, or of hloc's, with the name of one of ours stays as it is.

    Raises:
        MissingExtraError: hloc, or something it needs, is not installed.
    """
    if not is_installed():
        raise MissingExtraError(f"hloc is not installed: {INSTALL}")
    for package in ("matchers", "extractors"):
        path = importlib.import_module(f"hloc.{package}").__path__
        folder = str(Path(__file__).with_name(package))
        if folder not in path:
            path.append(folder)
    tables = {
        "extract_features": extractor_confs(),
        "match_features": sparse_confs(),
        "match_dense": dense_confs(),
    }
    for module, ours in tables.items():
        confs = _import(module).confs
        for name, conf in ours.items():
            confs.setdefault(name, conf)


def is_installed() -> bool:
    """True if hloc can be found; it is not imported."""
    return importlib.util.find_spec("hloc") is not None


def _import(module: str) -> Any:
    try:
        return importlib.import_module(f"hloc.{module}")
    except ImportError as error:
        raise MissingExtraError(
            f"hloc.{module} cannot be imported: {error}; install what hloc needs: {INSTALL}"
        ) from error


def extractor_confs() -> dict[str, dict[str, Any]]:
    """Our front-ends as hloc's confs of `extract_features`, by the stem of their output."""
    found = {}
    for conf in _confs(SparseConf):
        options = dict(conf.features["model"])
        front_end = options.pop("name")
        found[conf.features["output"].removeprefix("feats-")] = {
            "output": conf.features["output"],
            "model": {"name": FRONT_END_MODEL, "front_end": front_end, **options},
            "preprocessing": {
                "grayscale": False,
                "resize_max": conf.features.get("preprocessing", {}).get("resize_max"),
            },
        }
    return found


def sparse_confs() -> dict[str, dict[str, Any]]:
    """Our sparse matchers as hloc's confs of `match_features`."""
    return {
        conf.name: {
            "output": conf.output,
            "model": {
                "weights": "bundled",
                "resize_max": conf.features.get("preprocessing", {}).get("resize_max"),
                **conf.model,
            },
        }
        for conf in _confs(SparseConf)
        if conf.model["name"] in MATCHERS_OF_OURS
    }


def dense_confs() -> dict[str, dict[str, Any]]:
    """Our detector-free matchers as hloc's confs of `match_dense`."""
    found = {}
    for conf in _confs(DetectorFreeConf):
        grayscale, multiple = PIXELS[conf.model["name"]]
        found[conf.name] = {
            "output": conf.output,
            "model": {"weights": "bundled", "max_num_matches": None, **conf.model},
            "preprocessing": {
                "grayscale": grayscale,
                "resize_max": conf.preprocessing.get("resize_max"),
                "dfactor": multiple,
            },
            "max_error": conf.max_error,
            "cell_size": conf.cell_size,
        }
    return found


def _confs(kind: type) -> list[Any]:
    return [conf for conf in map(load_conf, conf_names()) if isinstance(conf, kind)]
