"""COLMAP models as users have them, in the folder or below, by COLMAP or by hand; written whole."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pycolmap

from sfm_matchers.errors import InputError, OutputError, one_line
from sfm_matchers.files.names import check_name
from sfm_matchers.files.nearest import nearest_path
from sfm_matchers.files.replacing import flush, move_files, temporary_beside
from sfm_matchers.files.scratch import scratch_folder
from sfm_matchers.files.space import GOES_ON, writing
from sfm_matchers.files.text import read_text
from sfm_matchers.mapping.model_tables import TABLES, check_tables, counts_of, has_tables

logger = logging.getLogger(__name__)

# Where a model lies below the folder that users name.
SUBFOLDERS = ("", "0", "sparse/0", "sparse")
IMAGE = "IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME"
WORDS_OF_IMAGE = 10  # of these; a name may have more


def check_is_folder(path: str | Path) -> None:
    """Raise InputError if there is no folder where a model should be."""
    if not Path(path).is_dir():
        raise InputError(f"{path} is not a COLMAP model{nearest_path(path, holds_model)}")


def read_model(path: str | Path) -> pycolmap.Reconstruction:
    """Read a COLMAP model; every command does it here.

    Nothing in it makes pycolmap take memory without end, or fail later: see `model_tables`.
    Text models written by hand may lack ``points3D.txt``, and the second line of each image in
    ``images.txt``, which COLMAP leaves empty where there are no points. Names may have spaces there
    too.

    Args:
        path: its folder, or one that holds it as ``0``, ``sparse/0`` or ``sparse``.

    Raises:
        InputError: there is no model, or it cannot be read.
    """
    check_is_folder(path)
    folder = Path(path)
    try:
        folder = model_folder(folder)
        if folder != Path(path):
            logger.info("The model is %s", folder)
        if has_tables(folder):
            check_tables(folder)
            model = pycolmap.Reconstruction(folder)
        else:
            by_hand = _is_by_hand(folder)
            model = _read_by_hand(folder) if by_hand else pycolmap.Reconstruction(folder)
            _check_as_tables(model)
    except Exception as error:  # of text that makes no sense pycolmap raises anything
        is_odd = not isinstance(error, InputError) and (folder / "cameras.txt").is_file()
        where = "its tables are damaged, or of several models: " if is_odd else ""
        raise InputError(f"{path} is not a COLMAP model: {where}{one_line(error)}") from error
    for image in model.images.values():
        check_name(image.name, path)
    return model


def _check_as_tables(model: pycolmap.Reconstruction) -> None:
    """Look through a model that was text; raise InputError if it cannot be."""
    with scratch_folder() as folder:
        model.write_binary(folder)
        try:
            check_tables(folder)
        except InputError as error:  # it names tables that only this function sees
            what = str(error).removeprefix(f"{folder}{os.sep}").replace(".bin ", " ", 1)
            raise InputError(f"its table {what}") from None


def largest_first(models: Iterable[pycolmap.Reconstruction]) -> list[pycolmap.Reconstruction]:
    """Order models of one database by their photos, without those that are beginnings of others.

    A mapper begins anew where it does not get on, and keeps what it began: a model all of whose
    photos are in a larger one tells nothing that this one does not.
    """
    kept: list[pycolmap.Reconstruction] = []
    photos: list[set[int]] = []  # of those that are kept
    for model in sorted(models, key=lambda one: (-one.num_reg_images(), -one.num_points3D())):
        own = set(model.reg_image_ids())
        if not any(own <= others for others in photos):
            kept.append(model)
            photos.append(own)
    return kept


def points_of_keypoints(model: pycolmap.Reconstruction) -> dict[int, np.ndarray]:
    """Return, for each registered photo's id, the point of each keypoint (N,), -1 without one."""
    return {i: points_of_image(model.images[i]) for i in model.reg_image_ids()}


def points_of_image(image: pycolmap.Image) -> np.ndarray:
    """Return the point of each keypoint (N,) of a photo, -1 without one."""
    points = np.full(image.num_points2D(), -1, np.int64)
    observed = [point2D.point3D_id for point2D in image.get_observation_points2D()]
    points[image.get_observation_point2D_idxs()] = observed
    return points


