"""Small scenes made of photographs: walls, boxes, round bodies and a relief, drawn at random.

x points right, y down; the world is the frame of a camera in front of the scene that looks along
+z.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sfm_matchers.training.data.photographs import Photographs
from sfm_matchers.training.data.surfaces import Rectangles, Reliefs, RoundBodies, Surfaces

MEAN_DEPTH = 2.0
WALLS = 3  # with the floor
BOXES = 4  # before the walls, some of them thin
ROUND_BODIES = 3  # as well
RELIEF_HEIGHT = 0.5  # up to; each way, in units of half the width
RELIEF_GRID = 65
RELIEF_WAVES = (3, 5, 9, 17)  # corners of the grids whose sum is a relief; each half as high
SPARSE_SHARE = 0.5  # of the scenes lack most of the boxes and bodies
ABSENT_SHARE = 0.7  # of them, there
OUT_OF_SIGHT = torch.tensor([0.0, 0.0, -100.0])

Uniform = Callable[[float, float], float]  # draws a number between two


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
        firsts = [part.intersect(origin, direction)[0].amin(1) for part in self.parts]
        return torch.stack(firsts).amin(0)

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


def draw_scenes(
    photographs: Photographs,
    batch_size: int,
    generator: torch.Generator,
    device: torch.device | str,
) -> Scenes:
    """Draw scenes: two walls that may meet in a corner, a floor, a relief, and things before them.

    Args:
        photographs: what the surfaces show.
        batch_size: number of scenes.
        generator: CPU generator from which everything is drawn.
        device: of the scenes' tensors.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    flats: list[Tensor] = []
    rounds: list[Tensor] = []
    reliefs: list[Tensor] = []
    grids: list[Tensor] = []
    indices: list[list[int]] = []
    for _ in range(batch_size):
        flat, photos = _draw_walls_and_boxes(photographs, uniform)
        curved = [_draw_round_body(uniform) for _ in range(ROUND_BODIES)]
        photos += [_pick(photographs, uniform) for _ in curved]
        photos.append(_pick(photographs, uniform))
        relief, grid = _draw_relief(photographs, photos[-1], uniform, generator)
        if uniform(0, 1) < SPARSE_SHARE:
            for thing in _things(flat, curved):
                if uniform(0, 1) < ABSENT_SHARE:
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
    photographs: Photographs, uniform: Uniform
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
    wall = rotation_matrix(turn, uniform(-15, 15), 0)
    add(wall, [uniform(-0.5, 0.5), 0, depth], 5.0, _pick(photographs, uniform))
    side = turn + (70 if turn < 0 else -70) * uniform(0.7, 1.2)
    place = [2.0 if side < 0 else -2.0, 0.0, depth - 0.7]
    add(rotation_matrix(side, 0, 0), place, 4.0, _pick(photographs, uniform))
    floor_height = uniform(0.6, 1.2)
    floor = rotation_matrix(uniform(-20, 20), 80, 0)
    add(floor, [0, floor_height, MEAN_DEPTH], 5.0, _pick(photographs, uniform))
    for _ in range(BOXES):
        centre = torch.tensor(
            [uniform(-0.9, 0.9), uniform(-0.5, 0.6), MEAN_DEPTH * uniform(0.6, 1.0)]
        )
        rotation = rotation_matrix(uniform(-50, 50), uniform(-20, 20), uniform(-10, 10))
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
    rotation = rotation_matrix(uniform(-50, 50), uniform(-30, 30), uniform(-30, 30))
    roundness = float(uniform(0, 1) < 0.6)
    axes = rotation.T * lengths[:, None]
    return torch.cat([centre[None], axes, torch.full((1, 3), roundness)])


def _draw_relief(
    photographs: Photographs,
    photo: int,
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
    height = float(size[0]) * RELIEF_HEIGHT * uniform(0.1, 1.0)
    light = torch.tensor([uniform(-1, 1), uniform(-1, 0.3), -uniform(0.3, 1.0)])
    shades = _shades(heights * height, size, light, ambient=uniform(0.2, 0.8))
    rotation = rotation_matrix(uniform(-35, 35), uniform(-15, 15), uniform(-5, 5))
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


def rotation_matrix(yaw: float, pitch: float, roll: float) -> Tensor:
    """Rotation by angles in degrees about y, then x, then z of the turned frame: (3, 3)."""
    (cy, sy), (cp, sp), (cr, sr) = (
        (math.cos(math.radians(angle)), math.sin(math.radians(angle)))
        for angle in (yaw, pitch, roll)
    )
    about_y = torch.tensor([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = torch.tensor([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_z = torch.tensor([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return about_y @ about_x @ about_z
