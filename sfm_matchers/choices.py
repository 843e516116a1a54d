"""Values that options of runs and of command lines take. Imports nothing."""

from __future__ import annotations

MAPPERS = ("incremental", "global", "hierarchical")

CAMERA_MODES = ("auto", "single", "per_folder", "per_image")


AACHEN_VERSIONS = ("1.1", "1.0")

RETRIEVALS = ("vlad", "netvlad", "megaloc", "openibl", "dir")

NONE, EXIF = "none", "exif"

POLICIES = ("auto", "exhaustive", "sequential", "retrieval", "spatial")  # of pairs

QUALITIES = ("low", "medium", "high", "extreme")

# Rendered places, see `synthetic`.
SCENES = ("courtyard", "street", "room", "tower")

# Largest reprojection error of an inlier among points of depth scans, in pixels: the scans are
# known to some centimetres.
SCAN_MAX_ERROR = 48.0

# What models are exported as, and for what.
EXPORTS = {
    "nerfstudio": "transforms.json",
    "gsplat": "images/ beside sparse/0",
    "undistorted": "for Inria's 3DGS and what wants pinhole cameras",
    "ply": "points for MeshLab and CloudCompare",
}

PANORAMIC_MODEL = "EQUIRECTANGULAR"
