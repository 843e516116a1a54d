"""Named confs in hloc's schema: which front-end, which matcher, which options.

A conf is a YAML file in ``sfm_matchers/configs``, or any other YAML file of the same form. A
mistyped key is an error that names the key that was probably meant.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from sfm_matchers.choices import QUALITIES
from sfm_matchers.errors import InputError, one_line
from sfm_matchers.files.names import name_fault

# A wheel has them inside the package, a checkout beside it.
CONF_DIR = next(
    folder
    for folder in (Path(__file__).parent / "configs", Path(__file__).parents[1] / "configs")
    if folder.is_dir()
)

# Of a conf file; those of the package have a tenth of each.
MAX_LETTERS = 1 << 16
MAX_VALUES = 1000
MAX_DEPTH = 10
MAX_STEM = 100  # letters of `output`, to which names of lists are added
MAX_SIDE = 1 << 16  # pixels
DEFAULT_RESIZE = 832  # pixels, of detector-free confs that name no size; the networks' papers
MAX_LENGTH = 1000  # pixels, of `max_error` and `cell_size`


@dataclass(frozen=True)
class SparseConf:
    """Keypoints and descriptors first, then matches between descriptors.

    Attributes:
        name: name of the conf.
        features: hloc's conf of `extract_features`: ``output``, ``model``, ``preprocessing``.
        output: stem of the match file.
        model: the matcher's ``name`` and options.
        min_inlier_ratio: share of a pair's matches that one two-view geometry must explain.
    """

    name: str
    features: Mapping[str, Any]
    output: str
    model: Mapping[str, Any]
    min_inlier_ratio: float = 0.0


@dataclass(frozen=True)
class DetectorFreeConf:
    """Matches between two images directly; keypoints come from the matches of many pairs.

    Attributes:
        name: name of the conf.
        output: stem of the match file.
        model: the network's ``name`` and options.
        max_error: radius in pixels of the photo within which matches snap to one keypoint.
        cell_size: side in pixels of the cells in which keypoints are elected.
        preprocessing: ``resize_max`` in pixels, the longer side the network sees; with
            ``quarter_turns`` photos are set upright as EXIF tells, then photo 1 of each pair is
            tried in four positions at a small size, and matched in the one that agrees best with
            photo 0; with ``match_overlap`` what the two photos share is matched again, cut out of
            them; with ``least_squares_matching`` points of photo 1 are moved until the photos agree
            around them.
        max_keypoints: keypoints kept per photo, best first; None keeps all.
        refine_keypoints: whether keypoints are moved to where their matches agree; hloc leaves them
            at the nodes of a grid, and those of new photos in a map at the matched points.
        min_inlier_ratio: as in `SparseConf`. Photos that share nothing get hundreds of matches too,
            and COLMAP asks for 15 inliers only.
    """

    name: str
    output: str
    model: Mapping[str, Any]
    max_error: float
    cell_size: float
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    max_keypoints: int | None = 8192
    refine_keypoints: bool = False
    min_inlier_ratio: float = 0.25

    @property
    def quarter_turns(self) -> bool:
        """True if photos may be turned by quarters against each other."""
        return bool(self.preprocessing.get("quarter_turns", False))

    @property
    def match_overlap(self) -> bool:
        """True if what two photos share is matched again, larger."""
        return bool(self.preprocessing.get("match_overlap", False))

    @property
    def least_squares_matching(self) -> bool:
        """True if matched points are moved until the photos agree around them."""
        return bool(self.preprocessing.get("least_squares_matching", False))


Conf = SparseConf | DetectorFreeConf


@dataclass(frozen=True)
class Detail:
    """How much of a photo a matcher sees, where this is not as its conf says.

    Attributes:
        quality: one of `QUALITIES`: COLMAP's sizes and numbers of features with COLMAP's matcher of
            SIFT, and their proportions with others, whose conf is of medium quality.
        max_image_size: longer side in pixels; counts more than `quality`.
        max_num_features: most keypoints of a photo; counts more than `quality`.
    """

    quality: str | None = None
    max_image_size: int | None = None
    max_num_features: int | None = None


# As of COLMAP's automatic reconstructor: longer side in pixels, features.
_COLMAP_QUALITY = {
    "low": (1000, 2048),
    "medium": (1600, 4096),
    "high": (2400, 8192),
    "extreme": (3200, 8192),
}
_LIMITS = ("max_num_features", "max_num_keypoints")  # what front-ends call theirs


def with_detail(conf: Conf, detail: Detail) -> Conf:
    """Return a conf with another size of photos and another number of keypoints.

    Raises:
        InputError: there is no such quality, size or number.
    """
    if detail.quality is not None and detail.quality not in QUALITIES:
        raise InputError(f"unknown quality {detail.quality!r}, expected {', '.join(QUALITIES)}")
    for name in ("max_image_size", "max_num_features"):
        number = getattr(detail, name)
        if number is not None and not 0 < number <= MAX_SIDE:
            raise InputError(f"--{name} {number}: expected 1 to {MAX_SIDE}")
    if detail == Detail():
        return conf

    def size(own: int | None) -> int | None:
        return detail.max_image_size or _scaled(conf, own, detail.quality, 0)

    def count(own: int | None) -> int | None:
        return detail.max_num_features or _scaled(conf, own, detail.quality, 1)

    if isinstance(conf, DetectorFreeConf):
        side = size(conf.preprocessing.get("resize_max", DEFAULT_RESIZE))
        return replace(
            conf,
            preprocessing={**conf.preprocessing, "resize_max": side},
            max_keypoints=count(conf.max_keypoints),
        )
    model, preprocessing = conf.features["model"], conf.features.get("preprocessing", {})
    features = {
        **conf.features,
        "model": {**model, **{key: count(model[key]) for key in _LIMITS if key in model}},
        "preprocessing": {**preprocessing, "resize_max": size(preprocessing.get("resize_max"))},
    }
    return replace(conf, features=features)


def _scaled(conf: Conf, own: int | None, quality: str | None, column: int) -> int | None:
    """A number of a conf at a quality; ``None``, no limit, stays."""
    if own is None or quality is None:
        return own
    is_colmaps = "nearest_neighbor" in str(conf.model.get("name"))
    reference = _COLMAP_QUALITY["extreme" if is_colmaps else "medium"]
    return round(own * _COLMAP_QUALITY[quality][column] / reference[column])


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

# Of a detector-free conf's preprocessing.
_SWITCHES = ("quarter_turns", "match_overlap", "least_squares_matching")

_KINDS: dict[str, type[SparseConf] | type[DetectorFreeConf]] = {
    "sparse": SparseConf,
    "detector_free": DetectorFreeConf,
}


def conf_names() -> list[str]:
    """Return the names of all confs that come with the package."""
    return sorted(path.stem for path in CONF_DIR.glob("*.yaml"))


def load_conf(name: str) -> Conf:
    """Load a conf by name, or from a YAML file of the user's.

    Raises:
        InputError: there is no such conf, or it has an unknown, missing or ill-typed key.
    """
    is_file = name.endswith((".yaml", ".yml"))
    path = Path(name) if is_file else CONF_DIR / f"{name}.yaml"
    if not is_file and name not in conf_names():
        raise InputError(f"unknown matcher {name!r}{_suggestion(name, conf_names())}")
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
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError, AttributeError, TypeError) as error:
        raise InputError(f"{path} is not valid YAML: {one_line(error)}") from error
    return parse_conf(path.stem, content, where=str(path))


def parse_conf(name: str, content: Any, where: str) -> Conf:
    """Turn the content of a conf file into a conf; `where` names it in error messages.

    Raises:
        InputError: it has an unknown, missing or ill-typed key.
    """
    if not isinstance(content, dict):
        raise InputError(f"{where}: expected keys and values")
    _check_plain(content, where)
    content = dict(content)
    kind = content.pop("kind", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise InputError(f"{where}: 'kind' must be one of {', '.join(_KINDS)}, found {kind!r}")
    conf_type = _KINDS[kind]
    allowed = [item.name for item in fields(conf_type) if item.name != "name"]
    check_keys(content, allowed, where)
    _check_part(content, where, ["resize_max", *_SWITCHES])
    _check_output(content, "matches-", where)
    if kind == "detector_free" and content.get("preprocessing", {}).get("resize_max", 0) is None:
        raise InputError(f"{where}: 'resize_max' must be a number of pixels, found null")
    if "features" in content:
        features, part = content["features"], f"{where}, features"
        check_keys(features, ["output", "model", "preprocessing"], part)
        for key in ("output", "model"):
            if key not in features:
                raise InputError(f"{part}: {key!r} is missing")
        _check_part(features, part, ["resize_max"])
        _check_output(features, "feats-", part)
    try:
        return conf_type(name=name, **content)
    except TypeError as error:
        raise InputError(f"{where}: {error}") from error


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


def _check_part(content: Mapping[str, Any], where: str, preprocessing_keys: Sequence[str]) -> None:
    """Check the types of values, and the parts that a conf and its features both have."""
    for key, value in content.items():
        expected, description = _TYPES[key]
        if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
            raise InputError(f"{where}: {key!r} must be {description}, found {value!r}")
    if "model" in content and not isinstance(content["model"].get("name"), str):
        raise InputError(f"{where}, model: 'name' must be given, as text")
    if not 0 <= (share := content.get("min_inlier_ratio", 0)) <= 1:
        raise InputError(f"{where}: 'min_inlier_ratio' must be a share, 0 to 1, found {share!r}")
    for key in ("max_error", "cell_size"):
        if not 0 <= (length := content.get(key, 0)) <= MAX_LENGTH:
            raise InputError(f"{where}: {key!r} must be 0 to {MAX_LENGTH} pixels, found {length!r}")
    preprocessing = content.get("preprocessing", {})
    check_keys(preprocessing, preprocessing_keys, f"{where}, preprocessing")
    resize_max = preprocessing.get("resize_max")
    if resize_max is not None and not (type(resize_max) is int and 0 < resize_max <= MAX_SIDE):
        raise InputError(f"{where}: 'resize_max' must be a number of pixels, found {resize_max!r}")
    for key in _SWITCHES:
        if not isinstance(preprocessing.get(key, False), bool):
            found = preprocessing[key]
            raise InputError(f"{where}: {key!r} must be true or false, found {found!r}")


def _check_output(content: Mapping[str, Any], beginning: str, where: str) -> None:
    """Check a stem that the names of other files are made of, and by which a run knows its own."""
    stem = content.get("output", beginning)
    is_name = name_fault(stem) is None and not set(stem) & set("/\\") and len(stem) <= MAX_STEM
    if not stem.startswith(beginning) or not is_name:
        raise InputError(
            f"{where}: 'output' must be a name that begins with {beginning!r}, found {stem!r}"
        )


def check_keys(given: Iterable[str], allowed: Iterable[str], where: str) -> None:
    """Raise InputError, with a suggestion, at the first key that is not allowed."""
    allowed = list(allowed)
    for key in given:
        if key not in allowed:
            raise InputError(f"{where}: unknown key {key!r}{_suggestion(key, allowed)}")


def check_options(
    factory: Callable[..., Any], options: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Return options as keywords of `factory`, each of the type that its default has.

    Raises:
        InputError: it takes no such option, or one is of another type.
    """
    parameters = inspect.signature(factory).parameters
    check_keys(options, parameters, where)
    checked = {}
    for key, value in options.items():
        default = parameters[key].default
        expected, description = _type_like(default)
        is_alike = isinstance(value, expected) and isinstance(value, bool) == (
            isinstance(default, bool) or (expected is object and isinstance(value, bool))
        )
        if isinstance(default, tuple) and is_alike:
            is_alike = len(value) == len(default) and all(type(side) is int for side in value)
            value = tuple(value)
        if not is_alike:
            raise InputError(f"{where}: {key!r} must be {description}, found {value!r}")
        checked[key] = value
    return checked


def _type_like(default: Any) -> tuple[Any, str]:
    """The type of values that may replace a default, and what to call it."""
    if isinstance(default, bool):
        return bool, "true or false"
    if isinstance(default, int):
        return int, "a whole number"
    if isinstance(default, float):
        return int | float, "a number"
    if isinstance(default, str):
        return str, "text"
    if isinstance(default, tuple):
        return list | tuple, f"{len(default)} whole numbers"
    if default is None:
        return int | float | None, "a number, or null"
    return object, "given"


def build(factory: Callable[..., Any], options: Mapping[str, Any], where: str) -> Any:
    """Call `factory` with options from a conf.

    Raises:
        InputError: it takes no such option, or not this value of it.
    """
    checked = check_options(factory, options, where)
    try:
        return factory(**checked)
    except (TypeError, OverflowError) as error:
        raise InputError(f"{where}: {one_line(error)}") from error


def _suggestion(key: str, allowed: Iterable[str]) -> str:
    allowed = list(allowed)
    close = difflib.get_close_matches(str(key), allowed, n=1)
    if close:
        return f": did you mean {close[0]!r}?"
    return f", expected one of {', '.join(allowed)}"
