"""The georeference of a run, and how long its matching takes."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import pycolmap

from pipelines.steps import MatchingJob, describe_with_vlad
from sfm_matchers import colmap_matching, revisions
from sfm_matchers.confs import SparseConf
from sfm_matchers.errors import InputError
from sfm_matchers.mapping_new.control_points import (
    ControlPoints,
    is_control_points,
    read_control_points,
)
from sfm_matchers.mapping_new.georeference import describe, georeference, write_georeference
from sfm_matchers.pairs_new.coordinates import FloatArray
from sfm_matchers.pairs_new.policies import auto_pairs, most_pairs
from sfm_matchers.pairs_new.positions import (
    Positions,
    exif_positions,
    positions_from_file,
    spatial_pairs,
)
from sfm_matchers.storage import (
    Pair,
    StagedFile,
    file_fingerprint,
    fingerprint,
    names_to_pair,
    read_text,
)

logger = logging.getLogger("sfm_matchers.sfm")

NONE, EXIF = "none", "exif"
FOLDER = "georeferenced"

POLICIES = ("auto", "spatial")

NUM_TIMED = 10


def read_places(
    option: str | Path, image_dir: Path, names: Sequence[str]
) -> Positions | ControlPoints | None:
    """Return what ``--georeference`` names: ``none``, ``exif`` or a file.

    Raises:
        InputError: there is no such file, or it is malformed.
    """
    if str(option) == NONE:
        return None
    if str(option) == EXIF:
        return exif_positions(image_dir, names)
    path = Path(option)
    if not path.is_file():
        raise InputError(f"--georeference {path}: expected none, exif or a file")
    if is_control_points(path):
        return read_control_points(path, names)
    return positions_from_file(path, names)


def georeference_models(
    job: MatchingJob,
    known: Positions | ControlPoints | None,
    models: Sequence[pycolmap.Reconstruction],
    fixed: Collection[str] = (),
) -> str:
    """Write the largest model in metres beside it, if its place is known.

    Args:
        job: knows where.
        known: from `read_places`.
        models: the largest first.
        fixed: photos whose intrinsics are kept as they are.

    Returns:
        What came out, for the summary; "" where there is nothing to say.
    """
    folder = job.outputs / FOLDER
    is_empty = isinstance(known, Positions) and not known.xyz
    if known is None or is_empty or not models:
        shutil.rmtree(folder, ignore_errors=True)
        return ""
    model_dir = job.outputs / "sparse" / "0"
    content = [file_fingerprint(model_dir / f"{part}.bin") for part in ("images", "points3D")]
    source = fingerprint(revisions.GEOREFERENCE, repr(known), content)
    written = folder / "georeference.json"
    if job.steps.is_done(FOLDER, source):
        return str(json.loads(read_text(written))["summary"])
    try:
        place, model = georeference(models[0], known, fixed)
    except InputError as error:
        shutil.rmtree(folder, ignore_errors=True)
        logger.info("No model in metres: %s", error)
        return f"none: {error}"
    text = describe(place, models[0].num_reg_images())
    write_georeference(folder, place, model, text)
    job.steps.set_done(FOLDER, source, folder)
    return text


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
    return job.matching.device != "cpu" or job.conf.model.get("name") == colmap_matching.NAME


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
    match_path = job.outputs / f"{job.conf.output}_{label}.h5"
    files = [StagedFile(match_path)]
    if not isinstance(job.conf, SparseConf):
        raw = match_path.with_name(match_path.name.replace("matches-", "correspondences-"))
        files.append(StagedFile(raw))
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


def duration(seconds: float) -> str:
    """Return seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
