"""What a GPU does with the matchers: one run of eight minutes at most, one file of tables.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --tiny --output /tmp/gpu.md

CUDA tests; whether matches are those of the CPU; pairs per second of each matcher at 832 and 1024
pixels in each precision, at the batch that is fastest; what each step from two photos to matches
takes; the selective scan beside what the memory allows and beside its form in torch. The two photos
are of a rendered room; photos are encoded, and features extracted, before the pairs are timed.
Seconds are wall seconds. What finds no time any more is left out, and said. `--tiny` goes through
all of it on a CPU, with images too small to say anything.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.scan import CASES, Case, make_inputs
from benchmarks.scan import forward as scan_forward
from sfm_matchers.confs import Conf, DetectorFreeConf, SparseConf, load_conf
from sfm_matchers.errors import SfmMatchersError
from sfm_matchers.features.extraction import extract_image, load_extractor
from sfm_matchers.matchers.batching import is_out_of_memory
from sfm_matchers.matchers.least_squares_matching import least_squares_matching
from sfm_matchers.matchers.looks import first_looks
from sfm_matchers.matchers.overlap import match_overlap
from sfm_matchers.matchers.quarter_turns import QuarterTurns
from sfm_matchers.matchers.registry import load_detector_free_matcher, load_sparse_matcher
from sfm_matchers.networks.precision import PRECISIONS
from sfm_matchers.networks.selective_scan import unusable_backends
from sfm_matchers.synthetic import Camera, camera_path, make_scene, render

MATCHERS = ("jamma", "eloftr", "eloftr_opt", "aliked+mambaglue", "sift+mambaglue")
SIZES = (832, 1024)
BATCHES = (1, 2, 4, 8, 16, 32)
SECONDS = 480.0
TESTS = ("tests/networks/test_selective_scan.py", "-k", "triton")
TEST_SECONDS = 120.0
MIN_SECONDS = 0.3  # of a measurement
COPIED_BYTES = 1 << 30


@dataclasses.dataclass
class Run:
    """How the benchmark goes.

    Attributes:
        device: torch device.
        sizes: longer sides of the photos, pixels.
        batches: pairs at once that are tried.
        is_tiny: a rehearsal.
        deadline: of `time.monotonic`.
    """

    device: str
    sizes: Sequence[int]
    batches: Sequence[int]
    is_tiny: bool
    deadline: float

    @property
    def is_over(self) -> bool:
        """Has the time run out."""
        return time.monotonic() > self.deadline

    def seconds(self, work: Callable[[], Any]) -> float:
        """Return the median wall seconds of some work, after it was done once."""
        self._timed(work)
        taken: list[float] = []
        while not taken or (sum(taken) < MIN_SECONDS and not (self.is_tiny or self.is_over)):
            taken.append(self._timed(work))
        return statistics.median(taken)

    def _timed(self, work: Callable[[], Any]) -> float:
        begin = time.perf_counter()
        work()
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - begin


@functools.lru_cache
def photos(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Two views of a rendered room, RGB (3/4 side, side, 3)."""
    scene = make_scene(1, kind="room", texture_size=min(512, side))
    camera = Camera.from_field_of_view(side, side * 3 // 4)
    poses = camera_path(scene, count=40)[:2]
    first, second = (render(scene, camera, pose).image for pose in poses)
    return first, second


def load(conf: Conf, device: str, precision: str) -> Any:
    """Load the matcher of a conf in a precision."""
    conf = dataclasses.replace(conf, model={**conf.model, "precision": precision})
    if isinstance(conf, SparseConf):
        return load_sparse_matcher(conf, "bundled", device)
    assert isinstance(conf, DetectorFreeConf)
    return load_detector_free_matcher(conf, "bundled", device)


@functools.lru_cache
def features(name: str, side: int, device: str) -> tuple[Any, Any]:
    """Features of the two photos by the front-end of a conf."""
    conf = load_conf(name)
    assert isinstance(conf, SparseConf)
    extractor = load_extractor(conf.features.model, device)
    both = photos(side)
    first, second = (extract_image(extractor, conf.features.preprocessing, one) for one in both)
    return first, second


def prepared(name: str, matcher: Any, side: int, device: str) -> tuple[Any, Any]:
    """Return what `matcher.match_batch` takes of the two photos."""
    if isinstance(load_conf(name), SparseConf):
        return features(name, side, device)
    matcher.resize_max = side
    first, second = (matcher.encode(photo) for photo in photos(side))
    return first, second


# ---------------------------------------------------------------------------------------------
# The tables


def about(run: Run) -> Iterator[str]:
    """Which machine, and which versions."""
    if run.device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(run.device)
        gigabytes, cores = properties.total_memory / 2**30, properties.multi_processor_count
        name = f"{properties.name}, {gigabytes:.0f} GiB, {cores} multiprocessors"
    else:
        name = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    yield f"{name}; torch {torch.__version__}, CUDA {torch.version.cuda}"
    for backend, reason in unusable_backends(torch.device(run.device).type).items():
        yield f"- scan backend `{backend}` does not run: {reason}"


def tests(run: Run) -> Iterator[str]:
    """CUDA tests of the repository, in a process of their own."""
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", *TESTS]
    if run.is_tiny:
        command += ["--collect-only"]
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=TEST_SECONDS,
            env={**os.environ, "PYTHONPATH": str(root)},
        )  # fmt: skip
        lines = done.stdout.strip().splitlines() or [done.stderr.strip()[-300:]]
        yield from (line for line in lines[:-1] if line.startswith(("FAILED", "ERROR")))
        yield f"`{' '.join(command[1:])}`: {lines[-1]}"
    except subprocess.TimeoutExpired:
        yield f"`{' '.join(command[1:])}`: not done after {TEST_SECONDS:.0f} s"


