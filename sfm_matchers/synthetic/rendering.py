"""Photographs of a scene, with depth.

All surfaces are planes, so nothing is traced step by step: 1/z and the texture coordinates divided
by z are affine functions of the pixel, one matrix a quad. The colour is sampled `_SUPERSAMPLING`
times along each axis of a pixel; depth and surface are those of the ray through its centre.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from sfm_matchers.errors import InputError
from sfm_matchers.synthetic.arrays import Colour, FloatArray
from sfm_matchers.synthetic.cameras import Camera
from sfm_matchers.synthetic.materials import noise
from sfm_matchers.synthetic.sampling import remap
from sfm_matchers.synthetic.scenes import CORNERS, Quad, Scene

_SUPERSAMPLING = 2
_NEAR = 0.05  # metres; what is closer is cut off
_MAX_TAPS = 6  # texture look-ups along the longer axis of a stretched footprint
_SHADOW_MAP_SIZE = 2048  # samples along each axis

# Linear RGB that falls on a surface.
_SUN_LIGHT = np.array([1.90, 1.70, 1.40], np.float32)
_SKY_LIGHT = np.array([0.40, 0.44, 0.52], np.float32)
_NIGHT_LIGHT = np.array([0.010, 0.013, 0.026], np.float32)
_ROOM_LIGHT = np.array([0.16, 0.15, 0.14], np.float32)


@dataclass(frozen=True)
class Appearance:
    """The light of the moment and the state of the camera."""

    night: bool = False  # lamps instead of sun and sky
    exposure: float = 0.2  # mean linear brightness the camera's exposure aims at, of 1
    white_balance: Colour = (1.0, 1.0, 1.0)  # gain of red, green, blue
    noise: float = 0.006  # deviation of the sensor's noise in mid-grey, linear, of 1
    vignetting: float = 0.15  # share of light lost in the corners
    blur: float = 0.45  # deviation of the lens blur, pixels
    sun: float = 1.0  # strength of the sun; 0 is an overcast day
    sun_azimuth: float = 230.0  # degrees, clockwise from north
    sun_elevation: float = 40.0  # degrees above the horizon
    shadows: bool = True  # whether the sun casts shadows

    @property
    def sun_direction(self) -> FloatArray:
        """Unit vector (3,) towards the sun."""
        azimuth, elevation = np.radians([self.sun_azimuth, self.sun_elevation])
        level = np.cos(elevation)
        return np.array([level * np.sin(azimuth), level * np.cos(azimuth), np.sin(elevation)])


def random_appearance(seed: int, *, night: bool = False) -> Appearance:
    """How one of many photographs of the same day, or night, looks: exposure, colours, noise and
    blur differ from photograph to photograph, the sun stays where it is."""
    rng = np.random.default_rng([seed, 3])
    base = Appearance(night=True, exposure=0.06, noise=0.012) if night else Appearance()
    gains = rng.normal(1, 0.04, 3).clip(0.85, 1.15)
    if night:
        gains *= rng.uniform((1.0, 0.85, 0.7), (1.25, 1.0, 1.0))
    red, green, blue = gains.tolist()
    return replace(
        base,
        exposure=float(base.exposure * rng.uniform(0.8, 1.2)),
        white_balance=(red, green, blue),
        noise=float(base.noise * rng.uniform(0.6, 1.6)),
        vignetting=float(rng.uniform(0.05, 0.3)),
        blur=float(rng.uniform(0.35, 0.6)),
    )


@dataclass(frozen=True)
class Rendering:
    """A photograph and its truth."""

    image: NDArray[np.uint8]  # (H, W, 3) RGB
    depth: NDArray[np.float32]  # (H, W) z-depth at pixel centres, metres, 0 where there is sky
    surface_ids: NDArray[np.int32]  # (H, W) index into scene.surfaces at pixel centres, or -1


def render(
    scene: Scene,
    camera: Camera,
    cam_from_world: FloatArray,
    appearance: Appearance | None = None,
    *,
    seed: int = 0,
) -> Rendering:
    """Take a photograph.

    Args:
        scene: from `make_scene`.
        camera: intrinsics.
        cam_from_world: pose, (3, 4), from the world in metres to the camera.
        appearance: light and sensor; a sunny day where None.
        seed: of the clouds and the sensor's noise.

    Raises:
        InputError: the pose is not (3, 4).
    """
    appearance = appearance or Appearance()
    cam_from_world = np.asarray(cam_from_world, np.float64)
    if cam_from_world.shape != (3, 4):
        raise InputError(f"cam_from_world has shape {cam_from_world.shape}: give a (3, 4) pose")
    rng = np.random.default_rng([seed, 2])
    depth, surface_ids = _truth(scene, camera, cam_from_world)
    light = _gather_light(scene, camera, cam_from_world, appearance, rng)
    image = _develop(light, camera, appearance, rng)
    return Rendering(image, depth, surface_ids)


@dataclass(frozen=True)
class _View:
    """All N quads of a scene as seen by a camera, or by the sun, on a grid of samples.

    For a sample p = (x, y, 1), forms[i] @ p is (a, b, 1) on the plane of quad i times a factor
    that is positive in front of the viewer, and keys[i] @ p grows towards the viewer.
    """

    forms: FloatArray  # (N, 3, 3)
    keys: FloatArray  # (N, 3)
    bounds: NDArray[np.intp]  # (N, 4): x0, x1, y0, y1, the half-open box of samples around a quad
    x: FloatArray  # (columns,) coordinates of the samples
    y: FloatArray  # (rows,)


def _invert(frames: FloatArray) -> FloatArray:
    """Inverses of (N, 3, 3); what is seen edge-on has none and gets a form that is never hit."""
    edge_on = np.abs(np.linalg.det(frames)) < 1e-9
    inverses = np.linalg.inv(np.where(edge_on[:, None, None], np.eye(3), frames))
    inverses[edge_on] = [[0, 0, -1], [0, 0, -1], [0, 0, 0]]
    return inverses


def _camera_view(scene: Scene, camera: Camera, cam_from_world: FloatArray, scale: int) -> _View:
    """What a camera sees, on `scale` samples a pixel along each axis.

    A point of a quad is F (a, b, 1) in the camera and z K^-1 p on the ray of the pixel p, so
    (a, b, 1) / z = F^-1 K^-1 p: the factor is 1 / z, which is also the key.
    """
    frames = cam_from_world[:, :3] @ np.stack([quad.frame for quad in scene.surfaces])
    frames[:, :, 2] += cam_from_world[:, 3]
    forms = _invert(frames) @ np.linalg.inv(camera.K)
    size = np.array([camera.width, camera.height]) * scale
    corners = CORNERS @ frames.transpose(0, 2, 1)  # (N, 4, 3)
    bounds = np.zeros((len(frames), 2, 2))  # (N, low and high, x and y)
    beyond = (corners[..., 2] > _NEAR).sum(axis=1)
    bounds[beyond == 4] = _bounding_box(corners[beyond == 4], camera)
    for index in np.flatnonzero((beyond > 0) & (beyond < 4)):
        bounds[index] = _bounding_box(_clip_near(corners[index]), camera)
    bounds = (bounds + 0.5) * scale + [[-1], [2]]
    bounds = np.clip(bounds, 0, size).astype(np.intp).transpose(0, 2, 1).reshape(-1, 4)
    x, y = ((np.arange(count) + 0.5) / scale - 0.5 for count in size)
    return _View(forms, forms[:, 2], bounds, x, y)


def _bounding_box(corners: FloatArray, camera: Camera) -> FloatArray:
    """Lowest and highest pixels (..., 2, 2) of polygons (..., M, 3) given in the camera."""
    pixels = (corners @ camera.K.T)[..., :2] / corners[..., 2:]
    return np.stack([pixels.min(axis=-2), pixels.max(axis=-2)], axis=-2)


def _clip_near(corners: FloatArray) -> FloatArray:
    """Corners of the part of a polygon (M, 3), in the camera, that lies beyond the near plane."""
    following = np.roll(corners, -1, axis=0)
    beyond = corners[:, 2] > _NEAR
    crossing = beyond != (following[:, 2] > _NEAR)
    before, after = corners[crossing], following[crossing]
    share = (_NEAR - before[:, 2:]) / (after[:, 2:] - before[:, 2:])
    return np.concatenate([corners[beyond], before + share * (after - before)])


def _sun_view(scene: Scene, sun: FloatArray) -> tuple[_View, FloatArray, float]:
    """What the sun sees, without perspective, on a square grid.

    Returns the view, frames (N, 3, 3) that take (a, b, 1) to the column, the row and the key
    (metres towards the sun), and the size of a sample in metres.
    """
    right = np.cross([0.0, 0.0, 1.0], sun)
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(sun, right), sun])
    frames = axes @ np.stack([quad.frame for quad in scene.surfaces])
    points = frames[:, :2] @ CORNERS.T  # (N, 2, 4)
    low, high = points.min(axis=(0, 2)), points.max(axis=(0, 2))
    texel = float((high - low).max()) / (_SHADOW_MAP_SIZE - 4)
    frames[:, :2, 2] -= low
    frames[:, :2] /= texel
    frames[:, :2, 2] += 1.5
    points = frames[:, :2] @ CORNERS.T
    flat = frames.copy()
    flat[:, 2] = [0, 0, 1]
    forms = _invert(flat)
    keys = np.einsum("ni,nij->nj", frames[:, 2], forms)
    bounds = np.stack([np.floor(points.min(axis=2)), np.ceil(points.max(axis=2)) + 1], axis=2)
    grid = np.arange(_SHADOW_MAP_SIZE, dtype=np.float64)
    view = _View(forms, keys, bounds.reshape(-1, 4).astype(np.intp), grid, grid)
    return view, frames, texel


def _nearest(scene: Scene, view: _View) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Key and index (rows, columns) of the surface nearest to the viewer; -inf and -1 for none."""
    best = np.full((len(view.y), len(view.x)), -np.inf, np.float32)
    ids = np.full(best.shape, -1, np.int32)
    all_x, all_y = view.x.astype(np.float32), view.y.astype(np.float32)
    for index, (x0, x1, y0, y1) in enumerate(view.bounds.tolist()):
        if x0 >= x1 or y0 >= y1:
            continue
        x, y = all_x[None, x0:x1], all_y[y0:y1, None]
        rows = np.vstack([view.forms[index], view.keys[index]]).astype(np.float32)
        a, b, factor, key = ((row[0] * x + row[2]) + row[1] * y for row in rows)
        best_here, ids_here = best[y0:y1, x0:x1], ids[y0:y1, x0:x1]
        hit = (key > best_here) & (a >= 0) & (b >= 0) & (a <= factor) & (b <= factor)
        mask = scene.surfaces[index].mask
        if mask is not None:
            size = np.array(mask.shape)[:, None]
            cell = (np.stack([b[hit], a[hit]]) / factor[hit] * size).astype(np.intp)
            hit[hit] = mask[tuple(np.minimum(cell, size - 1))]
        np.copyto(best_here, key, where=hit)
        np.copyto(ids_here, index, where=hit)
    return best, ids


