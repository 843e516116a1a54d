"""Intrinsics: parsed, held against the size of photos, transformed, and as a map suggests them.

Parameters are COLMAP's, in pixels: (0, 0) is the corner of the top-left pixel.
"""

from __future__ import annotations

import copy
import itertools
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pycolmap

from sfm_matchers.confs.options import suggestion
from sfm_matchers.errors import InputError

logger = logging.getLogger(__name__)

Size = tuple[int, int]
"""(width, height) in pixels."""

# Of the longer side, COLMAP's value: where nothing is known.
GUESSED_FOCAL_LENGTH = 1.2
# Of the longer side. Below there is no lens; above there are few.
FOCAL_LENGTHS = (0.1, 10.0)
# The same where EXIF says so, and nobody else: beyond are damaged or invented tags only.
EXIF_FOCAL_LENGTHS = (0.1, 50.0)
# Of the photo's sides: how far from the middle principal points of whole photos lie at most.
OFF_CENTRE = 0.15
# Up to this difference of their sides' ratio two sizes are those of one camera, scaled and rounded.
SAME_SHAPE = 0.01
# Between a photo and a smaller one of it.
USUAL_SCALES = (2, 4, 8, 1.5, 3, 4 / 3, 1.25, 1 / 2, 1 / 4, 1 / 8, 1 / 1.5, 1 / 3, 0.75, 0.8)
# Lenses are off by a few percent, along either axis: where the principal point is further from the
# middle than so, by the same share along both, it is the middle of photos of another size.
RESCALED, SAME_SHARE = 0.12, 0.25
# Of the photo, around the principal point: calibrations may fail near the border, but not within.
MUST_NOT_FOLD = 0.5
NOT_MONOTONIC = "the distortion is not monotonic inside the photo"
# How many times further from the middle than without distortion lenses show something at most:
# pincushion distortion moves corners by a tenth or two, the FOV model of 115 degrees by 0.56.
MAX_STRETCH = 1.6
# Of the photo, around the principal point: what the picture of any fisheye reaches at least.
MUST_BE_SEEN = 0.25


def camera_models() -> list[str]:
    """COLMAP's camera models."""
    return sorted(set(pycolmap.CameraModelId.__members__) - {"INVALID"})


def camera_with(model: str, focal_length: float, size: Size) -> pycolmap.Camera:
    """A camera of a model with a focal length in pixels, and nothing else known.

    Raises:
        InputError: unknown model.
    """
    if model not in camera_models():
        raise InputError(f"unknown camera model {model!r}{suggestion(model, camera_models())}")
    return pycolmap.Camera.create_from_model_name(1, model, focal_length, *size)


def copy_intrinsics(camera: pycolmap.Camera, model: str) -> pycolmap.Camera:
    """The camera in another model whose distortion begins with the same parameters."""
    if camera.model.name == model:
        return copy.copy(camera)
    other = camera_with(model, camera.mean_focal_length(), (camera.width, camera.height))
    params = other.params.copy()
    for name in ("focal_length_idxs", "principal_point_idxs", "extra_params_idxs"):
        into, values = list(getattr(other, name)()), camera.params[list(getattr(camera, name)())]
        if len(into) < len(values):
            values = values.mean(keepdims=True)
        elif len(values) == 1:  # one focal length for both axes
            values = np.repeat(values, len(into) if name == "focal_length_idxs" else 1)
        params[into[: len(values)]] = values
    other.params = params
    return other


def parse_params(model: str, text: str, what: str = "--camera_params") -> list[float]:
    """Parse intrinsics: numbers between commas or spaces, in COLMAP's order.

    Args:
        model: COLMAP's name.
        text: "" where they are unknown. A comma at the end does no harm.
        what: names the text in errors.

    Raises:
        InputError: unknown model, another number of parameters, or one that is no finite number.
    """
    camera = camera_with(model, 1.0, (1, 1))
    words = re.split(r"\s*,\s*|\s+", text.strip().removesuffix(",").strip())
    if words == [""]:
        return []
    expected = f"{what}: {model} takes {camera.params_info}"
    try:
        params = [float(word) for word in words]
    except ValueError as error:
        raise InputError(f"{expected}, got {text!r}") from error
    if len(params) != len(camera.params):
        raise InputError(f"{expected}: {len(camera.params)} numbers, got {text!r}")
    if not np.isfinite(params).all():
        raise InputError(f"{what}: every parameter must be a finite number, got {text!r}")
    return params


