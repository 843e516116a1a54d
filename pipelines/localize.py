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
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
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
from sfm_matchers.errors import InputError, one_line
from sfm_matchers.images import find_images
from sfm_matchers.localization import (
    LocalizationOptions,
    LocalizedQuery,
    Query,
    add_to_model,
    localize_queries,
    write_results,
)
from sfm_matchers.localization_report import write_localization_report
from sfm_matchers.mapping import CameraOptions
from sfm_matchers.pairs import covisibility_pairs, pose_pairs
from sfm_matchers.storage import write_pairs

logger = logging.getLogger("sfm_matchers.localize")

GUESSED_FOCAL_LENGTH = 1.2  # of the longer side, COLMAP's value: where EXIF has none


@dataclass(frozen=True)
class LocalizeOptions:
    """What to localize, and how. The command line has the same names and defaults."""

    map: Path
    map_images: Path
    queries: Path
    outputs: Path
    matcher: str = "sift"
    num_covis: int = 20
    num_loc: int = 20
    loc_pairs: Path | None = None
    camera_from_map: bool = False
    camera_model: str = "SIMPLE_RADIAL"
    camera_params: str = ""
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
    CameraOptions(options.camera_model, options.camera_params).reader_options()
    image_dir, map_prefix, query_prefix = common_image_dir(options.map_images, options.queries)
    reference = read_map(options.map, options.map_images, map_prefix)
    database = sorted(image.name for image in reference.images.values())
    new_names = [query_prefix + name for name in find_images(options.queries)]
    query_names = sorted(set(new_names).difference(database))
    if not query_names:
        raise InputError(f"{options.queries} holds no photo that is not in the map")
    job = start_job(matching, image_dir, outputs, [*database, *query_names])

    if reference.num_points3D():
        label = f"pairs-db-covis{options.num_covis}"
        pairs = covisibility_pairs(reference, options.num_covis)
    else:
        label = f"pairs-db-poses{options.num_covis}"
        pairs = pose_pairs(reference, options.num_covis, rotation_threshold=60.0)
    write_pairs(outputs / f"{label}.txt", pairs)
    model, map_features = triangulated_map(job, reference, pairs, label)

    readable, results = split_readable(job, make_queries(job, query_names, reference, options))
    loc_pairs, label = choose_query_pairs(
        job, readable, database, options.loc_pairs, options.num_loc, options.retrieval
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
    poses, model_dir = outputs / "poses.txt", outputs / "model"
    log_path = write_results(poses, results)
    extended = add_to_model(model, results)
    model_dir.mkdir(exist_ok=True)
    extended.write(model_dir)
    report = write_localization_report(outputs / "report.html", image_dir, model, results)
    files = {
        "poses": poses,
        "log of all queries": log_path,
        "map with the queries": model_dir,
        "report": report,
        "names of photos are relative to": image_dir,
    }
    return LocalizeResult(results, extended, files, job.steps.seconds)


def common_image_dir(map_images: Path, queries: Path) -> tuple[Path, str, str]:
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


def read_map(path: Path, map_images: Path, prefix: str) -> pycolmap.Reconstruction:
    """Read the model, with `prefix` before the names of its photos.

    Raises:
        InputError: it is no COLMAP model, or none of its photos is there.
    """
    try:
        model = pycolmap.Reconstruction(path)
    except (ValueError, RuntimeError, OSError) as error:
        raise InputError(f"{path} is not a COLMAP model: {one_line(error)}") from error
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


def make_queries(
    job: MatchingJob,
    names: Sequence[str],
    model: pycolmap.Reconstruction,
    options: LocalizeOptions,
) -> list[Query]:
    """Queries with intrinsics: given, of the map's camera of their size, or from EXIF.

    Where there is none of them, the focal length is a guess, to be estimated with the pose.
    """
    queries = [
        _make_query(name, job.photos[name].size, job.image_dir, model, options)
        if name in job.photos
        else Query(name, pycolmap.Camera())
        for name in names
    ]
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


def _make_query(
    name: str,
    size: tuple[int, int],
    image_dir: Path,
    model: pycolmap.Reconstruction,
    options: LocalizeOptions,
) -> Query:
    width, height = size
    if options.camera_params:
        params = [float(value) for value in options.camera_params.split(",")]
        given = pycolmap.Camera(
            model=options.camera_model, width=width, height=height, params=params
        )
        return Query(name, given)
    if options.camera_from_map:
        cameras = (model.cameras[image.camera_id] for image in model.images.values())
        used = Counter(
            camera.camera_id for camera in cameras if (camera.width, camera.height) == size
        )
        if used:
            return Query(name, model.cameras[used.most_common(1)[0][0]])
        logger.warning("%s: no camera of the map has %d x %d pixels", name, width, height)
    try:
        camera = pycolmap.infer_camera_from_image(image_dir / name)
    except (ValueError, RuntimeError):  # COLMAP reads fewer formats
        guess = GUESSED_FOCAL_LENGTH * max(size)
        camera = pycolmap.Camera.create_from_model_name(1, "SIMPLE_RADIAL", guess, width, height)
    return Query(name, camera, focal_length_is_guess=not camera.has_prior_focal_length)


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of this pipeline."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.localize",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--map", type=Path, required=True, help="folder of a COLMAP model")
    add("--map_images", type=Path, required=True, help="folder its names are relative to")
    add("--queries", type=Path, required=True, help="folder of photos to localize")
    add("--outputs", type=Path, default=Path("outputs/localize"), help="default: %(default)s")
    add_matching_options(add)
    add(
        "--camera_from_map",
        action="store_true",
        help="queries have the camera of the map of their size (default: the focal length is "
        "from EXIF, or estimated with the pose)",
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

    return run_command(options.outputs, job)


if __name__ == "__main__":
    sys.exit(main())