def _truth(
    scene: Scene, camera: Camera, cam_from_world: FloatArray
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Depth and surface ids (H, W) at the centres of the pixels."""
    view = _camera_view(scene, camera, cam_from_world, 1)
    _, ids = _nearest(scene, view)
    row = view.forms[ids, 2]  # once more in double precision, for the depth
    inverse_depth = row[..., 0] * view.x + row[..., 1] * view.y[:, None] + row[..., 2]
    seen = ids >= 0
    return np.where(seen, 1 / np.where(seen, inverse_depth, 1), 0).astype(np.float32), ids


class _ShadowMap:
    """The scene as the sun sees it: whatever lies behind is in shadow."""

    def __init__(self, scene: Scene, sun: FloatArray) -> None:
        view, self.frames, self.texel = _sun_view(scene, sun)
        self.keys, _ = _nearest(scene, view)

    def lit(self, index: int, a: FloatArray, b: FloatArray) -> NDArray[np.float32]:
        """Share of sunlight (N,) that reaches the points a, b (N,) of a surface."""
        column, row, key = (
            (f[0] * a + f[1] * b + f[2]).astype(np.float32) for f in self.frames[index]
        )
        key += 4 * self.texel  # or the surface would shade itself
        offsets = ((-0.8, -0.3), (0.3, -0.8), (0.8, 0.3), (-0.3, 0.8))  # soft edges
        taps = [remap(self.keys, column + x, row + y, cv2.INTER_NEAREST) <= key for x, y in offsets]
        return np.mean(taps, axis=0, dtype=np.float32)


@lru_cache(maxsize=2)
def _shadow_map(scene: Scene, sun: tuple[float, float, float]) -> _ShadowMap:
    """The shadow map of a scene, kept because the sun stands still from photo to photo."""
    return _ShadowMap(scene, np.array(sun))


def _gather_light(
    scene: Scene,
    camera: Camera,
    cam_from_world: FloatArray,
    appearance: Appearance,
    rng: np.random.Generator,
) -> FloatArray:
    """Linear light (S * H, S * W, 3) along the ray of every sample, S to a pixel and axis."""
    view = _camera_view(scene, camera, cam_from_world, _SUPERSAMPLING)
    _, ids = _nearest(scene, view)
    eye = -cam_from_world[:, :3].T @ cam_from_world[:, 3]
    light = np.zeros((ids.size, 3), np.float32)
    by_surface = np.argsort(ids.astype(np.int16), axis=None, kind="stable")  # radix sort
    ends = np.cumsum(np.bincount(ids.ravel() + 1, minlength=len(scene.surfaces) + 1))
    for index, samples in enumerate(np.split(by_surface, ends[:-1]), start=-1):
        if len(samples) == 0:
            continue
        row, column = np.divmod(samples, len(view.x))
        x, y = view.x[column].astype(np.float32), view.y[row].astype(np.float32)
        if index < 0:
            rays = np.stack([x, y, np.ones_like(x)], axis=1) @ np.linalg.inv(camera.K).T
            light[samples] = _sky(rays @ cam_from_world[:, :3], appearance, rng)
        else:
            a, b, albedo = _albedo(scene.surfaces[index], view.forms[index], x, y)
            light[samples] = albedo * _irradiance(scene, index, a, b, eye, appearance)
    return light.reshape(*ids.shape, 3)


def _albedo(
    quad: Quad, form: FloatArray, x: FloatArray, y: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Texture coordinates a, b (N,) and filtered linear colour (N, 3) seen at pixels x, y (N,).

    The footprint of a sample on the texture is a parallelogram. Several look-ups along its longer
    axis, at the level of its shorter one, keep slanted ground sharp without aliasing.
    """
    form = form.astype(np.float32)
    a, b, inverse_depth = (row[0] * x + row[1] * y + row[2] for row in form)
    a /= inverse_depth
    b /= inverse_depth
    width, height = quad.mipmap.sizes[0] / _SUPERSAMPLING
    across = [(form[0, i] - a * form[2, i]) / inverse_depth * width for i in (0, 1)]
    down = [(form[1, i] - b * form[2, i]) / inverse_depth * height for i in (0, 1)]
    lengths = [np.hypot(across[i], down[i]) for i in (0, 1)]  # texels, for a step along x, y
    longer = np.maximum(*lengths) + 1e-6
    shorter = np.abs(across[0] * down[1] - across[1] * down[0]) / longer
    taps = int(np.clip(np.ceil(np.median(longer / (shorter + 1e-6))), 1, _MAX_TAPS))
    level = np.rint(np.log2(np.maximum(np.maximum(shorter, longer / taps), 1))).astype(np.int8)
    level = np.minimum(level, len(quad.mipmap.sizes) - 1)
    steep = lengths[1] > lengths[0]
    step_a = np.where(steep, across[1], across[0]) / quad.mipmap.sizes[0, 0]
    step_b = np.where(steep, down[1], down[0]) / quad.mipmap.sizes[0, 1]
    offsets = (np.arange(taps, dtype=np.float32) + 0.5) / taps - 0.5
    reads = [quad.mipmap.read(a + o * step_a, b + o * step_b, level) for o in offsets]
    return a, b, sum(reads[1:], start=reads[0]) / np.float32(taps)


def _irradiance(
    scene: Scene, index: int, a: FloatArray, b: FloatArray, eye: FloatArray, appearance: Appearance
) -> FloatArray:
    """Light that falls on the points a, b (N,) of a surface, linear RGB (N, 3) or (3,)."""
    quad = scene.surfaces[index]
    normal = quad.normal if (eye - quad.origin) @ quad.normal > 0 else -quad.normal
    if scene.indoor or appearance.night:
        return _lamp_light(scene, quad, normal, a, b, appearance)
    cover = 1.5 - 0.5 * appearance.sun
    light = _SKY_LIGHT * np.float32(cover * (0.7 + 0.3 * normal[2]))
    strength = appearance.sun * float(normal @ appearance.sun_direction)
    if strength <= 0:
        return light
    sunlight = _SUN_LIGHT * np.float32(strength)
    if not appearance.shadows:
        return light + sunlight
    x, y, z = appearance.sun_direction.tolist()
    return light + sunlight * _shadow_map(scene, (x, y, z)).lit(index, a, b)[:, None]


def _lamp_light(
    scene: Scene,
    quad: Quad,
    normal: FloatArray,
    a: FloatArray,
    b: FloatArray,
    appearance: Appearance,
) -> FloatArray:
    """Light of the lamps, which cast no shadows, and the little that comes from everywhere."""
    points = quad.frame.astype(np.float32) @ np.stack([a, b, np.ones_like(a)])
    light = np.empty((len(a), 3), np.float32)
    light[:] = _NIGHT_LIGHT if appearance.night else _ROOM_LIGHT
    lamps = scene.lamps[::2] if scene.indoor and appearance.night else scene.lamps
    for lamp in lamps:
        toward = np.array(lamp.position, np.float32)[:, None] - points
        squared = np.einsum("ij,ij->j", toward, toward)
        facing = np.maximum(normal.astype(np.float32) @ toward, 0) / np.sqrt(squared + 1e-6)
        light += (facing / (squared + 0.8))[:, None] * np.array(lamp.colour, np.float32)
    return light


def _sky(rays: FloatArray, appearance: Appearance, rng: np.random.Generator) -> FloatArray:
    """Linear RGB (N, 3) along directions of the world (N, 3): haze, blue, clouds."""
    rise = np.clip(rays[:, 2] / np.linalg.norm(rays, axis=1), 0, 1)[:, None]
    colour = (1 - rise) * [1.0, 1.07, 1.17] + rise * [0.30, 0.55, 1.0]
    plane = 128 * rays[:, :2] / (np.abs(rays[:, 2:]) + 0.3) + 256
    pattern = noise(rng, 512, 512, 128.0)
    clouds = remap(pattern, plane[:, 0], plane[:, 1], cv2.INTER_LINEAR)[:, None]
    cover = np.clip(0.5 * clouds + 0.5 * (1 - appearance.sun), 0, 1)
    colour = colour + cover * (1.15 - colour)
    return (colour * _NIGHT_LIGHT if appearance.night else colour).astype(np.float32)


def _develop(
    light: FloatArray, camera: Camera, appearance: Appearance, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """From the light on all samples to the picture (H, W, 3): pixels, lens, exposure, sensor noise,
    tone curve."""
    size = camera.width, camera.height
    light = np.asarray(cv2.resize(light, size, interpolation=cv2.INTER_AREA), np.float32)
    if appearance.blur > 0:
        light = np.asarray(cv2.GaussianBlur(light, (0, 0), appearance.blur), np.float32)
    y, x = np.ogrid[-1 : 1 : camera.height * 1j, -1 : 1 : camera.width * 1j]
    light = light * (1 - appearance.vignetting * (x * x + y * y) / 2)[..., None].astype(np.float32)
    gains = np.array(appearance.white_balance) * appearance.exposure / max(light.mean(), 1e-6)
    light *= gains.astype(np.float32)
    grain = rng.standard_normal(light.shape, dtype=np.float32)
    light += grain * np.sqrt(0.2 + 4 * light) * np.float32(appearance.noise)
    light = 1.3 * (1 - np.exp(-1.3 * light.clip(0)))  # highlights roll off
    return (255 * light.clip(0, 1) ** (1 / 2.2) + 0.5).astype(np.uint8)
