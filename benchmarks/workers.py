"""Pairs per second of two processes against one, each with one thread.

    OMP_NUM_THREADS=1 python -m benchmarks.workers

Matches all pairs of some rendered photos with a detector-free matcher, by one process, by two, and,
with Ray installed, by two Ray workers; the match files must be equal. The rate is that of the whole
step, processes started and weights loaded.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import torch

from sfm_matchers.confs import DetectorFreeConf, load_conf
from sfm_matchers.matchers.registry import load_detector_free_matcher
from sfm_matchers.matching import Executor, InProcess, OnRay, Processes, match_images
from sfm_matchers.pairs.policies import exhaustive_pairs
from sfm_matchers.photos.checked import check_photos
from sfm_matchers.synthetic import Camera, make_scene, write_photos


def main(matcher: str, num_photos: int) -> None:
    """Print a line per executor."""
    conf = load_conf(matcher)
    assert isinstance(conf, DetectorFreeConf)
    torch.set_num_threads(1)
    executors: dict[str, Executor] = {"one process": InProcess(), "two processes": Processes(2)}
    if importlib.util.find_spec("ray"):
        executors["two Ray workers"] = OnRay("local", 2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scene = make_scene(3, kind="room", texture_size=384)
        write_photos(folder, scene, num_photos, 1, camera=Camera.from_field_of_view(480, 360))
        photos = check_photos(folder / "images", folder)
        pairs = exhaustive_pairs(sorted(photos))
        seconds: dict[str, float] = {}
        for index, (label, executor) in enumerate(executors.items()):
            begin = time.monotonic()
            match_images(
                conf,
                partial(load_detector_free_matcher, conf, "bundled", "cpu"),
                pairs,
                folder / "images",
                {name: photo.fingerprint for name, photo in photos.items()},
                folder / f"{index}.h5",
                executor=executor,
            )
            seconds[label] = time.monotonic() - begin
            rate = len(pairs) / seconds[label]
            ratio = seconds["one process"] / seconds[label]
            same = _equal(folder / "0.h5", folder / f"{index}.h5")
            print(f"{label:16s} {rate:.2f} pairs/s  {ratio:.2f}x  equal: {same}", flush=True)


def _equal(path0: Path, path1: Path) -> bool:
    """Whether two files hold the same arrays."""
    with h5py.File(path0) as file0, h5py.File(path1) as file1:
        pairs = [(name0, name1) for name0 in file0 for name1 in file0[name0]]
        return pairs == [(name0, name1) for name0 in file1 for name1 in file1[name0]] and all(
            np.array_equal(file0[a][b][key][()], file1[a][b][key][()])
            for a, b in pairs
            for key in file0[a][b]
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--matcher", default="jamma", help="default: %(default)s")
    parser.add_argument("--num_photos", type=int, default=9, help="default: %(default)s")
    main(**vars(parser.parse_args()))
