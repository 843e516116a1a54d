"""Pairs of real photographs of which matches are known, and nothing else.

Where a match lies, its surroundings are carried over by the affine map of the neighbouring matches;
of all other points nothing is known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sfm_matchers.training.data.homographies import render_views
from sfm_matchers.training.data.pair_batch import (
    PairBatch,
    lookup,
    lookup_mask,
    pixel_grid,
    without_autocast,
)
from sfm_matchers.training.data.photographs import Photographs
from sfm_matchers.training.data.views import dress_views

RADIUS = 4  # pixels along an axis, within which a match tells the truth: half a coarse cell
MIN_COVERAGE = 0.55  # side of a view, share of the largest that fits into the photograph
MIN_SPACING = 0.8  # pixels of the photograph between two of a view: no more is made up
ROLL = 10.0  # degrees, standard deviation, of either view
MAX_ROLL = 20.0
TRIES = 8  # to draw views that show ...
ENOUGH = 50  # ... so many matches, or half of the pair's
STRENGTH = 0.7  # largest change of appearance; real photographs differ already


@dataclass(frozen=True)
class MatchedPair:
    """The matches of two photographs.

    Attributes:
        photos: indices of the photographs.
        points0: (M, 2) float32, pixels of the first one.
        points1: (M, 2), the matched pixels of the second one.
        linear: (M, 2, 2), see `local_affine_maps`.
    """

    photos: tuple[int, int]
    points0: Tensor
    points1: Tensor
    linear: Tensor

    def swapped(self) -> MatchedPair:
        """The same pair the other way round."""
        inverse = torch.linalg.inv(self.linear)
        return MatchedPair(self.photos[::-1], self.points1, self.points0, inverse)

    @property
    def quarter_turns(self) -> int:
        """By how many quarters of a turn photograph 1 is turned against photograph 0."""
        (a, b), (c, d) = self.linear.mean(0).tolist()
        return round(math.atan2(c - b, a + d) / (math.pi / 2)) % 4


@dataclass
class MatchGeometry:
    """The truth around the matches of B pairs of images; a `PairGeometry`.

    Attributes:
        points: of both images, (B, M, 2); row by row they match.
        linear: (B, M, 2, 2), what is off by d from a match in image 0 is off by A d in image 1; and
            the inverses.
        nearest: for the pixels of both images, (B, H, W) int64, which match is nearest; -1 where
            nothing is known.
    """

    points: tuple[Tensor, Tensor]
    linear: tuple[Tensor, Tensor]
    nearest: tuple[Tensor, Tensor]

    @without_autocast
    def warp(self, points: Tensor, source: int) -> tuple[Tensor, Tensor]:
        """See `PairGeometry.warp`; known is what is near to a match in both images."""
        match = lookup(self.nearest[source], points, outside=-1)
        row = match.clamp(min=0)[..., None]
        here, there = (
            side.gather(1, row.expand(-1, -1, 2))
            for side in (self.points[source], self.points[1 - source])
        )
        linear = self.linear[source].flatten(2).gather(1, row.expand(-1, -1, 4))
        offset = linear.unflatten(2, (2, 2)) @ (points - here)[..., None]
        warped = there + offset[..., 0]
        known = (match >= 0) & (lookup(self.nearest[1 - source], warped, outside=-1) >= 0)
        return torch.where(known[..., None], warped, torch.inf), known


@dataclass
class TeacherPairs:
    """Photographs of places, some pairs of which are matched.

    Attributes:
        photographs: all of them.
        places: the matched pairs of each place; each place is as likely as any other.
    """

    photographs: Photographs
    places: list[list[MatchedPair]]

    def sample_pairs(
        self,
        batch_size: int,
        image_size: tuple[int, int],
        *,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ) -> PairBatch:
        """Draw pairs, and views of both photographs around one of their matches.

        Args:
            batch_size: number of pairs B.
            image_size: (H, W) of all images.
            generator: CPU generator from which everything is drawn.
            device: where the images are made.

        Returns:
            The pairs, with `MatchGeometry` as their truth.
        """
        pairs = [self._draw_pair(generator) for _ in range(batch_size)]
        drawn = [self._draw_views(pair, image_size, generator) for pair in pairs]
        photo_from_view = [torch.stack(side) for side in zip(*drawn, strict=True)]
        rendered = [
            render_views(
                self.photographs,
                [pair.photos[side] for pair in pairs],
                photo_from_view[side].float().to(device),
                image_size,
            )
            for side in (0, 1)
        ]
        strength = STRENGTH * float(torch.rand((), generator=generator))
        views, valids = dress_views(
            [view for view, _ in rendered], [valid for _, valid in rendered], strength, generator
        )
        geometry = match_geometry(
            pairs, (photo_from_view[0], photo_from_view[1]), (valids[0], valids[1])
        )
        return PairBatch(views[0], views[1], geometry)

    def _draw_pair(self, generator: torch.Generator) -> MatchedPair:
        place = self.places[int(torch.randint(len(self.places), (), generator=generator))]
        pair = place[int(torch.randint(len(place), (), generator=generator))]
        return pair.swapped() if torch.rand((), generator=generator) < 0.5 else pair

    def _draw_views(
        self, pair: MatchedPair, image_size: tuple[int, int], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw `photo_from_view` (3, 3) float64 of both images; both show one match at least."""
        sizes = [self.photographs.size(photo)[::-1] for photo in pair.photos]
        most, best = -1, None
        for _ in range(TRIES):
            anchor = int(torch.randint(len(pair.points0), (), generator=generator))
            views = (
                _draw_view(pair.points0[anchor], sizes[0], image_size, 0, generator),
                _draw_view(
                    pair.points1[anchor], sizes[1], image_size, pair.quarter_turns, generator
                ),
            )
            shown = _is_shown(pair.points0, views[0], image_size)
            count = int((shown & _is_shown(pair.points1, views[1], image_size)).sum())
            if count > most:
                most, best = count, views
            if count >= min(ENOUGH, len(pair.points0) // 2):
                break
        assert best is not None
        return best


def _draw_view(
    middle: Tensor,
    photo_size: tuple[int, int],
    image_size: tuple[int, int],
    quarter_turns: int,
    generator: torch.Generator,
) -> Tensor:
    """Draw `photo_from_view` (3, 3) float64 of a view around a point that stays in the photograph.

    Args:
        middle: (2,) pixels of the photograph; the view is moved from there to stay inside.
        photo_size: width and height in pixels.
        image_size: (H, W) of the view.
        quarter_turns: of the view in the photograph.
        generator: from which scale and turn are drawn.
    """
    side = torch.tensor(image_size[::-1], dtype=torch.float64)
    size = torch.tensor(photo_size, dtype=torch.float64)
    extent = side.flip(0) if quarter_turns % 2 else side
    coverage = 1 - (1 - MIN_COVERAGE) * float(torch.rand((), generator=generator))
    spacing = max(MIN_SPACING, float((size / extent).amin()) * coverage)
    low, high = spacing * extent / 2 - 0.5, size - spacing * extent / 2 - 0.5
    inside = torch.minimum(torch.maximum(middle.double(), low), high)
    centre = torch.where(low <= high, inside, (size - 1) / 2)
    roll = float(torch.randn((), generator=generator)) * ROLL
    angle = math.radians(90 * quarter_turns + min(max(roll, -MAX_ROLL), MAX_ROLL))
    cos, sin = math.cos(angle), math.sin(angle)
    linear = spacing * torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)
    view = torch.eye(3, dtype=torch.float64)
    view[:2, :2] = linear
    view[:2, 2] = centre - linear @ ((side - 1) / 2)
    return view


