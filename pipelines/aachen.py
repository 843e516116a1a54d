"""Aachen Day-Night: from the data set to a submission file.

    python -m pipelines.aachen --dataset datasets/aachen_v1.1 --outputs outputs/aachen \\
        --matcher jamma

The photos of the map are matched and triangulated into the poses of the reference model; each query
is matched with its most similar photos of the map and localized. Every step leaves its files in
OUTPUTS; a second run does only what is missing or has changed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.command import run_command
from pipelines.localize import print_localization
from pipelines.options import (
    Parser,
    add_map_options,
    add_matching_options,
    add_retrieval_options,
    program,
    take_defaults,
)
from sfm_matchers.errors import InputError

if TYPE_CHECKING:
    import pycolmap

    from sfm_matchers.localization.poses import LocalizedQuery

QUERIES = "queries/*_time_queries_with_intrinsics.txt"
CONDITIONS: dict[str, Callable[[str], bool]] = {
    "day": lambda name: "night" not in name,
    "night": lambda name: "night" in name,
}
ORIGIN = "https://www.visuallocalization.net/datasets"
# What the data set must hold, and which of its archives has it.
LAYOUT = {
    "1.1": {
        "images_upright/db": "database_and_query_images.zip (v1.0)",
        "images_upright/query": "database_and_query_images.zip (v1.0)",
        "3D-models/aachen_v_1_1": "aachen_v1_1.zip",
        "queries": "the files *_time_queries_with_intrinsics.txt (v1.0)",
    },
    "1.0": {
        "images_upright/db": "database_and_query_images.zip",
        "images_upright/query": "database_and_query_images.zip",
        "3D-models/aachen_cvpr2018_db.nvm": "3D-models",
        "3D-models/database_intrinsics.txt": "3D-models",
        "queries": "the files *_time_queries_with_intrinsics.txt",
    },
}


@dataclass(frozen=True)
class AachenOptions:
    """What to localize, and how. The command line has the same names and defaults."""

    dataset: Path
    outputs: Path
    matcher: str = "sift"
    version: str = "1.1"
    num_covis: int = 20
    num_loc: int = 50
    loc_pairs: Path | None = None
    ransac_thresh: float = 12.0
    retrieval: str = "vlad"
    weights: str = "bundled"
    device: str = "auto"
    workers: int | None = None
    ray: str | None = None


@dataclass
class AachenResult:
    """What came out: all queries, the triangulated map, the files and the seconds."""

    queries: list[LocalizedQuery]
    model: pycolmap.Reconstruction
    files: dict[str, Path]
    seconds: dict[str, float]


def run(options: AachenOptions) -> AachenResult:
    """Localize the queries of the data set.

    Raises:
        SfmMatchersError: an option or an input cannot be used.
    """
    from sfm_matchers.localization.in_model import localize_queries
    from sfm_matchers.localization.poses import LocalizationOptions, write_results
    from sfm_matchers.localization.query_files import read_queries
    from sfm_matchers.pairs.policies import covisibility_pairs
    from sfm_matchers.runs.forecast import announce_localization
    from sfm_matchers.runs.maps import triangulated_map
    from sfm_matchers.runs.matching import choose_matching, start_job
    from sfm_matchers.runs.queries import split_readable
    from sfm_matchers.runs.retrieval import choose_query_pairs
    from sfm_matchers.runs.workspace import Workspace

    dataset, workspace = Path(options.dataset), Workspace(options.outputs)
    check_layout(dataset, options.version)
    matching = choose_matching(options)
    queries = read_queries(dataset / QUERIES, skip_bad_lines=True)
    reference = read_reference(dataset, options.version)
    database = sorted(image.name for image in reference.images.values())
    names = [*database, *(query.name for query in queries)]
    job = start_job(matching, dataset / "images_upright", workspace, names)
    readable, failed = split_readable(job, queries)

    label = f"pairs-db-covis{options.num_covis}"
    pairs = covisibility_pairs(reference, options.num_covis)
    workspace.write_pairs(label, pairs)
    announce_localization(job, pairs, label, len(readable) * options.num_loc)
    model, map_features = triangulated_map(job, reference, pairs, label)

    loc_pairs, label = choose_query_pairs(
        job, readable, database, options.loc_pairs, options.num_loc, options.retrieval
    )
    features, matches = job.match(loc_pairs, label, map_features=map_features, existing="keep")
    poses = LocalizationOptions(max_error=options.ransac_thresh)
    with workspace.timed("localization", always_works=True):
        found = localize_queries(model, readable, loc_pairs, features, matches, poses)
        # The matches of a thousand queries fill the memory.
        results = [*failed, *(query.without_matches() for query in found)]
    workspace.keep_seconds()

    submission = workspace.submission(f"Aachen-v{options.version}", job.conf, label)
    files = {
        "submission": submission,
        "log of all queries": write_results(submission, results),
        "triangulated map": workspace.triangulated(job.conf),
    }
    return AachenResult(results, model, files, workspace.seconds)


def check_layout(dataset: Path, version: str) -> None:
    """Look for what the data set must hold.

    Raises:
        InputError: something is missing; the message lists all of it, and whence it comes.
    """
    if version not in LAYOUT:
        raise InputError(f"unknown version {version!r}, expected one of {', '.join(LAYOUT)}")
    missing = [
        f"  {dataset / path}  (from {archive})"
        for path, archive in LAYOUT[version].items()
        if not (dataset / path).exists()
    ]
    if missing:
        raise InputError(
            f"{dataset} is not Aachen Day-Night v{version}; missing, see {ORIGIN}:\n"
            + "\n".join(missing)
        )


def read_reference(dataset: Path, version: str) -> pycolmap.Reconstruction:
    """Read the model whose poses are the map's."""
    from sfm_matchers.localization.nvm import read_nvm
    from sfm_matchers.mapping.models import read_model

    if version == "1.0":
        models = dataset / "3D-models"
        return read_nvm(models / "aachen_cvpr2018_db.nvm", models / "database_intrinsics.txt")
    return read_model(dataset / "3D-models" / "aachen_v_1_1")


def build_parser() -> Parser:
    """Return the command line of this pipeline."""
    parser = Parser(prog=program("aachen"), description=__doc__)
    add = parser.add_argument
    add("--dataset", type=Path, default=Path("datasets/aachen_v1.1"), help="default: %(default)s")
    add("--outputs", type=Path, default=Path("outputs/aachen"), help="default: %(default)s")
    add_matching_options(add)
    add("--version", choices=list(LAYOUT), help="default: %(default)s")
    add_map_options(add)
    add_retrieval_options(add, "photos of the map")
    take_defaults(parser, AachenOptions)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 if it went to the end, 2 for bad input."""
    options = AachenOptions(**build_parser().parse(arguments))

    def job() -> int:
        from sfm_matchers.runs.verdict import judge_localization

        result = run(options)
        print_localization(result.queries, CONDITIONS, result.files, result.seconds)
        print(f"verdict: {judge_localization(result.queries, options.matcher).text}")
        return 0

    return run_command(options.outputs, job, name="aachen", options=options)


if __name__ == "__main__":
    sys.exit(main())
