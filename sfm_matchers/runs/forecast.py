"""How long a run's matching takes, said before it begins."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence

from sfm_matchers.confs import SparseConf
from sfm_matchers.files.pair_lists import Pair, names_to_pair
from sfm_matchers.files.staged import StagedFile
from sfm_matchers.pairs.automatic import most_pairs
from sfm_matchers.runs.matching import MatchingJob
from sfm_matchers.runs.pairs import is_fast
from sfm_matchers.runs.verdict import duration

logger = logging.getLogger("sfm_matchers.sfm")


NUM_TIMED = 10


def announce_matching(
    job: MatchingJob, pairs: Sequence[Pair], label: str, policy: str, num_matched: int
) -> None:
    """Say how long the matching takes if it is more than minutes, and what would be shorter.

    The first pairs are matched for it, and kept.

    Args:
        job: matches.
        pairs: all.
        label: of the pairs.
        policy: that chose them, or a file.
        num_matched: neighbours of each photo by the policy.
    """
    workers = job.matching.executor.num_workers
    missing = _unmatched(job, pairs, label)
    if job.matching.executor.shares_with_others or (
        len(missing) <= most_pairs(is_fast=is_fast(job)) * workers
    ):
        return
    # What a beginning takes, loading the network, is in both times.
    first, few = workers, NUM_TIMED * workers
    job.match_share(missing[:first], label)
    start = time.monotonic()
    job.match_share(missing[first : 2 * first], label)
    middle = time.monotonic()
    job.match_share(missing[2 * first : 2 * first + few], label)
    end = time.monotonic()
    each = max((end - middle) - (middle - start), 0.0) / (few - first)
    left = len(missing) - 2 * first - few
    logger.info(
        "%d pairs (--pairs %s), about %s on this device (%s), %.2g s each. Shorter: %s",
        len(pairs),
        policy,
        duration(left * each),
        job.matching.device,
        each,
        _shorter(job, len(pairs), policy, num_matched),
    )


def _unmatched(job: MatchingJob, pairs: Iterable[Pair], label: str) -> list[Pair]:
    files = [StagedFile(job.workspace.matches(job.conf, label))]
    if not isinstance(job.conf, SparseConf):
        files.append(StagedFile(job.workspace.correspondences(job.conf, label)))
    return [pair for pair in pairs if not any(names_to_pair(*pair) in file for file in files)]


def _shorter(job: MatchingJob, num_pairs: int, policy: str, num_matched: int) -> str:
    options = []
    num_photos = len(job.photos)
    likely = num_matched * num_photos  # some are found twice, some by place or time only
    if policy == "exhaustive" and likely < num_pairs:
        options.append(f"--pairs auto (some {likely} pairs)")
    elif policy in ("auto", "retrieval", "spatial", "sequential"):
        options.append(f"--num_matched {max(1, num_matched // 2)}")
    if not is_fast(job):
        options.append("--matcher sift, or a machine with a GPU")
    return "; ".join(options) or "fewer photos"
