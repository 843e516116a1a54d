"""hloc's lists of queries with intrinsics."""

from __future__ import annotations

import glob
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pycolmap

from sfm_matchers.errors import InputError, one_line
from sfm_matchers.files.names import check_name, name_fault
from sfm_matchers.files.text import write_text
from sfm_matchers.localization.poses import Query, lines_of_words
from sfm_matchers.photos.intrinsics import impossibility

logger = logging.getLogger(__name__)

_MODELS = frozenset(pycolmap.CameraModelId.__members__) - {"INVALID"}


def read_queries(pattern: str | Path, *, skip_bad_lines: bool = False) -> list[Query]:
    """Read query lists: lines of ``name MODEL width height params...``.

    A photo that is listed again is left out, with a warning: a submission has one line for each.

    Args:
        pattern: a file, or a pattern of files like ``queries/*_with_intrinsics.txt``.
        skip_bad_lines: say in the log what is wrong with a line, and go on.

    Raises:
        InputError: no such file, or a wrong line, which is named.
    """
    queries: dict[str, Query] = {}
    for path in _matching_files(pattern):
        for number, words in lines_of_words(path):
            try:
                query = _parse_query(words)
            except (ValueError, IndexError, RuntimeError) as error:
                message = (
                    f"{path}, line {number}: expected 'name MODEL width height params...', found "
                    f"{' '.join(words)!r} ({one_line(error)})"
                )
                if not skip_bad_lines:
                    raise InputError(message) from error
                logger.warning("%s: this photo is left out", message)
                continue
            if query.name in queries:
                logger.warning("%s, line %d: %s is listed before", path, number, query.name)
            queries.setdefault(query.name, query)
    return list(queries.values())


def read_image_names(pattern: str | Path) -> list[str]:
    """Read the first word of each line of a list, or of all lists that a pattern matches."""
    return [
        check_name(words[0], f"{path}, line {number}")
        for path in _matching_files(pattern)
        for number, words in lines_of_words(path)
    ]


def _matching_files(pattern: str | Path) -> list[Path]:
    path = Path(pattern)
    if path.is_file():
        return [path]
    # Unlike pathlib's it takes patterns that begin with any folder, or with the root.
    files = [Path(match) for match in sorted(glob.glob(str(pattern)))]  # noqa: PTH207
    if not files:
        raise InputError(f"{pattern}: no such list of photos")
    return files


def _parse_query(words: Sequence[str]) -> Query:
    # A name may contain spaces: it ends where the camera model begins.
    at = next((index for index, word in enumerate(words) if index and word in _MODELS), 1)
    name = " ".join(words[:at])
    if fault := name_fault(name):
        raise ValueError(fault)
    return Query(name, parse_camera(words[at:]))


def parse_camera(words: Sequence[str]) -> pycolmap.Camera:
    """A camera of the words ``MODEL width height params...``.

    Raises:
        ValueError, IndexError, RuntimeError: they are none.
    """
    model = words[0]
    if model not in _MODELS:
        raise ValueError(f"unknown camera model {model}")
    width, height = int(words[1]), int(words[2])
    params = [float(word) for word in words[3:]]
    if not 0 < min(width, height) <= max(width, height) < 2**31:
        raise ValueError("sizes must be positive")
    camera = pycolmap.Camera.create_from_model_name(1, model, 1.0, width, height)
    if len(params) != len(camera.params):
        raise ValueError(f"{model} takes {camera.params_info}")
    focal_lengths = [params[index] for index in camera.focal_length_idxs()]
    if min(focal_lengths) <= 0 or not np.isfinite(params).all():
        raise ValueError("the focal length must be positive")
    camera.params = params
    if impossible := impossibility(camera):
        raise ValueError(impossible)
    return camera


def write_queries(path: Path, queries: Iterable[Query]) -> None:
    """Write a query list with intrinsics."""
    lines = (
        " ".join(
            [
                query.name,
                query.camera.model.name,
                str(query.camera.width),
                str(query.camera.height),
                *(repr(float(value)) for value in query.camera.params),
            ]
        )
        for query in queries
    )
    write_text(path, "\n".join(lines) + "\n")
