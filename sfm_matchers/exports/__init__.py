"""COLMAP models and their photos as other tools open them: gsplat, Inria's 3DGS, nerfstudio, PLY.

>>> from sfm_matchers.exports import FORMATS
>>> sorted(FORMATS)
['gsplat', 'nerfstudio', 'ply', 'undistorted']
"""

from sfm_matchers.exports.formats import (
    FORMATS,
    Export,
    check_image_dir,
    check_place,
    export_model,
    outdated_formats,
    parse_formats,
)
from sfm_matchers.exports.outputs import remove_exports

__all__ = [
    "FORMATS",
    "Export",
    "check_image_dir",
    "check_place",
    "export_model",
    "outdated_formats",
    "parse_formats",
    "remove_exports",
]
