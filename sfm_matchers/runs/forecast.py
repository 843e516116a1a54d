"""How long a run's matching takes, said before it begins."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence

from sfm_matchers.confs import SparseConf
from sfm_matchers.files.pair_lists import Pair, names_to_pair
from sfm_matchers.files.staged import StagedFile
from sfm_matchers.machine.threads import num_threads
from sfm_matchers.pairs.automatic import most_pairs
from sfm_matchers.runs.matching import MatchingJob
from sfm_matchers.runs.pairs import is_fast
from sfm_matchers.runs.retrieval import extract_sift
from sfm_matchers.runs.verdict import duration

logger = logging.getLogger("sfm_matchers.sfm")


NUM_TIMED = 10
ROUNDS = 4


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
    timed = _seconds_per_pair(job, pairs, label, 0)
    if timed is None:
        return
    each, seconds = timed
    logger.info(
        "%d pairs (--pairs %s), about %s on this device (%s), %.2g s each. Shorter: %s",
        len(pairs),
        policy,
        duration(seconds),
        job.matching.device,
        each,
        _shorter(job, len(pairs), policy, num_matched),
    )


def announce_localization(
    job: MatchingJob,
    pairs: Sequence[Pair],
    label: str,
    num_query_pairs: int,
    num_described: int = 0,
) -> None:
    """Say how long all matching of a localization takes, as `announce_matching` does.

    Args:
        job: matches.
        pairs: of the map, or of the queries where the map needs no matching.
        label: of these pairs.
        num_query_pairs: that are matched after them.
        num_described: photos of which SIFT is made after that, at most.
    """
    pairs = [pair for pair in pairs if all(name in job.photos for name in pair)]
    timed = _seconds_per_pair(job, pairs, label, num_query_pairs)
    if timed is None:
        return
    each, seconds = timed
    seconds += _seconds_of_sift(job, num_described)
    options = ["--num_covis", "--num_loc"] if num_query_pairs else ["--num_loc"]
    shorter = [f"less of {' and '.join(options)}"]
    if not is_fast(job):
        shorter.append("--matcher sift, or a machine with a GPU")
    logger.info(
        "%d pairs%s%s, about %s with %s on this device (%s), %.2g s each. Shorter: %s",
        len(pairs),
        f" of the map and {num_query_pairs} of queries" if num_query_pairs else "",
        f", SIFT of up to {num_described} photos" if num_described else "",
        duration(seconds),
        job.conf.name,
        job.matching.device,
        each,
        "; ".join(shorter),
    )


def _seconds_per_pair(
    job: MatchingJob, pairs: Sequence[Pair], label: str, num_later: int
) -> tuple[float, float] | None:
    """Seconds of one of the first pairs, and of all that is left, `num_later` pairs of other lists
    and the features of all photos included; None where all is minutes of work."""
    workers = job.matching.executor.num_workers
    missing = _unmatched(job, pairs, label)
    # What a beginning takes, loading the network, is in both times.
    first, few = workers, NUM_TIMED * workers
    if not is_fast(job):  # threads match as many pairs at once: some rounds of them
        few = max(few, ROUNDS * num_threads())
    if (
        job.matching.executor.shares_with_others
        or len(missing) <= 2 * first + few
        or len(missing) + num_later <= most_pairs(is_fast=is_fast(job)) * workers
    ):
        return None
    seconds = 0.0
    if isinstance(job.conf, SparseConf):
        names = sorted({name for pair in missing[: 2 * first + few] for name in pair})
        start = time.monotonic()
        job.extract(job.conf, names)
        seconds = (time.monotonic() - start) / len(names) * (len(job.photos) - len(names))
    job.match_share(missing[:first], label)
    start = time.monotonic()
    job.match_share(missing[first : 2 * first], label)
    middle = time.monotonic()
    job.match_share(missing[2 * first : 2 * first + few], label)
    end = time.monotonic()
    each = max((end - middle) - (middle - start), 0.0) / (few - first)
    return each, seconds + each * (len(missing) - 2 * first - few + num_later)


def _seconds_of_sift(job: MatchingJob, num_photos: int) -> float:
    """Seconds that SIFT of so many photos takes; of the first few it is made for this, and kept."""
    if not num_photos:
        return 0.0
    known = StagedFile(extract_sift(job, sorted(job.photos)[:1]))  # what a beginning takes
    missing = [name for name in sorted(job.photos) if name not in known]
    num_left = num_photos - (len(job.photos) - len(missing))
    timed = missing[: min(num_left, NUM_TIMED)]
    if not timed:
        return 0.0
    start = time.monotonic()
    extract_sift(job, timed)
    return (time.monotonic() - start) / len(timed) * (num_left - len(timed))


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