def format_params(params: Iterable[float]) -> str:
    """The text that `parse_params` reads."""
    return ",".join(f"{value:.17g}" for value in params)


def impossibility(camera: pycolmap.Camera) -> str:
    """Why there is no such camera; "" where there may be one."""
    focal_lengths = camera.params[list(camera.focal_length_idxs())]
    if (focal_lengths <= 0).any():
        return f"the focal length is {focal_lengths.min():g}, it must be above 0"
    if camera.model.name == "EQUIRECTANGULAR":
        size = camera.width, camera.height
        if tuple(camera.params) != size:
            return f"width and height are {camera.params_to_string()}, the photo's are {size}"
        return ""
    sides = np.array([camera.width, camera.height])
    centre = camera.params[list(camera.principal_point_idxs())]
    # Exactly in a corner it is that of a photo twice as large.
    if (centre <= 0.01 * sides).any() or (centre >= 0.99 * sides).any():
        return f"the principal point {_point(centre)} lies outside the photo"
    if not len(camera.extra_params_idxs()):
        return ""
    return _impossible_distortion(
        camera.model.name, camera.width, camera.height, tuple(camera.params.tolist())
    )


@lru_cache(maxsize=4096)  # many photos have one camera, and a list of cameras is read at each step
def _impossible_distortion(model: str, width: int, height: int, params: tuple[float, ...]) -> str:
    """Why no lens distorts like this; "" where one may."""
    camera = pycolmap.Camera(model=model, width=width, height=height, params=params)
    ways = list(_ways_out(camera, MUST_NOT_FOLD))
    if not all(way.moves_outwards for way in ways):
        return NOT_MONOTONIC
    if not any(way.leaves for way in _ways_out(camera, MUST_BE_SEEN)):
        return "the distortion keeps all rays in the middle of the photo"
    return _said_of_stretch(ways)


def is_monotonic(camera: pycolmap.Camera) -> bool:
    """True if, in every direction, pixels move outwards with the angle until they leave the photo.

    Otherwise two rays have one pixel, or a part of the photo none.
    """
    return all(way.leaves and way.moves_outwards for way in _ways_out(camera))


def _folds(camera: pycolmap.Camera) -> bool:
    """True if two rays have one pixel in the photo."""
    if not len(camera.extra_params_idxs()):
        return False
    return not all(way.moves_outwards for way in _ways_out(camera))


def _excessive_stretch(camera: pycolmap.Camera) -> str:
    """Say how far distortion moves pixels of the photo, where no lens does; or ""."""
    return _said_of_stretch(_ways_out(camera)) if len(camera.extra_params_idxs()) else ""


def _said_of_stretch(ways: Iterable[_WayOut]) -> str:
    stretch = max(way.stretch for way in ways)
    if stretch <= MAX_STRETCH:
        return ""
    return f"the distortion moves pixels {stretch:.3g} times as far from the middle as they were"


class _WayOut(NamedTuple):
    """One direction from the principal point.

    Attributes:
        leaves: pixels leave a share of the photo there.
        moves_outwards: they move outwards with the angle till then.
        stretch: how many times further they are than without distortion, at most.
    """

    leaves: bool
    moves_outwards: bool
    stretch: float


