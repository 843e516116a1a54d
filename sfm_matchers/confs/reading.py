"""From a YAML file to a conf.

Those of the package lie in ``configs``; a user's own have the same form. A mistyped key is an error
that names the key that was probably meant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import yaml

from sfm_matchers.confs.options import check_keys, suggestion
from sfm_matchers.confs.types import (
    Conf,
    DetectorFreeConf,
    DetectorFreePreprocessing,
    FrontEnd,
    Preprocessing,
    SparseConf,
)
from sfm_matchers.errors import InputError, one_line
from sfm_matchers.files.names import name_fault

# A wheel has them inside the package, a checkout beside it.
CONF_DIR = next(
    folder
    for folder in (parent / "configs" for parent in Path(__file__).parents[1:3])
    if folder.is_dir()
)

# Of a conf file; those of the package have a tenth of each.
MAX_LETTERS = 1 << 16
MAX_VALUES = 1000
MAX_DEPTH = 10
MAX_STEM = 100  # letters of `output`, to which names of lists are added
MAX_SIDE = 1 << 16  # pixels
PROBABILITIES = ("coarse_threshold", "fine_threshold", "filter_threshold")  # thresholds of them
MAX_LENGTH = 1000  # pixels, of `max_error` and `cell_size`


# Of each key: its type, and what to call it.
_NUMBER = (int | float, "a number")
_PART = (dict, "keys and values")
_TYPES: dict[str, tuple[Any, str]] = {
    "output": (str, "text"),
    "features": _PART,
    "model": _PART,
    "preprocessing": _PART,
    "max_error": _NUMBER,
    "cell_size": _NUMBER,
    "min_inlier_ratio": (int | float, "a share, 0 to 1"),
    "max_keypoints": (int | None, "a whole number, or null"),
    "refine_keypoints": (bool, "true or false"),
}

_KINDS: dict[str, type[SparseConf] | type[DetectorFreeConf]] = {
    "sparse": SparseConf,
    "detector_free": DetectorFreeConf,
}


def conf_names() -> list[str]:
    """Return the names of all confs that come with the package."""
    return sorted(path.stem for path in CONF_DIR.glob("*.yaml"))


def load_conf(name: str) -> Conf:
    """Load a conf by name, in letters of any case, or from a YAML file of the user's.

    Raises:
        InputError: there is no such conf, or it has an unknown, missing or ill-typed key.
    """
    is_file = name.endswith((".yaml", ".yml"))
    path = Path(name) if is_file else CONF_DIR / f"{name.lower()}.yaml"
    if not is_file and name.lower() not in conf_names():
        raise InputError(f"unknown matcher {name!r}{suggestion(name, conf_names())}")
    try:
        if not path.is_file():  # a pipe would never answer
            raise InputError(f"{path} is no conf file; there are {', '.join(conf_names())}")
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_LETTERS + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file in UTF-8") from error
    if len(text) > MAX_LETTERS:
        raise InputError(f"{path} is no conf: it has more than {MAX_LETTERS} letters")
    try:
        content = yaml.load(text, _UniqueKeys)  # a safe loader
    except (yaml.YAMLError, ValueError, RecursionError, AttributeError, TypeError) as error:
        raise InputError(f"{path} is not valid YAML: {one_line(error)}") from error
    return parse_conf(path.stem, content, str(path) if is_file else "")


class _UniqueKeys(yaml.SafeLoader):
    """YAML wants each key once; PyYAML takes the last of several in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark
                )
            keys.add(str(key.value))
        return super().construct_mapping(node, deep)


