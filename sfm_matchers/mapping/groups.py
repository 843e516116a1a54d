"""Photos that pairs join, one by one, to groups."""

from __future__ import annotations

from collections.abc import Iterable


def connected_groups(pairs: Iterable[tuple[int, int]]) -> list[set[int]]:
    """Return the groups of what pairs join.

    >>> sorted(map(sorted, connected_groups([(1, 2), (4, 5), (3, 4), (6, 6)])))
    [[1, 2], [3, 4, 5], [6]]
    """
    group_of: dict[int, set[int]] = {}
    for first, second in pairs:
        mine = group_of.setdefault(first, {first})
        others = group_of.setdefault(second, {second})
        if mine is others:
            continue
        mine |= others
        group_of.update(dict.fromkeys(others, mine))
    return list({id(group): group for group in group_of.values()}.values())
