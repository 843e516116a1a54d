"""What a scene is: textured quads and lamps, in metres, x east, y north, z up."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sfm_matchers.synthetic.arrays import Colour, FloatArray
from sfm_matchers.synthetic.sampling import Mipmap

CORNERS = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
"""(a, b, 1) of the corners of a quad, in order around it."""


@dataclass(frozen=True, eq=False)
class Quad:
    """A textured parallelogram: the points origin + a * u + b * v with a, b in [0, 1].

    Columns of the texture run along `u`, rows along `v`; `mask`, where given, cuts holes.
    """

    origin: FloatArray  # (3,) metres
    u: FloatArray  # (3,) metres
    v: FloatArray  # (3,) metres
    texture: NDArray[np.uint8]  # (H, W, 3) RGB
    mask: NDArray[np.bool_] | None = None  # (H, W), True where there is material

    @cached_property
    def frame(self) -> FloatArray:
        """(3, 3) matrix that takes (a, b, 1) to the point of the world."""
        return np.column_stack([self.u, self.v, self.origin]).astype(np.float64)

    @cached_property
    def normal(self) -> FloatArray:
        """Unit normal (3,); its sign means nothing, both sides of a quad are painted."""
        normal = np.cross(self.u, self.v)
        return normal / np.linalg.norm(normal)

    @cached_property
    def mipmap(self) -> Mipmap:
        """The prefiltered texture, made when the quad is first seen."""
        return Mipmap(self.texture)


@dataclass(frozen=True)
class Lamp:
    """A point light and what it gives at one metre, linear RGB."""

    position: tuple[float, float, float]  # metres
    colour: Colour


@dataclass(frozen=True, eq=False)
class Scene:
    """A place: its surfaces, its lamps, and the walk along which photographs make sense."""

    kind: str
    surfaces: tuple[Quad, ...]
    lamps: tuple[Lamp, ...]
    walk: FloatArray  # (N, 2, 3): places to stand and what to look at from there, metres

    @property
    def indoor(self) -> bool:
        """Lamps burn by day, and the sun does not come in."""
        return self.kind == "room"

    @cached_property
    def extent(self) -> float:
        """Diagonal of the bounding box of all surfaces, metres."""
        points = np.concatenate([CORNERS @ quad.frame.T for quad in self.surfaces])
        return float(np.linalg.norm(points.max(axis=0) - points.min(axis=0)))
