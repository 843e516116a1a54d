"""Every matcher tried on one pair of photos whose geometry is known."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sfm_matchers.errors import SfmMatchersError, one_line
from sfm_matchers.evaluation.pair_lists import PosedPair
from sfm_matchers.evaluation.two_view import matching_precision
from sfm_matchers.matchers.photo_matchers import load_matcher
from sfm_matchers.matchers.protocols import EarlyExitMatcher


@dataclass(frozen=True)
class Trial:
    """What a matcher made of a pair.

    Attributes:
        matcher: its name.
        num_matches: how many it found.
        precision: share of them near their epipolar lines, 0 to 1.
        seconds: of the wall clock, features included, loading left out.
        mean_layers: of networks that may stop early, layers run; else None.
        failure: why it could not be tried, or "".
    """

    matcher: str
    num_matches: int = 0
    precision: float = 0.0
    seconds: float = 0.0
    mean_layers: float | None = None
    failure: str = ""


def try_matchers(
    matchers: Sequence[str], photo0: np.ndarray, photo1: np.ndarray, pair: PosedPair
) -> list[Trial]:
    """Match two RGB photos, (H, W, 3) uint8, by each matcher; one that fails says why."""
    return [_try(name, photo0, photo1, pair) for name in matchers]


def _try(name: str, photo0: np.ndarray, photo1: np.ndarray, pair: PosedPair) -> Trial:
    try:
        matcher = load_matcher(name)
        matcher.match(photo0[:64, :64], photo1[:64, :64])  # what is compiled or loaded late
        start = time.perf_counter()
        matches = matcher.match(photo0, photo1)
        seconds = time.perf_counter() - start
    except (SfmMatchersError, RuntimeError, OSError, ImportError) as error:
        return Trial(name, failure=one_line(error))
    network = matcher.matcher
    layers = network.layers_run if isinstance(network, EarlyExitMatcher) else []
    precision = matching_precision(matches.keypoints0, matches.keypoints1, pair)
    mean_layers = float(np.mean(layers)) if layers else None
    return Trial(name, len(matches), precision, seconds, mean_layers)
