"""Photos of one rendered room, which many tests start from."""

from __future__ import annotations

import shutil
from functools import cache, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from sfm_matchers.synthetic import Camera, Scene, make_scene, write_photos

CAMERA = Camera.from_field_of_view(320, 240)


@lru_cache(maxsize=2)
def rendered_room(texture_size: int = 384) -> Scene:
    """The room."""
    return make_scene(3, kind="room", texture_size=texture_size)


def photograph_room(
    folder: Path,
    count: int,
    seed: int = 1,
    *,
    camera: Camera = CAMERA,
    texture_size: int = 384,
    subfolder: str = "",
    exif: bool = True,
) -> Path:
    """Write images/ and truth/ to a folder, and return it; arguments as of `write_photos`."""
    made = _photographed(count, seed, camera, texture_size, subfolder, exif)
    shutil.copytree(made.name, folder, dirs_exist_ok=True)
    return folder


@cache  # for the tests of all files that one process runs; gone with it
def _photographed(
    count: int, seed: int, camera: Camera, texture_size: int, subfolder: str, exif: bool
) -> TemporaryDirectory[str]:
    folder, scene = TemporaryDirectory(), rendered_room(texture_size)
    write_photos(folder.name, scene, count, seed, camera=camera, subfolder=subfolder, exif=exif)
    return folder
