"""The model of a run in metres."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pycolmap

from sfm_matchers.choices import EXIF, NONE
from sfm_matchers.errors import InputError, one_line
from sfm_matchers.files import revisions
from sfm_matchers.files.fingerprints import content_hash, fingerprint
from sfm_matchers.files.nearest import nearest_path
from sfm_matchers.files.text import read_text
from sfm_matchers.geometry.coordinates import FloatArray
from sfm_matchers.mapping.control_points import (
    ControlPoints,
    is_control_points,
    read_control_points,
)
from sfm_matchers.mapping.georeference import (
    ABOUT,
    describe,
    describe_on_head,
    georeference,
    write_georeference,
)
from sfm_matchers.mapping.models import model_folder
from sfm_matchers.pairs.positions import (
    Positions,
    exif_positions,
    positions_from_file,
)
from sfm_matchers.reports.pictures import orientation_of
from sfm_matchers.runs.matching import MatchingJob
from sfm_matchers.runs.workspace import Workspace

logger = logging.getLogger("sfm_matchers.sfm")

Places = Positions | ControlPoints | None
"""What is known of where photos were taken."""


def check_georeference(option: str | Path) -> None:
    """Raise InputError if ``--georeference`` names nothing that is there."""
    if str(option) not in (NONE, EXIF) and not Path(option).is_file():
        raise InputError(
            f"--georeference {option}: expected none, exif or a file{nearest_path(option)}"
        )


def read_places(option: str | Path, image_dir: Path, names: Sequence[str]) -> Places:
    """Return what ``--georeference`` names: ``none``, ``exif`` or a file.

    Raises:
        InputError: there is no such file, or it is malformed.
    """
    if str(option) == NONE:
        return None
    if str(option) == EXIF:
        return exif_positions(image_dir, names)
    check_georeference(option)
    path = Path(option)
    if is_control_points(path):
        return read_control_points(path, names)
    return positions_from_file(path, names)


def georeference_models(
    job: MatchingJob,
    known: Places,
    models: Sequence[pycolmap.Reconstruction],
    fixed: Collection[str] = (),
) -> str:
    """Write the largest model in metres beside it, if its place is known.

    Args:
        job: knows where.
        known: from `read_places`.
        models: the largest first.
        fixed: photos whose intrinsics are kept as they are.

    Returns:
        What came out, for the summary; "" where there is nothing to say.
    """
    workspace = job.workspace
    folder = workspace.georeferenced
    is_empty = isinstance(known, Positions) and not known.xyz
    if known is None or is_empty or not models:
        shutil.rmtree(folder, ignore_errors=True)
        return ""
    parts = [workspace.model / f"{part}.bin" for part in ("images", "points3D")]
    content = [content_hash(part) for part in parts]
    source = fingerprint(revisions.GEOREFERENCE, repr(known), content)
    written = folder / ABOUT
    if workspace.is_done(folder.name, source):
        return str(json.loads(read_text(written))["summary"])
    try:
        place, model = georeference(models[0], known, fixed)
    except InputError as error:
        shutil.rmtree(folder, ignore_errors=True)
        logger.info("No model in metres: %s", error)
        return f"none: {error}"
    text = describe(place, models[0].num_reg_images())
    names = [image.name for image in model.images.values()]
    orientations = {name: orientation_of(job.image_dir / name) for name in names}
    if doubt := describe_on_head(model, orientations):
        logger.warning("The model in metres may be wrong: %s", doubt)
        text = f"{text}; {doubt}"
    write_georeference(folder, place, model, text)
    workspace.set_done(folder.name, source, folder)
    return text


def earth_axes_of(path: str | Path) -> FloatArray | None:
    """Return the same in the world of the model that a path names, if its place is known.

    It is one in metres, or the largest of a run that wrote it in metres too.
    """
    folder = model_folder(Path(path))
    if (folder / ABOUT).is_file():
        return np.eye(3)
    run = Workspace(folder.parent.parent)
    return earth_axes(run) if run.model == folder else None


def earth_axes(workspace: Workspace) -> FloatArray | None:
    """Return (3, 3) east, north and up in the world of the largest model, if its place is known."""
    written = workspace.georeferenced / ABOUT
    if not written.is_file():
        return None
    try:
        scaled = np.array(json.loads(read_text(written))["transform"], dtype=np.float64)[:3, :3]
        axes: FloatArray = scaled / np.cbrt(np.linalg.det(scaled))
    except (InputError, ValueError, KeyError, IndexError, TypeError) as error:
        logger.warning("%s is damaged, what is up is estimated: %s", written, one_line(error))
        return None
    return axes
