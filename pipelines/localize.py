"""Localize new photos in a map of one's own: any COLMAP model and its photos.

    python -m pipelines.localize --map sparse/0 --map_images photos --queries new_photos \\
        --outputs outputs/localize

The photos of the map are matched again and triangulated into its poses with the chosen matcher;
each query is matched with its most similar photos of the map. Every step leaves its files in
OUTPUTS; a second run does only what is missing or has changed:

    poses.txt, poses_log.jsonl    poses (name qw qx qy qz tx ty tz, world to camera); all queries
    model/                        a COLMAP model: the map with the localized queries
    report.html                   each query beside the photo of the map that supports it best
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import pycolmap

from pipelines.options import (
    add_map_options,
    add_matching_options,
    add_retrieval_options,
    take_defaults,
)
from pipelines.steps import (
    MatchingJob,
    choose_matching,
    choose_query_pairs,
    print_localization,
    run_command,
    split_readable,
    start_job,
    triangulated_map,
)
from sfm_matchers.diagnosis import fault_of_photo
from sfm_matchers.errors import InputError
from sfm_matchers.images import find_images
from sfm_matchers.intrinsics import (
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
from sfm_matchers.localization import (
    LocalizationOptions,
    LocalizedQuery,
    Query,
    Status,
    add_to_model,
    localize_queries,
    write_results,
)
from sfm_matchers.localization_report import write_localization_report
from sfm_matchers.models import read_model, write_model
from sfm_matchers.pairs import covisibility_pairs, pose_pairs
from sfm_matchers.storage import write_pairs

logger = logging.getLogger("sfm_matchers.localize")


@dataclass(frozen=True)
class LocalizeOptions:
    """What to localize, and how. The command line has the same names and defaults."""

    map: str | Path
    map_images: str | Path
    queries: str | Path
    outputs: str | Path
    matcher: str = "sift"
    num_covis: int = 20
    num_loc: int = 20
    loc_pairs: str | Path | None = None
    camera_from_map: bool = False
    camera_model: str = "SIMPLE_RADIAL"
    camera_params: str = ""
    cameras: str | Path | None = None
    estimate_focal_length: bool = False
    ransac_thresh: float = 12.0
    retrieval: str = "vlad"
    weights: str = "bundled"
    device: str = "auto"
    workers: int | None = None
    ray: str | None = None


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


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of this pipeline."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.localize",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--map", type=Path, required=True, help="folder of a COLMAP model, or above its sparse/0")
    add("--map_images", type=Path, required=True, help="folder its names are relative to")
    add("--queries", type=Path, required=True, help="folder of photos to localize")
    add("--outputs", type=Path, default=Path("outputs/localize"), help="default: %(default)s")
    add_matching_options(add)
    add(
        "--camera_from_map",
        action="store_true",
        help="queries have a camera of the map, of their size or shape (default: these cameras, "
        "EXIF's and an estimate are compared by what the matches support)",
    )
    add(
        "--camera_params",
        help="known intrinsics of all queries, comma-separated, in COLMAP's order, in pixels",
    )
    add(
        "--camera_model",
        help="of --camera_params (default: %(default)s)",
    )
    add(
        "--cameras",
        type=Path,
        metavar="FILE",
        help="intrinsics of single queries: lines 'name MODEL width height params...' as Aachen's "
        "query lists, or 'PATTERN MODEL PARAMS [fixed|start]'",
    )
    add(
        "--estimate_focal_length",
        action="store_true",
        help="estimate the focal length of every query with its pose",
    )
    add_map_options(add)
    add_retrieval_options(add, "photos of the map")
    take_defaults(parser, LocalizeOptions)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 if it went to the end, 2 for bad input."""
    options = LocalizeOptions(**vars(build_parser().parse_args(arguments)))

    def job() -> int:
        result = run(options)
        print_localization(
            result.queries, {"queries": lambda name: True}, result.files, result.seconds
        )
        return 0

    return run_command(Path(options.outputs), job)


if __name__ == "__main__":
    sys.exit(main())