def _ways_out(camera: pycolmap.Camera, share: float = 1.0) -> Iterator[_WayOut]:
    """Directions all around, as far as pixels lie within a share of the photo."""
    widest = 89.5 if camera.is_perspective_fisheye() else 85.0  # COLMAP has no rays from behind
    angles = np.radians(np.linspace(0.0, widest, 500))
    undistorted = angles if camera.is_perspective_fisheye() else np.tan(angles)
    focal_lengths = np.resize(camera.params[list(camera.focal_length_idxs())], 2)
    centre = camera.params[list(camera.principal_point_idxs())]
    low, high = (1 - share) * centre, centre + share * ([camera.width, camera.height] - centre)
    for direction in np.linspace(0, 2 * np.pi, 32, endpoint=False):
        axis = np.array([np.cos(direction), np.sin(direction)])
        rays = np.column_stack([np.sin(angles)[:, None] * axis, np.cos(angles)])
        pixels = np.asarray(camera.img_from_cam(rays, check_cheirality=False))
        outside = ((pixels < low) | (pixels > high)).any(axis=1)  # not where there is no pixel
        end = int(outside.argmax()) if outside.any() else 0
        distances = (pixels[: end + 1] - centre) @ axis if end else (pixels - centre) @ axis
        moves = np.diff(distances[np.isfinite(distances)]) > 0
        # The last one is outside, and may be so by far.
        stretches = distances[1 : max(end, 2)] / (
            undistorted[1 : max(end, 2)] * (axis**2 @ focal_lengths)
        )
        stretch = np.nanmax(stretches, initial=0.0)
        yield _WayOut(end > 0, bool(moves.all()), float(stretch))


def camera_of_exif(path: Path) -> pycolmap.Camera | None:
    """The camera that COLMAP infers from a focal length in EXIF, see `may_be_of_exif`.

    None without one, and of photos that COLMAP does not decode.
    """
    try:
        camera = pycolmap.infer_camera_from_image(path)
    except (ValueError, RuntimeError):
        return None
    return camera if camera.has_prior_focal_length else None


def may_be_of_exif(camera: pycolmap.Camera) -> bool:
    """False of a focal length that EXIF states and no lens has."""
    least, most = (share * max(camera.width, camera.height) for share in EXIF_FOCAL_LENGTHS)
    return all(least <= camera.params[i] <= most for i in camera.focal_length_idxs())


def improbability(camera: pycolmap.Camera) -> str:
    """What is unusual about a camera that may exist; "" where nothing is."""
    return (
        improbable_focal_length(camera) or _improbable_centre(camera) or _excessive_stretch(camera)
    )


def improbable_focal_length(camera: pycolmap.Camera) -> str:
    """What is unusual about the focal lengths of a camera; "" where nothing is."""
    focal_lengths = camera.params[list(camera.focal_length_idxs())]
    if not len(focal_lengths):
        return ""
    longer = max(camera.width, camera.height)
    least, most = FOCAL_LENGTHS
    if not least * longer <= focal_lengths.min() <= focal_lengths.max() <= most * longer:
        sides = focal_lengths.mean() / longer
        return f"the focal length is {sides:.3g} times the longer side of the photo"
    if focal_lengths.max() > 1.5 * focal_lengths.min():
        return f"the focal lengths {_point(focal_lengths)} of the two axes are far apart"
    return ""


def _improbable_centre(camera: pycolmap.Camera) -> str:
    if not len(camera.focal_length_idxs()):
        return ""
    centre = camera.params[list(camera.principal_point_idxs())]
    offset = np.abs(centre / [camera.width, camera.height] - 0.5)
    if (offset > OFF_CENTRE).any():
        return f"the principal point {_point(centre)} is far from the middle of the photo"
    if (scale := _scale_of_centre(camera)) and abs(scale - 1) > RESCALED:
        share = f"{abs(scale - 1):.0%}"
        return f"the principal point {_point(centre)} is {share} off the middle along both axes"
    return ""


def likely_mistake(camera: pycolmap.Camera) -> str:
    """The likely reason for parameters that cannot be, or are unlikely; "" if none is known."""
    return (
        _normalised(camera)
        or _other_model(camera)
        or _held_otherwise(camera)
        or _other_order(camera)
        or _other_resolution(camera)
    )


def _normalised(camera: pycolmap.Camera) -> str:
    several = [*camera.focal_length_idxs(), *camera.principal_point_idxs()]
    if len(several) and 0 < np.abs(camera.params[several]).max() < 10 < camera.width / 5:
        return "they look normalised: give pixels"
    return ""


