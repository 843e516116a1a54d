"""Pairs of views of small scenes with depth: photographs on planes, boxes and round bodies.

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
from torch import Tensor

from sfm_matchers.training.pair_batch import PairBatch, lookup_mask, pixel_grid, without_autocast
from sfm_matchers.training.photographs import Photographs
from sfm_matchers.training.views import dress_views

DEPTH_TOLERANCE = 1e-3  # relative; a point further behind the first surface is hidden
NEAREST_DEPTH = 0.05
MEAN_DEPTH = 2.0

Uniform = Callable[[float, float], float]  # draws a number between two


@dataclass(frozen=True)
class ParallaxOptions:
    """Ranges of scenes and cameras at strength 1."""

    boxes: int = 4  # in front of the walls, some of them thin
    round_bodies: int = 3  # as well
    orbit: float = 40.0  # degrees by which a camera may turn around the scene
    roll: float = 15.0  # degrees, standard deviation
    max_log2_distance: float = 0.6  # the second camera may be 1.5 times nearer or farther
    max_log2_focal: float = 0.4
    aim: float = 0.5  # displacement of the point looked at, in units of the mean depth


@dataclass
class Surfaces:
    """Q surfaces of one kind in each of B scenes, each in a frame of its own.

    `intersect` takes rays from origins (B, 3) in directions (B, N, 3) to three tensors (B, Q, N):
    the ray parameter t (infinite where the surface is not met), and the place in the photograph
    there, x and y in -1..1.

    Attributes:
        centre: (B, Q, 3), origins of the frames.
        axes: (B, Q, 3, 3), their units along x, y and z as columns, at right angles.
    """

    centre: Tensor
    axes: Tensor

    def _into_frames(self, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Rays (B, 3) and (B, N, 3) in the frames: (B, Q, 3, 1) and (B, Q, 3, N)."""
        inverse = self.axes.transpose(-1, -2) / self.axes.square().sum(-2)[..., None]
        start = inverse @ (origin[:, None] - self.centre)[..., None]
        return start, inverse @ direction.transpose(1, 2)[:, None]


class Rectangles(Surfaces):
    """z = 0 with x and y in -1..1; the photograph's x and y are the frame's."""

    @property
    def width(self) -> Tensor:
        """Of the photographs on them: (B, Q)."""
        return 2 * self.axes[..., 0].norm(dim=-1)

    def intersect(self, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Surfaces`."""
        start, ray = self._into_frames(origin, direction)
        t = -start[:, :, 2] / ray[:, :, 2]
        a = start[:, :, 0] + t * ray[:, :, 0]
        b = start[:, :, 1] + t * ray[:, :, 1]
        hit = (t > NEAREST_DEPTH) & (a.abs() <= 1) & (b.abs() <= 1)
        return torch.where(hit, t, torch.inf), a, b


@dataclass
class RoundBodies(Surfaces):
    """Ellipsoids and open tubes: x^2 + k y^2 + z^2 = 1 with y in -1..1.

    A photograph is wrapped around each: its middle is at -z, its left and right edges meet at +z.

    Attributes:
        roundness: (B, Q), the k above: 1 for an ellipsoid, 0 for a tube.
    """

    roundness: Tensor

    @property
    def width(self) -> Tensor:
        """Of the photographs, along the widest part of the bodies: (B, Q), about."""
        lengths = self.axes.norm(dim=-2)
        return math.pi * (lengths[..., 0] + lengths[..., 2])

    def intersect(self, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Surfaces`; a tube's inside is a surface as well."""
        start, ray = self._into_frames(origin, direction)
        metric = torch.ones_like(start)
        metric[:, :, 1, 0] = self.roundness
        square = (metric * ray * ray).sum(2).clamp(min=1e-12)
        mixed = (metric * ray * start).sum(2)
        rest = (metric * start * start).sum(2) - 1
        root = (mixed * mixed - square * rest).sqrt()  # nan where the ray passes by
        first, a, b = self._hit((-mixed - root) / square, start, ray)
        second, far_a, far_b = self._hit((-mixed + root) / square, start, ray)
        nearer = first <= second
        return (
            torch.where(nearer, first, second),
            torch.where(nearer, a, far_a),
            torch.where(nearer, b, far_b),
        )

    def _hit(self, t: Tensor, start: Tensor, ray: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is met at the parameters t (B, Q, N) of the rays, in the bodies' frames."""
        x, y, z = (start + t[:, :, None] * ray).unbind(2)
        hit = (t > NEAREST_DEPTH) & (y.abs() <= 1)
        along = torch.where(self.roundness[..., None] > 0, torch.asin(y) * 2 / math.pi, y)
        return torch.where(hit, t, torch.inf), torch.atan2(x, -z) / math.pi, along


@dataclass
class Scenes:
    """B scenes.

    Attributes:
        rectangles: Q of them in each scene.
        round_bodies: R of them in each scene.
        photograph: for each scene the indices of the photographs on its Q + R surfaces.
    """

    rectangles: Rectangles
    round_bodies: RoundBodies
    photograph: list[list[int]]

    @property
    def centre(self) -> Tensor:
        """Of all surfaces: (B, Q + R, 3)."""
        return torch.cat([self.rectangles.centre, self.round_bodies.centre], dim=1)

    @property
    def width(self) -> Tensor:
        """Of the photographs on all surfaces: (B, Q + R)."""
        return torch.cat([self.rectangles.width, self.round_bodies.width], dim=1)

    def first_depth(self, origin: Tensor, direction: Tensor) -> Tensor:
        """Ray parameter of the first hit, infinite for none: (B, N); arguments as in `Surfaces`."""
        flat = self.rectangles.intersect(origin, direction)[0]
        curved = self.round_bodies.intersect(origin, direction)[0]
        return torch.minimum(flat.amin(1), curved.amin(1))

    def intersect(self, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """First hit of rays; arguments as in `Surfaces`.

        Returns:
            (B, N) ray parameter t (infinite for none), (B, N) index of the surface, and (B, N, 2)
            the place in its photograph.
        """
        flat = self.rectangles.intersect(origin, direction)
        curved = self.round_bodies.intersect(origin, direction)
        t, a, b = (torch.cat(both, dim=1) for both in zip(flat, curved, strict=True))
        first, index = t.min(1)
        chosen = index[:, None]
        place = torch.cat([a.gather(1, chosen), b.gather(1, chosen)], dim=1).transpose(1, 2)
        return first, index, place


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
    """Two walls that may meet in a corner, a floor, and boxes and round bodies before them."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    rectangles, bodies, indices = [], [], []
    for _ in range(batch_size):
        flat, photos = _draw_walls_and_boxes(photographs, options.boxes, uniform)
        curved = [_draw_round_body(uniform) for _ in range(options.round_bodies)]
        photos += [_pick(photographs, uniform) for _ in curved]
        rectangles.append(torch.stack(flat))
        bodies.append(torch.stack(curved))
        indices.append(photos)
    flats = torch.stack(rectangles).to(device)
    rounds = torch.stack(bodies).to(device)
    return Scenes(
        Rectangles(flats[:, :, 0], flats[:, :, 1:].transpose(-1, -2)),
        RoundBodies(rounds[:, :, 0], rounds[:, :, 1:4].transpose(-1, -2), rounds[:, :, 4, 0]),
        indices,
    )


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
            images[scene][mine] = colours[:, 0].T
    images = images.permute(0, 3, 1, 2).contiguous()
    return images, depth.isfinite()
