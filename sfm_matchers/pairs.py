"""Which photos to match with which: lists of pairs of image names."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from .errors import InputError
from .retrieval import most_similar
from .storage import Pair, read_pairs, unique_pairs


def exhaustive_pairs(names: Sequence[str]) -> list[Pair]:
    """Return every photo with every other, each pair once."""
    return list(itertools.combinations(names, 2))


def sequential_pairs(names: Sequence[str], overlap: int) -> list[Pair]:
    """Return each photo with the `overlap` photos that follow it in the order of names.

    Numbers in names count as numbers: ``frame9`` comes before ``frame10``.
    """
    ordered = sorted(names, key=_natural_order)
    return [
        (name, other)
        for index, name in enumerate(ordered)
        for other in ordered[index + 1 : index + 1 + overlap]
    ]


def _natural_order(name: str) -> list[tuple[int, int, str]]:
    parts = ["".join(group) for _, group in itertools.groupby(name, str.isdecimal)]
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def retrieval_pairs(names: Sequence[str], descriptor_path: Path, num_matched: int) -> list[Pair]:
    """Return each photo with the `num_matched` most similar by global descriptor, each pair once.

    Args:
        names: the photos.
        descriptor_path: feature file with a ``global_descriptor`` for each photo.
        num_matched: neighbours per photo; all others if there are fewer.
    """
    neighbours = most_similar(names, names, descriptor_path, num_matched)
    return unique_pairs((name, other) for name in names for other in neighbours[name])


def pairs_from_file(path: Path, names: Sequence[str]) -> tuple[list[Pair], list[Pair]]:
    """Read pairs from a text file.

    Returns:
        The pairs of known photos, each once, and the pairs that name an unknown photo.

    Raises:
        InputError: the file is missing or malformed, or no pair is of known photos.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file of pairs")
    known = set(names)
    listed = unique_pairs(read_pairs(path, known))
    pairs = [pair for pair in listed if known.issuperset(pair)]
    if not pairs:
        raise InputError(f"{path} holds no pair of two photos of the folder")
    return pairs, [pair for pair in listed if not known.issuperset(pair)]
