"""The pairs of a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from sfm_matchers.choices import POLICIES
from sfm_matchers.errors import InputError
from sfm_matchers.files.pair_lists import Pair, unique_pairs
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
from sfm_matchers.runs.georeference import read_places
from sfm_matchers.runs.matching import MatchingJob
from sfm_matchers.runs.options import MatchOptions
from sfm_matchers.runs.retrieval import describe_with_vlad

logger = logging.getLogger("sfm_matchers.sfm")


def choose_pairs(
    policy: str, job: MatchingJob, places: str | Path, num_matched: int
) -> tuple[list[Pair], str]:
    """Return the pairs of one of `POLICIES`, and a label for them.

    Raises:
        InputError: ``spatial`` without positions.
    """
    names = sorted(job.photos)

    def positions() -> Mapping[str, FloatArray]:
        known = read_places(places, job.image_dir, names)
        return (known if isinstance(known, Positions) else exif_positions(job.image_dir, names)).xyz

    if policy == "auto":
        return auto_pairs(
            job.image_dir,
            names,
            num_matched,
            is_fast=is_fast(job),
            positions=positions,
            describe=lambda chosen: describe_with_vlad(job, chosen),
        )
    xyz = positions()
    without = [name for name in names if name not in xyz]
    if len(xyz) < 2:
        raise InputError(
            f"--pairs {policy} needs the positions of photos, and {len(xyz)} of {len(names)} "
            "have one: give --georeference FILE.csv, or take --pairs retrieval"
        )
    if without:
        logger.warning(
            "%d photos have no position and are in no pair, such as %s: --pairs auto has them",
            len(without),
            without[0],
        )
    return spatial_pairs(xyz, num_matched), f"{policy}{num_matched}"


def is_fast(job: MatchingJob) -> bool:
    """True if the matcher takes a fraction of a second a pair."""
    return job.matching.device != "cpu" or job.conf.matcher == colmap_matching.NAME


def make_pairs(options: MatchOptions, job: MatchingJob) -> tuple[list[Pair], str]:
    """Choose the pairs of photos to match and write them; return them and their label."""
    names = sorted(job.photos)
    label = str(options.pairs)
    if options.pairs in POLICIES:
        pairs, label = choose_pairs(label, job, options.georeference, options.num_matched)
    elif options.pairs == "exhaustive":
        pairs = exhaustive_pairs(names)
    elif options.pairs == "sequential":
        pairs = sequential_pairs(names, options.num_matched)
        label = f"sequential{options.num_matched}"
    elif options.pairs == "retrieval":
        pairs = retrieval_pairs(names, describe_with_vlad(job, names), options.num_matched)
        label = f"vlad{options.num_matched}"
    else:
        pairs, unknown = pairs_from_file(Path(options.pairs), names)
        label = Path(options.pairs).stem.removeprefix("pairs-")
        for name0, name1 in unknown[:5]:
            logger.warning("left out: the pair %s %s names a photo that is not there", name0, name1)
        if len(unknown) > 5:
            logger.warning("left out: %d more such pairs", len(unknown) - 5)
    pairs = unique_pairs(pairs)
    label = f"pairs-{label}"
    job.workspace.write_pairs(label, pairs)
    return pairs, label
