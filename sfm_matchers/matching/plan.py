"""The plan of a matching: which pairs are done together, and in what order.

Photos are numbered by name, and pairs are taken tile by tile: all that lie between one run of
`TILE` photos and another. A photo that was read and encoded once is then used for many pairs before
it is dropped. Consecutive pairs form a shard, the unit of work of a process.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

from sfm_matchers.files.fingerprints import fingerprint
from sfm_matchers.files.pair_lists import Pair, names_to_pair

TILE = 16
PAIRS_PER_SHARD = TILE * TILE
SHARDS_PER_WORKER = 4  # or so, of several, if there are pairs enough: all end at about one time


@dataclass(frozen=True)
class Grain:
    """How finely a list of pairs is cut.

    Attributes:
        tile: photos; a shard has no more pairs than its square.
        shards_per_worker: or so, of several, where there are pairs enough.
    """

    tile: int = TILE
    shards_per_worker: int = SHARDS_PER_WORKER


FINE = Grain()
# For matchers that take longer to get a photo ready than to match two.
COARSE = Grain(tile=64, shards_per_worker=1)


@dataclass(frozen=True)
class Shard:
    """Pairs that are matched together.

    Attributes:
        name: from its content: equal shards have equal names in every plan.
        pairs: image names.
        fingerprints: the pairs' groups, and what each is to be computed from.
    """

    name: str
    pairs: tuple[Pair, ...]
    fingerprints: Mapping[str, str]

    def only(self, pairs: Set[Pair]) -> Shard:
        """The shard without the pairs that are not among the given ones."""
        return replace(self, pairs=tuple(pair for pair in self.pairs if pair in pairs))


def ordered_for_reuse(pairs: Sequence[Pair], tile: int = TILE) -> list[Pair]:
    """Order pairs so that those that share photos are close to each other."""
    names = sorted({name for pair in pairs for name in pair})
    number = {name: index for index, name in enumerate(names)}

    def place(pair: Pair) -> tuple[int, int, int, int]:
        first, second = number[pair[0]], number[pair[1]]
        return first // tile, second // tile, first, second

    return sorted(pairs, key=place)


def ordered_for_room(pairs: Sequence[Pair], photos: float) -> list[Pair]:
    """Order the pairs of a shard for a process that has room for few photos.

    Second photos are taken some at a time: as many as there is room for beside one first photo.
    """
    seconds = sorted({second for _, second in pairs})
    at_once = max(1.0, photos - 1)
    if len(seconds) <= at_once:
        return list(pairs)
    group = {name: int(index // int(at_once)) for index, name in enumerate(seconds)}
    return sorted(pairs, key=lambda pair: (group[pair[1]], pair))


def cut(
    pairs: Sequence[Pair],
    fingerprints: Mapping[str, str],
    num_workers: int = 1,
    grain: Grain = FINE,
) -> list[Shard]:
    """Cut the pairs into shards.

    Args:
        pairs: image names; each pair once.
        fingerprints: of each pair's group, from `names_to_pair`.
        num_workers: how many work on them at once.
        grain: how finely.
    """
    ordered = ordered_for_reuse(pairs, grain.tile)
    num_shards = grain.shards_per_worker * num_workers if num_workers > 1 else 1
    size = min(grain.tile**2, max(1, math.ceil(len(ordered) / num_shards)))
    shards = []
    for start in range(0, len(ordered), size):
        chosen = tuple(ordered[start : start + size])
        wanted = {names_to_pair(*pair): fingerprints[names_to_pair(*pair)] for pair in chosen}
        name = f"shard-{fingerprint(sorted(wanted.items()))}"
        shards.append(Shard(name, chosen, wanted))
    return shards
