"""The plan of a matching: which pairs are done together, and in what order.

Photos are numbered by name, and pairs are taken tile by tile: all that lie between one run of
`TILE` photos and another. A photo that was read and encoded once is then used for many pairs before
it is dropped. Consecutive pairs form a shard, the unit of work of a process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

from ..storage import Pair, fingerprint, names_to_pair

TILE = 16
PAIRS_PER_SHARD = TILE * TILE
SHARDS_PER_WORKER = 4  # at least, where there are pairs enough, so that all end at about one time


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


def ordered_for_reuse(pairs: Sequence[Pair]) -> list[Pair]:
    """Order pairs so that those that share photos are close to each other."""
    names = sorted({name for pair in pairs for name in pair})
    number = {name: index for index, name in enumerate(names)}

    def place(pair: Pair) -> tuple[int, int, int, int]:
        first, second = number[pair[0]], number[pair[1]]
        return first // TILE, second // TILE, first, second

    return sorted(pairs, key=place)


def cut(
    pairs: Sequence[Pair], fingerprints: Mapping[str, str], num_workers: int = 1
) -> list[Shard]:
    """Cut the pairs into shards.

    Args:
        pairs: image names; each pair once.
        fingerprints: of each pair's group, from `names_to_pair`.
        num_workers: how many work on them at once.
    """
    ordered = ordered_for_reuse(pairs)
    size = min(PAIRS_PER_SHARD, max(1, len(ordered) // (SHARDS_PER_WORKER * num_workers)))
    shards = []
    for start in range(0, len(ordered), size):
        chosen = tuple(ordered[start : start + size])
        wanted = {names_to_pair(*pair): fingerprints[names_to_pair(*pair)] for pair in chosen}
        name = f"shard-{fingerprint(sorted(wanted.items()))}"
        shards.append(Shard(name, chosen, wanted))
    return shards
