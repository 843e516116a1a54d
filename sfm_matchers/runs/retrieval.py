"""Pairs of queries and photos of a map."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import pycolmap

from sfm_matchers.choices import RETRIEVALS
from sfm_matchers.confs import SparseConf, load_conf, with_detail
from sfm_matchers.confs.options import suggestion
from sfm_matchers.errors import (
    InputError,
    MissingExtraError,
)
from sfm_matchers.files.pair_lists import Pair, check_pair_file, read_pairs
from sfm_matchers.hloc import INSTALL, is_installed
from sfm_matchers.localization.indexed_model import IndexedModel
from sfm_matchers.localization.look_alikes import (
    MAX_OTHERS,
    MAX_SIMILAR,
    nearest_photos,
    photos_to_describe,
)
from sfm_matchers.localization.poses import Query
from sfm_matchers.pairs.policies import query_pairs
from sfm_matchers.pairs.retrieval import extract_vlad, most_similar
from sfm_matchers.runs.matching import MatchingJob

logger = logging.getLogger("sfm_matchers.pipelines")


class RetrievalOptions(Protocol):
    """What the options of all localization say about retrieval."""

    @property
    def num_loc(self) -> int: ...

    @property
    def loc_pairs(self) -> str | Path | None: ...

    @property
    def retrieval(self) -> str: ...


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
        which = suggestion(retrieval, [*RETRIEVALS, "a file of global descriptors (.h5)"])
        raise InputError(f"unknown retrieval {retrieval!r}{which}")
    names = [*database, *queries]
    descriptor_path = _describe(job, names, database, retrieval)
    pairs = query_pairs(queries, database, descriptor_path, num_matched)
    label = f"pairs-query-{kind}{num_matched}"
    job.workspace.write_pairs(label, pairs)
    return pairs, label


def _describe(job: MatchingJob, names: list[str], database: Sequence[str], retrieval: str) -> Path:
    """The file of global descriptors of photos; those that are there already stay."""
    if is_descriptor_file(retrieval):
        if not Path(retrieval).is_file():
            raise InputError(f"no file {retrieval} of global descriptors")
        return Path(retrieval)
    if retrieval == "vlad":
        return describe_with_vlad(job, names, database)
    with job.workspace.timed("retrieval"):
        return _describe_with_hloc(job, names, retrieval)


def is_descriptor_file(retrieval: str) -> bool:
    """Whether ``--retrieval`` names a file of global descriptors, not a kind."""
    return Path(retrieval).suffix == ".h5"


def describe_with_vlad(
    job: MatchingJob, names: Sequence[str], database: Sequence[str] | None = None
) -> Path:
    """Global descriptors of photos, from SIFT, by a vocabulary learned from those of `database`
    (all if None); return the feature file."""
    sift_path = extract_sift(job, names)
    descriptor_path = job.workspace.global_features("vlad")
    fingerprints = job.fingerprints(names)
    with job.workspace.timed("retrieval"):
        extract_vlad(names, sift_path, descriptor_path, fingerprints, database)
    return descriptor_path


def extract_sift(job: MatchingJob, names: Iterable[str]) -> Path:
    """Extract SIFT of photos, whatever the matcher is; return the feature file."""
    return job.extract(_sift(job), names)


def _sift(job: MatchingJob) -> SparseConf:
    sift = with_detail(load_conf("sift"), job.matching.detail)
    assert isinstance(sift, SparseConf)
    return sift


def features_of_look_alikes(
    job: MatchingJob,
    model: pycolmap.Reconstruction,
    pairs: Sequence[Pair],
    options: RetrievalOptions,
) -> Path | None:
    """Features by which places of a map that look alike are found: SIFT for matchers without a
    detector; None for the others, whose own serve.

    VLAD has made it already of all photos. Otherwise it is made of `photos_to_describe` alone.

    Args:
        job: its photos.
        model: the triangulated map.
        pairs: (query, photo of the map).
        options: whence the pairs come.
    """
    if isinstance(job.conf, SparseConf):
        return None
    lookup = IndexedModel(model)
    known = [name for name in sorted(lookup.image_ids) if name in job.photos]
    if options.loc_pairs or options.retrieval != "vlad":
        retrieved = sorted({name for _, name in pairs if name in lookup.image_ids})
        similar_to = nearest_photos(lookup)
        if not options.loc_pairs:
            path = _describe(job, known, known, options.retrieval)
            similar_to = most_similar(retrieved, known, path, MAX_SIMILAR).__getitem__
        known = photos_to_describe(retrieved, lookup, similar_to)
    return extract_sift(job, [name for name in known if name in job.photos])


def _describe_with_hloc(job: MatchingJob, names: list[str], retrieval: str) -> Path:
    """Global descriptors by one of hloc's networks; hloc keeps those it has made before."""
    if not is_installed():
        raise MissingExtraError(
            f"--retrieval {retrieval} needs hloc: {INSTALL}; or take vlad, or --loc_pairs FILE"
        )
    module = importlib.import_module("hloc.extract_features")
    conf = module.confs[retrieval]
    return Path(module.main(conf, job.image_dir, job.workspace.path, image_list=names))


def num_photos_of_sift(job: MatchingJob, num_queries: int, options: RetrievalOptions) -> int:
    """Of how many photos, at most, SIFT is made beside the matching: for VLAD, and to find places
    that look alike, see `features_of_look_alikes`."""
    if job.workspace.features(job.conf) == job.workspace.features(_sift(job)):
        return 0  # they are those of the matching
    if options.retrieval == "vlad" and not options.loc_pairs:
        return len(job.photos)
    if isinstance(job.conf, SparseConf):
        return 0
    num_database = len(job.photos) - num_queries
    if options.loc_pairs:
        return num_database
    return min(num_database, num_queries * options.num_loc * (1 + MAX_OTHERS))


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
    check_pair_file(path)
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
