"""How each photo of a list of pairs lies, from looks at a few of the pairs.

Photos are set upright as EXIF tells. Then looks at small photos (`matchers.quarter_turns`) say by
how many quarters photo 1 of a pair is turned against photo 0. Those that say so clearly join their
photos to groups, the surest first; all pairs within a group need no look of their own. Where looks
contradict each other, where photos of a group lean ever more from one to the next, and between
groups, each pair is looked at when it is matched.

What is decided depends on the photos, the matcher, and which pairs there are, and on nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from sfm_matchers.files.names import in_natural_order
from sfm_matchers.files.notes import read_memory, write_memory
from sfm_matchers.files.pair_lists import Pair
from sfm_matchers.machine.progress import progress
from sfm_matchers.matchers.quarter_turns import Agreement, Look

FIRST_LOOKS = 3  # of each photo, with the next ones by name: enough to contradict each other
MORE_LOOKS = 2  # of a photo that is not in the largest group, with those of others, in each round
ROUNDS = 3
MAX_LEAN = 45.0  # degrees between photos of a group; with more, another position may be nearer
SAVED_EACH = 16  # looks

Looks = Mapping[Pair, Look]
LookAt = Callable[[Sequence[Pair]], Iterator[tuple[Pair, Look]]]
"""Looks at pairs, in their order; leaves out those whose photos cannot be used."""


@dataclass(frozen=True)
class PhotoTurn:
    """How a photo lies.

    Attributes:
        group: one of the photos that are known to lie as they do against each other.
        quarters: counter-clockwise, from upright by EXIF, to lie as most of the group do.
        lean: degrees that are left after that, summed from photo to photo.
    """

    group: str
    quarters: int = 0
    lean: float = 0.0

    def moved(self, group: str, quarters: int, lean: float = 0.0) -> PhotoTurn:
        """The same photo seen from another group."""
        return PhotoTurn(group, (self.quarters + quarters) % 4, self.lean + lean)


@dataclass(frozen=True)
class Turns:
    """How the photos of pairs lie; without arguments, all as they are.

    Attributes:
        photos: by name.
        looks: at pairs.
    """

    photos: Mapping[str, PhotoTurn] = field(default_factory=dict)
    looks: Looks = field(default_factory=dict)

    def of(self, pair: Pair) -> tuple[int, int, bool]:
        """Return how many quarters each photo of a pair is turned, from upright by EXIF.

        The third is False if the second is to be looked for, from there on.
        """
        if not self.photos:
            return 0, 0, True
        first, second = (self.photos[name] for name in pair)
        if first.group == second.group and abs(second.lean - first.lean) <= MAX_LEAN:
            return first.quarters, second.quarters, True
        look = self.looks.get(pair)
        if look is None:
            return first.quarters, second.quarters, False
        expected = (second.quarters - first.quarters) % 4
        return first.quarters, (first.quarters + look.best(expected)) % 4, True


def decide(names: Iterable[str], looks: Looks) -> dict[str, PhotoTurn]:
    """Return how each photo lies as looks at pairs of them tell."""
    found = {name: PhotoTurn(name) for name in names}
    members = {name: [name] for name in found}
    votes = sorted(
        (-look.positions[look.vote].inliers, pair, look.vote)
        for pair, look in looks.items()
        if look.vote is not None
    )
    for _, pair, vote in votes:
        first, second = (found[name] for name in pair)
        if first.group == second.group:
            continue
        lean = looks[pair].positions[vote].lean
        quarters, lean = first.quarters + vote - second.quarters, first.lean + lean - second.lean
        kept, moved = first.group, second.group
        if len(members[kept]) < len(members[moved]):
            kept, moved, quarters, lean = moved, kept, -quarters, -lean
        for name in members[moved]:
            found[name] = found[name].moved(kept, quarters, lean)
        members[kept] += members.pop(moved)
    contradicting = {
        name
        for _, pair, vote in votes
        if (found[pair[1]].quarters - found[pair[0]].quarters - vote) % 4
        for name in pair
    }
    return _as_most_lie(found, contradicting)


def _as_most_lie(found: Mapping[str, PhotoTurn], alone: set[str]) -> dict[str, PhotoTurn]:
    """Let most photos of each group be as they are; some leave their groups."""
    groups: dict[str, list[str]] = {}
    for name in in_natural_order(found):
        groups.setdefault(name if name in alone else f"of {found[name].group}", []).append(name)
    turns = {}
    for members in groups.values():
        counts = Counter(found[name].quarters for name in members)
        usual = counts.most_common(1)[0][0]  # of several that of the first photo
        for name in members:
            turns[name] = found[name].moved(members[0], -usual)
    return turns


def looked_at(
    pairs: Sequence[Pair],
    sources: Mapping[Pair, str],
    path: Path,
    opened: Callable[[], AbstractContextManager[LookAt]],
) -> Turns:
    """Look at some of the pairs, until most photos are known to lie as others do.

    Args:
        pairs: names of photos.
        sources: what each pair is looked at by; a look that is kept counts for the same.
        path: of the file where looks are kept, for a run that goes on.
        opened: gives what looks; called only if there is something to look at.
    """
    near = _by_nearness(pairs)
    kept = _read_looks(path, set(sources.values()))
    asked: set[Pair] = set()
    looks: dict[Pair, Look] = {}
    photos = decide(near, looks)
    with ExitStack() as stack:
        look_at: LookAt | None = None
        for number in range(ROUNDS):
            wanted = _more_looks(near, photos, asked) if number else _first_looks(near)
            asked.update(wanted)
            missing = [pair for pair in wanted if sources[pair] not in kept]
            if missing:
                look_at = look_at or stack.enter_context(opened())
                bar = progress(look_at(missing), total=len(missing), title="Turns", unit="pair")
                for count, (pair, look) in enumerate(bar, 1):
                    kept[sources[pair]] = look
                    if count % SAVED_EACH == 0:
                        kept = _written_looks(path, kept)
                kept = _written_looks(path, kept)
            looks |= {pair: kept[sources[pair]] for pair in wanted if sources[pair] in kept}
            photos = decide(near, looks)
    return Turns(photos, looks)


def _by_nearness(pairs: Iterable[Pair]) -> dict[str, list[Pair]]:
    """The pairs of each photo, those first whose names are next to each other."""
    pairs = list(pairs)
    names = in_natural_order({name for pair in pairs for name in pair})
    number = {name: index for index, name in enumerate(names)}
    near: dict[str, list[Pair]] = {name: [] for name in names}
    for pair in sorted(pairs, key=lambda pair: (abs(number[pair[0]] - number[pair[1]]), pair)):
        for name in set(pair):
            near[name].append(pair)
    return near


def _first_looks(near: Mapping[str, Sequence[Pair]]) -> list[Pair]:
    return sorted({pair for pairs in near.values() for pair in pairs[:FIRST_LOOKS]})


def _more_looks(
    near: Mapping[str, Sequence[Pair]], photos: Mapping[str, PhotoTurn], asked: Set[Pair]
) -> list[Pair]:
    """Pairs of photos that are not in the largest group with photos of other groups."""
    sizes = Counter(turn.group for turn in photos.values())
    largest = max(sizes, key=lambda group: (sizes[group], group), default="")
    wanted: set[Pair] = set()
    for name, pairs in near.items():
        if photos[name].group != largest:
            others = (
                pair
                for pair in pairs
                if pair not in asked and photos[pair[0]].group != photos[pair[1]].group
            )
            wanted.update(islice(others, MORE_LOOKS))
    return sorted(wanted)


def _read_looks(path: Path, sources: Set[str]) -> dict[str, Look]:
    """Return the looks of a file by what they were made of, as far as that is asked for."""
    return {
        source: Look(tuple(Agreement(int(inliers), float(lean)) for inliers, lean in look))
        for source, look in read_memory(path).items()
        if source in sources
    }


def _written_looks(path: Path, looks: Mapping[str, Look]) -> dict[str, Look]:
    """Write looks; where another shard's run has looked at the same pairs, its looks count."""
    looks = {**looks, **_read_looks(path, looks.keys())}
    write_memory(path, {source: looks[source].positions for source in sorted(looks)})
    return looks
