"""Pairs of views of small scenes with depth: photographs on boxes, round bodies and reliefs.

Each scene is a set of surfaces in space, each with a photograph on it. A pixel's colour, depth
and true partner come from intersecting its ray with the surfaces, so the truth is exact at any
position, between pixels too, and occlusion is known.

Cameras look along +z, x right, y down; the world is the frame of a camera in front of the scene.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfm_matchers.training.data.pair_batch import (
    PairBatch,
    lookup_mask,
    pixel_grid,
    without_autocast,
)
from sfm_matchers.training.data.photographs import Photographs
from sfm_matchers.training.data.scenes import MEAN_DEPTH, Scenes, draw_scenes, rotation_matrix
from sfm_matchers.training.data.surfaces import MIN_DEPTH
from sfm_matchers.training.data.views import dress_views

DEPTH_TOLERANCE = 1e-3  # relative; a point further behind the first surface is hidden
# Ranges of cameras at strength 1.
ORBIT = 50.0  # degrees by which a camera may turn around the scene
ROLL = 15.0  # degrees, standard deviation
MAX_LOG2_DISTANCE = 0.6  # the second camera may be 1.5 times nearer or farther
MAX_LOG2_FOCAL = 0.4
AIM = 0.5  # displacement of the point looked at, in units of the mean depth


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
        offset = local[..., :2] / depth.clamp(min=MIN_DEPTH)[..., None]
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
        seen = (depth > MIN_DEPTH) & (depth <= first * (1 + DEPTH_TOLERANCE))
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
    max_turn: float = 0.0,
) -> PairBatch:
    """Make a batch of pairs of views of rendered scenes; arguments as `sample_homography_pairs`.

    Returns:
        The pairs, with `ParallaxGeometry` as their truth.
    """
    scenes = draw_scenes(photographs, batch_size, generator, device)
    cameras = tuple(
        _draw_cameras(batch_size, image_size, strength * share, turn, generator, device)
        for share, turn in ((0.4, 0.0), (1.0, max_turn))
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


def _draw_cameras(
    batch_size: int,
    image_size: tuple[int, int],
    strength: float,
    max_turn: float,
    generator: torch.Generator,
    device: torch.device | str,
) -> Cameras:
    """Cameras on orbits around a point of the scene, turned towards a point near it."""
    height, width = image_size
    rotations, centres, focals = [], [], []
    for _ in range(batch_size):
        draws = (torch.rand(8, generator=generator) * 2 - 1).tolist()
        yaw = draws[0] * ORBIT * strength
        pitch = draws[1] * 0.4 * ORBIT * strength
        roll = float(torch.randn((), generator=generator)) * ROLL * strength + draws[6] * max_turn
        distance = MEAN_DEPTH * 2.0 ** (draws[2] * MAX_LOG2_DISTANCE * strength)
        target = torch.tensor([draws[3], 0.5 * draws[4], 0.0]) * AIM * strength
        target = target + torch.tensor([0.0, 0.0, MEAN_DEPTH])
        world_from_camera = rotation_matrix(yaw, pitch, roll)
        rotations.append(world_from_camera.T)
        centres.append(target - distance * world_from_camera[:, 2])
        focals.append(max(height, width) * 2.0 ** (draws[5] * MAX_LOG2_FOCAL * strength))
    return Cameras(
        torch.tensor(focals, device=device),
        torch.tensor([(width - 1) / 2, (height - 1) / 2], device=device),
        torch.stack(rotations).to(device),
        torch.stack(centres).to(device),
    )


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
            places = place[scene][mine]
            points = (places + 1) / 2 * extent - 0.5
            spacing = width / max(pixels_per_width[scene][number], 1.0)
            colours = photographs.sample(photo, points[None], spacing)
            light = scenes.brightness(scene, number, places)
            images[scene][mine] = colours[:, 0].T * light[:, None]
    images = images.permute(0, 3, 1, 2).contiguous()
    return images, depth.isfinite()
