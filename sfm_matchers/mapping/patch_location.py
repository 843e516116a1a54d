"""Where a photo shows a point that other photos show: predicted by poses, found by its looks.

A patch of a photo that observes the point is carried over by the two poses and the plane around
the point, and aligned with the other photo by least squares.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from sfm_matchers.errors import InputError
from sfm_matchers.mapping.sparse_scene import BoolArray, FloatArray, IntArray, SparseScene, View
from sfm_matchers.matchers.least_squares_matching import CHUNK, RADIUS, align_patches, blurred
from sfm_matchers.photos.images import read_image

MAX_ANGLE = 50.0  # degrees between the rays of the two photos
MAX_ZOOM = 2.5  # of the one photo against the other
ZOOM_COUNTS = 15.0  # degrees that twice the scale counts for, where a reference is chosen
MAX_STRETCH = 3.5  # of the affine map of a patch
MAX_RESIDUAL = 1.5  # pixels of a keypoint, up to which the projection of its point is trusted
# Samples: where half of the keypoints lie farther from the projections of their points, patches are
# aligned at twice the distance of samples first. Elsewhere that takes time and changes nothing.
ROUGH = 0.5
LARGEST_PIXELS = 1 << 26  # of a photo that is looked at as it is; 16 bytes each at least
SHARP_SIDE = 2048  # pixels, longer side up to which photos are taken to be sharp to the pixel
NUM_INDEPENDENT = 30.0  # samples of a patch, whose noise is blurred
BORDER = 2 * RADIUS  # samples


class Sightings(NamedTuple):
    """What was found in one photo of M points.

    Attributes:
        point: (M,) indices of points of the scene.
        pixel: (M, 2) where they were found.
        succeeded: (M,) bool.
        correlation: (M,) of the patches.
        deviation: (M,) standard deviation of the place, pixels, that noise and texture allow.
    """

    point: IntArray
    pixel: FloatArray
    succeeded: BoolArray
    correlation: FloatArray
    deviation: FloatArray


class Photos:
    """Gray photos, blurred for sampling at some distance; the last ones used are kept.

    Args:
        folder: of the photos.
        budget: bytes that they may take.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        self.folder = folder
        self.budget = budget
        self._kept: OrderedDict[tuple[str, float], np.ndarray] = OrderedDict()
        self._gray: tuple[str, np.ndarray] = ("", np.zeros((0, 0)))

    def blurred(self, view: View, spacing: float) -> np.ndarray:
        """Return a photo (H, W) without what samples so many pixels apart cannot tell.

        It is smaller by its `reduction`; the spacing is in pixels of the photo as it is.

        Raises:
            InputError: it cannot be read, or has another size than its camera.
        """
        key = (view.name, spacing)
        if key not in self._kept:
            self._kept[key] = blurred(self._read(view), spacing / self.reduction(view))
            while len(self._kept) > 2 and self._bytes() > self.budget:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _bytes(self) -> int:
        return sum(image.nbytes for image in self._kept.values())

    def reduction(self, view: View) -> int:
        """By how much a photo is reduced, not to take gigabytes: its samples lie further apart."""
        factor = 1
        while view.size[0] * view.size[1] > LARGEST_PIXELS * factor**2:
            factor *= 2
        return factor

    def _read(self, view: View) -> np.ndarray:
        if self._gray[0] != view.name:
            self._gray = "", np.zeros((0, 0))  # while the next one is read
            image = read_image(self.folder / view.name, gray=True)
            if image.shape[::-1] != view.size:
                found, expected = ("{}x{}".format(*size) for size in (image.shape[::-1], view.size))
                raise InputError(
                    f"{self.folder / view.name} is {found}, its camera in the model {expected}: "
                    "give the photos that the model was made of"
                )
            self._gray = view.name, _reduced(image, self.reduction(view)).astype(np.float32)
        return self._gray[1]


