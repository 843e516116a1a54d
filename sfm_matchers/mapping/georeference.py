"""A model in metres, east, north and up: by where photos were taken, or by ground control points.

The model that the mapper made stays as it is; the one in metres is written beside it, with the
transform between the two and how far each photo or point is from where it was measured.
"""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from sfm_matchers.errors import InputError
from sfm_matchers.files.text import folder_written_whole, write_text
from sfm_matchers.geometry.coordinates import WGS84, FloatArray, Frame
from sfm_matchers.mapping.adjustment import MIN_ROBUST_SCALE, median_error
from sfm_matchers.mapping.control_points import (
    ControlPoint,
    ControlPoints,
    check_pixels,
    pixel_residuals,
    triangulate_control_point,
    views_of,
)
from sfm_matchers.mapping.models import write_model
from sfm_matchers.mapping.similarity import (
    MIN_POINTS_FOR_OUTLIERS,
    Similarity,
    fit_similarity,
    transformed,
)
from sfm_matchers.pairs.positions import Positions
from sfm_matchers.photos.images import up_in_camera

logger = logging.getLogger(__name__)

# Metres, of one coordinate, where a photo by GPS says nothing of its accuracy.
USUAL_ACCURACY = 3.0
ABOUT = "georeference.json"  # beside the model in metres

# Positions bend the model only where it is further from them than they tell to be exact: centres of
# two strips of 24 photos, by RTK to 3 cm, are then 0.028 m off instead of 0.055 m. Where it is not,
# or with metres of error, nothing is gained.
MIN_DEVIATION_RATIO = 1.3
MAX_WORSE = 1.05  # of the reprojection error, by such an adjustment
# What is up in photos minus where they look, along the vertical, on average. Level photos and those
# straight down have about 1, those that look up at a tower by 60 degrees -0.4; where the model
# stands on its head it is the reverse.
HEAD_DOWN = -0.5
ROBUST_SCALE = 2.385  # standard deviations: of the Cauchy loss, as in `mapping.adjust_robustly`


@dataclass(frozen=True)
class PointResidual:
    """How far a ground control point is from where it was measured.

    Attributes:
        metres: (3,) in the photos minus measured.
        pixels: root mean square over the photos of where the measured point is seen, and marked.
        num_photos: that show it.
        is_check: it had no part in the georeference.
        is_outlier: it disagrees with the others, and has no part either.
    """

    metres: FloatArray
    pixels: float
    num_photos: int
    is_check: bool = False
    is_outlier: bool = False


@dataclass(frozen=True)
class Georeference:
    """Where a model is on the earth.

    Attributes:
        transform: metres from the model's units.
        frame: the axes of the metres.
        source: what it is from.
        scale_std: relative standard deviation of the scale.
        residuals: photo -> (3,) in metres, in the model minus measured; all that have a position.
        outliers: photos whose position disagrees with the others', and has no part.
        points: ground control points by name.
        is_adjusted: the model was bent to the positions too.
    """

    transform: pycolmap.Sim3d
    frame: Frame
    source: str
    scale_std: float
    residuals: Mapping[str, FloatArray] = field(default_factory=dict)
    outliers: Sequence[str] = ()
    points: Mapping[str, PointResidual] = field(default_factory=dict)
    is_adjusted: bool = False


def georeference(
    model: pycolmap.Reconstruction,
    known: Positions | ControlPoints,
    fixed: Collection[str] = (),
) -> tuple[Georeference, pycolmap.Reconstruction]:
    """Find the place of a model on the earth.

    Args:
        model: it is left as it is.
        known: where photos were taken, or ground control points.
        fixed: photos whose intrinsics are kept as they are.

    Returns:
        The transform with its residuals, and the model in metres.

    Raises:
        InputError: what is known does not determine it.
    """
    if isinstance(known, ControlPoints):
        found = by_control_points(model, known)
        moved = copy.deepcopy(model)
        moved.transform(found.transform)
        return found, moved
    found, std = _by_positions(model, known)
    moved = copy.deepcopy(model)
    moved.transform(found.transform)
    used = [name for name in found.residuals if name not in found.outliers]
    told = [known.accuracy[name] for name in used if name in known.accuracy]
    if len(told) == len(used) >= MIN_POINTS_FOR_OUTLIERS and (
        std > MIN_DEVIATION_RATIO * float(np.sqrt(np.mean(np.square(told))))
    ):
        bent = adjust_to_positions(moved, known, used, fixed)
        if bent is not None:
            after = centres(bent)
            residuals = {name: after[name] - known.xyz[name] for name in found.residuals}
            return replace(found, residuals=residuals, is_adjusted=True), bent
    return found, moved


def centres(model: pycolmap.Reconstruction) -> dict[str, FloatArray]:
    """Return where the registered photos of a model were taken: name -> (3,)."""
    images = [model.images[image_id] for image_id in sorted(model.reg_image_ids())]
    return {image.name: np.asarray(image.projection_center()) for image in images}


