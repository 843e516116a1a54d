"""Poses of new photos in a map of one's own."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pycolmap

from sfm_matchers.errors import InputError
from sfm_matchers.files.links import real_path
from sfm_matchers.files.nearest import nearest_path
from sfm_matchers.files.pair_lists import Pair, check_pair_file
from sfm_matchers.localization.in_model import add_to_model, localize_queries
from sfm_matchers.localization.map_folder import is_map
from sfm_matchers.localization.poses import (
    LocalizationOptions,
    LocalizedQuery,
    write_results,
)
from sfm_matchers.mapping.models import holds_model, read_model, write_model
from sfm_matchers.pairs.policies import covisibility_pairs, pose_pairs
from sfm_matchers.pairs.sequences import add_neighbours
from sfm_matchers.photos.folders import check_folder, find_images
from sfm_matchers.reports.localization import write_localization_report
from sfm_matchers.runs.forecast import announce_localization
from sfm_matchers.runs.frames import queries_instead_of_video
from sfm_matchers.runs.georeference import earth_axes_of
from sfm_matchers.runs.maps import triangulated_map
from sfm_matchers.runs.matching import MatchingJob, choose_matching, start_job
from sfm_matchers.runs.options import LocalizeOptions, check_numbers, make_options
from sfm_matchers.runs.queries import (
    check_queries,
    given_cameras,
    make_queries,
    name_faults,
    query_photos,
    split_readable,
)
from sfm_matchers.runs.results import IMAGE_DIR, LocalizeResult
from sfm_matchers.runs.retrieval import (
    choose_query_pairs,
    features_of_look_alikes,
    num_photos_of_sift,
)
from sfm_matchers.runs.verdict import judge_localization
from sfm_matchers.runs.workspace import Workspace

logger = logging.getLogger("sfm_matchers.localize")


def localize(
    map: str | Path,
    map_images: str | Path | None,
    queries: str | Path,
    output: str | Path,
    **options: Any,
) -> LocalizeResult:
    """Find the poses of new photos in a map; what is done already is not done again.

    Args:
        map: folder of a COLMAP model, the outputs of `reconstruct`, or a map of `pipelines.map`.
        map_images: folder its names are relative to; None for a map that needs no photos.
        queries: folder of new photos, one photo, or a video (with the extra ``video``).
        output: folder for all results.
        options: of `LocalizeOptions`, such as ``matcher="jamma"``.

    Raises:
        SfmMatchersError: an option or an input cannot be used, or another run works in `output`.

    Example:
        >>> from sfm_matchers import localize
        >>> result = localize("out", "photos", "new", "located")  # doctest: +SKIP
        >>> [query.name for query in result.queries]  # doctest: +SKIP
        ['a.jpg', 'b.jpg']
    """
    chosen = make_options(
        LocalizeOptions,
        map=map,
        map_images=map_images,
        queries=queries,
        outputs=output,
        **options,
    )
    with Workspace(output).alone():
        return run(chosen)


def run(options: LocalizeOptions) -> LocalizeResult:
    """Localize photos or a video. No other run may work in the outputs; see `localize`.

    Raises:
        SfmMatchersError: an option or an input cannot be used.
    """
    check_options(options)
    options = queries_instead_of_video(options)
    return run_in_map(options) if is_map(options.map) else run_with_photos(options)


def check_options(options: LocalizeOptions) -> None:
    """Look whether the inputs are there, before anything takes time or is made.

    Raises:
        SfmMatchersError: one is not, or an option cannot be used.
    """
    check_numbers(options)
    check_map(options.map)
    if not is_map(options.map):
        if options.map_images is None:
            if not holds_model(Path(options.map)):
                raise InputError(f"{options.map} is no map and no COLMAP model")
            raise InputError(
                "--map_images is missing: the folder of the photos of the map; or make a map that "
                "needs none by sfm-matchers map build"
            )
        check_folder(options.map_images)
        choose_matching(options)
        if options.loc_pairs is not None:
            check_pair_file(options.loc_pairs)
    check_queries(options.queries)
    given_cameras(options)


def check_map(path: str | Path) -> None:
    """Raise InputError if there is no folder that may hold a map."""
    if not Path(path).is_dir():
        meant = nearest_path(path, lambda other: is_map(other) or holds_model(other))
        raise InputError(f"{path} is no map and no COLMAP model{meant}")


def run_with_photos(options: LocalizeOptions) -> LocalizeResult:
    """Localize a folder of photos in a COLMAP model, whose photos are matched again."""
    assert options.map_images is not None
    workspace = Workspace(options.outputs)
    matching = choose_matching(options)
    cameras = given_cameras(options)
    folder, photos = query_photos(options.queries)
    image_dir, map_prefix, query_prefix = common_image_dir(options.map_images, folder)
    reference = read_map(options.map, options.map_images, map_prefix)
    say_what_is_not_in_the_map(options, reference, map_prefix)
    database = sorted(image.name for image in reference.images.values())
    names = new_photos(options.queries, photos, query_prefix, database)
    job = start_job(matching, image_dir, workspace, [*database, *names])
    queries = make_queries(job, names, query_prefix, cameras, reference, options)
    readable, failed = split_readable(job, queries)

    pairs, label = map_pairs(reference, options.num_covis)
    workspace.write_pairs(label, pairs)
    num_described = num_photos_of_sift(job, len(readable), options)
    announce_localization(job, pairs, label, len(readable) * options.num_loc, num_described)

    loc_pairs, loc_label = choose_query_pairs(
        job, readable, database, options.loc_pairs, options.num_loc, options.retrieval
    )
    if options.sequence:
        loc_pairs = add_neighbours(loc_pairs, [query.name for query in readable])
        loc_label = f"{loc_label}-seq"
        workspace.write_pairs(loc_label, loc_pairs)
    model, map_features = triangulated_map(job, reference, pairs, label)
    posed = {image.name for image in model.images.values() if image.has_pose}
    loc_pairs = [pair for pair in loc_pairs if pair[1] in posed]
    features, matches = job.match(loc_pairs, loc_label, map_features=map_features, existing="keep")
    local_features = features_of_look_alikes(job, model, loc_pairs, options)
    poses = LocalizationOptions(
        max_error=options.ransac_thresh, estimate_focal_length=options.estimate_focal_length
    )
    with workspace.timed("localization", always_works=True):
        localized = localize_queries(
            model, readable, loc_pairs, features, matches, poses, local_features=local_features
        )
        found = list(localized)
    job.check_photos_unchanged()
    workspace.keep_seconds()
    results = [*failed, *found]
    name_faults(results, image_dir)
    return write_localization(job, model, results, earth_axes_of(options.map))


def run_in_map(options: LocalizeOptions) -> LocalizeResult:
    """Localize a folder of photos in a map that is ready, see `localization.map_folder`."""
    from sfm_matchers.localization.localizer import Localizer  # torch takes a second

    for name, value, default in (
        ("--loc_pairs", options.loc_pairs, None),
        ("--retrieval", options.retrieval, LocalizeOptions.retrieval),
    ):
        if value != default:
            raise InputError(f"{options.map} has its own retrieval: leave {name} out")
    poses = LocalizationOptions(
        max_error=options.ransac_thresh, estimate_focal_length=options.estimate_focal_length
    )
    localizer = Localizer(
        options.map,
        device=options.device,
        num_loc=options.num_loc,
        enough_inliers=None,  # time is asked of single queries, here it is exactness
        options=poses,
    )
    if options.matcher not in (localizer.conf.name, LocalizeOptions.matcher):
        raise InputError(f"{options.map} was built with {localizer.conf.name}: leave --matcher out")
    workspace = Workspace(options.outputs)
    matching = choose_matching(replace(options, matcher=localizer.conf.name))
    folder, photos = query_photos(options.queries)
    known = {image.name for image in localizer.model.images.values()}
    image_dir, prefix = names_beside(known, folder, photos)
    names = new_photos(options.queries, photos, prefix, ())
    job = start_job(matching, image_dir, workspace, names)
    cameras = given_cameras(options)
    queries = make_queries(job, names, prefix, cameras, localizer.model, options)
    readable, failed = split_readable(job, queries)
    paths = [job.image_dir / query.name for query in readable]
    with workspace.timed("localization", always_works=True):
        found = localizer.localize_queries(readable, paths, sequence=options.sequence)
    job.check_photos_unchanged()
    workspace.keep_seconds()
    earth = localizer.settings.earth
    axes = None if earth is None else np.array(earth, dtype=np.float64)
    results = [*failed, *found]
    return write_localization(job, localizer.model, results, axes, has_map_photos=False)


def write_localization(
    job: MatchingJob,
    model: pycolmap.Reconstruction,
    results: list[LocalizedQuery],
    earth: np.ndarray | None = None,
    *,
    has_map_photos: bool = True,
) -> LocalizeResult:
    """Write the poses, the log, the map with the queries and the report.

    `earth` has east, north and up in the map's world, a row each, where they are known.
    """
    image_dir, workspace = job.image_dir, job.workspace
    log_path = write_results(workspace.poses, results, submission=False)
    extended = add_to_model(model, results)
    write_model(extended, workspace.extended_map)
    verdict = judge_localization(
        results, job.conf.name, model.num_reg_images(), has_map_photos=has_map_photos
    )
    summary = {"verdict": verdict.text, "verdict_level": verdict.level}
    report = write_localization_report(
        workspace.report,
        image_dir,
        model,
        results,
        summary,
        has_map_photos=has_map_photos,
        earth=earth,
    )
    files = {
        "poses": workspace.poses,
        "log of all queries": log_path,
        "map with the queries": workspace.extended_map,
        "report": report,
        IMAGE_DIR: image_dir,
    }
    return LocalizeResult(results, extended, files, workspace.seconds, verdict, earth)


def new_photos(
    queries: str | Path, photos: Iterable[str], prefix: str, database: Collection[str]
) -> list[str]:
    """Return those of the photos that are not in the map, with `prefix` before their names.

    Raises:
        InputError: there are none.
    """
    names = sorted({prefix + name for name in photos}.difference(database))
    if not names:
        raise InputError(f"{queries} holds no photo that is not in the map")
    return names


def names_beside(known: Collection[str], folder: Path, photos: Collection[str]) -> tuple[Path, str]:
    """What names of queries are relative to, and what to put before them, in a map without photos.

    It is their folder, and nothing; where the map has photos of such names, the folder above.

    Args:
        known: names of the map's photos.
        folder: of the queries.
        photos: their names there.

    Raises:
        InputError: the map has photos of these names too.
    """
    folder = real_path(folder)
    for image_dir, prefix in ((folder, ""), (folder.parent, f"{folder.name}/")):
        same = sorted({prefix + name for name in photos}.intersection(known))
        if not same:
            return image_dir, prefix
    raise InputError(
        f"the map has photos of the names of queries, such as {same[0]}: give the queries in a "
        "folder of another name"
    )


def map_pairs(reference: pycolmap.Reconstruction, num_covis: int) -> tuple[list[Pair], str]:
    """Return pairs of photos of a map that show the same, and their label.

    A map without points has poses to tell by.
    """
    if reference.num_points3D():
        return covisibility_pairs(reference, num_covis), f"pairs-db-covis{num_covis}"
    pairs = pose_pairs(reference, num_covis, rotation_threshold=60.0)
    return pairs, f"pairs-db-poses{num_covis}"


def common_image_dir(map_images: str | Path, queries: str | Path) -> tuple[Path, str, str]:
    """The folder that holds both, and what leads from there to each, to put before names.

    Raises:
        InputError: one is not a folder, or they have no folder in common.
    """
    for folder in (map_images, queries):
        check_folder(folder)
    first, second = real_path(map_images), real_path(queries)
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
    folder, others = real_path(options.map_images or ""), []
    elsewhere = [real_path(path) for path in (options.queries, options.outputs)]
    known = {image.name for image in reference.images.values()}
    for name in find_images(folder):
        path = real_path(folder / name)
        if prefix + name not in known and not {path, *path.parents}.intersection(elsewhere):
            others.append(name)
    if others:
        logger.warning(
            "%d photos of %s are not in the model and have no part, such as %s: give them as "
            "--queries to get their poses",
            len(others),
            options.map_images,
            others[0],
        )
