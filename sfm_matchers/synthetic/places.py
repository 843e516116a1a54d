"""Inventing places: a courtyard, a street, a room, a tower whose opposite sides look alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from sfm_matchers.errors import InputError
from sfm_matchers.synthetic import materials
from sfm_matchers.synthetic.arrays import FloatArray
from sfm_matchers.synthetic.materials import Material
from sfm_matchers.synthetic.scenes import Lamp, Quad, Scene

_UP = np.array([0.0, 0.0, 1.0])


def make_scene(seed: int, *, kind: str = "courtyard", texture_size: int = 768) -> Scene:
    """Invent a scene.

    Args:
        seed: another seed is another place.
        kind: "courtyard", "street", "room" or "tower", whose opposite sides are the same.
        texture_size: pixels along the longer side of each large surface; more is sharper, slower
            to make, and takes more memory.

    Raises:
        InputError: unknown kind, or textures below 64 pixels.
    """
    if kind not in KINDS:
        raise InputError(f"unknown kind of scene {kind!r}: choose one of {', '.join(KINDS)}")
    if texture_size < 64:
        raise InputError(f"texture_size is {texture_size}: give at least 64 pixels")
    builder = _Builder(seed, texture_size)
    walk = KINDS[kind](builder)
    return Scene(kind, tuple(builder.quads), tuple(builder.lamps), walk)


def _axes(yaw: float) -> tuple[FloatArray, FloatArray]:
    """Horizontal unit vectors (3,) of something turned by `yaw` degrees: to the right along its
    front, and from its front backwards. At yaw 0 the front faces south."""
    turn = np.radians(yaw)
    along = np.array([np.cos(turn), np.sin(turn), 0.0])
    return along, np.array([-along[1], along[0], 0.0])


class _Builder:
    """Collects surfaces and lamps; every surface draws its texture from a seed of its own."""

    def __init__(self, seed: int, texture_size: int) -> None:
        self.seed = seed
        self.texture_size = texture_size
        self.rng = np.random.default_rng([seed, 0])
        self.quads: list[Quad] = []
        self.lamps: list[Lamp] = []

    def paint(self, width: float, height: float, material: Material) -> FloatArray:
        """The texture of a surface of this size in metres."""
        density = self.texture_size / max(width, height, 4.0)  # pixels per metre
        rng = np.random.default_rng([self.seed, 1, len(self.quads)])
        return material(
            rng, max(8, round(height * density)), max(8, round(width * density)), density
        )

    def quad(self, origin: ArrayLike, u: ArrayLike, v: ArrayLike, material: Material) -> None:
        """A parallelogram; `origin` is its top-left corner as seen from the painted side."""
        origin, u, v = (np.asarray(vector, np.float64) for vector in (origin, u, v))
        painted = self.paint(float(np.linalg.norm(u)), float(np.linalg.norm(v)), material)
        mask = painted[..., 3] > 127 if painted.shape[2] == 4 else None
        texture = painted[..., :3].clip(0, 255).astype(np.uint8)
        self.quads.append(Quad(origin, u, v, texture, mask))

    def box(
        self,
        base: ArrayLike,
        size: tuple[float, float, float],
        yaw: float,
        material: Material,
        *,
        front: Material | None = None,
        top: Material | None = None,
    ) -> None:
        """A block of `size` (width, depth, height) that stands with its centre on `base`."""
        width, depth, height = size
        along, back = _axes(yaw)
        centre = np.asarray(base, np.float64) + height * _UP
        for right, outward, face_width, distance, face in (
            (along, -back, width, depth / 2, front or material),
            (back, along, depth, width / 2, material),
            (-along, back, width, depth / 2, material),
            (-back, -along, depth, width / 2, material),
        ):
            corner = centre + outward * distance - right * face_width / 2
            self.quad(corner, right * face_width, -_UP * height, face)
        corner = centre + back * depth / 2 - along * width / 2
        self.quad(corner, along * width, -back * depth, top or material)

    def column(
        self, base: ArrayLike, radius: float, height: float, material: Material, sides: int = 10
    ) -> None:
        """A round column of `sides` flat strips cut from one texture."""
        texture = self.paint(2 * np.pi * radius, height, material).clip(0, 255).astype(np.uint8)
        strips = np.array_split(texture, sides, axis=1)
        angles = np.linspace(0, 2 * np.pi, sides + 1)
        rim = radius * np.column_stack([np.cos(angles), np.sin(angles), np.zeros(sides + 1)])
        rim += np.asarray(base, np.float64) + height * _UP
        for left, right, strip in zip(rim[:-1], rim[1:], strips, strict=True):
            self.quads.append(Quad(left, right - left, -height * _UP, np.ascontiguousarray(strip)))

    def ground(self, low: tuple[float, float], high: tuple[float, float], step: float) -> None:
        """Patches about `step` metres wide at height 0, each paved in its own way."""
        wests, souths = (
            np.linspace(start, end, round((end - start) / step) + 1)
            for start, end in zip(low, high, strict=True)
        )
        pavings = (
            materials.cobbles,
            materials.cobbles,
            materials.asphalt,
            materials.grass,
            materials.slabs,
        )
        for west, east in pairwise(wests):
            for south, north in pairwise(souths):
                paving = pavings[int(self.rng.integers(len(pavings)))]
                self.quad([west, north, 0], [east - west, 0, 0], [0, south - north, 0], paving)

    def houses(self, start: ArrayLike, end: ArrayLike, heights: tuple[float, float]) -> None:
        """A row of houses from `start` to `end` (x, y), left to right for who looks at them."""
        start, end = np.asarray(start, np.float64), np.asarray(end, np.float64)
        length = float(np.linalg.norm(end - start))
        along = (end - start) / length
        toward = np.array([along[1], -along[0]])
        yaw = float(np.degrees(np.arctan2(along[1], along[0])))
        widths = self.rng.uniform(0.75, 1.25, max(1, round(length / 6.5)))
        widths *= length / widths.sum()
        for width, right in zip(widths, np.cumsum(widths), strict=True):
            middle = start + along * (right - width / 2) + toward * self.rng.uniform(-0.5, 1.2)
            height = float(self.rng.uniform(*heights))
            self.house(np.append(middle, 0.0), float(width), height, yaw)

    def house(self, base: FloatArray, width: float, height: float, yaw: float) -> None:
        """A house with the middle of its front on `base`; nobody sees its back."""
        along, back = _axes(yaw)
        depth, top = 3.0, base + height * _UP
        left, right = top - along * width / 2, top + along * width / 2
        self.quad(left, along * width, -_UP * height, materials.facade)
        self.quad(right, back * depth, -_UP * height, materials.plaster)
        self.quad(left + back * depth, -back * depth, -_UP * height, materials.plaster)
        ridge = left + back * depth + _UP * self.rng.uniform(1.5, 2.5)
        slope = (left - ridge) * 1.1  # the eaves jut out
        self.quad(ridge - along * 0.1, along * (width + 0.2), slope, materials.roof_tiles)
        self.ornaments(base, width, height, yaw)
        lamp = base - back * 0.7 + along * self.rng.uniform(-0.4, 0.4) * width + _UP * 3.2
        red, green, blue = (self.rng.uniform(0.8, 1.2) * np.array([7.0, 4.6, 2.2])).tolist()
        self.lamps.append(Lamp(tuple(lamp.tolist()), (red, green, blue)))

    def ornaments(self, base: FloatArray, width: float, height: float, yaw: float) -> None:
        """What juts out of a front: pillars, a balcony with its railing, an awning."""
        along, back = _axes(yaw)
        for side in (-1, 1):
            if self.rng.random() < 0.6:
                foot = base + along * side * (width / 2 - 0.3) - back * 0.15
                self.box(foot, (0.5, 0.3, height * 0.97), yaw, materials.ashlar)
        spot = base + along * self.rng.uniform(-0.2, 0.2) * width
        if self.rng.random() < 0.7:
            reach = float(self.rng.uniform(1.6, 0.6 * width))
            self.box(spot - back * 0.5 + _UP * 3.1, (reach, 1.0, 0.18), yaw, materials.ashlar)
            corner = spot - back - along * reach / 2 + _UP * 4.2
            self.quad(corner, along * reach, -_UP * 0.92, materials.railing)
        if self.rng.random() < 0.5:
            corner = spot - along * 1.3 + _UP * 2.7
            self.quad(corner, along * 2.6, -back * 1.3 - _UP * 0.6, materials.rug)

    def furnish(self, spots: Sequence[tuple[float, float]]) -> None:
        """One piece of furniture for streets and squares on each spot (x, y)."""
        pieces = (self.tree, self.crates, self.kiosk, self.pillar, self.planter, self.monument)
        for (x, y), choice in zip(spots, self.rng.permutation(len(spots)), strict=True):
            piece = pieces[choice % len(pieces)]
            piece(np.array([x, y, 0.0]), float(self.rng.uniform(0, 90)))

    def repeat_turned(self, first: int) -> None:
        """Repeat all surfaces from number `first` on, turned by half a turn around the origin."""
        turn = np.array([-1.0, -1.0, 1.0])
        for quad in self.quads[first:]:
            self.quads.append(
                Quad(quad.origin * turn, quad.u * turn, quad.v * turn, quad.texture, quad.mask)
            )

    # The pieces, each on `base` and turned by `yaw` degrees.

    def tree(self, base: FloatArray, yaw: float) -> None:
        """A trunk and a crown of tilted sheets of leaves."""
        height = float(self.rng.uniform(3.0, 4.5))
        self.column(base, 0.07 * height**0.5, 0.6 * height, materials.planks, sides=7)
        for _ in range(14):
            normal = self.rng.normal(0, 1, 3)
            u = np.cross(normal, self.rng.normal(0, 1, 3))
            v = np.cross(normal, u)
            u, v = (0.42 * height * axis / np.linalg.norm(axis) for axis in (u, v))
            centre = base + 0.72 * height * _UP + self.rng.normal(0, 0.12 * height, 3)
            self.quad(centre - (u + v) / 2, u, v, materials.tree_crown)

    def crates(self, base: FloatArray, yaw: float) -> None:
        """A wooden crate with a carton on it."""
        side = float(self.rng.uniform(0.6, 1.1))
        self.box(base, (side, side, side), yaw, materials.planks)
        carton = (0.6, 0.5, 0.45)
        self.box(base + side * _UP, carton, yaw + 30, materials.planks, front=materials.poster)

    def kiosk(self, base: FloatArray, yaw: float) -> None:
        """A wooden kiosk with a striped roof."""
        self.box(base, (1.5, 1.3, 2.1), yaw, materials.planks, front=materials.poster)
        self.box(base + 2.1 * _UP, (1.8, 1.6, 0.25), yaw, materials.rug)

    def pillar(self, base: FloatArray, yaw: float) -> None:
        """A round pillar for advertisements."""
        self.column(base, 0.45, 1.2, materials.poster)
        self.column(base + 1.2 * _UP, 0.45, 1.2, materials.poster)

    def planter(self, base: FloatArray, yaw: float) -> None:
        """A hedge in a stone trough."""
        self.box(base, (1.8, 0.6, 0.7), yaw, materials.ashlar)
        self.box(base + 0.7 * _UP, (1.7, 0.5, 0.6), yaw, materials.foliage)

    def monument(self, base: FloatArray, yaw: float) -> None:
        """A stone column on a plinth."""
        self.box(base, (0.9, 0.9, 0.8), yaw, materials.ashlar, front=materials.poster)
        self.column(base + 0.8 * _UP, 0.25, 1.8, materials.cobbles, sides=8)


def _courtyard(builder: _Builder) -> FloatArray:
    """A square closed by houses, with a fountain; the walk is a half circle within it."""
    half = 11.0
    builder.ground((-half - 1, -half - 1), (half + 1, half + 1), 6.0)
    corners = [(-half, half), (half, half), (half, -half), (-half, -half), (-half, half)]
    for start, end in pairwise(corners):
        builder.houses(start, end, (5.5, 9.0))
    builder.column([0, 0, 0], 1.7, 0.6, materials.ashlar, sides=12)
    builder.box([0, 0, 0], (0.8, 0.8, 1.5), 25.0, materials.ashlar, front=materials.poster)
    builder.column([0, 0, 1.5], 0.3, 1.6, materials.cobbles)
    turns = np.radians(np.arange(0, 360, 60) + builder.rng.uniform(0, 60))
    for radius, shift in ((builder.rng.uniform(2.6, 3.8, 6), 0.0), (np.full(6, 9.3), 0.5)):
        x, y = radius * np.cos(turns + shift), radius * np.sin(turns + shift)
        builder.furnish(list(zip(x.tolist(), y.tolist(), strict=True)))
    angles = np.radians(np.linspace(-170, 10, 25))
    places = np.column_stack([7.8 * np.cos(angles), 7.8 * np.sin(angles), np.full(25, 1.7)])
    return np.stack([places, places * [-0.3, -0.3, 1.15]], axis=1)


def _street(builder: _Builder) -> FloatArray:
    """A street between two rows of houses; the walk winds along it."""
    builder.ground((-6.5, -8), (6.5, 34), 6.0)
    builder.houses((-5, -8), (-5, 30), (5.0, 9.0))
    builder.houses((5, 30), (5, -8), (5.0, 9.0))
    builder.houses((-6.5, 31), (6.5, 31), (7.0, 11.0))
    norths = np.arange(3.0, 28.0, 3.2)
    sides = builder.rng.choice([-1, 1], len(norths)) * builder.rng.uniform(3.0, 3.8, len(norths))
    norths += builder.rng.uniform(-0.8, 0.8, len(norths))
    builder.furnish(list(zip(sides.tolist(), norths.tolist(), strict=True)))
    way = np.linspace(0, 1, 25)
    places = np.column_stack([1.8 * np.sin(5.5 * way), -5 + 15 * way, 1.65 + 0.1 * way])
    targets = np.column_stack([-1.5 * np.sin(5.5 * way), 6 + 16 * way, np.full(25, 2.1)])
    return np.stack([places, targets], axis=1)


def _tower(builder: _Builder) -> FloatArray:
    """A square tower whose opposite sides are the same, in a place; the walk goes around it.

    Whoever sees nothing but the tower cannot tell on which side he stands; the pavings, what stands
    around, and the houses behind tell.
    """
    half, side, height = 20.0, 6.0, 9.0
    builder.ground((-half - 1, -half - 1), (half + 1, half + 1), 6.0)
    corners = [(-half, half), (half, half), (half, -half), (-half, -half), (-half, half)]
    for start, end in pairwise(corners):
        builder.houses(start, end, (5.5, 9.0))
    first = len(builder.quads)
    for yaw in (0.0, 90.0):
        along, back = _axes(yaw)
        base = -back * side / 2
        corner = base - along * side / 2 + height * _UP
        builder.quad(corner, along * side, -_UP * height, materials.facade)
        builder.ornaments(base, side, height, yaw)
    builder.repeat_turned(first)
    turns = np.radians(np.arange(0, 360, 60) + builder.rng.uniform(0, 60))
    for radius, shift in ((5.6, 0.0), (15.0, 0.5)):
        x, y = radius * np.cos(turns + shift), radius * np.sin(turns + shift)
        builder.furnish(list(zip(x.tolist(), y.tolist(), strict=True)))
    angles = np.radians(np.linspace(-90, 270, 49))
    places = np.column_stack([11 * np.cos(angles), 11 * np.sin(angles), np.full(49, 1.7)])
    return np.stack([places, places * [0, 0, 2.2]], axis=1)


def _room(builder: _Builder) -> FloatArray:
    """A furnished room of 8 x 6 x 3 m; the walk is a half circle within it."""
    rng, east, south = builder.rng, np.array([1.0, 0, 0]), np.array([0, -1.0, 0])
    _walls(builder, [(-4, 3), (4, 3), (4, -3), (-4, -3), (-4, 3)], 3.0)
    builder.quad([-4, 3, 3], 8 * east, 6 * south, materials.planks)
    builder.quad([-4, 3, 0], 4.6 * east, 6 * south, materials.planks)
    builder.quad([0.6, 3, 0], 3.4 * east, 6 * south, materials.cobbles)
    builder.quad([-1.6, 1.2, 0.01], 3.0 * east, 2.2 * south, materials.rug)
    for x in (-2.5, 0.3, 2.7):
        builder.box([x, 0, 2.75], (0.25, 6.0, 0.25), 0.0, materials.planks)
        builder.lamps.append(Lamp((x, float(rng.uniform(-1, 1)), 2.6), (3.2, 2.9, 2.4)))
    for x, y, yaw in (
        (-2.6, 2.7, 0),
        (1.2, 2.7, 0),
        (3.7, 0.9, -90),
        (1.8, -2.7, 180),
        (-3.7, -0.8, 90),
    ):
        width, height = rng.uniform((1.0, 1.0), (1.7, 2.1)).tolist()
        builder.box([x, y, 0], (width, 0.42, height), yaw, materials.planks, front=materials.books)
        carton = (0.4, 0.3, 0.3)
        builder.box([x, y, height], carton, yaw + 20, materials.planks, front=materials.poster)
    for x, y in ((-0.4, 0.3), (2.4, -1.2), (-2.4, -1.6)):
        _table(builder, x, y)
    builder.column([3.4, 2.5, 0], 0.25, 0.5, materials.cobbles)
    builder.box([3.4, 2.5, 0.5], (0.7, 0.7, 1.0), 20.0, materials.foliage)
    angles = np.radians(np.linspace(-160, 0, 25))
    places = np.column_stack([2.9 * np.cos(angles), 2.1 * np.sin(angles), np.full(25, 1.55)])
    return np.stack([places, places * [-0.5, -0.5, 0.75]], axis=1)


def _walls(builder: _Builder, corners: Sequence[tuple[float, float]], height: float) -> None:
    """Inner walls between the corners (x, y), clockwise from above, hung with pictures."""
    rng = builder.rng
    for first, second in pairwise(corners):
        start, end = (np.array([*corner, height]) for corner in (first, second))
        middle = start + (end - start) * rng.uniform(0.4, 0.6)
        builder.quad(start, middle - start, -height * _UP, materials.plaster)
        builder.quad(middle, end - middle, -height * _UP, materials.plaster)
        along = (end - start) / np.linalg.norm(end - start)
        inward = np.cross(along, _UP)
        for share in (0.12, 0.36, 0.6, 0.84):
            size = rng.uniform(0.7, 1.2, 2)
            corner = start + share * (end - start) - along * size[0] / 2 + 0.03 * inward
            corner -= _UP * rng.uniform(0.3, 0.8)
            picture = (materials.painting, materials.poster)[int(rng.integers(2))]
            builder.quad(corner, along * size[0], -_UP * size[1], picture)


def _table(builder: _Builder, x: float, y: float) -> None:
    """A table with three cartons."""
    yaw = float(builder.rng.uniform(0, 60))
    builder.column([x, y, 0], 0.12, 0.68, materials.planks)
    builder.box([x, y, 0.68], (1.3, 0.8, 0.06), yaw, materials.planks)
    for turn, (east, north) in enumerate(builder.rng.uniform(-0.25, 0.25, (3, 2)).tolist()):
        width, depth, height = builder.rng.uniform(0.15, 0.35, 3).tolist()
        builder.box(
            [x + east, y + north, 0.74],
            (width, depth, height),
            yaw + 25 * turn,
            materials.poster,
            top=materials.painting,
        )


KINDS: dict[str, Callable[[_Builder], FloatArray]] = {
    "courtyard": _courtyard,
    "street": _street,
    "room": _room,
    "tower": _tower,
}
"""The kinds of scenes: what fills a builder and returns the walk, (N, 2, 3)."""