def _other_model(camera: pycolmap.Camera) -> str:
    """The model whose parameters they are, if it has as many, and others focal lengths."""
    for model in ("PINHOLE", "SIMPLE_RADIAL", "RADIAL", "FOV"):
        other = camera_with(model, 1.0, (camera.width, camera.height))
        if len(other.params) != len(camera.params):
            continue
        if list(other.focal_length_idxs()) == list(camera.focal_length_idxs()):
            continue
        other.params = camera.params.tolist()
        if not impossibility(other) and _is_centred(other) and not improbability(other):
            return f"they look like {other.params_info} of {model}: --camera_model {model}"
    return ""


def _held_otherwise(camera: pycolmap.Camera) -> str:
    """The size of photos held upright, or the reverse, if the principal point is their middle."""
    turned = copy.copy(camera)
    turned.width, turned.height = camera.height, camera.width
    if camera.width == camera.height or not _is_centred(turned) or _is_centred(camera):
        return ""
    return (
        f"they look like those of photos of {turned.width} x {turned.height} pixels, held the "
        "other way: swap cx and cy, fx and fy"
    )


def _other_order(camera: pycolmap.Camera) -> str:
    """Focal lengths and principal point in an order that would make sense."""
    indices = [*camera.focal_length_idxs(), *camera.principal_point_idxs()]
    names = [name.strip() for name in camera.params_info.split(",")]
    for order in itertools.permutations(range(len(indices))):
        sorted_ = copy.copy(camera)
        params = camera.params.copy()
        params[[indices[place] for place in order]] = camera.params[indices]
        sorted_.params = params
        if np.array_equal(params, camera.params):
            continue
        if not impossibility(sorted_) and _is_centred(sorted_) and not improbability(sorted_):
            found = ",".join(names[indices[place]] for place in order)
            return f"they look like {found}, COLMAP's order is {','.join(names[: len(indices)])}"
    return ""


def _is_centred(camera: pycolmap.Camera) -> bool:
    centre = camera.params[list(camera.principal_point_idxs())]
    return bool((np.abs(centre / [camera.width, camera.height] - 0.5) < 0.05).all())


def _scale_of_centre(camera: pycolmap.Camera) -> float | None:
    """How many times larger the photos are whose middle is the principal point.

    None where that differs from axis to axis: by the lens' own few percent of a large scale, and by
    less of a small one.
    """
    indices = list(camera.principal_point_idxs())
    if not indices:
        return None
    scales = 2 * camera.params[indices] / [camera.width, camera.height]
    if scales.min() <= 0:
        return None
    scale, difference = float(scales.mean()), np.log(scales.max() / scales.min())
    most = 0.1 if abs(scale - 1) >= 0.2 else SAME_SHARE * abs(np.log(scale))
    return scale if difference < most else None


def _other_resolution(camera: pycolmap.Camera) -> str:
    """The size of the photos whose middle is the principal point, if its shape is the photo's."""
    found = _scale_of_centre(camera)
    if found is None or abs(found - 1) <= RESCALED:
        return ""
    scale = min(USUAL_SCALES, key=lambda usual: abs(np.log(usual / found)))
    if abs(np.log(scale / found)) > 0.03:
        scale = found
    meant = np.rint(np.array([camera.width, camera.height]) * scale).astype(int)
    values = camera.params.copy()
    values[[*camera.focal_length_idxs(), *camera.principal_point_idxs()]] /= scale
    shown = ",".join(f"{value:.6g}" for value in values)
    return (
        f"they look like those of photos of {meant[0]} x {meant[1]} pixels, for these they would "
        f"be {shown}"
    )


def check_camera(camera: pycolmap.Camera, what: str, *, is_deliberate: bool = False) -> None:
    """Compare intrinsics with the size of their photos.

    Args:
        camera: with the photos' size.
        what: names it in messages.
        is_deliberate: what is only unlikely is a warning.

    Raises:
        InputError: they cannot be, or are unlikely; the message names the likely mistake.
    """
    impossible = impossibility(camera)
    unlikely = impossible or improbability(camera) or (NOT_MONOTONIC if _folds(camera) else "")
    if not unlikely:
        return
    mistake = "" if unlikely == NOT_MONOTONIC else likely_mistake(camera)
    size = f"{camera.width} x {camera.height}"
    message = f"{what}: {unlikely} ({size} pixels)" + (f"; {mistake}" if mistake else "")
    if impossible or not is_deliberate:
        advice = "" if impossible else "; if they are right, give them in a file, --cameras"
        raise InputError(message + advice)
    logger.warning("%s: they are taken as they are", message)


