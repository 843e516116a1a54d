"""Pairs of views of small scenes with depth: photographs on boxes, round bodies and reliefs.

Each scene is a set of surfaces in space, each with a photograph on it. A pixel's colour, depth
and true partner come from intersecting its ray with the surfaces, so the truth is exact at any
position, between pixels too, and occlusion is known.

Cameras look along +z, x right, y down; the world is the frame of a camera in front of the scene.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sfm_matchers.training.pair_batch import PairBatch, lookup_mask, pixel_grid, without_autocast
from sfm_matchers.training.photographs import Photographs
from sfm_matchers.training.surfaces import (
    NEAREST_DEPTH,
    Rectangles,
    Reliefs,
    RoundBodies,
    Surfaces,
)
from sfm_matchers.training.views import dress_views

DEPTH_TOLERANCE = 1e-3  # relative; a point further behind the first surface is hidden
MEAN_DEPTH = 2.0
RELIEF_GRID = 65
RELIEF_WAVES = (3, 5, 9, 17)  # corners of the grids whose sum is a relief; each half as high
SPARSE_SHARE = 0.5  # of the scenes have few things before the relief
WALLS = 3  # with the floor
OUT_OF_SIGHT = torch.tensor([0.0, 0.0, -100.0])

Uniform = Callable[[float, float], float]  # draws a number between two


@dataclass(frozen=True)
class ParallaxOptions:
    """Ranges of scenes and cameras at strength 1."""

    boxes: int = 4  # in front of the walls, some of them thin
    round_bodies: int = 3  # as well
    relief_height: float = 0.5  # up to; each way, in units of half the width
    orbit: float = 50.0  # degrees by which a camera may turn around the scene
    roll: float = 15.0  # degrees, standard deviation
    max_log2_distance: float = 0.6  # the second camera may be 1.5 times nearer or farther
    max_log2_focal: float = 0.4
    aim: float = 0.5  # displacement of the point looked at, in units of the mean depth


@dataclass
class Scenes:
    """B scenes.

    Attributes:
        parts: the surfaces of all scenes, by kind.
        photograph: for each scene the indices of the photographs on its surfaces, in this order.
    """

    parts: tuple[Surfaces, ...]
    photograph: list[list[int]]

    @property
    def centre(self) -> Tensor:
        """Of all surfaces: (B, Q, 3)."""
        return torch.cat([part.centre for part in self.parts], dim=1)

    @property
    def width(self) -> Tensor:
        """Of the photographs on all surfaces: (B, Q)."""
        return torch.cat([part.width for part in self.parts], dim=1)

    def first_depth(self, origin: Tensor, direction: Tensor) -> Tensor:
        """Ray parameter of the first hit, infinite for none: (B, N); arguments as in `Surfaces`."""
        return self.intersect(origin, direction)[0]

    def intersect(self, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """First hit of rays; arguments as in `Surfaces`.

        Returns:
            (B, N) ray parameter t (infinite for none), (B, N) index of the surface, and (B, N, 2)
            the place in its photograph.
        """
        hits = [part.intersect(origin, direction) for part in self.parts]
        t, a, b = (torch.cat(each, dim=1) for each in zip(*hits, strict=True))
        first, index = t.min(1)
        chosen = index[:, None]
        place = torch.cat([a.gather(1, chosen), b.gather(1, chosen)], dim=1).transpose(1, 2)
        return first, index, place

    def brightness(self, scene: int, number: int, place: Tensor) -> Tensor:
        """Light on a surface of a scene at places (N, 2) of its photograph: (N,)."""
        for part in self.parts:
            count = part.centre.shape[1]
            if number < count:
                return part.brightness(scene, number, place)
            number -= count
        raise IndexError(f"scene {scene} has fewer surfaces")


@dataclass
class Cameras:
    """B pinhole cameras.

    Attributes:
        focal: (B,) pixels.
        principal_point: (2,) pixels, (0, 0) = the centre of the top-left pixel.
        rotation: (B, 3, 3), camera from world.
        centre: (B, 3), in the world.
    """

    focal: Tensor
    principal_point: Tensor
    rotation: Tensor
    centre: Tensor

    def rays(self, points: Tensor) -> Tensor:
        """World directions (B, N, 3) through pixels (B, N, 2); depth 1 along the optical axis."""
        offset = (points - self.principal_point) / self.focal[:, None, None]
        direction = torch.cat([offset, torch.ones_like(offset[..., :1])], dim=-1)
        return direction @ self.rotation

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, N, 2) and depths (B, N) of world points (B, N, 3)."""
        local = (points - self.centre[:, None]) @ self.rotation.transpose(1, 2)
        depth = local[..., 2]
        offset = local[..., :2] / depth.clamp(min=NEAREST_DEPTH)[..., None]
        return offset * self.focal[:, None, None] + self.principal_point, depth