def write_model(model: pycolmap.Reconstruction, folder: Path) -> None:
    """Write a model into a folder, table by table, after a look whether all of it is there.

    pycolmap says nothing where the disk is full. Other files of the folder stay.

    Raises:
        OutputError: it cannot be written.
    """
    temporary = temporary_beside(folder / "model")
    try:
        with writing(folder):
            temporary.mkdir(parents=True)
            model.write(temporary)
            check_written(model, temporary)
            move_files(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_written(model: pycolmap.Reconstruction, folder: Path) -> None:
    """Raise OutputError if a folder does not hold all of a model; wait until the disk has it."""
    try:
        is_whole = check_tables(folder) == counts_of(model)
    except InputError:
        is_whole = False
    if not is_whole:
        raise OutputError(
            f"cannot write {folder}: what was written is cut off, is the disk full? {GOES_ON}"
        )
    with writing(folder):
        for table in (*TABLES, "rigs", "frames"):
            if (folder / f"{table}.bin").exists():
                flush(folder / f"{table}.bin")


def model_folder(path: Path) -> Path:
    """Return the folder of a model, or `path` itself if there is none."""
    for subfolder in SUBFOLDERS:
        folder = path / subfolder
        if _has_cameras(folder):
            others = sorted(other.name for other in folder.parent.glob("[0-9]*") if other.is_dir())
            if subfolder.endswith("0") and len(others) > 1:
                logger.warning("%s holds %d models, %s is taken", folder.parent, len(others), "0")
            return folder
    return path


def holds_model(path: Path) -> bool:
    """Return whether a folder holds a model where `read_model` looks for one."""
    return any(_has_cameras(path / subfolder) for subfolder in SUBFOLDERS)


def _has_cameras(folder: Path) -> bool:
    return any((folder / f"cameras.{suffix}").is_file() for suffix in ("bin", "txt"))


def _is_by_hand(folder: Path) -> bool:
    """True for a text model that COLMAP would not read, or read wrongly."""
    has_text = (folder / "cameras.txt").is_file() and (folder / "images.txt").is_file()
    if not has_text or (folder / "cameras.bin").is_file():
        return False
    lines = _content(folder / "images.txt")
    has_points = (folder / "points3D.txt").is_file()
    return not has_points or _lacks_lines(lines) or any(map(_has_spaces, lines[::2]))


def _content(path: Path) -> list[str]:
    """The lines of a table, without comments and what follows the last text."""
    lines = [line.strip() for line in read_text(path).split("\n")]
    lines = [line for line in lines if not line.startswith("#")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _lacks_lines(lines: list[str]) -> bool:
    """True if an image stands where the points of the one before should, or nothing after it."""
    is_cut_off = len(lines) % 2 == 1  # pycolmap forgets an image whose points have no line
    return is_cut_off or any(map(_is_image, lines[1::2])) or not all(lines[::2])


def _is_image(line: str) -> bool:
    words = line.split(maxsplit=WORDS_OF_IMAGE)  # the points of an image may be thousands
    if len(words) < WORDS_OF_IMAGE:
        return False
    try:
        int(words[0]), int(words[8])
        [float(word) for word in words[1:8]]
    except ValueError:
        return False
    # The points of an image are triples of numbers, the last of each whole.
    return not _are_points(line.split())


def _has_spaces(line: str) -> bool:
    """True of an image whose name has spaces, at the first of which COLMAP ends it."""
    return _is_image(line) and len(line.split(maxsplit=WORDS_OF_IMAGE)) > WORDS_OF_IMAGE


def _are_points(words: list[str]) -> bool:
    if len(words) % 3:
        return False
    try:
        [float(word) for word in words]
        [int(word) for word in words[2::3]]
    except ValueError:
        return False
    return True


def _complete(lines: Sequence[str]) -> list[str]:
    """The lines of images and of their points in turn, empty ones for images without."""
    lines = [line for line in lines if line]
    complete: list[str] = []
    for index, line in enumerate(lines):
        complete.append(line)
        if _is_image(line) and (index + 1 == len(lines) or _is_image(lines[index + 1])):
            complete.append("")
    return complete


def _read_by_hand(folder: Path) -> pycolmap.Reconstruction:
    """Read a copy of the model that has what COLMAP expects."""
    lines = _content(folder / "images.txt")
    if _lacks_lines(lines):
        lines = _complete(lines)
    names: dict[int, str] = {}
    for index in range(0, len(lines), 2):
        if not _is_image(lines[index]):
            raise InputError(f"images.txt: {IMAGE} expected, found {lines[index][:80]!r}")
        *numbers, name = lines[index].split(maxsplit=WORDS_OF_IMAGE - 1)
        if int(numbers[0]) in names:
            raise InputError(f"images.txt: image {numbers[0]} is there twice")
        names[int(numbers[0])] = name
        lines[index] = " ".join([*numbers, numbers[0]])  # the name is put back below
    with scratch_folder() as copy:
        for table in ("cameras", "points3D", "rigs", "frames"):
            if (folder / f"{table}.txt").is_file():
                shutil.copy(folder / f"{table}.txt", copy)
        if not (copy / "points3D.txt").exists():
            (copy / "points3D.txt").write_text("", encoding="utf-8")
            lines[1::2] = [""] * len(lines[1::2])  # or its keypoints are of points that are not
        (copy / "images.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        model = pycolmap.Reconstruction(copy)
    for image_id, name in names.items():
        model.images[image_id].name = name
    return model
