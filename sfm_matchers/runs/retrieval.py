"""Pairs of queries and photos of a map."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from sfm_matchers.choices import RETRIEVALS
from sfm_matchers.confs import SparseConf, load_conf, with_detail
from sfm_matchers.errors import (
    InputError,
    MissingExtraError,
)
from sfm_matchers.files.pair_lists import Pair, read_pairs
from sfm_matchers.hloc import INSTALL, is_installed
from sfm_matchers.localization.poses import (
    Query,
)
from sfm_matchers.pairs.policies import query_pairs
from sfm_matchers.pairs.retrieval import extract_vlad
from sfm_matchers.runs.matching import MatchingJob

logger = logging.getLogger("sfm_matchers.pipelines")


def retrieve(
    job: MatchingJob,
    queries: Sequence[str],
    database: Sequence[str],
    num_matched: int,
    retrieval: str = "vlad",
) -> tuple[list[Pair], str]:
    """Find the most similar photos of a map for each query.

    Args:
        job: its photos.
        queries: names.
        database: names of the photos of the map.
        num_matched: neighbours of each query.
        retrieval: ``vlad`` needs no download; a feature file with global descriptors of all
            these photos, of any network, as hloc writes it; the others are hloc's, and need hloc.

    Returns:
        Pairs (query, photo of the map), best first, and a label for the list.

    Raises:
        MissingExtraError: hloc is needed and not installed.
        InputError: unknown kind of retrieval, or a photo has no descriptor in the file.
    """
    kind = retrieval
    if is_descriptor_file(retrieval):
        kind = Path(retrieval).stem
    elif retrieval not in RETRIEVALS:
        known = ", ".join(RETRIEVALS)
        raise InputError(
            f"unknown retrieval {retrieval!r}, expected one of {known}, or a file of global "
            "descriptors (.h5)"
        )
    names = [*database, *queries]
    if is_descriptor_file(retrieval):
        descriptor_path = Path(retrieval)
        if not descriptor_path.is_file():
            raise InputError(f"no file {descriptor_path} of global descriptors")
    elif retrieval == "vlad":
        descriptor_path = describe_with_vlad(job, names, database)
    else:
        with job.workspace.timed("retrieval"):
            descriptor_path = _describe_with_hloc(job, names, retrieval)
    pairs = query_pairs(queries, database, descriptor_path, num_matched)
    label = f"pairs-query-{kind}{num_matched}"
    job.workspace.write_pairs(label, pairs)
    return pairs, label


def is_descriptor_file(retrieval: str) -> bool:
    """Whether ``--retrieval`` names a file of global descriptors, not a kind."""
    return Path(retrieval).suffix == ".h5"


def describe_with_vlad(
    job: MatchingJob, names: Sequence[str], database: Sequence[str] | None = None
) -> Path:
    """Global descriptors of photos, from SIFT, by a vocabulary learned from those of `database`
    (all if None); return the feature file."""
    sift_path = _extract_sift(job, names)
    descriptor_path = job.workspace.global_features("vlad")
    fingerprints = job.fingerprints(names)
    with job.workspace.timed("retrieval"):
        extract_vlad(names, sift_path, descriptor_path, fingerprints, database)
    return descriptor_path


def _extract_sift(job: MatchingJob, names: Sequence[str]) -> Path:
    sift = with_detail(load_conf("sift"), job.matching.detail)
    assert isinstance(sift, SparseConf)
    return job.extract(sift, names)


def features_of_look_alikes(
    job: MatchingJob, queries: Sequence[Query], database: Iterable[str]
) -> Path | None:
    """Features by which places of a map that look alike are found: SIFT, which retrieval has made
    already, for matchers without a detector; None for the others, whose own serve."""
    if isinstance(job.conf, SparseConf):
        return None
    known = [name for name in database if name in job.photos]
    return _extract_sift(job, [*known, *(query.name for query in queries)])


def _describe_with_hloc(job: MatchingJob, names: list[str], retrieval: str) -> Path:
    """Global descriptors by one of hloc's networks; hloc keeps those it has made before."""
    if not is_installed():
        raise MissingExtraError(
            f"--retrieval {retrieval} needs hloc: {INSTALL}; or take vlad, or --loc_pairs FILE"
        )
    module = importlib.import_module("hloc.extract_features")
    conf = module.confs[retrieval]
    return Path(module.main(conf, job.image_dir, job.workspace.path, image_list=names))


def choose_query_pairs(
    job: MatchingJob,
    queries: Sequence[Query],
    database: Iterable[str],
    listed: str | Path | None,
    num_matched: int,
    retrieval: str,
) -> tuple[list[Pair], str]:
    """Pairs (query, photo of the map): those of the file `listed`, or the most similar ones.

    Photos of `database` that are not there have no part. See `listed_pairs` and `retrieve`.
    """
    names = [query.name for query in queries]
    known = [name for name in database if name in job.photos]
    if listed:
        return listed_pairs(job, listed, names, known)
    return retrieve(job, names, known, num_matched, retrieval)


def listed_pairs(
    job: MatchingJob, path: str | Path, queries: Iterable[str], database: Iterable[str]
) -> tuple[list[Pair], str]:
    """Read (query, photo of the map) pairs; those of unknown photos are left out, and counted.

    Raises:
        InputError: no such file, or no pair is of a query and a photo of the map.
    """
    path, queries, database = Path(path), set(queries), set(database)
    if not path.is_file():
        raise InputError(f"{path} is not a file of pairs")
    listed = read_pairs(path, queries | database)
    pairs = [pair for pair in listed if pair[0] in queries and pair[1] in database]
    if not pairs:
        raise InputError(f"{path} holds no pair of a query and a photo of the map")
    if len(pairs) < len(listed):
        logger.warning(
            "%s: %d of %d pairs name a photo that is not there",
            path,
            len(listed) - len(pairs),
            len(listed),
        )
    return pairs, path.stem