@dataclass
class ParallaxGeometry:
    """The truth between two views of the same scenes.

    Attributes:
        scenes: what is seen.
        cameras: the two cameras.
        valids: two masks (B, H, W), false under pasted occluders and where no surface is.
    """

    scenes: Scenes
    cameras: tuple[Cameras, Cameras]
    valids: tuple[Tensor, Tensor]

    @without_autocast
    def warp(self, points: Tensor, source: int) -> tuple[Tensor, Tensor]:
        """See `PairGeometry.warp`."""
        here, there = self.cameras[source], self.cameras[1 - source]
        rays = here.rays(points)
        t = self.scenes.first_depth(here.centre, rays)
        exists = t.isfinite()
        world = here.centre[:, None] + torch.where(exists, t, MEAN_DEPTH)[..., None] * rays
        warped, depth = there.project(world)
        first = self.scenes.first_depth(there.centre, there.rays(warped))
        seen = (depth > NEAREST_DEPTH) & (depth <= first * (1 + DEPTH_TOLERANCE))
        seen = seen & lookup_mask(self.valids[1 - source], warped)
        return warped, exists & seen & lookup_mask(self.valids[source], points)


def sample_parallax_pairs(
    photographs: Photographs,
    batch_size: int,
    image_size: tuple[int, int],
    *,
    strength: float,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    options: ParallaxOptions | None = None,
) -> PairBatch:
    """Make a batch of pairs of views of rendered scenes; arguments as `sample_homography_pairs`.

    Returns:
        The pairs, with `ParallaxGeometry` as their truth.
    """
    options = options or ParallaxOptions()
    scenes = _draw_scenes(photographs, batch_size, options, generator, device)
    cameras = tuple(
        _draw_cameras(batch_size, image_size, strength * share, options, generator, device)
        for share in (0.4, 1.0)
    )
    if torch.rand((), generator=generator) < 0.5:
        cameras = cameras[::-1]
    rendered = [_render(photographs, scenes, camera, image_size) for camera in cameras]
    # Parallax and a strong change of appearance are each hard enough: rarely both.
    dressing = strength * float(torch.rand((), generator=generator))
    views, valids = dress_views(
        [view for view, _ in rendered], [valid for _, valid in rendered], dressing, generator
    )
    geometry = ParallaxGeometry(scenes, (cameras[0], cameras[1]), (valids[0], valids[1]))
    return PairBatch(views[0], views[1], geometry)


