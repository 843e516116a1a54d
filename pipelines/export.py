"""Write a matcher as an ONNX file, for onnxruntime and what else reads ONNX.

    python -m pipelines.export --matcher jamma --format onnx --size 640 480 --output jamma.onnx
    python -m pipelines.export --matcher sift+mambaglue --num_keypoints 2048 --output mambaglue.onnx

The file holds the weights and works at one size only; docs/onnx.md describes inputs and outputs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import sfm_matchers
from pipelines.command import run_guarded
from sfm_matchers.confs import load_conf
from sfm_matchers.matchers import matcher_weights_fingerprint
from sfm_matchers.onnx_export import export_onnx, load_graph


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of this pipeline."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--matcher", required=True, help="as in pipelines.sfm: jamma, eloftr, sift+mambaglue, ...")
    add("--format", default="onnx", choices=("onnx",), help="default: onnx")
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
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 if the file was written, 2 for bad input."""
    options = build_parser().parse_args(arguments)

    def job() -> int:
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
        print(f"{options.output}: {size:.1f} MB, {nodes} nodes, in {seconds:.0f} s")
        print(graph.description)
        return 0

    return run_guarded(job)


if __name__ == "__main__":
    sys.exit(main())
