"""The benchmarks of localization, from the data set to a submission file: Aachen and InLoc."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pycolmap

from sfm_matchers.errors import InputError
from sfm_matchers.localization.in_depth_scans import ScanOptions, localize_in_scans, query_camera
from sfm_matchers.localization.in_model import localize_queries
from sfm_matchers.localization.nvm import read_nvm
from sfm_matchers.localization.poses import (
    LocalizationOptions,
    LocalizedQuery,
    Query,
    write_results,
)
from sfm_matchers.localization.query_files import read_queries
from sfm_matchers.mapping.models import read_model
from sfm_matchers.pairs.policies import covisibility_pairs
from sfm_matchers.photos.folders import find_images
from sfm_matchers.runs.forecast import announce_localization
from sfm_matchers.runs.maps import triangulated_map
from sfm_matchers.runs.matching import Matching, MatchingJob, choose_matching, start_job
from sfm_matchers.runs.options import AachenOptions, InlocOptions, check_numbers
from sfm_matchers.runs.queries import split_readable
from sfm_matchers.runs.results import BenchmarkResult
from sfm_matchers.runs.retrieval import (
    choose_query_pairs,
    features_of_look_alikes,
    num_photos_of_sift,
)
from sfm_matchers.runs.verdict import judge_localization
from sfm_matchers.runs.workspace import Workspace

QUERIES_OF_AACHEN = "queries/*_time_queries_with_intrinsics.txt"
# What a data set must hold: path -> what that is, or which of the archives has it.
AACHEN = {
    "1.1": {
        "images_upright/db": "from database_and_query_images.zip (v1.0)",
        "images_upright/query": "from database_and_query_images.zip (v1.0)",
        "3D-models/aachen_v_1_1": "from aachen_v1_1.zip",
        "queries": "from the files *_time_queries_with_intrinsics.txt (v1.0)",
    },
    "1.0": {
        "images_upright/db": "from database_and_query_images.zip",
        "images_upright/query": "from database_and_query_images.zip",
        "3D-models/aachen_cvpr2018_db.nvm": "from 3D-models",
        "3D-models/database_intrinsics.txt": "from 3D-models",
        "queries": "from the files *_time_queries_with_intrinsics.txt",
    },
}
ORIGIN_OF_AACHEN = "https://www.visuallocalization.net/datasets"
INLOC = {
    "database/cutouts": "cutouts, with a .mat file beside each",
    "database/alignments": "transformations of the scans",
    "query/iphone7": "queries",
}
ORIGIN_OF_INLOC = "http://www.ok.sc.e.titech.ac.jp/INLOC/"


def localize_aachen(options: AachenOptions) -> BenchmarkResult:
    """Localize the queries of Aachen Day-Night. No other run may work in the outputs.

    Raises:
        SfmMatchersError: an option or an input cannot be used.
    """
    dataset, workspace = Path(options.dataset), Workspace(options.outputs)
    matching = check_aachen(options)
    queries = read_queries(dataset / QUERIES_OF_AACHEN, skip_bad_lines=True)
    reference = read_reference(dataset, options.version)
    database = sorted(image.name for image in reference.images.values())
    names = [*database, *(query.name for query in queries)]
    job = start_job(matching, dataset / "images_upright", workspace, names)
    readable, failed = split_readable(job, queries)

    label = f"pairs-db-covis{options.num_covis}"
    pairs = covisibility_pairs(reference, options.num_covis)
    workspace.write_pairs(label, pairs)
    num_described = num_photos_of_sift(job, len(readable), options)
    announce_localization(job, pairs, label, len(readable) * options.num_loc, num_described)

    loc_pairs, loc_label = choose_query_pairs(
        job, readable, database, options.loc_pairs, options.num_loc, options.retrieval
    )
    model, map_features = triangulated_map(job, reference, pairs, label)
    features, matches = job.match(loc_pairs, loc_label, map_features=map_features, existing="keep")
    local_features = features_of_look_alikes(job, model, loc_pairs, options)
    poses = LocalizationOptions(max_error=options.ransac_thresh)
    with workspace.timed("localization", always_works=True):
        found = localize_queries(
            model, readable, loc_pairs, features, matches, poses, local_features=local_features
        )
        results = [*failed, *_light(found)]
    name = f"Aachen-v{options.version}"
    result = _submit(job, name, loc_label, results, options.matcher)
    result.files["triangulated map"] = workspace.triangulated(job.conf)
    return result


def localize_inloc(options: InlocOptions) -> BenchmarkResult:
    """Localize the queries of InLoc. No other run may work in the outputs.

    Raises:
        SfmMatchersError: an option or an input cannot be used.
    """
    dataset, workspace = Path(options.dataset), Workspace(options.outputs)
    matching = check_inloc(options)
    photos = find_images(dataset)
    database = [name for name in photos if name.startswith("database/cutouts/")]
    names = [name for name in photos if name.startswith("query/iphone7/")]
    job = start_job(matching, dataset, workspace, [*database, *names])
    queries = [
        Query(name, query_camera(job.photos[name].size if name in job.photos else (1, 1)))
        for name in names
    ]
    readable, failed = split_readable(job, queries)

    pairs, label = choose_query_pairs(
        job, readable, database, options.pairs, options.num_loc, options.retrieval
    )
    announce_localization(job, pairs, label, 0)
    features, matches = job.match(pairs, label)
    poses = LocalizationOptions(max_error=options.ransac_thresh, check_intrinsics=False)
    scans = ScanOptions(poses, options.skip_matches)
    with workspace.timed("localization", always_works=True):
        found = localize_in_scans(dataset, readable, pairs, features, matches, scans)
        results = [*failed, *_light(found)]
    return _submit(job, "InLoc", label, results, options.matcher)


def _light(found: Iterable[LocalizedQuery]) -> Iterable[LocalizedQuery]:
    """Without matches: those of a thousand queries fill the memory."""
    return (query.without_matches() for query in found)


def _submit(
    job: MatchingJob, name: str, label: str, results: list[LocalizedQuery], matcher: str
) -> BenchmarkResult:
    """Write the submission and the log, and say what came out."""
    workspace = job.workspace
    workspace.keep_seconds()
    submission = workspace.submission(name, job.conf, label)
    files = {
        "submission": submission,
        "log of all queries": write_results(submission, results),
    }
    verdict = judge_localization(results, matcher)
    return BenchmarkResult(results, files, workspace.seconds, verdict)


def check_aachen(options: AachenOptions) -> Matching:
    """Look at the options and the data set; return how to match.

    Raises:
        InputError: one cannot be used.
    """
    check_numbers(options)
    if options.version not in AACHEN:
        known = ", ".join(AACHEN)
        raise InputError(f"unknown version {options.version!r}, expected one of {known}")
    name = f"Aachen Day-Night v{options.version}"
    check_layout(Path(options.dataset), name, AACHEN[options.version], ORIGIN_OF_AACHEN)
    return choose_matching(options)


def check_inloc(options: InlocOptions) -> Matching:
    """Look at the options and the data set; return how to match.

    Raises:
        InputError: one cannot be used.
    """
    check_numbers(options)
    check_layout(Path(options.dataset), "InLoc", INLOC, ORIGIN_OF_INLOC)
    return choose_matching(options)


def check_layout(dataset: Path, name: str, layout: Mapping[str, str], origin: str) -> None:
    """Look for what a data set must hold.

    Args:
        dataset: its folder.
        name: of the data set.
        layout: path in it -> what that is.
        origin: whence it comes.

    Raises:
        InputError: something is missing; the message lists all of it.
    """
    missing = [
        f"  {dataset / path}  ({what})"
        for path, what in layout.items()
        if not (dataset / path).exists()
    ]
    if missing:
        raise InputError(f"{dataset} is not {name}; missing, see {origin}:\n" + "\n".join(missing))


def read_reference(dataset: Path, version: str) -> pycolmap.Reconstruction:
    """Read the model whose poses are those of Aachen's map."""
    if version == "1.0":
        models = dataset / "3D-models"
        return read_nvm(models / "aachen_cvpr2018_db.nvm", models / "database_intrinsics.txt")
    return read_model(dataset / "3D-models" / "aachen_v_1_1")
