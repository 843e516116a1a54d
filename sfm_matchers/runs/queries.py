"""The queries of a run, with their intrinsics."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pycolmap

from sfm_matchers.errors import InputError
from sfm_matchers.files.nearest import nearest_path
from sfm_matchers.localization.poses import (
    LocalizedQuery,
    Query,
    failed_query,
    log_outcome,
    name_fault,
)
from sfm_matchers.localization.query_intrinsics import (
    query_of_given_camera,
    query_of_map,
    size_fault,
)
from sfm_matchers.photos.folders import find_images, is_photo
from sfm_matchers.photos.given_cameras import (
    GivenCamera,
    check_given,
    find_camera,
    read_cameras,
)
from sfm_matchers.photos.intrinsics import parse_params
from sfm_matchers.photos.video import check_readable, is_video
from sfm_matchers.runs.matching import MatchingJob
from sfm_matchers.runs.options import LocalizeOptions

logger = logging.getLogger("sfm_matchers.localize")


def check_queries(queries: str | Path) -> None:
    """Look whether there are photos or a video to localize.

    Raises:
        SfmMatchersError: there are not, or a video needs an extra.
    """
    path = Path(queries)
    if is_video(path):
        check_readable(path)
    elif not path.is_dir() and not (path.is_file() and is_photo(path)):
        is_list = path.is_file() and path.suffix == ".txt"
        hint = ": their folder is asked for; a list of intrinsics is --cameras" if is_list else ""
        raise InputError(
            f"{queries} is no folder of photos, no photo and no video{hint or nearest_path(path)}"
        )


def query_photos(queries: str | Path) -> tuple[Path, list[str]]:
    """Return the photos to localize, those of a folder or one alone: their folder and their names.

    Raises:
        InputError: there is neither.
    """
    check_queries(queries)
    path = Path(queries)
    return (path, find_images(path)) if path.is_dir() else (path.parent, [path.name])


def split_readable(
    job: MatchingJob, queries: Sequence[Query]
) -> tuple[list[Query], list[LocalizedQuery]]:
    """Queries whose photo can be decoded and has the size of its camera; the others, failed.

    Raises:
        InputError: none has; why is in the log.
    """
    readable, unreadable = [], []
    for query in queries:
        reason = "its photo is missing or cannot be decoded"
        if query.name in job.photos:
            reason = size_fault(query, job.photos[query.name].size)
        if reason:
            unreadable.append(failed_query(query, reason, [], None))
            log_outcome(unreadable[-1])
        else:
            readable.append(query)
    if not readable:
        raise InputError(f"none of {len(queries)} queries can be localized, see above")
    return readable, unreadable


def given_cameras(options: LocalizeOptions) -> list[GivenCamera]:
    """The intrinsics that the options give, those of a file before those of all queries.

    Raises:
        InputError: they cannot be understood.
    """
    cameras = read_cameras(options.cameras) if options.cameras else []
    params = parse_params(options.camera_model, options.camera_params)
    return cameras + ([GivenCamera("*", options.camera_model, tuple(params))] if params else [])


def make_queries(
    job: MatchingJob,
    names: Sequence[str],
    prefix: str,
    cameras: Sequence[GivenCamera],
    model: pycolmap.Reconstruction,
    options: LocalizeOptions,
) -> list[Query]:
    """Queries with what their intrinsics may be: given, of the map's cameras, or from EXIF.

    Where there is none of them, the focal length is a guess, to be estimated with the pose.

    Args:
        job: the photos.
        names: of the queries.
        prefix: what of each leads to the folder of the queries.
        cameras: given by the user, for names with or without it.
        model: the map.
        options: of this pipeline.

    Raises:
        InputError: given intrinsics are not of these photos.
    """
    cameras = [replace(camera, pattern=camera.pattern.removeprefix(prefix)) for camera in cameras]
    sizes = {name: job.photos[name].size for name in names if name in job.photos}
    if cameras:
        check_given(cameras, {name.removeprefix(prefix): size for name, size in sizes.items()})
    queries = []
    for name in names:
        given = find_camera(cameras, name.removeprefix(prefix))
        if name not in sizes:
            queries.append(Query(name, pycolmap.Camera()))
        elif given is not None:
            queries.append(query_of_given_camera(name, sizes[name], given))
        else:
            path = job.image_dir / name
            from_map = options.camera_from_map
            queries.append(query_of_map(name, sizes[name], path, model, camera_from_map=from_map))
    guessed = [query.name for query in queries if query.focal_length_is_guess]
    if guessed:
        logger.warning(
            "%d of %d photos have no focal length in EXIF (%s%s): it is estimated with the pose",
            len(guessed),
            len(queries),
            guessed[0],
            ", ..." if len(guessed) > 1 else "",
        )
    return queries


def name_faults(results: Iterable[LocalizedQuery], image_dir: Path) -> None:
    """Add to the reasons of queries without a pose what is wrong with the photo itself."""
    for result in results:
        name_fault(result, image_dir / result.name)
