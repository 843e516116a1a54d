"""What is asked of COLMAP's databases everywhere."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import pycolmap

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def quiet_colmap(least: pycolmap.logging.Level = pycolmap.logging.ERROR) -> Iterator[None]:
    """Silence COLMAP's own log below a level, unless all that there is to say is wanted."""
    level = pycolmap.logging.minloglevel
    if not logger.isEnabledFor(logging.DEBUG):
        pycolmap.logging.minloglevel = int(least)
    try:
        yield
    finally:
        pycolmap.logging.minloglevel = level


def read_image_ids(database: pycolmap.Database) -> dict[str, int]:
    """Return the image ids of a database by name."""
    return {image.name: image.image_id for image in database.read_all_images()}