def _by_positions(
    model: pycolmap.Reconstruction, positions: Positions
) -> tuple[Georeference, float]:
    """Return the georeference, and the standard deviation of a coordinate in metres."""
    own = centres(model)
    names = [name for name in own if name in positions.xyz]
    told = [positions.accuracy[name] for name in names if name in positions.accuracy]
    usual = USUAL_ACCURACY if positions.frame.system == WGS84 else 0.0
    source = np.array([own[name] for name in names]).reshape(-1, 3)
    target = np.array([positions.xyz[name] for name in names]).reshape(-1, 3)
    try:
        fit = fit_similarity(source, target, float(np.median(told)) if told else usual)
    except InputError as error:
        raise InputError(
            f"the positions of {len(names)} of {len(own)} photos ({positions.source}) do not tell "
            f"the place of the model: {error}"
        ) from None
    residuals = dict(zip(names, fit.residuals, strict=True))
    outliers = [name for name, is_inlier in zip(names, fit.is_inlier, strict=True) if not is_inlier]
    place = Georeference(
        fit.transform, positions.frame, positions.source, fit.scale_std, residuals, outliers
    )
    return place, fit.std


def adjust_to_positions(
    model: pycolmap.Reconstruction,
    positions: Positions,
    names: Collection[str],
    fixed: Collection[str] = (),
) -> pycolmap.Reconstruction | None:
    """Adjust a copy of a model in metres with positions as priors, weighted by their accuracy.

    Args:
        model: in the frame of the positions; it is left as it is.
        positions: all with an accuracy.
        names: the photos whose positions are used.
        fixed: photos whose intrinsics are kept as they are.

    Returns:
        The copy; None if its reprojection error grew.
    """
    bent = copy.deepcopy(model)
    options = pycolmap.BundleAdjustmentOptions()
    options.print_summary = False
    options.ceres.solver_options.num_threads = 1
    median = median_error(model)
    pixel_std = max(MIN_ROBUST_SCALE, 2 * median) / ROBUST_SCALE
    options.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
    options.ceres.loss_function_scale = ROBUST_SCALE * pixel_std
    config = pycolmap.BundleAdjustmentConfig()
    priors = []
    for image_id in model.reg_image_ids():
        config.add_image(image_id)
        name = model.images[image_id].name
        if name in fixed:
            config.set_constant_cam_intrinsics(model.images[image_id].camera_id)
        if name in names:
            # Residuals of pixels are not divided by their standard deviation: those of positions,
            # which are by theirs, are multiplied by it.
            variance = (positions.accuracy[name] / pixel_std) ** 2
            prior = pycolmap.PosePrior(
                position=positions.xyz[name],
                position_covariance=np.eye(3) * variance,
                coordinate_system=pycolmap.PosePriorCoordinateSystem.CARTESIAN,
            )
            prior.pose_prior_id = image_id
            prior.corr_data_id = bent.images[image_id].data_id
            priors.append(prior)
    prior_options = pycolmap.PosePriorBundleAdjustmentOptions()
    prior_options.alignment_ransac.random_seed = 0
    prior_options.alignment_ransac.max_error = 10 * max(
        float(np.linalg.norm(centre - positions.xyz[name]))
        for name, centre in centres(model).items()
        if name in names
    )  # outliers are left out already
    pycolmap.create_pose_prior_bundle_adjuster(options, prior_options, config, priors, bent).solve()
    after = median_error(bent)
    if not after <= MAX_WORSE * median:
        logger.info("The positions contradict the photos: the model is not bent to them")
        return None
    return bent


def by_control_points(model: pycolmap.Reconstruction, known: ControlPoints) -> Georeference:
    """Find the place of a model by ground control points.

    Raises:
        InputError: fewer than three are seen by two photos of the model each, or on a line; or
            their pixels are of photos of another size.
    """
    check_pixels(known, model)
    seen: dict[str, tuple[ControlPoint, FloatArray]] = {}
    for point in known.points:
        views = views_of(point, model)
        xyz = triangulate_control_point(views)
        if xyz is None:
            reason = "two photos from two places are needed"
            if len(views) > 1:
                reason = "its marks do not meet in space, or are from one place"
            logger.warning("%s is left out: %s", point.name, reason)
        else:
            name = point.name if point.name not in seen else f"{point.name} ({len(seen) + 1})"
            seen[name] = (point, xyz)
    used = [name for name, (point, _) in seen.items() if not point.is_check]
    source = np.array([seen[name][1] for name in used]).reshape(-1, 3)
    target = np.array([seen[name][0].xyz for name in used]).reshape(-1, 3)
    try:
        fit = fit_similarity(source, target)
    except InputError as error:
        raise InputError(
            f"the ground control points of {known.source} do not tell the place of the model: "
            f"{error} (of {len(known.points)} points, those that two photos of the model show)"
        ) from None
    agreeing = {name for name, is_inlier in zip(used, fit.is_inlier, strict=True) if is_inlier}
    points = {
        name: _point_residual(model, fit, point, xyz, name not in agreeing)
        for name, (point, xyz) in seen.items()
    }
    return Georeference(fit.transform, known.frame, known.source, fit.scale_std, points=points)


