"""Retrieval for photos that follow each other: what one frame is like, the next may be like too."""

from __future__ import annotations

from collections.abc import Sequence

from sfm_matchers.files.pair_lists import Pair

REACH = 2  # frames before and behind that are asked
SHARE = 0.5  # of a frame's own list: so many more are added, at most


def with_neighbours(lists: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return each frame's photos of the map, then those of its neighbours that it lacks.

    Each neighbour votes by rank, and a near one counts more: a frame that looks at a blank wall is
    matched with what its neighbours see.

    Args:
        lists: photos of the map for each frame, best first, in the order of the walk.
    """
    every = []
    for index, own in enumerate(lists):
        votes: dict[str, float] = {}
        for step in range(1, REACH + 1):
            for neighbour in (index - step, index + step):
                if 0 <= neighbour < len(lists):
                    for rank, name in enumerate(lists[neighbour]):
                        votes[name] = votes.get(name, 0.0) + 1 / (step * (1 + rank))
        others = sorted(set(votes).difference(own), key=lambda name: (-votes[name], name))
        every.append([*own, *others[: max(1, int(SHARE * len(own)))]])
    return every


def add_neighbours(pairs: Sequence[Pair], frames: Sequence[str]) -> list[Pair]:
    """Return (frame, photo of the map) pairs with those of neighbours, see `with_neighbours`.

    Args:
        pairs: best first.
        frames: names in the order of the walk.
    """
    lists: dict[str, list[str]] = {frame: [] for frame in frames}
    for frame, name in pairs:
        lists[frame].append(name)
    extended = with_neighbours(list(lists.values()))
    return [(frame, name) for frame, names in zip(lists, extended, strict=True) for name in names]
