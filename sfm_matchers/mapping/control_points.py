"""Ground control points: surveyed points, and where photos show them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pycolmap

from sfm_matchers.errors import InputError
from sfm_matchers.files.text import read_text
from sfm_matchers.geometry.coordinates import FloatArray, Frame, parse_coordinate_system

logger = logging.getLogger(__name__)

# Words after the photo's name that make a point one to check with only.
CHECK_PREFIXES = ("check", "chk")

MIN_ANGLE = 1.0  # degrees between two rays to a point
MAX_ANGLE = np.deg2rad(2)  # by which a ray may miss it, as COLMAP has it

# Of a photo's longer side: by how much marks of one point miss each other at most. Those of kite
# photos of 4608 px, set by hand, do by 1 to 13 px.
MAX_MISS = 0.005
FACTORS = np.geomspace(0.1, 10, 921)  # of pixels, in steps of 0.5 %
MIN_MARKED = 3  # points with two views or more that tell a factor


@dataclass(frozen=True)
class ControlPoint:
    """A surveyed point.

    Attributes:
        name: its label, or ``point 3``.
        xyz: (3,) in metres.
        observations: photo -> (2,) pixels, (0, 0) is the corner of the photo as stored.
        is_check: it has no part in the georeference, and tells how good that is.
    """

    name: str
    xyz: FloatArray
    observations: Mapping[str, FloatArray]
    is_check: bool = False


class View(NamedTuple):
    """A photo of a model that shows a point, and the pixel (2,) where."""

    cam_from_world: pycolmap.Rigid3d
    camera: pycolmap.Camera
    pixel: FloatArray


@dataclass(frozen=True)
class ControlPoints:
    """The points of a file, and the frame of their coordinates."""

    points: Sequence[ControlPoint]
    frame: Frame
    source: str


def is_control_points(path: Path) -> bool:
    """True if a text file has OpenDroneMap's lines ``x y z px py photo`` under its first line."""
    lines = [line.split() for line in read_text(path).splitlines()[1:] if line[:1] != "#"]
    first: list[str] = next((words for words in lines if words), [])
    return len(first) >= 6 and _numbers(first[:5]) is not None


def read_control_points(path: Path, names: Sequence[str]) -> ControlPoints:
    """Read OpenDroneMap's ``gcp_list.txt``.

    The first line is a coordinate system, see `parse_coordinate_system`; each other one
    ``x y z px py photo [label]``, for EPSG:4326 with x the longitude and y the latitude. Lines of
    one x y z are one point. Labels that begin with ``check`` or ``chk`` mark points to check with.

    Args:
        path: the file.
        names: the photos.

    Raises:
        InputError: the file is malformed, or names none of the photos.
    """
    first, *lines = read_text(path).lstrip("\ufeff").splitlines() or [""]
    system = parse_coordinate_system(first)
    if not system.is_known:
        logger.warning("%s: %r is taken for metres east, north and up", path, system.name)
    by_last_part = {name.rpartition("/")[2]: name for name in names}
    known = by_last_part | {name: name for name in names}
    seen: dict[tuple[float, ...], dict[str, FloatArray]] = {}
    labels: dict[tuple[float, ...], str] = {}
    unknown = set()
    for line in lines:
        words = line.split()
        if not words or line.startswith("#"):
            continue
        numbers = _numbers(words[:5])
        if numbers is None or len(words) < 6:
            raise InputError(f"{path}: expected 'x y z px py photo [label]', found {line!r}")
        point, pixel = tuple(numbers[:3]), np.array(numbers[3:])
        labels.setdefault(point, " ".join(words[6:]) or f"point {len(labels) + 1}")
        if words[5] in known:
            seen.setdefault(point, {})[known[words[5]]] = pixel
        else:
            unknown.add(words[5])
    if not seen:
        raise InputError(f"{path} names no photo of the folder: it has {sorted(unknown)[:3]}")
    if unknown:
        logger.info("%s: %d photos of it are not there", path, len(unknown))
    xyz, frame = system.to_local(list(seen))
    points = [
        ControlPoint(
            labels[point], own, seen[point], labels[point].lower().startswith(CHECK_PREFIXES)
        )
        for point, own in zip(seen, xyz, strict=True)
    ]
    return ControlPoints(points, frame, str(path))


def _numbers(words: Sequence[str]) -> list[float] | None:
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        return None
    return numbers if len(numbers) == 5 and np.isfinite(numbers).all() else None


def views_of(point: ControlPoint, model: pycolmap.Reconstruction) -> list[View]:
    """Return the registered photos that show a point, and where.

    Raises:
        InputError: a pixel is outside of its photo.
    """
    views = _marks(point, model)
    for name, (_, camera, pixel) in views.items():
        if not _is_inside(camera, pixel):
            raise InputError(
                f"{point.name}: pixel ({pixel[0]:g}, {pixel[1]:g}) is outside of {name}, which "
                f"is stored with {camera.width} x {camera.height} pixels, turned or not"
            )
    return list(views.values())


