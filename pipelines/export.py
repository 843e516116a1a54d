"""Models for other tools, and matchers as ONNX files.

    python -m pipelines.export model OUT/sparse/0 --image_dir PHOTOS --output DIR \\
        --formats nerfstudio,gsplat,undistorted,ply
    python -m pipelines.export onnx --matcher jamma --size 640 480 --output jamma.onnx

A model goes to gsplat, Inria's 3DGS, nerfstudio and viewers of points: docs/exports.md. An ONNX
file holds the weights of a matcher and works at one size only: docs/onnx.md; the word `onnx` may be
left out.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import sfm_matchers
from pipelines.command import run_guarded, say
from pipelines.options import Parser, matcher_name, program
from sfm_matchers.choices import EXPORTS

COMMANDS = ("model", "onnx")


def build_parser() -> Parser:
    """Return the command line of this pipeline."""
    parser = Parser(prog=program("export"), description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="model | onnx")
    _add_model(commands.add_parser("model", help="a COLMAP model and its photos for other tools"))
    _add_onnx(commands.add_parser("onnx", help="a matcher as ONNX file, for what reads ONNX"))
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", type=Path, help="a COLMAP model, or the outputs of sfm-matchers sfm")
    add("--image_dir", type=Path, help="its photos; ply alone needs none")
    add("--output", type=Path, required=True, help="the folder to write to; made if missing")
    add(
        "--formats",
        default=",".join(EXPORTS),
        help="some of these: "
        + "; ".join(f"{name}, {what}" for name, what in EXPORTS.items())
        + " (default: all)",
    )


def _add_onnx(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--matcher",
        type=matcher_name,
        required=True,
        help="as in sfm-matchers sfm: jamma, eloftr, sift+mambaglue, ...",
    )
    add(
        "--weights",
        default="bundled",
        help="bundled, official (downloaded), or a checkpoint file (default: bundled)",
    )
    add(
        "--size",
        type=int,
        nargs=2,
        metavar=("WIDTH", "HEIGHT"),
        help="of the images that a detector-free matcher gets, in pixels",
    )
    add("--num_keypoints", type=int, help="of each image, for mambaglue; fewer are padded")
    add("--output", type=Path, required=True, help="the file to write")


def export_matcher(options: argparse.Namespace) -> int:
    """Write a matcher as ONNX; return 0."""
    from sfm_matchers.confs import load_conf
    from sfm_matchers.matchers.registry import matcher_weights_fingerprint
    from sfm_matchers.onnx.graphs import export_onnx, load_graph

    start = time.monotonic()
    graph = load_graph(options.matcher, options.weights, options.size, options.num_keypoints)
    weights = matcher_weights_fingerprint(load_conf(options.matcher), options.weights)
    metadata = {
        "matcher": options.matcher,
        "weights": f"{options.weights} {weights}",
        "sfm_matchers": sfm_matchers.__version__,
    }
    nodes = export_onnx(graph, options.output, metadata)
    size, seconds = options.output.stat().st_size / 1e6, time.monotonic() - start
    say(f"{options.output}: {size:.1f} MB, {nodes} nodes, in {seconds:.0f} s")
    say(graph.description)
    return 0


def export_reconstruction(options: argparse.Namespace) -> int:
    """Write a model in the formats of other tools; return 1 if one of them was not possible."""
    from sfm_matchers.exports import check_image_dir, export_model, parse_formats
    from sfm_matchers.files.locks import exclusive
    from sfm_matchers.mapping.models import check_is_folder

    formats = parse_formats(options.formats)
    check_is_folder(options.model)  # a mistake leaves no folder behind
    check_image_dir(formats, options.image_dir)
    with exclusive(options.output):  # deletes what a killed one has left
        exports = export_model(options.model, options.image_dir, options.output, formats)
    width = max((len(export.format) for export in exports), default=0)
    for export in exports:
        say(f"{export.format:<{width}}  {export.described()}")
    return 0 if all(export.path for export in exports) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 if all was written, 1 if a part was not, 2 for bad input."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] not in COMMANDS and "--matcher" in {w.partition("=")[0] for w in words}:
        words.insert(0, "onnx")
    options = argparse.Namespace(**build_parser().parse(words))
    job = export_reconstruction if options.command == "model" else export_matcher
    return run_guarded(lambda: job(options))


if __name__ == "__main__":
    sys.exit(main())