def _point_residual(
    model: pycolmap.Reconstruction,
    fit: Similarity,
    point: ControlPoint,
    xyz: FloatArray,
    is_outlier: bool,
) -> PointResidual:
    views = views_of(point, model)
    measured = transformed(fit.transform.inverse(), point.xyz.reshape(1, 3))[0]
    squared = (pixel_residuals(measured, views) ** 2).sum(axis=1)
    return PointResidual(
        transformed(fit.transform, xyz.reshape(1, 3))[0] - point.xyz,
        math.sqrt(float(squared.mean())),
        len(views),
        point.is_check,
        is_outlier and not point.is_check,
    )


def describe(place: Georeference, num_photos: int) -> str:
    """Return one line about a georeference, for the user.

    Args:
        place: it.
        num_photos: registered photos.
    """
    sure = f"scale to {place.scale_std:.1%}"
    if place.points:
        used = [p for p in place.points.values() if not p.is_check and not p.is_outlier]
        checks = [p for p in place.points.values() if p.is_check]
        outliers = [name for name, p in place.points.items() if p.is_outlier]
        text = f"{len(used)} ground control points: residuals {_of_points(used)}"
        text += f"; {len(checks)} check points: {_of_points(checks)}" if checks else ""
    else:
        outliers = list(place.outliers)
        vectors = [vector for name, vector in place.residuals.items() if name not in outliers]
        across, up = _horizontal_and_vertical(vectors)
        text = (
            f"{place.source}, {len(vectors)} of {num_photos} photos: residuals {_metres(across)} "
            f"horizontally, {_metres(up)} vertically"
        )
        text += "; adjusted with the positions" if place.is_adjusted else ""
    if outliers:
        more = ", ..." if len(outliers) > 5 else ""
        text += f"; left out, as others contradict them: {', '.join(outliers[:5])}{more}"
    return f"{text}; {sure}"


def _of_points(points: Sequence[PointResidual]) -> str:
    across, up = _horizontal_and_vertical([point.metres for point in points])
    pixels = math.sqrt(np.mean([point.pixels**2 for point in points]))
    return f"{_metres(across)} horizontally, {_metres(up)} vertically, {pixels:.1f} px"


def _horizontal_and_vertical(vectors: Sequence[FloatArray]) -> tuple[float, float]:
    """Root mean squares."""
    squared = np.square(np.array(vectors).reshape(-1, 3)).mean(axis=0)
    return math.sqrt(squared[0] + squared[1]), math.sqrt(squared[2])


def _metres(value: float) -> str:
    return f"{value:.3f} m" if value < 0.1 else f"{value:.2f} m"


def describe_on_head(
    model: pycolmap.Reconstruction, orientations: Mapping[str, int] | None = None
) -> str:
    """Say that a model in metres stands on its head; "" if it does not.

    Where axes are exchanged, or one has the wrong sign, the measured places are mirrored. Those of
    photos of much the same height, and of points on flat ground, are then those of the right model
    seen from below: they fit as well as before.

    Args:
        model: in metres, z up.
        orientations: EXIF's, of the photos that have one.
    """
    upright = []
    for image_id in model.reg_image_ids():
        image = model.images[image_id]
        up = up_in_camera((orientations or {}).get(image.name, 1))
        upright.append(image.cam_from_world().rotation.matrix()[:, 2] @ (up - [0, 0, 1]))
    if not upright or float(np.mean(upright)) > HEAD_DOWN:
        return ""
    return (
        "its photos look up or stand on their heads there: if they do not, two axes are exchanged "
        "(latitude and longitude, x and y), or one has the wrong sign"
    )


def write_georeference(
    folder: Path, place: Georeference, model: pycolmap.Reconstruction, text: str
) -> None:
    """Write the model in metres, and ``georeference.json``, in place of what is there.

    Args:
        folder: replaced.
        place: where the model is.
        model: in metres.
        text: of `describe`.
    """
    with folder_written_whole(folder) as temporary:
        write_model(model, temporary)
        write_text(temporary / ABOUT, json.dumps(_as_json(place, text), indent=1))


def _as_json(place: Georeference, text: str) -> dict[str, Any]:
    matrix = np.vstack([place.transform.matrix(), [0, 0, 0, 1]])
    origin = list(place.frame.origin)
    if place.frame.system == WGS84:
        frame: dict[str, Any] = {"axes": "east, north, up in metres", "system": WGS84}
        frame |= dict(zip(("latitude", "longitude", "altitude"), origin, strict=True))
    else:
        frame = {"axes": "x, y, z in metres", "system": place.frame.system, "origin": origin}
    return {
        "summary": text,
        "source": place.source,
        "transform": matrix.tolist(),
        "scale": float(place.transform.scale),
        "scale_std": place.scale_std,
        "reference": frame,
        "adjusted": place.is_adjusted,
        "photos": {
            name: {"residual": vector.tolist(), "outlier": name in place.outliers}
            for name, vector in place.residuals.items()
        },
        "points": {
            name: {
                "residual": point.metres.tolist(),
                "pixels": point.pixels,
                "photos": point.num_photos,
                "check": point.is_check,
                "outlier": point.is_outlier,
            }
            for name, point in place.points.items()
        },
    }
