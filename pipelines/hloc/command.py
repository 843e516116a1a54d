r"""hloc's steps, with hloc's names and files, on this package's engine; hloc need not be installed.

An example, from a folder of photos to a COLMAP model; nothing is downloaded for it:

    hloc extract_features --conf sift --image_dir photos --export_dir outputs
    hloc pairs_from_exhaustive --features outputs/feats-sift.h5 --output outputs/pairs.txt
    hloc match_features --conf sift --pairs outputs/pairs.txt --export_dir outputs
    hloc reconstruction --sfm_dir outputs/sfm --image_dir photos --pairs outputs/pairs.txt \
        --features outputs/feats-sift.h5 \
        --matches outputs/feats-sift_matches-sift-NN-ratio_pairs.h5

Without a detector, one step takes the place of the first and the third:

    hloc match_features --conf jamma --image_dir photos --pairs outputs/pairs.txt \
        --export_dir outputs

Options may be written with `_` or `-`. Results lie where hloc's Python functions put them. A conf
is one of those below, or a YAML file of the same form. Where hloc is installed, its own confs
(superpoint+lightglue, ...) run through it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.command import prepare_process, run_guarded, say
from pipelines.hloc.signatures import add_options, keywords_of
from pipelines.options import Parser, program
from sfm_matchers.hloc.steps.confs import conf_table

if TYPE_CHECKING:
    import pycolmap

    from sfm_matchers.files.pair_lists import Pair
    from sfm_matchers.localization.poses import LocalizedQuery

ALIASES = {"reference_model": "reference_sfm_model"}  # option -> hloc's other name of it


# ---------------------------------------------------------------------------------------------
# What is printed of a step


def _say_files(files: Path | Sequence[Path], given: Mapping[str, Any]) -> Iterable[str]:
    return map(str, [files] if isinstance(files, Path) else files)


def _say_pairs(pairs: Sequence[Pair], given: Mapping[str, Any]) -> Iterable[str]:
    return [f"{len(pairs)} pairs: {given['output']}"]


def _say_model(model: pycolmap.Reconstruction, given: Mapping[str, Any]) -> Iterable[str]:
    return [model.summary()]


def _say_poses(results: Sequence[LocalizedQuery], given: Mapping[str, Any]) -> Iterable[str]:
    from sfm_matchers.localization.poses import count_by_status, log_path

    path = Path(given["results"])
    counts = ", ".join(f"{count} {status}" for status, count in count_by_status(results).items())
    return [counts, str(path), str(log_path(path))]


# ---------------------------------------------------------------------------------------------
# The steps


@dataclass(frozen=True)
class Step:
    """A step of the command.

    Attributes:
        module: of `sfm_matchers.hloc.steps` that holds it, as a function of the step's name; it is
            loaded when the step is asked for.
        summary: the first line of its docstring.
        say: from what it returns, and its options, to the lines to print.
    """

    module: str
    summary: str
    say: Callable[[Any, Mapping[str, Any]], Iterable[str]]


STEPS = {
    "extract_features": Step(
        "matching", "Local features to ``<export_dir>/<output>.h5``.", _say_files
    ),
    "match_features": Step(
        "matching",
        "Sparse matches to ``<export_dir>/<features>_<output>_<pairs>.h5``, or `match_dense`.",
        _say_files,
    ),
    "match_dense": Step(
        "matching",
        "Detector-free matches: ``feats_<output>.h5`` and ``<output>_<pairs>.h5``.",
        _say_files,
    ),
    "pairs_from_exhaustive": Step(
        "pairs", "Every image with every other, or each with every reference image.", _say_pairs
    ),
    "pairs_from_retrieval": Step(
        "pairs",
        "Each query with the database images of most similar global descriptors.",
        _say_pairs,
    ),
    "pairs_from_covisibility": Step(
        "pairs", "Each image of a model with those that share most 3D points with it.", _say_pairs
    ),
    "pairs_from_poses": Step(
        "pairs", "Each image of a model with the nearest that look the same way.", _say_pairs
    ),
    "reconstruction": Step(
        "models",
        "A COLMAP model: ``sfm_dir/database.db``, ``models/``, and the largest model in `sfm_dir`.",
        _say_model,
    ),
    "triangulation": Step("models", "Points for a model of known poses, to `sfm_dir`.", _say_model),
    "localize_sfm": Step("models", "Poses of queries in a model.", _say_poses),
    "localize_inloc": Step("models", "Poses of InLoc's queries from depth scans.", _say_poses),
}


def function_of(step: str) -> Callable[..., Any]:
    """Return the function of a step."""
    module = importlib.import_module(f"sfm_matchers.hloc.steps.{STEPS[step].module}")
    function: Callable[..., Any] = getattr(module, step)
    return function


def build_parser(arguments: Sequence[str] | None = None) -> Parser:
    """Return the command line; nothing heavy is imported for it.

    Args:
        arguments: only the steps that they name get their options; None: all steps.
    """
    called = program("hloc")
    parser = Parser(
        prog=called if called.startswith("sfm-matchers") else "hloc",
        description=f"{__doc__}\n{conf_table()}",
    )
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")
    for name, step in STEPS.items():
        one = steps.add_parser(name, help=step.summary, description=step.summary)
        if arguments is None or name in arguments:
            add_options(one, function_of(name), ALIASES)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 if it went to the end, 2 for bad input, 130 after Ctrl-C."""
    if arguments is None:
        prepare_process()
    words = sys.argv[1:] if arguments is None else arguments
    given = build_parser(words).parse(words)

    def job() -> int:
        function = function_of(given["step"])
        result = function(**keywords_of(function, given))
        for line in STEPS[given["step"]].say(result, given):
            say(line)
        return 0

    return run_guarded(job)
