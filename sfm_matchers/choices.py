"""Values that options of runs and of command lines take. Imports nothing."""

from __future__ import annotations

MAPPERS = ("incremental", "global", "hierarchical")

CAMERA_MODES = ("auto", "single", "per_folder", "per_image")


RETRIEVALS = ("vlad", "netvlad", "megaloc", "openibl", "dir")

NONE, EXIF = "none", "exif"

POLICIES = ("auto", "spatial")

PANORAMIC_MODEL = "EQUIRECTANGULAR"