def _in_view(points: Tensor, photo_from_view: Tensor) -> Tensor:
    """Pixels (M, 2) of a photograph as pixels of a view; without perspective."""
    offsets = points.double() - photo_from_view[:2, 2]
    return (offsets @ torch.linalg.inv(photo_from_view[:2, :2]).T).float()


def _is_shown(points: Tensor, photo_from_view: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Which pixels (M, 2) of a photograph lie inside a view: (M,) bool."""
    places = _in_view(points, photo_from_view)
    corner = places.new_tensor(image_size[::-1]) - 1
    return ((places >= 0) & (places <= corner)).all(-1)


def match_geometry(
    pairs: list[MatchedPair],
    photo_from_view: tuple[Tensor, Tensor],
    valids: tuple[Tensor, Tensor],
) -> MatchGeometry:
    """The truth between views of matched photographs.

    Args:
        pairs: B of them.
        photo_from_view: of both images, (B, 3, 3) float64; without perspective.
        valids: of both images, (B, H, W) bool, on the device of the result: which pixels show the
            photograph. A match that is hidden in one image tells nothing.
    """
    in_views = [
        _in_views(pair, view0, view1)
        for pair, view0, view1 in zip(pairs, *photo_from_view, strict=True)
    ]
    points0, points1, linear, inverse = (
        pad_sequence(list(rows), batch_first=True).to(valids[0].device)
        for rows in zip(*in_views, strict=True)
    )
    shown = lookup_mask(valids[0], points0) & lookup_mask(valids[1], points1)
    for index, pair in enumerate(pairs):
        shown[index, len(pair.points0) :] = False  # padding
    nearest = (
        torch.stack([nearest_matches(*rows) for rows in zip(points, shown, valid, strict=True)])
        for points, valid in ((points0, valids[0]), (points1, valids[1]))
    )
    return MatchGeometry((points0, points1), (linear, inverse), (next(nearest), next(nearest)))


def _in_views(
    pair: MatchedPair, view0: Tensor, view1: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Matches (M, 2) in both views, and the linear maps (M, 2, 2) there and back."""
    linear = torch.linalg.inv(view1[:2, :2]) @ pair.linear.double() @ view0[:2, :2]
    return (
        _in_view(pair.points0, view0),
        _in_view(pair.points1, view1),
        linear.float(),
        torch.linalg.inv(linear).float(),
    )


def nearest_matches(points: Tensor, shown: Tensor, valid: Tensor) -> Tensor:
    """Find for every pixel the match that is nearest, and within `RADIUS` along both axes.

    Args:
        points: (M, 2) pixels of the matches.
        shown: (M,) bool, which of them count.
        valid: (H, W) bool, pixels that show the photograph.

    Returns:
        (H, W) int64; -1 where there is none, the first of several as near.
    """
    height, width = valid.shape
    around = pixel_grid(2 * RADIUS + 1, 2 * RADIUS + 1, points.device).reshape(-1, 2) - RADIUS
    pixels = points.round()[:, None] + around
    distances = pixels - points[:, None]
    x, y = pixels.unbind(-1)
    usable = shown[:, None] & (distances.abs().amax(-1) <= RADIUS)
    usable = usable & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    matches, _ = usable.nonzero(as_tuple=True)
    flat = (y * width + x)[usable].long()
    squared = distances.square().sum(-1)[usable]
    least = squared.new_full((height * width,), torch.inf).scatter_reduce(0, flat, squared, "amin")
    is_nearest = squared == least[flat]
    found = matches.new_full((height * width,), len(points))
    found = found.scatter_reduce(0, flat[is_nearest], matches[is_nearest], "amin")
    return torch.where(found < len(points), found, -1).reshape(height, width).where(valid, -1)
