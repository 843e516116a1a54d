"""InLoc: from the data set to a submission file.

    python -m pipelines.inloc --dataset datasets/inloc --outputs outputs/inloc \\
        --matcher eloftr --pairs pairs-query-netvlad40.txt

Each query is matched with the cutouts listed for it, and its pose is estimated from the points of
their depth scans. Every step leaves its files in OUTPUTS; a second run does only what is missing or
has changed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.command import run_command
from pipelines.localize import print_localization
from pipelines.options import (
    Parser,
    add_matching_options,
    add_retrieval_options,
    program,
    take_defaults,
)
from sfm_matchers.choices import SCAN_MAX_ERROR
from sfm_matchers.errors import InputError

if TYPE_CHECKING:
    from sfm_matchers.localization.poses import LocalizedQuery

ORIGIN = "http://www.ok.sc.e.titech.ac.jp/INLOC/"
LAYOUT = {
    "database/cutouts": "cutouts, with a .mat file beside each",
    "database/alignments": "transformations of the scans",
    "query/iphone7": "queries",
}


@dataclass(frozen=True)
class InlocOptions:
    """What to localize, and how. The command line has the same names and defaults."""

    dataset: Path
    outputs: Path
    matcher: str = "sift"
    pairs: Path | None = None
    num_loc: int = 40
    skip_matches: int = 20
    ransac_thresh: float = SCAN_MAX_ERROR
    retrieval: str = "vlad"
    weights: str = "bundled"
    device: str = "auto"
    workers: int | None = None
    ray: str | None = None


@dataclass
class InlocResult:
    """What came out: all queries, the files and the seconds."""

    queries: list[LocalizedQuery]
    files: dict[str, Path]
    seconds: dict[str, float]


def run(options: InlocOptions) -> InlocResult:
    """Localize the queries of the data set.

    Raises:
        SfmMatchersError: an option or an input cannot be used.
    """
    from sfm_matchers.localization.in_depth_scans import (
        ScanOptions,
        localize_in_scans,
        query_camera,
    )
    from sfm_matchers.localization.poses import LocalizationOptions, Query, write_results
    from sfm_matchers.photos.folders import find_images
    from sfm_matchers.runs.forecast import announce_localization
    from sfm_matchers.runs.matching import choose_matching, start_job
    from sfm_matchers.runs.queries import split_readable
    from sfm_matchers.runs.retrieval import choose_query_pairs
    from sfm_matchers.runs.workspace import Workspace

    dataset, workspace = Path(options.dataset), Workspace(options.outputs)
    check_layout(dataset)
    matching = choose_matching(options)
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
        # The matches of a thousand queries fill the memory.
        results = [*failed, *(query.without_matches() for query in found)]
    workspace.keep_seconds()

    submission = workspace.submission("InLoc", job.conf, label)
    files = {
        "submission": submission,
        "log of all queries": write_results(submission, results),
    }
    return InlocResult(results, files, workspace.seconds)


def check_layout(dataset: Path) -> None:
    """Look for what the data set must hold.

    Raises:
        InputError: something is missing; the message lists all of it.
    """
    missing = [
        f"  {dataset / path}  ({content})"
        for path, content in LAYOUT.items()
        if not (dataset / path).is_dir()
    ]
    if missing:
        raise InputError(f"{dataset} is not InLoc; missing, see {ORIGIN}:\n" + "\n".join(missing))


def build_parser() -> Parser:
    """Return the command line of this pipeline."""
    parser = Parser(prog=program("inloc"), description=__doc__)
    add = parser.add_argument
    add("--dataset", type=Path, default=Path("datasets/inloc"), help="default: %(default)s")
    add("--outputs", type=Path, default=Path("outputs/inloc"), help="default: %(default)s")
    add_matching_options(add)
    add("--pairs", type=Path, help="file of pairs 'query cutout' instead of retrieval")
    add(
        "--skip_matches",
        type=int,
        help="leave out cutouts with fewer matches than this (default: %(default)s)",
    )
    add_retrieval_options(add, "cutouts")
    take_defaults(parser, InlocOptions)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 if it went to the end, 2 for bad input."""
    options = InlocOptions(**build_parser().parse(arguments))

    def job() -> int:
        from sfm_matchers.runs.verdict import judge_localization

        result = run(options)
        print_localization(
            result.queries, {"queries": lambda name: True}, result.files, result.seconds
        )
        print(f"verdict: {judge_localization(result.queries, options.matcher).text}")
        return 0

    return run_command(options.outputs, job, name="inloc", options=options)


if __name__ == "__main__":
    sys.exit(main())
