"""Intrinsics that users give for some of their photos: on the command line, or in a file."""

from __future__ import annotations

import fnmatch
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pycolmap

from sfm_matchers.errors import InputError
from sfm_matchers.files.nearest import nearest_path
from sfm_matchers.files.text import read_text
from sfm_matchers.photos.intrinsics import (
    Size,
    camera_models,
    camera_with,
    check_camera,
    parse_params,
)

logger = logging.getLogger(__name__)


def check_one_size(what: str, sizes: Mapping[str, Size]) -> None:
    """Check that photos which share parameters have one size.

    Args:
        what: names the parameters.
        sizes: name of a photo -> its size.

    Raises:
        InputError: they have several; the message names them.
    """
    counts = Counter(sizes.values())
    if len(counts) < 2:
        return
    first = {size: name for name, size in sorted(sizes.items(), reverse=True)}
    named = ", ".join(
        f"{count} of {size[0]} x {size[1]} ({first[size]})" for size, count in counts.most_common()
    )
    raise InputError(
        f"{what}: one set of parameters is for photos of one size, these have {len(counts)}: "
        f"{named}; give each its own in a file, --cameras"
    )


@dataclass(frozen=True)
class GivenCamera:
    """Intrinsics that the user gives for some photos.

    Attributes:
        pattern: name, folder or pattern (``left/*.jpg``) of the photos.
        model: COLMAP's camera model.
        params: COLMAP's, in pixels; empty where only the model is given.
        is_start: the parameters are where an estimate starts from; they are kept otherwise.
        size: of the photos, or None where it is not said.
        where: names it in messages.
    """

    pattern: str
    model: str
    params: tuple[float, ...] = ()
    is_start: bool = False
    size: Size | None = None
    where: str = "--camera_params"

    @property
    def is_fixed(self) -> bool:
        """The intrinsics are known and stay as they are."""
        return bool(self.params) and not self.is_start

    def matches(self, name: str) -> bool:
        """True if a photo is meant."""
        folder = self.pattern.rstrip("/") + "/"
        return (
            name == self.pattern or name.startswith(folder) or fnmatch.fnmatch(name, self.pattern)
        )

    def camera(self, size: Size) -> pycolmap.Camera:
        """The camera for photos of a size: that of the list where it says one."""
        camera = camera_with(self.model, 1.0, self.size or size)
        camera.params = list(self.params)
        return camera


def read_cameras(path: str | Path) -> list[GivenCamera]:
    """Read a file of intrinsics: lines ``PATTERN MODEL [WIDTH HEIGHT] PARAMS [fixed|start]``.

    A query list as Aachen's, ``name MODEL width height params``, is such a file. Where several
    lines match a photo the first counts. Without parameters a line gives the model only.

    Raises:
        InputError: no such file, or a wrong line, which is named.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is no file of cameras{nearest_path(path)}")
    cameras = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            cameras.append(_parse_line(line, f"{path}, line {number}"))
    if not cameras:
        raise InputError(f"{path} holds no camera: give lines PATTERN MODEL PARAMS [fixed|start]")
    return cameras


def _parse_line(line: str, where: str) -> GivenCamera:
    words, known = re.split(r"[,\s]+", line.strip().removesuffix(",")), set(camera_models())
    at = next((index for index, word in enumerate(words) if index and word in known), None)
    if at is None:
        raise InputError(
            f"{where}: expected PATTERN MODEL PARAMS [fixed|start] with one of COLMAP's camera "
            f"models, found {line.strip()!r}"
        )
    # A name may contain spaces and commas: it ends where the camera model begins.
    pattern = re.split(rf"[,\s]+{words[at]}(?=[,\s]|$)", line.strip())[0]
    numbers, kind = words[at + 1 :], "fixed"
    if numbers and numbers[-1] in ("fixed", "start"):
        kind = numbers.pop()
    size, num_params = None, len(camera_with(words[at], 1.0, (1, 1)).params)
    if len(numbers) == num_params + 2:
        if not all(word.isdigit() and 0 < int(word) < 2**31 for word in numbers[:2]):
            raise InputError(f"{where}: width and height must be whole numbers above 0")
        size, numbers = (int(numbers[0]), int(numbers[1])), numbers[2:]
    params = parse_params(words[at], " ".join(numbers), where)
    given = GivenCamera(pattern, words[at], tuple(params), kind == "start", size, where)
    if size is not None:
        check_camera(given.camera(size), where, is_deliberate=True)
    return given


def find_camera(cameras: Sequence[GivenCamera], *names: str) -> GivenCamera | None:
    """The first of some cameras that is given for a photo, which may have several names."""
    return next((camera for camera in cameras if any(map(camera.matches, names))), None)


def check_given(cameras: Sequence[GivenCamera], sizes: Mapping[str, Size]) -> None:
    """Compare the cameras that are given with the photos they are given for.

    Args:
        cameras: the first that matches a photo counts.
        sizes: name of each photo -> its size.

    Raises:
        InputError: photos of several sizes share parameters, parameters do not fit their photos, or
            no photo is meant.
    """
    photos: dict[GivenCamera, dict[str, Size]] = defaultdict(dict)
    for name, size in sizes.items():
        if (found := find_camera(cameras, name)) is not None:
            photos[found][name] = size
    unused = [camera for camera in cameras if camera not in photos]
    if len(unused) == len(cameras):
        advice = ""
        if all(camera.pattern.isdigit() and camera.size for camera in cameras):
            advice = "; in COLMAP's cameras.txt, put names or patterns of photos in place of ids"
        raise InputError(
            f"{cameras[0].where}: no photo is called or lies in {cameras[0].pattern}{advice}"
        )
    for camera in unused[:5]:
        names = [name for name in sizes if camera.matches(name)]
        said = f"no photo is meant by {camera.pattern}"
        if names and (first := find_camera(cameras, names[0])) is not None:
            said = f"{camera.pattern} is of no effect: its photos are meant by {first.where}"
        logger.warning("%s: %s", camera.where, said)
    for camera, meant in photos.items():
        if not camera.params:
            continue
        check_one_size(camera.where, meant)
        name, size = next(iter(meant.items()))
        if camera.size is not None and camera.size != size:
            raise InputError(
                f"{camera.where}: {name} has {size[0]} x {size[1]} pixels, the line says "
                f"{camera.size[0]} x {camera.size[1]}"
            )
        is_deliberate = camera.where != "--camera_params"
        check_camera(camera.camera(size), camera.where, is_deliberate=is_deliberate)