def agreement(run: Run, names: Sequence[str]) -> Iterator[str]:
    """Share of the CPU's matches that the device finds, within a pixel in both photos."""
    yield "| matcher | " + " | ".join(PRECISIONS) + " |\n|---|" + "---|" * len(PRECISIONS)
    side = run.sizes[0]
    for name in names:
        if run.is_over:
            yield f"| {name} | no time |"
            continue
        conf = load_conf(name)
        expected = points(name, load(conf, "cpu", "float32"), side, "cpu")
        shares = []
        for precision in PRECISIONS:
            found = points(name, load(conf, run.device, precision), side, run.device)
            nearest = torch.cdist(found, expected, p=math.inf).amin(0) if len(found) else None
            share = 0.0 if nearest is None else float((nearest < 1).float().mean())
            shares.append(f"{100 * share:.1f} % of {len(expected)}")
        yield f"| {name} | " + " | ".join(shares) + " |"


def points(name: str, matcher: Any, side: int, device: str) -> torch.Tensor:
    """Matched points (M, 4) of the two photos; features are those of the CPU."""
    first, second = prepared(name, matcher, side, device if hasattr(matcher, "encode") else "cpu")
    if hasattr(matcher, "encode"):
        found = matcher.match_encoded(first, second)
        return torch.from_numpy(np.hstack([found.keypoints0, found.keypoints1]))
    matches, _ = matcher.match(first, second)
    chosen = matches >= 0
    both = (first["keypoints"][chosen], second["keypoints"][matches[chosen]])
    return torch.from_numpy(np.hstack(both).astype(np.float32))


def speed(run: Run, names: Sequence[str]) -> Iterator[str]:
    """Pairs per second at the best batch."""
    yield "| matcher | pixels | precision | batch | pairs/s | one by one | encoding | memory |"
    yield "|---|---|---|---|---|---|---|---|"
    for name in names:
        for side in run.sizes:
            for precision in PRECISIONS:
                if run.is_over:
                    yield f"| {name} | {side} | {precision} | no time |"
                    continue
                yield _speed(run, name, side, precision)


def _speed(run: Run, name: str, side: int, precision: str) -> str:
    matcher = load(load_conf(name), run.device, precision)
    pair = prepared(name, matcher, side, run.device)
    rates: dict[int, float] = {}
    if run.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(run.device)
    for batch in run.batches:
        try:
            work = functools.partial(matcher.match_batch, [pair] * batch)
            rates[batch] = batch / run.seconds(work)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            break
        if run.is_over or rates[batch] < 0.9 * max(rates.values()):
            break
    encoding = "-"
    if hasattr(matcher, "encode"):
        encode = functools.partial(matcher.encode, photos(side)[0])
        encoding = f"{1000 * run.seconds(encode):.0f} ms"
    if not rates:
        return f"| {name} | {side} | {precision} | memory does not suffice for one pair |"
    memory = "-"
    if run.device.startswith("cuda"):
        memory = f"{torch.cuda.max_memory_allocated(run.device) / 2**30:.1f} GiB"
    best = max(rates, key=rates.__getitem__)
    numbers = f"{best} | {rates[best]:.1f} | {rates[min(rates)]:.1f} | {encoding} | {memory}"
    return f"| {name} | {side} | {precision} | {numbers} |"