def _draw_scenes(
    photographs: Photographs,
    batch_size: int,
    options: ParallaxOptions,
    generator: torch.Generator,
    device: torch.device | str,
) -> Scenes:
    """Two walls that may meet in a corner, a floor, a relief, and things before them."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    flats: list[Tensor] = []
    rounds: list[Tensor] = []
    reliefs: list[Tensor] = []
    grids: list[Tensor] = []
    indices: list[list[int]] = []
    for _ in range(batch_size):
        flat, photos = _draw_walls_and_boxes(photographs, options.boxes, uniform)
        curved = [_draw_round_body(uniform) for _ in range(options.round_bodies)]
        photos += [_pick(photographs, uniform) for _ in curved]
        photos.append(_pick(photographs, uniform))
        relief, grid = _draw_relief(photographs, photos[-1], options, uniform, generator)
        if uniform(0, 1) < SPARSE_SHARE:
            for thing in _things(flat, curved):
                if uniform(0, 1) < 0.7:
                    for surface in thing:
                        surface[0] += OUT_OF_SIGHT
        flats.append(torch.stack(flat))
        rounds.append(torch.stack(curved))
        reliefs.append(relief[None])
        grids.append(grid)
        indices.append(photos)
    walls, bodies, sheets, maps = (
        torch.stack(each).to(device) for each in (flats, rounds, reliefs, grids)
    )
    parts = (
        Rectangles(walls[:, :, 0], walls[:, :, 1:].transpose(-1, -2)),
        RoundBodies(bodies[:, :, 0], bodies[:, :, 1:4].transpose(-1, -2), bodies[:, :, 4, 0]),
        Reliefs(sheets[:, :, 0], sheets[:, :, 1:].transpose(-1, -2), maps[:, :1], maps[:, 1:]),
    )
    return Scenes(parts, indices)


def _things(flat: list[Tensor], curved: list[Tensor]) -> list[list[Tensor]]:
    """Surfaces that belong together: the three sides of each box, and each round body."""
    boxes = flat[WALLS:]
    return [boxes[k : k + 3] for k in range(0, len(boxes), 3)] + [[body] for body in curved]


def _pick(photographs: Photographs, uniform: Uniform) -> int:
    return min(int(uniform(0, len(photographs))), len(photographs) - 1)


def _draw_walls_and_boxes(
    photographs: Photographs, boxes: int, uniform: Uniform
) -> tuple[list[Tensor], list[int]]:
    """Rectangles, (4, 3) each (centre, x, y and z of the frame), and the photographs on them."""
    rectangles: list[Tensor] = []
    photos: list[int] = []

    def add(
        rotation: Tensor,
        centre: list[float] | Tensor,
        width: float,
        photo: int,
        height: float | None = None,
    ) -> None:
        rows, columns = photographs.size(photo)
        height = width * rows / columns if height is None else height
        axes = rotation.T * torch.tensor([[width / 2], [height / 2], [1.0]])
        rectangles.append(torch.cat([torch.as_tensor(centre)[None], axes]))
        photos.append(photo)

    turn = uniform(-30, 30)
    depth = MEAN_DEPTH * uniform(1.0, 1.6)
    wall = _rotation(turn, uniform(-15, 15), 0)
    add(wall, [uniform(-0.5, 0.5), 0, depth], 5.0, _pick(photographs, uniform))
    side = turn + (70 if turn < 0 else -70) * uniform(0.7, 1.2)
    place = [2.0 if side < 0 else -2.0, 0.0, depth - 0.7]
    add(_rotation(side, 0, 0), place, 4.0, _pick(photographs, uniform))
    floor_height = uniform(0.6, 1.2)
    floor = _rotation(uniform(-20, 20), 80, 0)
    add(floor, [0, floor_height, MEAN_DEPTH], 5.0, _pick(photographs, uniform))
    for _ in range(boxes):
        centre = torch.tensor(
            [uniform(-0.9, 0.9), uniform(-0.5, 0.6), MEAN_DEPTH * uniform(0.6, 1.0)]
        )
        rotation = _rotation(uniform(-50, 50), uniform(-20, 20), uniform(-10, 10))
        width, height, thick = uniform(0.2, 0.7), uniform(0.2, 0.7), uniform(0.05, 0.4)
        front = centre - rotation[:, 2] * thick / 2
        add(rotation, front, width, _pick(photographs, uniform), height)
        turned = torch.stack([rotation[:, 2], rotation[:, 1], rotation[:, 0]], dim=1)
        for sign in (-1, 1):
            add(turned, centre + sign * rotation[:, 0] * width / 2, thick, photos[-1], height)
    return rectangles, photos


def _draw_round_body(uniform: Uniform) -> Tensor:
    """An ellipsoid or a tube, (5, 3): centre, x, y and z of the frame, roundness thrice."""
    centre = torch.tensor([uniform(-0.9, 0.9), uniform(-0.4, 0.6), MEAN_DEPTH * uniform(0.7, 1.1)])
    radius = uniform(0.15, 0.6)
    lengths = torch.tensor([1.0, uniform(0.6, 1.8), uniform(0.6, 1.4)]) * radius
    rotation = _rotation(uniform(-50, 50), uniform(-30, 30), uniform(-30, 30))
    roundness = float(uniform(0, 1) < 0.6)
    axes = rotation.T * lengths[:, None]
    return torch.cat([centre[None], axes, torch.full((1, 3), roundness)])


def _draw_relief(
    photographs: Photographs,
    photo: int,
    options: ParallaxOptions,
    uniform: Uniform,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """A relief, (4, 3) as `_draw_walls_and_boxes` has them, and its heights and shades (2, G, G).

    A part of the heights follows the photograph's own light and shade, as stone and foliage do.
    """
    rows, columns = photographs.size(photo)
    width = 2.0 ** uniform(0.2, 1.8)
    size = torch.tensor([width, width * rows / columns]) / 2
    waves = [torch.randn(1, 1, n, n, generator=generator) for n in RELIEF_WAVES]
    heights = torch.stack([_upsampled(wave) / 2**k for k, wave in enumerate(waves)]).sum(0)
    heights = heights + _upsampled(_luminance(photographs, photo)) * uniform(-0.4, 0.4)
    heights -= heights.mean()
    heights /= heights.abs().max().clamp(min=1e-6)
    height = float(size[0]) * options.relief_height * uniform(0.1, 1.0)
    light = torch.tensor([uniform(-1, 1), uniform(-1, 0.3), -uniform(0.3, 1.0)])
    shades = _shades(heights * height, size, light, ambient=uniform(0.2, 0.8))
    rotation = _rotation(uniform(-35, 35), uniform(-15, 15), uniform(-5, 5))
    centre = [uniform(-0.5, 0.5), uniform(-0.3, 0.3), MEAN_DEPTH * uniform(0.8, 1.1)]
    axes = rotation.T * torch.tensor([[float(size[0])], [float(size[1])], [height]])
    return torch.cat([torch.tensor([centre]), axes]), torch.stack([heights, shades])


def _upsampled(coarse: Tensor) -> Tensor:
    """A coarse (1, 1, n, n) grid over the same square at the corners of a relief's: (G, G)."""
    shape = (RELIEF_GRID, RELIEF_GRID)
    return F.interpolate(coarse, shape, mode="bicubic", align_corners=True)[0, 0]


