"""Pairs of views of small scenes with depth: photographs on planes and boxes.

Each scene is a set of rectangles in space, each with a photograph on it. A pixel's colour, depth
and true partner come from intersecting its ray with the rectangles, so the truth is exact at any
position, between pixels too, and occlusion is known.

Cameras look along +z, x right, y down; the world is the frame of a camera in front of the scene.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sfm_matchers.training.pair_batch import PairBatch, lookup_mask, pixel_grid
from sfm_matchers.training.photographs import Photographs
from sfm_matchers.training.views import dress_views

DEPTH_TOLERANCE = 1e-3  # relative; a point further behind the first surface is hidden
NEAREST_DEPTH = 0.05
MEAN_DEPTH = 2.0


@dataclass(frozen=True)
class ParallaxOptions:
    """Ranges of scenes and cameras at strength 1."""

    boxes: int = 4  # at most so many boxes and panels in front of the walls
    orbit: float = 40.0  # degrees by which a camera may turn around the scene
    roll: float = 15.0  # degrees, standard deviation
    max_log2_distance: float = 0.6  # the second camera may be 1.5 times nearer or farther
    max_log2_focal: float = 0.4
    aim: float = 0.5  # displacement of the point looked at, in units of the mean depth


@dataclass
class Scenes:
    """B scenes of Q rectangles `centre + a * axis_u + b * axis_v`, a and b in -1..1.

    Attributes:
        centre: (B, Q, 3).
        axis_u: (B, Q, 3) half the width, along the photograph's x.
        axis_v: (B, Q, 3) half the height, at right angles to it.
        photograph: for each scene the Q indices of the photographs.
    """

    centre: Tensor
    axis_u: Tensor
    axis_v: Tensor
    photograph: list[list[int]]

    def intersect(self, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """First hit of rays.

        Args:
            origin: (B, 3).
            direction: (B, N, 3).

        Returns:
            (B, N) ray parameter t of the first hit (infinite for none), (B, N) index of the
            rectangle, and (B, N, 2) its coordinates a, b there.
        """
        normal = torch.linalg.cross(self.axis_u, self.axis_v)
        to_centre = self.centre - origin[:, None]
        slope = torch.einsum("bnc,bqc->bqn", direction, normal)
        distance = (to_centre * normal).sum(-1, keepdim=True)
        t = distance / torch.where(slope.abs() < 1e-9, torch.full_like(slope, 1e-9), slope)
        a = self._along(self.axis_u, to_centre, direction, t)
        b = self._along(self.axis_v, to_centre, direction, t)
        hit = (t > NEAREST_DEPTH) & (a.abs() <= 1) & (b.abs() <= 1)
        first, index = torch.where(hit, t, torch.inf).min(1)
        chosen = index[:, None]
        place = torch.cat([a.gather(1, chosen), b.gather(1, chosen)], dim=1).transpose(1, 2)
        return first, index, place

    @staticmethod
    def _along(axis: Tensor, to_centre: Tensor, direction: Tensor, t: Tensor) -> Tensor:
        """Coordinate of the points `t * direction` along an axis of every rectangle: (B, Q, N)."""
        axis = axis / axis.square().sum(-1, keepdim=True)
        ray = torch.einsum("bnc,bqc->bqn", direction, axis)
        return t * ray - (to_centre * axis).sum(-1, keepdim=True)


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

    def warp(self, points: Tensor, source: int) -> tuple[Tensor, Tensor]:
        """See `PairGeometry.warp`."""
        here, there = self.cameras[source], self.cameras[1 - source]
        rays = here.rays(points)
        t, _, _ = self.scenes.intersect(here.centre, rays)
        exists = t.isfinite()
        world = here.centre[:, None] + torch.where(exists, t, MEAN_DEPTH)[..., None] * rays
        warped, depth = there.project(world)
        first, _, _ = self.scenes.intersect(there.centre, there.rays(warped))
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
    views, valids = dress_views(
        [view for view, _ in rendered], [valid for _, valid in rendered], strength, generator
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
    """Two walls that may meet in a corner, a floor, and boxes in front of them."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    scenes, indices = [], []
    for _ in range(batch_size):
        rectangles: list[Tensor] = []
        photos: list[int] = []

        def add(
            rotation: Tensor,
            centre: list[float] | Tensor,
            width: float,
            photo: int,
            height: float | None = None,
            rectangles: list[Tensor] = rectangles,
            photos: list[int] = photos,
        ) -> None:
            rows, columns = photographs.size(photo)
            height = width * rows / columns if height is None else height
            u, v = rotation[:, 0] * width / 2, rotation[:, 1] * height / 2
            rectangles.append(torch.stack([torch.as_tensor(centre, dtype=torch.float32), u, v]))
            photos.append(photo)

        def pick() -> int:
            return int(torch.randint(len(photographs), (), generator=generator))

        turn = uniform(-30, 30)
        depth = MEAN_DEPTH * uniform(1.0, 1.6)
        add(_rotation(turn, uniform(-15, 15), 0), [uniform(-0.5, 0.5), 0, depth], 5.0, pick())
        side = turn + (70 if turn < 0 else -70) * uniform(0.7, 1.2)
        place = [2.0 if side < 0 else -2.0, 0.0, depth - 0.7]
        add(_rotation(side, 0, 0), place, 4.0, pick())
        floor_height = uniform(0.6, 1.2)
        add(_rotation(uniform(-20, 20), 80, 0), [0, floor_height, MEAN_DEPTH], 5.0, pick())
        for _ in range(options.boxes):
            centre = torch.tensor(
                [uniform(-0.9, 0.9), uniform(-0.5, 0.6), MEAN_DEPTH * uniform(0.6, 1.0)]
            )
            rotation = _rotation(uniform(-50, 50), uniform(-20, 20), uniform(-10, 10))
            width, height, thick = uniform(0.2, 0.7), uniform(0.2, 0.7), uniform(0.05, 0.4)
            front = centre - rotation[:, 2] * thick / 2
            add(rotation, front, width, pick(), height)
            turned = torch.stack([rotation[:, 2], rotation[:, 1], rotation[:, 0]], dim=1)
            for sign in (-1, 1):
                add(turned, centre + sign * rotation[:, 0] * width / 2, thick, photos[-1], height)
        scenes.append(torch.stack(rectangles))
        indices.append(photos)
    stacked = torch.stack(scenes).to(device)
    return Scenes(stacked[:, :, 0], stacked[:, :, 1], stacked[:, :, 2], indices)


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
    pixels = 2 * scenes.axis_u.norm(dim=-1) * cameras.focal[:, None] / distance.clamp(min=0.3)
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
            images[scene][mine] = colours[:, 0].T
    images = images.permute(0, 3, 1, 2).contiguous()
    return images, depth.isfinite()
