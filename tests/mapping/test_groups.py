"""Groups of photos that pairs join."""

from __future__ import annotations

from sfm_matchers.mapping.groups import connected_groups


def test_groups_are_joined_by_later_pairs() -> None:
    groups = connected_groups([(1, 2), (3, 4), (5, 6), (4, 5), (7, 8), (2, 7), (8, 9)])
    assert sorted(map(sorted, groups)) == [[1, 2, 7, 8, 9], [3, 4, 5, 6]]


def test_what_is_paired_with_itself_is_a_group_of_its_own() -> None:
    assert connected_groups([(3, 3), (1, 2)]) == [{3}, {1, 2}]
    assert connected_groups([]) == []