def parse_conf(name: str, content: Any, file: str) -> Conf:
    """Turn the content of a conf file into a conf.

    Args:
        name: of the conf.
        content: keys and values.
        file: that messages name; "" for none.

    Raises:
        InputError: it has an unknown, missing or ill-typed key.
    """
    where = file or f"conf {name}"
    if not isinstance(content, dict):
        raise InputError(f"{where}: expected keys and values")
    _check_plain(content, where)
    content = dict(content)
    kind = content.pop("kind", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise InputError(f"{where}: 'kind' must be one of {', '.join(_KINDS)}, found {kind!r}")
    conf_type = _KINDS[kind]
    allowed = [item.name for item in fields(conf_type) if item.name not in ("name", "file")]
    check_keys(content, allowed, where)
    for item in fields(conf_type):
        if item.name in allowed and item.default is MISSING and item.name not in content:
            raise InputError(f"{where}: {item.name!r} is missing")
    # A sparse conf's own preprocessing is no key, so that only its features have one.
    _check_part(content, where, DetectorFreePreprocessing)
    _check_output(content, "matches-", where)
    if conf_type is DetectorFreeConf:
        if "preprocessing" in content:
            content["preprocessing"] = DetectorFreePreprocessing(**content["preprocessing"])
        return DetectorFreeConf(name=name, file=file, **content)
    content["features"] = _front_end(content["features"], where, file)
    return SparseConf(name=name, file=file, **content)


def _front_end(features: Mapping[str, Any], where: str, file: str) -> FrontEnd:
    """Turn the ``features`` of a conf, hloc's conf of `extract_features`, into a front-end."""
    where = f"{where}, features"
    check_keys(features, ["output", "model", "preprocessing"], where)
    for key in ("output", "model"):
        if key not in features:
            raise InputError(f"{where}: {key!r} is missing")
    _check_part(features, where, Preprocessing)
    _check_output(features, "feats-", where)
    options = dict(features["model"])
    front_end = FrontEnd(options.pop("name"), options, features["output"], file=file)
    if "preprocessing" in features:
        return replace(front_end, preprocessing=Preprocessing(**features["preprocessing"]))
    return front_end


def _check_plain(content: Any, where: str, budget: int = MAX_VALUES, depth: int = 0) -> int:
    """Check that a conf is text, numbers, truths, lists and keys; return what is left of `budget`.

    YAML has other values too, and names for parts, by which few lines can become billions.
    """
    budget -= 1
    if budget < 0 or depth > MAX_DEPTH:
        raise InputError(f"{where}: more than {MAX_VALUES} values, or {MAX_DEPTH} in one another")
    if isinstance(content, dict):
        for key, value in content.items():
            if not isinstance(key, str):
                raise InputError(f"{where}: the key {key!r} is not text: put it in quotes")
            budget = _check_plain(value, where, budget, depth + 1)
    elif isinstance(content, list):
        for value in content:
            budget = _check_plain(value, where, budget, depth + 1)
    elif isinstance(content, float) and not math.isfinite(content):
        raise InputError(f"{where}: {content} is not a finite number")
    elif isinstance(content, int) and abs(content) >= 1 << 31:
        raise InputError(f"{where}: a number is too large")
    elif not isinstance(content, str | int | float | None):
        raise InputError(f"{where}: {one_line(str(content))!r} is neither text nor a number")
    return budget


def _check_part(
    content: Mapping[str, Any],
    where: str,
    preprocessing_type: type[Preprocessing] | type[DetectorFreePreprocessing],
) -> None:
    """Check the types of values, and the parts that a conf and its features both have."""
    for key, value in content.items():
        expected, description = _TYPES[key]
        if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
            raise InputError(f"{where}: {key!r} must be {description}, found {value!r}")
    if "model" in content and not isinstance(content["model"].get("name"), str):
        raise InputError(f"{where}, model: 'name' must be given, as text")
    for key in PROBABILITIES:
        value = content.get("model", {}).get(key, 0)
        if isinstance(value, int | float) and not value < 1:
            raise InputError(f"{where}, model: {key!r} is {value!r}, but no score is above 1")
    if not 0 <= (share := content.get("min_inlier_ratio", 0)) <= 1:
        raise InputError(f"{where}: 'min_inlier_ratio' must be a share, 0 to 1, found {share!r}")
    for key in ("max_error", "cell_size"):
        if not 0 <= (length := content.get(key, 0)) <= MAX_LENGTH:
            raise InputError(f"{where}: {key!r} must be 0 to {MAX_LENGTH} pixels, found {length!r}")
    if "preprocessing" in content:
        _check_preprocessing(content["preprocessing"], where, preprocessing_type)


def _check_preprocessing(
    preprocessing: Mapping[str, Any],
    where: str,
    preprocessing_type: type[Preprocessing] | type[DetectorFreePreprocessing],
) -> None:
    defaults = {item.name: item.default for item in fields(preprocessing_type)}
    check_keys(preprocessing, defaults, f"{where}, preprocessing")
    for key, value in preprocessing.items():
        if isinstance(defaults[key], bool):
            if not isinstance(value, bool):
                raise InputError(f"{where}: {key!r} must be true or false, found {value!r}")
        elif value is None and defaults[key] is not None:
            raise InputError(f"{where}: {key!r} must be a number of pixels, found null")
        elif value is not None and not (type(value) is int and 0 < value <= MAX_SIDE):
            raise InputError(f"{where}: {key!r} must be a number of pixels, found {value!r}")


def _check_output(content: Mapping[str, Any], beginning: str, where: str) -> None:
    """Check a stem that the names of other files are made of, and by which a run knows its own."""
    stem = content.get("output", beginning)
    is_name = name_fault(stem) is None and not set(stem) & set("/\\") and len(stem) <= MAX_STEM
    if not stem.startswith(beginning) or not is_name:
        raise InputError(
            f"{where}: 'output' must be a name that begins with {beginning!r}, found {stem!r}"
        )
