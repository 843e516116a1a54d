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

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.command import run_command, say
from pipelines.options import (
    Parser,
    add_map_options,
    add_matching_options,
    add_retrieval_options,
    program,
    take_defaults,
)
from sfm_matchers.runs.options import LocalizeOptions

if TYPE_CHECKING:
    from sfm_matchers.runs.results import BenchmarkResult, LocalizeResult

ALL_QUERIES: dict[str, Callable[[str], bool]] = {"queries": lambda name: True}


def build_parser() -> Parser:
    """Return the command line of this pipeline."""
    parser = Parser(prog=program("localize"), description=__doc__)
    add = parser.add_argument
    add(
        "--map",
        type=Path,
        required=True,
        help="folder of a COLMAP model, or above its sparse/0; or a map of sfm-matchers map, which "
        "has its matcher and needs no --map_images",
    )
    add("--map_images", type=Path, help="folder its names are relative to")
    add(
        "--queries",
        type=Path,
        required=True,
        help="photos to localize: a folder, one photo, or a video",
    )
    add("--outputs", type=Path, default=Path("outputs/localize"), help="default: %(default)s")
    add_matching_options(add)
    add(
        "--camera_from_map",
        action="store_true",
        help="queries are by a camera of the map, of their size or shape, unless the matches "
        "contradict it (default: these cameras, EXIF's and an estimate are compared)",
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
    add(
        "--sequence",
        action="store_true",
        help="queries, by name, are frames of one walk: photos of the map that are like the "
        "neighbours of a frame are matched with it too",
    )
    add_map_options(add)
    add_retrieval_options(add, "photos of the map")
    take_defaults(parser, LocalizeOptions)
    return parser


def print_localization(
    result: LocalizeResult | BenchmarkResult, conditions: Mapping[str, Callable[[str], bool]]
) -> None:
    """Print the counts by status, for each condition and all; where each file is; the seconds.

    Args:
        result: of the run.
        conditions: name of a condition -> whether a query, by name, is of it.
    """
    from sfm_matchers.localization.poses import Status, count_by_status, intrinsics_by_source

    rows = {
        condition: [query for query in result.queries if belongs(query.name)]
        for condition, belongs in conditions.items()
    }
    if len(rows) != 1:
        rows["all queries"] = result.queries
    for condition, chosen in rows.items():
        counts = ", ".join(f"{count} {status}" for status, count in count_by_status(chosen).items())
        posed = [r for r in chosen if r.status in (Status.LOCALIZED, Status.LOW_CONFIDENCE)]
        inliers = ""
        if posed:
            inliers = f"; median inliers {statistics.median(r.num_inliers for r in posed):.0f}"
        say(f"{condition}: {len(chosen)}, of which {counts}{inliers}")
    for line in intrinsics_by_source(result.queries):
        say(f"intrinsics: {line}")
    for name, path in result.files.items():
        say(f"{name}: {path}")
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in result.seconds.items())
    say(f"seconds: {seconds}")


def print_with_verdict(
    result: LocalizeResult | BenchmarkResult,
    conditions: Mapping[str, Callable[[str], bool]] = ALL_QUERIES,
) -> int:
    """Print what `print_localization` does, and the verdict last; return 0."""
    print_localization(result, conditions)
    say(f"verdict: {result.verdict.text}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 if it went to the end, 2 for bad input."""
    options = LocalizeOptions(**build_parser().parse(arguments))

    def job() -> int:
        from sfm_matchers.runs.localize import run

        return print_with_verdict(run(options))

    return run_command(Path(options.outputs), job, name="localize", options=options)


if __name__ == "__main__":
    sys.exit(main())
