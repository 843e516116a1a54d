"""Photos of one rendered room, which many tests start from."""

from __future__ import annotations

from pathlib import Path

from sfm_matchers.synthetic import Camera, make_scene, write_photos

CAMERA = Camera.from_field_of_view(320, 240)


def photograph_room(
    folder: Path, count: int, *, camera: Camera = CAMERA, texture_size: int = 384
) -> Path:
    """Write images/ and truth/ to a folder, and return it."""
    scene = make_scene(3, kind="room", texture_size=texture_size)
    write_photos(folder, scene, count, 1, camera=camera)
    return folder
