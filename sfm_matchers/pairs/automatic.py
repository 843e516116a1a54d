"""Pairs chosen by the number of photos: all where that is minutes, else the likely ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sfm_matchers.files.names import in_natural_order
from sfm_matchers.files.pair_lists import Pair, unique_pairs
from sfm_matchers.geometry.coordinates import FloatArray
from sfm_matchers.pairs.policies import exhaustive_pairs, retrieval_pairs
from sfm_matchers.pairs.positions import read_capture_time, spatial_pairs

logger = logging.getLogger(__name__)

# All pairs of 25 photos are matched in up to half an hour by the slowest matcher on a CPU of two
# cores (6 s each), all pairs of 78 in as many minutes by COLMAP's or on a GPU (below 0.2 s).
MAX_PAIRS = 300
MAX_PAIRS_FAST = 3000

NUM_IN_ORDER = 5  # next ones by time or name, of each photo

# Share of photos with a position from which on neighbours by position are worth having.
MIN_SHARE = 0.1


def most_pairs(*, is_fast: bool) -> int:
    """Return how many pairs are minutes of work.

    Args:
        is_fast: the matcher takes a fraction of a second a pair.
    """
    return MAX_PAIRS_FAST if is_fast else MAX_PAIRS


def pairs_in_order(
    names: Sequence[str], times: Mapping[str, str | None], overlap: int
) -> list[Pair]:
    """Return each photo with the `overlap` next ones: by time if all photos tell it, else by name.

    Args:
        names: the photos.
        times: photo -> text that sorts by time.
        overlap: how many.
    """
    ordered = in_natural_order(names)
    if all(times.get(name) for name in names):
        ordered = sorted(ordered, key=lambda name: str(times[name]))  # stable: by name in a second
    return [
        (name, other)
        for index, name in enumerate(ordered)
        for other in ordered[index + 1 : index + 1 + overlap]
    ]


def auto_pairs(
    image_dir: Path,
    names: Sequence[str],
    num_matched: int,
    *,
    is_fast: bool,
    positions: Callable[[], Mapping[str, FloatArray]],
    describe: Callable[[Sequence[str]], Path],
) -> tuple[list[Pair], str]:
    """Return all pairs where that is minutes of work; else the likely ones.

    Those are each photo's most similar ones, the next ones by time or name, and the nearest ones.

    Args:
        image_dir: the photos.
        names: their names.
        num_matched: most similar ones of each photo; half as many nearest ones.
        is_fast: see `most_pairs`.
        positions: returns photo -> (3,) in metres, of those that are known.
        describe: makes global descriptors of photos. Both are called only where they are needed.

    Returns:
        The pairs, each once, and a label for them.
    """
    num_all = len(names) * (len(names) - 1) // 2
    if num_all <= most_pairs(is_fast=is_fast):
        return exhaustive_pairs(names), "exhaustive"
    similar = retrieval_pairs(names, describe(names), num_matched)
    times = {name: read_capture_time(image_dir / name) for name in names}
    in_order = pairs_in_order(names, times, NUM_IN_ORDER)
    near: list[Pair] = []
    known = positions()
    if len(known) >= max(2, MIN_SHARE * len(names)):
        near = spatial_pairs(known, max(1, num_matched // 2))
    pairs = unique_pairs([*similar, *in_order, *near])
    logger.info(
        "Pairs: %d of %d: each photo's %d most similar ones, the next %d by %s%s",
        len(pairs),
        num_all,
        num_matched,
        NUM_IN_ORDER,
        "time" if all(times.values()) else "name",
        f", the nearest {num_matched // 2} by position" if near else "",
    )
    return pairs, f"auto{num_matched}"
