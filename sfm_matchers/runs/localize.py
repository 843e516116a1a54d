"""Poses of new photos in a map of one's own."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pycolmap

from sfm_matchers.errors import InputError
from sfm_matchers.files.pair_lists import write_pairs
from sfm_matchers.localization.in_model import add_to_model, localize_queries
from sfm_matchers.localization.poses import (
    LocalizationOptions,
    LocalizedQuery,
    write_results,
)
from sfm_matchers.mapping.models import read_model, write_model
from sfm_matchers.pairs.policies import covisibility_pairs, pose_pairs
from sfm_matchers.photos.folders import find_images
from sfm_matchers.reports.localization import write_localization_report
from sfm_matchers.runs.maps import triangulated_map
from sfm_matchers.runs.matching import choose_matching, start_job
from sfm_matchers.runs.options import LocalizeOptions
from sfm_matchers.runs.queries import given_cameras, make_queries, name_faults, split_readable
from sfm_matchers.runs.retrieval import choose_query_pairs

logger = logging.getLogger("sfm_matchers.localize")


@dataclass
class LocalizeResult:
    """What came out: all queries, the map with them, the files and the seconds."""

    queries: list[LocalizedQuery]
    model: pycolmap.Reconstruction
    files: dict[str, Path]
    seconds: dict[str, float]


def run(options: LocalizeOptions) -> LocalizeResult:
    """Localize a folder of photos.

    Raises:
        SfmMatchersError: an option or an input cannot be used.
    """
    outputs = Path(options.outputs)
    matching = choose_matching(options)
    cameras = given_cameras(options)
    image_dir, map_prefix, query_prefix = common_image_dir(options.map_images, options.queries)
    reference = read_map(options.map, options.map_images, map_prefix)
    say_what_is_not_in_the_map(options, reference, map_prefix)
    database = sorted(image.name for image in reference.images.values())
    new_names = [query_prefix + name for name in find_images(Path(options.queries))]
    query_names = sorted(set(new_names).difference(database))
    if not query_names:
        raise InputError(f"{options.queries} holds no photo that is not in the map")
    job = start_job(matching, image_dir, outputs, [*database, *query_names])
    queries = make_queries(job, query_names, query_prefix, cameras, reference, options)

    if reference.num_points3D():
        label = f"pairs-db-covis{options.num_covis}"
        pairs = covisibility_pairs(reference, options.num_covis)
    else:
        label = f"pairs-db-poses{options.num_covis}"
        pairs = pose_pairs(reference, options.num_covis, rotation_threshold=60.0)
    write_pairs(outputs / f"{label}.txt", pairs)
    model, map_features = triangulated_map(job, reference, pairs, label)

    readable, results = split_readable(job, queries)
    loc_pairs, label = choose_query_pairs(
        job,
        readable,
        database,
        Path(options.loc_pairs) if options.loc_pairs else None,
        options.num_loc,
        options.retrieval,
    )
    feature_path, match_path = job.match(
        loc_pairs, label, map_features=map_features, existing="keep"
    )
    localization = LocalizationOptions(
        max_error=options.ransac_thresh, estimate_focal_length=options.estimate_focal_length
    )
    results += job.steps.timed(
        "localization",
        lambda: list(
            localize_queries(model, readable, loc_pairs, feature_path, match_path, localization)
        ),
    )
    job.check_photos_unchanged()
    name_faults(results, image_dir)
    poses, model_dir = outputs / "poses.txt", outputs / "model"
    log_path = write_results(poses, results, keep_folders=True)
    extended = add_to_model(model, results)
    write_model(extended, model_dir)
    report = write_localization_report(outputs / "report.html", image_dir, model, results)
    files = {
        "poses": poses,
        "log of all queries": log_path,
        "map with the queries": model_dir,
        "report": report,
        "names of photos are relative to": image_dir,
    }
    return LocalizeResult(results, extended, files, job.steps.seconds)


def common_image_dir(map_images: str | Path, queries: str | Path) -> tuple[Path, str, str]:
    """The folder that holds both, and what leads from there to each, to put before names.

    Raises:
        InputError: one is not a folder, or they have no folder in common.
    """
    for folder in (map_images, queries):
        if not Path(folder).is_dir():
            raise InputError(f"{folder} is not a folder")
    first, second = Path(map_images).resolve(), Path(queries).resolve()
    try:
        common = Path(os.path.commonpath([first, second]))
    except ValueError as error:
        raise InputError(f"{map_images} and {queries} must be on one drive") from error
    prefixes = [
        "" if folder == common else PurePosixPath(folder.relative_to(common)).as_posix() + "/"
        for folder in (first, second)
    ]
    return common, prefixes[0], prefixes[1]


def read_map(path: str | Path, map_images: str | Path, prefix: str) -> pycolmap.Reconstruction:
    """Read the model, with `prefix` before the names of its photos.

    Raises:
        InputError: it is no COLMAP model, or none of its photos is there.
    """
    model = read_model(path)
    names = [image.name for image in model.images.values()]
    missing = [name for name in names if not (Path(map_images) / name).is_file()]
    if len(missing) == len(names):
        raise InputError(
            f"none of the {len(names)} photos of {path} is in {map_images}: give the folder that "
            f"its names are relative to, such as {names[0] if names else '?'}"
        )
    for image in model.images.values():
        image.name = prefix + image.name
    return model


def say_what_is_not_in_the_map(
    options: LocalizeOptions, reference: pycolmap.Reconstruction, prefix: str
) -> None:
    """Count the photos beside those of the map that are neither in its model nor queries."""
    folder, others = Path(options.map_images).resolve(), []
    elsewhere = [Path(path).resolve() for path in (options.queries, options.outputs)]
    known = {image.name for image in reference.images.values()}
    for name in find_images(folder):
        parents = (folder / name).resolve().parents
        if prefix + name not in known and not any(path in parents for path in elsewhere):
            others.append(name)
    if others:
        logger.warning(
            "%d photos of %s are not in the model and have no part, such as %s: give them as "
            "--queries to get their poses",
            len(others),
            options.map_images,
            others[0],
        )