def _point(values: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"


@dataclass(frozen=True)
class Intrinsics:
    """Intrinsics that a photo may have.

    Attributes:
        camera: the intrinsics.
        source: whence they come, in the user's words.
    """

    camera: pycolmap.Camera
    source: str


def intrinsics_of_map(model: pycolmap.Reconstruction, size: Size) -> list[Intrinsics]:
    """Each camera of a map for photos of a size: of this size, of this shape, or turned upright.

    The most frequent first, those of the very size before all others; equal ones once.
    """
    counts = Counter(image.camera_id for image in model.images.values())
    exact, similar = [], []
    for camera_id, _ in counts.most_common():
        camera, name = model.cameras[camera_id], f"camera {camera_id} of the map"
        if (camera.width, camera.height) == size:
            exact.append(Intrinsics(camera, name))
            continue
        for turns, turned in (
            (0, camera),
            (1, turned_camera(camera)),
            (3, turned_camera(camera, 3)),
        ):
            if turned is not None and _has_shape(turned, size):
                how = ", scaled" if {turned.width, turned.height} != set(size) else ""
                how += ", turned" if turns else ""
                similar.append(Intrinsics(_scaled(turned, size), name + how))
    unlike: list[Intrinsics] = []
    for found in exact + similar:
        if not any(_are_equal(found.camera, other.camera) for other in unlike):
            unlike.append(found)
    return unlike


def _has_shape(camera: pycolmap.Camera, size: Size) -> bool:
    ratio = camera.width / camera.height / (size[0] / size[1])
    rounding = 1 / min(*size, camera.width, camera.height)
    return abs(ratio - 1) < max(SAME_SHAPE, rounding)


def _scaled(camera: pycolmap.Camera, size: Size) -> pycolmap.Camera:
    scaled = copy.copy(camera)
    scaled.rescale(*size)
    return scaled


def _are_equal(one: pycolmap.Camera, other: pycolmap.Camera) -> bool:
    """True if two cameras are the same to a tenth of a pixel."""
    if one.model != other.model:
        return False
    pixels = [*one.focal_length_idxs(), *one.principal_point_idxs()]
    rest = list(one.extra_params_idxs())
    return np.allclose(one.params[pixels], other.params[pixels], rtol=0, atol=0.1) and np.allclose(
        one.params[rest], other.params[rest], rtol=0, atol=1e-4
    )


def turned_camera(camera: pycolmap.Camera, quarters: int = 1) -> pycolmap.Camera | None:
    """The camera of a photo after quarter turns clockwise; None where its model has no such.

    Radial distortion stays; the tangential ``(p1, p2)``, of a term along x and y, turn with it.
    """
    turned = copy.copy(camera)
    for _ in range(quarters % 4):
        values = dict(zip(_parameter_names(turned), turned.params.tolist(), strict=True))
        if not {name.rstrip("123456") for name in values} <= {*_TURNED_NAMES}:
            return None
        if "fx" in values:
            values["fx"], values["fy"] = values["fy"], values["fx"]
        # (x, y) becomes (height - y, x).
        values["cx"], values["cy"] = turned.height - values["cy"], values["cx"]
        if "p1" in values:
            values["p1"], values["p2"] = values["p2"], -values["p1"]
        turned.width, turned.height = turned.height, turned.width
        turned.params = list(values.values())
    return turned


_TURNED_NAMES = ("f", "fx", "fy", "cx", "cy", "k", "p", "omega", "alpha", "beta")


def _parameter_names(camera: pycolmap.Camera) -> list[str]:
    return [name.strip() for name in camera.params_info.split(",")]
