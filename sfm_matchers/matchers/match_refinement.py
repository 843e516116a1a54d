"""What is done with the pixels of two photos once a network has matched them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from sfm_matchers.confs import DetectorFreePreprocessing
from sfm_matchers.matchers.overlap import match_overlap
from sfm_matchers.matchers.protocols import DetectorFreeMatcher, Matches, device_of

MatchRefinement = Callable[[np.ndarray, np.ndarray, Matches], Matches]
"""Takes two photos as they were matched, RGB (H, W, 3) uint8, and their matches; returns better
ones."""


def match_refinements(
    matcher: DetectorFreeMatcher, preprocessing: DetectorFreePreprocessing
) -> list[partial[Matches]]:
    """Return the `MatchRefinement`s that the conf asks for, in the order in which they are done."""
    refinements: list[partial[Matches]] = []
    if preprocessing.match_overlap:
        refinements.append(partial(match_overlap, matcher))
    if preprocessing.least_squares_matching:
        from sfm_matchers.matchers.least_squares_matching import least_squares_matching

        refinements.append(partial(least_squares_matching, device=device_of(matcher)))
    return refinements