def _marks(point: ControlPoint, model: pycolmap.Reconstruction) -> dict[str, View]:
    """Registered photo -> where it shows a point, inside of it or not."""
    images = {image.name: image for image in model.images.values() if image.has_pose}
    return {
        name: View(images[name].cam_from_world(), model.cameras[images[name].camera_id], pixel)
        for name, pixel in point.observations.items()
        if name in images
    }


def _is_inside(camera: pycolmap.Camera, pixel: FloatArray, tolerance: float = 0.0) -> bool:
    size = np.array([camera.width, camera.height])
    margin = tolerance * size.max()
    return bool(((pixel >= -margin) & (pixel <= size + margin)).all())


def check_pixels(known: ControlPoints, model: pycolmap.Reconstruction) -> None:
    """Refuse points whose marks do not meet in space, but would if the photos had another size.

    Raises:
        InputError: the message says of which size the photos were that were marked.
    """
    marks = [_marks(point, model) for point in known.points]
    marked = [list(views.values()) for views in marks if len(views) >= 2]
    if len(marked) < MIN_MARKED or _share_that_meets(marked, 1.0) > 0.5:
        return
    shares = np.array([_share_that_meets(marked, factor) for factor in FACTORS])
    if shares.max() < 0.75:
        return
    factor = float(np.exp(np.log(FACTORS[shares == shares.max()]).mean()))
    camera = marked[0][0].camera
    width, height = (float(f"{side / factor:.2g}") for side in (camera.width, camera.height))
    raise InputError(
        f"the pixels of {known.source} are of photos of about {width:.0f} x {height:.0f} pixels, "
        f"and these have {camera.width} x {camera.height}: only so do marks of one point meet; "
        "scale them to the photos as they are"
    )


def _share_that_meets(marked: Sequence[Sequence[View]], factor: float) -> float:
    """Of points whose pixels are multiplied: the share whose marks meet, most of them."""
    return float(np.mean([_meet(views, factor) for views in marked]))


def _meet(views: Sequence[View], factor: float) -> bool:
    scaled = [view._replace(pixel=factor * view.pixel) for view in views]
    if not all(_is_inside(view.camera, view.pixel, MAX_MISS) for view in scaled):
        return False
    camera = scaled[0].camera
    miss = MAX_MISS * max(camera.width, camera.height)
    found = _triangulation(scaled, np.arctan(miss / camera.mean_focal_length()))
    return found is not None and sum(found["inliers"]) > len(views) / 2


def triangulate_control_point(views: Sequence[View]) -> FloatArray | None:
    """Return the point (3,) of the model that is seen there; None if the views do not tell it."""
    found = _triangulation(views, MAX_ANGLE) if len(views) > 1 else None
    if found is None:
        return None
    agreeing = [view for view, inlier in zip(views, found["inliers"], strict=True) if inlier]
    return _refined(np.asarray(found["xyz"], np.float64), agreeing)


def _triangulation(views: Sequence[View], max_angle: float) -> dict[str, Any] | None:
    """COLMAP's, of rays that miss the point by no more than an angle in radians."""
    options = pycolmap.EstimateTriangulationOptions()
    options.min_tri_angle = np.deg2rad(MIN_ANGLE)
    options.ransac.max_error = max_angle
    options.ransac.random_seed = 0
    poses = [view.cam_from_world for view in views]
    pixels = np.array([view.pixel for view in views])
    cameras = [view.camera for view in views]
    found: dict[str, Any] | None = pycolmap.estimate_triangulation(pixels, poses, cameras, options)
    return found


def pixel_residuals(xyz: FloatArray, views: Sequence[View]) -> FloatArray:
    """Return how far from its observations (N, 2) a point (3,) of the model is seen, in pixels."""
    residuals = np.zeros((len(views), 2))
    for residual, view in zip(residuals, views, strict=True):
        in_camera = (view.cam_from_world * xyz).reshape(1, 3)
        projected = np.asarray(view.camera.img_from_cam(in_camera, check_cheirality=False))
        residual[:] = projected[0] - view.pixel
    return residuals


def _refined(xyz: FloatArray, views: Sequence[View]) -> FloatArray:
    """Least squares of the pixels, by Gauss and Newton with differences for derivatives."""
    depths = [abs(float((view.cam_from_world * xyz)[2])) for view in views]
    step = 1e-6 * max(depths)  # pixels change by thousandths
    for _ in range(10):
        residuals = pixel_residuals(xyz, views).ravel()
        slopes = [
            (
                pixel_residuals(xyz + step * axis, views)
                - pixel_residuals(xyz - step * axis, views)
            ).ravel()
            / (2 * step)
            for axis in np.eye(3)
        ]
        change, *_ = np.linalg.lstsq(np.column_stack(slopes), -residuals, rcond=None)
        xyz = xyz + change
        if np.linalg.norm(change) < step:
            break
    return xyz
