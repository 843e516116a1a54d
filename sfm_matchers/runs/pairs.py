"""The pairs of a run: the table of policies that ``--pairs`` names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from sfm_matchers.errors import InputError, nearest
from sfm_matchers.files.pair_lists import Pair, check_pair_file, unique_pairs
from sfm_matchers.geometry.coordinates import FloatArray
from sfm_matchers.matchers import colmap_matching
from sfm_matchers.pairs.automatic import auto_pairs
from sfm_matchers.pairs.policies import (
    exhaustive_pairs,
    pairs_from_file,
    retrieval_pairs,
    sequential_pairs,
)
from sfm_matchers.pairs.positions import (
    Positions,
    exif_positions,
    spatial_pairs,
)
from sfm_matchers.runs.georeference import Places, read_places
from sfm_matchers.runs.matching import MatchingJob
from sfm_matchers.runs.options import MatchOptions
from sfm_matchers.runs.retrieval import describe_with_vlad

logger = logging.getLogger("sfm_matchers.sfm")

LabelledPairs = tuple[list[Pair], str]
"""Pairs, and what they are called in names of files."""
ReadPlaces = Callable[[], Places]
Policy = Callable[[MatchOptions, MatchingJob, ReadPlaces], LabelledPairs]


def _auto(options: MatchOptions, job: MatchingJob, places: ReadPlaces) -> LabelledPairs:
    return auto_pairs(
        job.image_dir,
        sorted(job.photos),
        options.num_matched,
        is_fast=is_fast(job),
        positions=partial(_positions, job, places),
        describe=partial(describe_with_vlad, job),
    )


def _exhaustive(options: MatchOptions, job: MatchingJob, places: ReadPlaces) -> LabelledPairs:
    return exhaustive_pairs(sorted(job.photos)), "exhaustive"


def _sequential(options: MatchOptions, job: MatchingJob, places: ReadPlaces) -> LabelledPairs:
    count = options.num_matched
    return sequential_pairs(sorted(job.photos), count), f"sequential{count}"


def _retrieval(options: MatchOptions, job: MatchingJob, places: ReadPlaces) -> LabelledPairs:
    names, count = sorted(job.photos), options.num_matched
    return retrieval_pairs(names, describe_with_vlad(job, names), count), f"vlad{count}"


def _spatial(options: MatchOptions, job: MatchingJob, places: ReadPlaces) -> LabelledPairs:
    """Raises InputError without positions."""
    names, xyz = sorted(job.photos), _positions(job, places)
    without = [name for name in names if name not in xyz]
    if len(xyz) < 2:
        raise InputError(
            f"--pairs spatial needs the positions of photos, and {len(xyz)} of {len(names)} "
            "have one: give --georeference FILE.csv, or take --pairs retrieval"
        )
    if without:
        logger.warning(
            "%d photos have no position and are in no pair, such as %s: --pairs auto has them",
            len(without),
            without[0],
        )
    return spatial_pairs(xyz, options.num_matched), f"spatial{options.num_matched}"


POLICIES: dict[str, Policy] = {
    "auto": _auto,
    "exhaustive": _exhaustive,
    "sequential": _sequential,
    "retrieval": _retrieval,
    "spatial": _spatial,
}


def _positions(job: MatchingJob, places: ReadPlaces) -> Mapping[str, FloatArray]:
    known = places()
    if not isinstance(known, Positions):
        known = exif_positions(job.image_dir, sorted(job.photos))
    return known.xyz


def is_fast(job: MatchingJob) -> bool:
    """True if the matcher takes a fraction of a second a pair."""
    return job.matching.device != "cpu" or job.conf.matcher == colmap_matching.NAME


def check_policy(pairs: str | Path) -> None:
    """Raise InputError if ``--pairs`` names neither a policy nor a file that is there."""
    if str(pairs) in POLICIES:
        return
    meant = nearest(str(pairs), POLICIES)
    if meant and not Path(pairs).exists():
        raise InputError(f"unknown --pairs {pairs}: did you mean {meant}?")
    check_pair_file(pairs)


def make_pairs(
    options: MatchOptions, job: MatchingJob, places: ReadPlaces | None = None
) -> LabelledPairs:
    """Choose the pairs of photos to match and write them; return them and their label.

    Args:
        options: which pairs.
        job: the photos.
        places: returns what `read_places` does, which is read where it is needed if None.

    Raises:
        InputError: the policy lacks what it needs, or there is no such file of pairs.
    """
    check_policy(options.pairs)
    policy = POLICIES.get(str(options.pairs), _listed)
    if places is None:
        places = partial(read_places, options.georeference, job.image_dir, sorted(job.photos))
    pairs, label = policy(options, job, places)
    pairs, label = unique_pairs(pairs), f"pairs-{label}"
    job.workspace.write_pairs(label, pairs)
    return pairs, label


def _listed(options: MatchOptions, job: MatchingJob, places: ReadPlaces) -> LabelledPairs:
    """The pairs of a file."""
    path = Path(options.pairs)
    pairs, unknown = pairs_from_file(path, sorted(job.photos))
    for name0, name1 in unknown[:5]:
        logger.warning("left out: the pair %s %s names a photo that is not there", name0, name1)
    if len(unknown) > 5:
        logger.warning("left out: %d more such pairs", len(unknown) - 5)
    return pairs, path.stem.removeprefix("pairs-")
