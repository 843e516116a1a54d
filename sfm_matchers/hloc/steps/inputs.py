"""What the steps read: names of images, and options of the mapper."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pycolmap
import yaml

from sfm_matchers.confs import check_keys
from sfm_matchers.errors import InputError
from sfm_matchers.files.hdf5 import list_groups
from sfm_matchers.localization.query_files import read_image_names

logger = logging.getLogger("sfm_matchers.pipelines")


def names_in(image_list: str | Path | None, features: str | Path | None, options: str) -> list[str]:
    """Names of images of a list, or of a feature file.

    Raises:
        InputError: neither is given; the message names the `options`.
    """
    if image_list is not None:
        return read_image_names(image_list)
    if features is not None:
        return list_groups(Path(features))
    raise InputError(f"give {options}")


def choose_names(
    names: Sequence[str], prefixes: Sequence[str] | None, image_list: str | Path | None
) -> list[str]:
    """Those of some names that start with a prefix, or are listed; all if neither is given."""
    if prefixes:
        return [name for name in names if name.startswith(tuple(prefixes))]
    if image_list is None:
        return list(names)
    wanted = read_image_names(image_list)
    known = set(names)
    if not known.issuperset(wanted):
        missing = [name for name in wanted if name not in known]
        logger.warning(
            "left out: %d images of %s without descriptor, the first is %s",
            len(missing),
            image_list,
            missing[0],
        )
    return [name for name in wanted if name in known]


def read_mapper_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Nest options as pycolmap's ``IncrementalPipelineOptions`` has them.

    Args:
        given: options of the pipeline, its mapper or its triangulation -> value, or text of it.

    Raises:
        InputError: there is no such option, or it takes another type.
    """
    pipeline = pycolmap.IncrementalPipelineOptions()
    levels: dict[str, Any] = {
        "": pipeline,
        "mapper": pipeline.mapper,
        "triangulation": pipeline.triangulation,
    }
    options: dict[str, Any] = {}
    known = [key for holder in levels.values() for key in holder.todict()]
    for key, text in given.items():
        check_keys([key], known, "--mapper_options")
        level = next(name for name, holder in levels.items() if hasattr(holder, key))
        expected = type(getattr(levels[level], key))
        value = yaml.safe_load(text) if isinstance(text, str) and expected is not str else text
        if expected is float and isinstance(value, int):
            value = float(value)
        if not isinstance(value, expected):
            raise InputError(f"--mapper_options: {key} takes {expected.__name__}, found {text!r}")
        (options.setdefault(level, {}) if level else options)[key] = value
    return options