def _luminance(photographs: Photographs, photo: int) -> Tensor:
    """A photograph's light in 17 x 17 parts, of mean 0 and deviation 1: (1, 1, 17, 17)."""
    coarse = photographs.pyramids[photo][-1].float().mean(0).cpu()
    parts = F.adaptive_avg_pool2d(coarse[None, None], RELIEF_WAVES[-1])
    return (parts - parts.mean()) / parts.std().clamp(min=1e-6)


def _shades(heights: Tensor, size: Tensor, light: Tensor, ambient: float) -> Tensor:
    """Lambert's law on a relief (G, G) that is 2 * size large, lit from the direction `light`."""
    spacing = (2 * size / (RELIEF_GRID - 1)).tolist()
    along_y, along_x = torch.gradient(heights, spacing=[spacing[1], spacing[0]])
    normal = torch.stack([along_x, along_y, -torch.ones_like(along_x)])
    cosine = torch.einsum("crs,c->rs", F.normalize(normal, dim=0), F.normalize(light, dim=0))
    return ambient + (1 - ambient) * cosine.clamp(min=0)


def _draw_cameras(
    batch_size: int,
    image_size: tuple[int, int],
    strength: float,
    options: ParallaxOptions,
    generator: torch.Generator,
    device: torch.device | str,
) -> Cameras:
    """Cameras on orbits around a point of the scene, turned towards a point near it."""
    height, width = image_size
    rotations, centres, focals = [], [], []
    for _ in range(batch_size):
        draws = (torch.rand(8, generator=generator) * 2 - 1).tolist()
        yaw = draws[0] * options.orbit * strength
        pitch = draws[1] * 0.4 * options.orbit * strength
        roll = float(torch.randn((), generator=generator)) * options.roll * strength
        distance = MEAN_DEPTH * 2.0 ** (draws[2] * options.max_log2_distance * strength)
        target = torch.tensor([draws[3], 0.5 * draws[4], 0.0]) * options.aim * strength
        target = target + torch.tensor([0.0, 0.0, MEAN_DEPTH])
        world_from_camera = _rotation(yaw, pitch, roll)
        rotations.append(world_from_camera.T)
        centres.append(target - distance * world_from_camera[:, 2])
        focals.append(max(height, width) * 2.0 ** (draws[5] * options.max_log2_focal * strength))
    return Cameras(
        torch.tensor(focals, device=device),
        torch.tensor([(width - 1) / 2, (height - 1) / 2], device=device),
        torch.stack(rotations).to(device),
        torch.stack(centres).to(device),
    )


def _rotation(yaw: float, pitch: float, roll: float) -> Tensor:
    """Rotation by angles in degrees about y, then x, then z of the turned frame: (3, 3)."""
    (cy, sy), (cp, sp), (cr, sr) = (
        (math.cos(math.radians(angle)), math.sin(math.radians(angle)))
        for angle in (yaw, pitch, roll)
    )
    about_y = torch.tensor([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = torch.tensor([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_z = torch.tensor([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return about_y @ about_x @ about_z


def _render(
    photographs: Photographs, scenes: Scenes, cameras: Cameras, image_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Colours (B, 3, H, W) and where a surface is seen (B, H, W)."""
    count = len(scenes.photograph)
    device = cameras.focal.device
    grid = pixel_grid(*image_size, device).reshape(1, -1, 2).expand(count, -1, -1)
    depth, index, place = scenes.intersect(cameras.centre, cameras.rays(grid))
    depth = depth.reshape(count, *image_size)
    index = index.reshape(count, *image_size)
    place = place.reshape(count, *image_size, 2)
    _, distance = cameras.project(scenes.centre)
    pixels = scenes.width * cameras.focal[:, None] / distance.clamp(min=0.3)
    pixels_per_width = pixels.tolist()
    images = torch.zeros(count, *image_size, 3, device=device)
    for scene, photos in enumerate(scenes.photograph):
        for number, photo in enumerate(photos):
            mine = index[scene] == number
            height, width = photographs.size(photo)
            extent = place.new_tensor([width, height])
            points = (place[scene][mine] + 1) / 2 * extent - 0.5
            spacing = width / max(pixels_per_width[scene][number], 1.0)
            colours = photographs.sample(photo, points[None], spacing)
            light = scenes.brightness(scene, number, place[scene][mine])
            images[scene][mine] = colours[:, 0].T * light[:, None]
    images = images.permute(0, 3, 1, 2).contiguous()
    return images, depth.isfinite()