def _reduced(image: np.ndarray, factor: int) -> np.ndarray:
    """Return means of squares of pixels; at the right and below, of what there is repeated."""
    if factor == 1:
        return image
    height, width = (-side % factor for side in image.shape)
    whole = cv2.copyMakeBorder(image, 0, height, 0, width, cv2.BORDER_REPLICATE)
    size = (whole.shape[1] // factor, whole.shape[0] // factor)
    return np.asarray(cv2.resize(whole, size, interpolation=cv2.INTER_AREA))


def sample_spacing(size: tuple[int, int]) -> float:
    """Return the pixels between samples of a patch of a photo of a size: larger photos are not
    sharp to the pixel."""
    return 2.0 ** max(0, round(np.log2(max(size) / SHARP_SIDE)))


def choose_references(
    scene: SparseScene, target: int, candidates: IntArray, absent: BoolArray
) -> tuple[IntArray, IntArray]:
    """Choose the sighting from which each candidate is looked for in a view, not of absent views
    (V,): the one of the most similar angle and scale.

    Returns:
        Candidates (M,) that have one, ascending, and the sightings (M,).
    """
    counts = scene.starts[candidates + 1] - scene.starts[candidates]
    point = np.repeat(candidates, counts)
    sighting = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    sighting += np.repeat(scene.starts[candidates], counts)
    centers = np.array([view.center for view in scene.views])
    scales = np.array([view.pixels_per_radian for view in scene.views])
    rays0 = centers[scene.view[sighting]] - scene.points[point]
    rays1 = centers[target] - scene.points[point]
    lengths0, lengths1 = (np.linalg.norm(rays, axis=1) for rays in (rays0, rays1))
    cosines = (rays0 * rays1).sum(1) / (lengths0 * lengths1)
    angles = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    zooms = np.log2(scales[target] / lengths1 * lengths0 / scales[scene.view[sighting]])
    usable = ~absent[scene.view[sighting]]
    usable &= (angles < MAX_ANGLE) & (np.abs(zooms) < np.log2(MAX_ZOOM))
    point, sighting = point[usable], sighting[usable]
    order = np.lexsort(((angles + ZOOM_COUNTS * np.abs(zooms))[usable], point))
    point, sighting = point[order], sighting[order]
    chosen, first = np.unique(point, return_index=True)
    return chosen, sighting[first]


def carry_over(
    view0: View, view1: View, pixels0: FloatArray, points: FloatArray, normals: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Carry patches from one view to another over the planes around points.

    Args:
        view0: shows the patches.
        view1: shows them too.
        pixels0: (M, 2) their centres in view 0.
        points: (M, 3) of their planes.
        normals: (M, 3).

    Returns:
        Their centres (M, 2) in view 1, and the affine maps (M, 2, 2) from offsets in view 0 to
        offsets in view 1; NaN where there are none.
    """
    step = RADIUS / 2
    offsets = step * np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])
    count = len(points)
    rays = view0.rays((pixels0[:, None] + offsets).reshape(-1, 2)).reshape(count, 5, 3)
    along = (rays * normals[:, None]).sum(-1)
    ahead = ((points - view0.center) * normals).sum(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        surface = view0.center + (ahead / along)[..., None] * rays
        surface[(ahead / along <= 0) | ~np.isfinite(surface).all(-1)] = np.nan
    pixels1 = view1.project(surface.reshape(-1, 3)).reshape(count, 5, 2)
    by_x, by_y = (pixels1[:, i] - pixels1[:, i + 1] for i in (1, 3))
    return pixels1[:, 0], np.stack([by_x, by_y], -1) / (2 * step)


def locate(
    scene: SparseScene,
    target: int,
    candidates: IntArray,
    photos: Photos,
    missing: Collection[str] = (),
) -> Sightings:
    """Look for points in a view, each from one of the photos that observe it.

    Args:
        scene: what is known.
        target: index of the view.
        candidates: indices of points.
        photos: decoded ones.
        missing: names of photos that are not there.

    Raises:
        InputError: a photo cannot be read.
    """
    absent = np.array([view.name in missing for view in scene.views])
    point, sighting = choose_references(scene, target, candidates, absent)
    found = []
    for view in np.unique(scene.view[sighting]):
        of_view = scene.view[sighting] == view
        found.append(_locate_from(scene, view, target, point[of_view], sighting[of_view], photos))
    if not found:
        nothing = np.zeros(0)
        return Sightings(
            np.zeros(0, np.int64), np.zeros((0, 2)), np.zeros(0, bool), nothing, nothing
        )
    return Sightings(*map(np.concatenate, zip(*found, strict=True)))


def _locate_from(
    scene: SparseScene,
    source: int,
    target: int,
    point: IntArray,
    sighting: IntArray,
    photos: Photos,
) -> Sightings:
    """Look for points (M,) in view `target` from their sightings (M,) in view `source`."""
    view0, view1 = scene.views[source], scene.views[target]
    points = scene.points[point]
    pixels0 = _centers(view0, points, scene.pixel[sighting])
    towards = view0.center - points
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    normals = np.where(scene.is_flat[point][:, None], scene.normals[point], towards)
    pixels1, linear = carry_over(view0, view1, pixels0, points, normals)
    with np.errstate(invalid="ignore"):
        stretch = np.linalg.svd(np.nan_to_num(linear), compute_uv=False)
        usable = (stretch[:, 0] < MAX_STRETCH) & (stretch[:, 1] * MAX_STRETCH > 1)
        usable &= np.linalg.det(linear) > 0
    base = sample_spacing(view1.size)
    is_rough = not np.nanmedian(scene.errors) < ROUGH * base
    usable &= view0.shows(pixels0, RADIUS) & view1.shows(pixels1, base * RADIUS)
    point = point[usable]
    pixels0, pixels1, linear = (array[usable] for array in (pixels0, pixels1, linear))
    # Samples are never denser than the pixels of the photo that shows less; in half octaves.
    zooms = np.sqrt(np.linalg.det(linear)).clip(1e-3)
    spacings = np.maximum(sample_spacing(view0.size), base / zooms)
    octaves = np.round(2 * np.log2(spacings)) / 2
    parts = []
    for octave in np.unique(octaves):
        same = octaves == octave
        zoom = 2 ** (np.round(2 * np.log2(np.median(zooms[same]))) / 2)
        parts.append((np.flatnonzero(same), float(2.0**octave), float(zoom)))
    found = Sightings(
        point, pixels1, np.zeros(len(point), bool), np.zeros(len(point)), np.full(len(point), 1e3)
    )
    for index, spacing, zoom in parts:
        for chunk in np.array_split(index, -(-len(index) // CHUNK)):
            places = pixels0[chunk], pixels1[chunk], linear[chunk]
            placed = _aligned(photos, view0, view1, *places, spacing, zoom, is_rough=is_rough)
            for array, values in zip(found[1:], placed, strict=True):
                array[chunk] = values
    return found


def _centers(view: View, points: FloatArray, keypoints: FloatArray) -> FloatArray:
    """Return the centres (M, 2) of the patches of a view around points that it observes.

    The projection of a point, which all its keypoints tell, is more exact than one of them.
    """
    pixels = view.project(points)
    near = np.linalg.norm(pixels - keypoints, axis=1) < MAX_RESIDUAL * sample_spacing(view.size)
    return np.where(near[:, None], pixels, keypoints)


def _in_reduced(pixels: FloatArray, factor: int) -> FloatArray:
    """Return pixels (M, 2) of a photo in it reduced."""
    return pixels if factor == 1 else (pixels + 0.5) / factor - 0.5


def _aligned(
    photos: Photos,
    view0: View,
    view1: View,
    pixels0: FloatArray,
    pixels1: FloatArray,
    linear: FloatArray,
    spacing: float,
    zoom: float,
    *,
    is_rough: bool,
) -> tuple[np.ndarray, ...]:
    """Align a batch of patches, coarsely first if the places are rough.

    Returns:
        All but the point of `Sightings`.
    """
    reduction0, reduction1 = photos.reduction(view0), photos.reduction(view1)
    pixels0, pixels1 = _in_reduced(pixels0, reduction0), _in_reduced(pixels1, reduction1)
    points0, points1, maps = (array.astype(np.float32) for array in (pixels0, pixels1, linear))
    passes = [(2 * spacing, False), (spacing, True)]
    for width, affine in passes if is_rough else passes[1:]:
        result = align_patches(
            photos.blurred(view0, width),
            photos.blurred(view1, width * zoom),
            points0,
            points1,
            maps * (width / reduction1),
            spacing=width / reduction0,
            affine=affine,
        )
        points1 = result.points
    noise = (1 - result.correlation.clip(max=1)) / result.texture.clip(min=1e-6)
    deviation = spacing * zoom * np.sqrt(2 * noise / NUM_INDEPENDENT)
    if reduction1 > 1:
        points1 = (points1 + 0.5) * reduction1 - 0.5
    return points1, result.succeeded, result.correlation, deviation
