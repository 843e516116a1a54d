"""Points as a PLY file, for MeshLab, CloudCompare, Blender and nerfstudio."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
from numpy.typing import NDArray

# Georeferenced coordinates, of millions of metres, would lose half a metre as 32-bit floats.
_COLOURS = ("red", "green", "blue")
_VERTEX = [(axis, "<f8") for axis in "xyz"] + [(colour, "u1") for colour in _COLOURS]
_PLY_NAMES = {"<f8": "double", "u1": "uchar"}


def model_points(
    model: pycolmap.Reconstruction,
) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Return the points of a model in the order of their ids.

    Returns:
        Points (N, 3) in the model's coordinates, and their colours (N, 3), RGB.
    """
    points = [point for _, point in sorted(model.points3D.items())]
    xyz = np.array([point.xyz for point in points], dtype=np.float64).reshape(-1, 3)
    rgb = np.array([point.color for point in points], dtype=np.uint8).reshape(-1, 3)
    return xyz, rgb


def write_ply(path: Path, xyz: NDArray[np.float64], rgb: NDArray[np.uint8]) -> None:
    """Write points with colours as binary PLY.

    Args:
        path: the file.
        xyz: (N, 3) coordinates.
        rgb: (N, 3) colours.

    Raises:
        OSError: it cannot be written.
    """
    vertices = np.empty(len(xyz), dtype=_VERTEX)
    for index, axis in enumerate("xyz"):
        vertices[axis] = xyz[:, index]
    for index, colour in enumerate(_COLOURS):
        vertices[colour] = rgb[:, index]
    properties = "\n".join(f"property {_PLY_NAMES[kind]} {name}" for name, kind in _VERTEX)
    header = (
        f"ply\nformat binary_little_endian 1.0\nelement vertex {len(vertices)}\n{properties}\n"
        "end_header\n"
    )
    path.write_bytes(header.encode("ascii") + vertices.tobytes())
