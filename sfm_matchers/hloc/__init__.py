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

import ast
import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfm_matchers.confs import DetectorFreeConf, SparseConf, conf_names, load_conf
from sfm_matchers.errors import MissingExtraError
from sfm_matchers.networks.table import NETWORKS
from sfm_matchers.weights import default_source, subject_name

INSTALL = "pip install git+https://github.com/cvg/Hierarchical-Localization"
FRONT_END_MODEL = "sfm_matchers_features"


def register() -> None:
    """Make our matchers, front-ends and confs known to hloc; may be called again.

    A conf of the user's, or of hloc's, with the name of one of ours stays as it is. Of hloc's own
    functions two are changed: `run_reconstruction` and `run_triangulation` work on pycolmap 4.2.1
    too, see `two_view_geometries`.

    Raises:
        MissingExtraError: hloc, or something it needs, is not installed.
    """
    if not is_installed():
        raise MissingExtraError(f"hloc is not installed: {INSTALL}")
    for package in ("matchers", "extractors"):
        path = _import(package).__path__
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
    from sfm_matchers.hloc.two_view_geometries import complete_before

    for module in ("reconstruction", "triangulation"):
        complete_before(_import(module), f"run_{module}")


def is_installed() -> bool:
    """True if hloc can be found; it is not imported."""
    return _folder() is not None


def _folder() -> Path | None:
    """Where hloc lies; a folder or a module that is only called so does not count."""
    found = importlib.util.find_spec("hloc")
    is_package = found is not None and found.submodule_search_locations is not None
    return Path(found.origin).parent if found and is_package and found.origin else None


def names_in_hloc(module: str) -> list[str]:
    """Names of the confs that hloc's own `module` holds; none if hloc is not installed.

    They are read from its source: to import hloc takes seconds.
    """
    folder = _folder()
    source = (folder / f"{module}.py").read_text("utf-8") if folder else ""
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            names = [ast.literal_eval(key) for key in statement.value.keys if key is not None]
            if ast.unparse(statement.targets[0]) == "confs":
                return names
    return []


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
        front_end = conf.features
        found[front_end.output.removeprefix("feats-")] = {
            "output": front_end.output,
            "model": {"name": FRONT_END_MODEL, "front_end": front_end.name, **front_end.options},
            "preprocessing": {
                "grayscale": False,
                "resize_max": front_end.preprocessing.resize_max,
            },
        }
    return found


def sparse_confs() -> dict[str, dict[str, Any]]:
    """Our sparse matchers as hloc's confs of `match_features`."""
    return {
        conf.name: {
            "output": conf.output,
            "model": {
                "weights": default_weights(conf.model),
                "resize_max": conf.features.preprocessing.resize_max,
                **conf.model,
            },
        }
        for conf in _confs(SparseConf)
        if conf.matcher in NETWORKS
    }


def dense_confs() -> dict[str, dict[str, Any]]:
    """Our detector-free matchers as hloc's confs of `match_dense`."""
    found = {}
    for conf in _confs(DetectorFreeConf):
        network = NETWORKS[conf.matcher]
        found[conf.name] = {
            "output": conf.output,
            "model": {
                "weights": default_weights(conf.model),
                "quarter_turns": conf.preprocessing.quarter_turns,
                "least_squares_matching": conf.preprocessing.least_squares_matching,
                "max_num_matches": None,
                **conf.model,
            },
            "preprocessing": {
                "grayscale": network.gray,
                "resize_max": conf.preprocessing.resize_max,
                "dfactor": network.size_multiple,
            },
            "max_error": conf.max_error,
            "cell_size": conf.cell_size,
        }
    return found


def default_weights(model: Mapping[str, Any]) -> str:
    """The weights of a ``model`` conf where none are named: bundled ones, else the authors'."""
    return default_source(subject_name(model["name"], model.get("features")))


def _confs(kind: type) -> list[Any]:
    return [conf for conf in map(load_conf, conf_names()) if isinstance(conf, kind)]
