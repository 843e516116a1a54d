"""What is asked of COLMAP's databases everywhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pycolmap


@contextlib.contextmanager
def quiet_colmap(least: pycolmap.logging.Level = pycolmap.logging.ERROR) -> Iterator[None]:
    """Silence COLMAP's own log below a level."""
    level = pycolmap.logging.minloglevel
    pycolmap.logging.minloglevel = int(least)
    try:
        yield
    finally:
        pycolmap.logging.minloglevel = level


def read_image_ids(database: pycolmap.Database) -> dict[str, int]:
    """Return the image ids of a database by name."""
    return {image.name: image.image_id for image in database.read_all_images()}
