"""The queries of a run, with their intrinsics."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pycolmap

from sfm_matchers.localization.poses import (
    LocalizedQuery,
    Query,
    Status,
    failed_query,
)
from sfm_matchers.mapping.diagnosis import fault_of_photo
from sfm_matchers.photos.intrinsics import (
    GUESSED_FOCAL_LENGTH,
    GivenCamera,
    Intrinsics,
    Size,
    camera_with,
    check_given,
    find_camera,
    intrinsics_of_map,
    parse_params,
    read_cameras,
)
from sfm_matchers.runs.matching import MatchingJob
from sfm_matchers.runs.options import LocalizeOptions

logger = logging.getLogger("sfm_matchers.localize")


def split_readable(
    job: MatchingJob, queries: Sequence[Query]
) -> tuple[list[Query], list[LocalizedQuery]]:
    """Queries whose photo can be decoded and has the size of its camera; the others, failed."""
    readable, unreadable = [], []
    for query in queries:
        camera_size = (query.camera.width, query.camera.height)
        if query.name not in job.photos:
            reason = "its photo is missing or cannot be decoded"
        elif job.photos[query.name].size != camera_size:
            width, height = job.photos[query.name].size
            reason = (
                f"its photo has {width} x {height} pixels, its intrinsics are for "
                f"{camera_size[0]} x {camera_size[1]}"
            )
        else:
            readable.append(query)
            continue
        unreadable.append(failed_query(query, reason, [], None))
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
            queries.append(_query_of_given_camera(name, sizes[name], given))
        else:
            queries.append(_make_query(name, sizes[name], job.image_dir, model, options))
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


def _query_of_given_camera(name: str, size: Size, given: GivenCamera) -> Query:
    if given.params:
        return Query(name, given.camera(size), source=given.where, may_change=given.is_start)
    camera = camera_with(given.model, GUESSED_FOCAL_LENGTH * max(size), size)
    return Query(name, camera, focal_length_is_guess=True, source=given.where, may_change=True)


def _make_query(
    name: str,
    size: Size,
    image_dir: Path,
    model: pycolmap.Reconstruction,
    options: LocalizeOptions,
) -> Query:
    """A query whose intrinsics the user does not give."""
    candidates = intrinsics_of_map(model, size)
    if not (options.camera_from_map and candidates):
        if options.camera_from_map:
            logger.warning("%s: no camera of the map has the shape %d x %d", name, *size)
        candidates += _intrinsics_of_exif(image_dir / name)
    if not candidates:
        camera = camera_with("SIMPLE_RADIAL", GUESSED_FOCAL_LENGTH * max(size), size)
        return Query(name, camera, focal_length_is_guess=True, source="no EXIF", may_change=True)
    first, *others = candidates
    may_change = not options.camera_from_map or "of the map" not in first.source
    return Query(
        name, first.camera, source=first.source, alternatives=others, may_change=may_change
    )


def _intrinsics_of_exif(path: Path) -> list[Intrinsics]:
    try:
        camera = pycolmap.infer_camera_from_image(path)
    except (ValueError, RuntimeError):  # COLMAP reads fewer formats
        return []
    return [Intrinsics(camera, "EXIF")] if camera.has_prior_focal_length else []


def name_faults(results: Iterable[LocalizedQuery], image_dir: Path) -> None:
    """Add to the reasons of queries without a pose what is wrong with the photo itself."""
    for result in results:
        if result.status is Status.FAILED and (fault := fault_of_photo(image_dir, result.name)):
            result.reason = f"{result.reason}; the photo is {fault}" if result.reason else fault
