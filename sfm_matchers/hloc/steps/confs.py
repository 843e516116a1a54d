"""The confs that the steps take, ours and hloc's. Imports nothing heavy."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from sfm_matchers.confs import (
    Conf,
    DetectorFreeConf,
    FrontEnd,
    SparseConf,
    conf_names,
    load_conf,
)
from sfm_matchers.errors import InputError
from sfm_matchers.hloc import INSTALL, is_installed, names_in_hloc, register
from sfm_matchers.weights import all_checkpoints, needs_weights, subject_name

KINDS = {
    "extract_features": "local or global features, images",
    "match_features": "sparse, features",
    "match_dense": "detector-free, images",
}


def our_conf(name: str) -> Conf | None:
    """One of our confs, or one of the user's in a YAML file; None for hloc's."""
    is_ours = name in conf_names() or name.endswith((".yaml", ".yml"))
    return load_conf(name) if is_ours else None


def our_features(name: str) -> FrontEnd | None:
    """The features of the conf whose output, or which itself, is called so; None for hloc's.

    Raises:
        InputError: the conf has none: it matches images.
    """
    for conf in map(load_conf, conf_names()):
        if isinstance(conf, SparseConf) and conf.features.output == f"feats-{name}":
            return conf.features
    named = our_conf(name)
    if isinstance(named, DetectorFreeConf):
        raise InputError(f"{name} matches images and has no features: run hloc match_dense")
    return named.features if named else None


def conf_of_hloc(step: str, name: str) -> Mapping[str, Any]:
    """One of hloc's own confs.

    Raises:
        InputError: hloc has none of this name, or is not installed.
        MissingExtraError: something that hloc needs is not installed.
    """
    if name in names_in_hloc(step):
        register()
        return dict(importlib.import_module(f"hloc.{step}").confs[name])
    ours = _our_lines()
    names = [*ours[step], *(ours["match_dense"] if step == "match_features" else [])]
    known = ", ".join(dict.fromkeys([*names, *names_in_hloc(step)]))
    hint = "" if is_installed() else f"; hloc's own confs need {INSTALL}"
    raise InputError(f"{step}: no conf {name!r}; there are {known}{hint}")


def run_hloc(step: str, name: str, *arguments: Any, **options: Any) -> None:
    """Run a step through hloc, with a conf of its own."""
    importlib.import_module(f"hloc.{step}").main(conf_of_hloc(step, name), *arguments, **options)


def conf_table() -> str:
    """The confs, a line each: kind, input, licence of the weights."""
    lines = []
    for step, ours in _our_lines().items():
        title = "match_dense, or match_features with --image_dir" if step == "match_dense" else step
        lines += [f"{title} --conf:", *(f"  {name:24s}{text}" for name, text in ours.items())]
        theirs = [name for name in names_in_hloc(step) if name not in ours]
        lines += [f"  {name:24s}{KINDS[step]}, hloc's own; weights: see hloc" for name in theirs]
    return "\n".join(lines)


def _our_lines() -> dict[str, dict[str, str]]:
    """Step -> name of a conf of ours -> what it is."""
    lines: dict[str, dict[str, str]] = {step: {} for step in KINDS}
    for conf in map(load_conf, conf_names()):
        licences = _licences(subject_name(conf.matcher, conf.model.get("features")))
        if isinstance(conf, DetectorFreeConf):
            lines["match_dense"][conf.name] = f"detector-free, images; weights: {licences}"
            continue
        output, front_end = conf.features.output, conf.features.name
        of_features = _licences(front_end)
        name = output.removeprefix("feats-")
        lines["extract_features"][name] = f"{front_end}, images; weights: {of_features}"
        if needs_weights(front_end):
            licences += f"; of {front_end}: {of_features}"
        lines["match_features"][conf.name] = f"sparse, {output}; weights: {licences}"
    return lines


def _licences(subject: str) -> str:
    if not needs_weights(subject):
        return "none"
    found = [entry for entry in all_checkpoints() if entry.subject == subject]
    return ", ".join(f"{entry.source} ({entry.licence})" for entry in found) or "a file of yours"