def stages(run: Run, names: Sequence[str]) -> Iterator[str]:
    """What each step of a detector-free matcher takes of two photos, all of its conf."""
    yield "| matcher | step | ms | share |\n|---|---|---|---|"
    side = run.sizes[-1]
    for name in names:
        conf = load_conf(name)
        if run.is_over or not isinstance(conf, DetectorFreeConf):
            continue
        matcher = load(conf, run.device, "float32")
        pair = prepared(name, matcher, side, run.device)
        turns = QuarterTurns(matcher)
        found, both = matcher.match_encoded(*pair), photos(side)
        (look,) = first_looks(matcher, [pair])
        work: dict[str, Callable[[], Any]] = {
            "encoding two photos": lambda both=both, m=matcher: [m.encode(one) for one in both],
            "quarter turns": functools.partial(turns.between, *both),
            "matching": functools.partial(matcher.match_encoded, *pair),
        }
        if conf.preprocessing.match_overlap:
            work["match_overlap"] = functools.partial(match_overlap, matcher, *both, look)
        if conf.preprocessing.least_squares_matching:
            work["least_squares_matching"] = functools.partial(
                least_squares_matching, *both, found, run.device
            )
        taken = {step: run.seconds(one) for step, one in work.items()}
        whole = sum(taken.values())
        for step, seconds in taken.items():
            yield f"| {name} | {step} | {1000 * seconds:.1f} | {100 * seconds / whole:.0f} % |"


def scans(run: Run) -> Iterator[str]:
    """The scan beside a copy of as many bytes as it reads and writes: the least it can take."""
    on_gpu = run.device.startswith("cuda")
    copied = torch.empty((COPIED_BYTES if on_gpu else 1 << 22) // 4, device=run.device)
    bandwidth = 2 * copied.nbytes / run.seconds(copied.clone)
    unusable = unusable_backends(torch.device(run.device).type)
    backends = [name for name in ("mamba_ssm", "triton", "numba", "torch") if name not in unusable]
    yield f"Copying: {bandwidth / 1e9:.0f} GB/s.\n"
    yield "| scan | memory's limit | " + " | ".join(backends) + " |"
    yield "|---|---|" + "---|" * len(backends)
    for case in (Case("tiny", 4, 40, 32, True),) if run.is_tiny else CASES:
        if run.is_over:
            yield f"| {case.label} | no time |"
            continue
        inputs = make_inputs(case, run.device)
        least = (sum(x.nbytes for x in inputs.values()) + inputs["u"].nbytes) / bandwidth
        taken = []
        for name in backends:
            seconds = run.seconds(functools.partial(scan_forward, inputs, name))
            taken.append(f"{1e3 * seconds:.2f} ms, {seconds / least:.1f} times")
        yield f"| {case.label} | {1e3 * least:.2f} ms | " + " | ".join(taken) + " |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all, print the tables and write them; returns 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="default: cuda")
    parser.add_argument("--matchers", nargs="+", default=MATCHERS, choices=MATCHERS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="default: %(default).0f")
    parser.add_argument("--output", type=Path, default=Path("gpu.md"), help="default: gpu.md")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal on a CPU")
    options = parser.parse_args(arguments)
    device = "cpu" if options.tiny else options.device
    if device.startswith("cuda") and not torch.cuda.is_available():
        print("no GPU here; --tiny goes through all of it on a CPU", file=sys.stderr)
        return 2
    sizes, batches = ((96, 128), (1, 2)) if options.tiny else (SIZES, BATCHES)
    begin = time.monotonic()
    run = Run(device, sizes, batches, options.tiny, begin + options.seconds)
    sections: dict[str, Iterator[str]] = {
        "Machine": about(run),
        "Tests": tests(run),
        "Pairs per second": speed(run, options.matchers),
        "Steps of a pair": stages(run, options.matchers),
        "The selective scan": scans(run),
        "Agreement with the CPU": agreement(run, options.matchers),
    }
    with options.output.open("w", encoding="utf-8") as file:
        for title, lines in sections.items():
            _write(file, f"\n## {title}\n")
            try:
                for line in lines:
                    _write(file, line)
            except (RuntimeError, SfmMatchersError) as error:  # the other tables are of use
                _write(file, f"\nfailed: {str(error)[:300]}")
        _write(file, f"\n{time.monotonic() - begin:.0f} s in all.")
    return 0


def _write(file: Any, line: str) -> None:
    print(line, flush=True)
    print(line, file=file, flush=True)


if __name__ == "__main__":
    sys.exit(main())
