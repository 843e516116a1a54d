"""Aachen's size without its photos: synthetic matches through every step after the matching.

    python -m benchmarks.scale --folder scale
    python -m benchmarks.scale --folder scale --num_images 1000 --num_pairs 13000

Writes the shards of detector-free matches that a matching leaves behind, then merges them, makes
keypoints of them and imports all into a COLMAP database: the steps whose cost grows with the number
of pairs. Each step runs in a process of its own; printed are its seconds, CPU seconds, seconds per
pair and peak memory. By default 6,697 photos and 89,000 pairs of 1,500 matches, as many as Aachen
v1.1 has photos and covisible pairs. Needs about 12 GB of disk.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.queues import Queue
from pathlib import Path

import numpy as np
import pycolmap

from sfm_matchers.files.pair_lists import Pair, names_to_pair
from sfm_matchers.files.staged import StagedFile
from sfm_matchers.keypoints.aggregation import aggregate
from sfm_matchers.keypoints.grid import AggregationOptions
from sfm_matchers.machine.memory import peak_memory
from sfm_matchers.mapping.database import import_features, import_matches

IMAGE_SIZE = (1600, 1200)
CORNERS_PER_IMAGE = 6000
NEW_CORNERS = 300  # seen by a photo and not by the one before it
PAIRS_PER_SHARD = 256


def main(folder: Path, num_images: int, num_pairs: int, num_matches: int) -> None:
    """Run all steps and print a line for each."""
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{num_images} photos, {num_pairs} pairs of {num_matches} matches")
    for step in (write_shards, merge_shards, make_keypoints, fill_database):
        _measure(step, folder, num_images, num_pairs, num_matches)
    for path in sorted(folder.glob("*")):
        print(f"  {path.name:24s} {path.stat().st_size / 1e9:7.2f} GB")


def _measure(
    step: Callable[..., None], folder: Path, num_images: int, num_pairs: int, num_matches: int
) -> None:
    context = multiprocessing.get_context("spawn")
    queue: Queue[tuple[float, float, float]] = context.Queue()
    arguments = (step, queue, folder, num_images, num_pairs, num_matches)
    process = context.Process(target=_run_step, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{step.__name__} failed")
    seconds, cpu_seconds, gigabytes = queue.get()
    print(
        f"  {step.__name__:16s} {seconds:8.0f} s  {cpu_seconds:8.0f} CPU s  "
        f"{1000 * cpu_seconds / num_pairs:8.2f} CPU ms per pair  peak {gigabytes:.2f} GB",
        flush=True,
    )


def _run_step(step: Callable[..., None], queue: Queue, *arguments: object) -> None:
    begin, begin_cpu = time.monotonic(), time.process_time()
    step(*arguments)
    queue.put((time.monotonic() - begin, time.process_time() - begin_cpu, peak_memory()))


def pairs_of(num_images: int, num_pairs: int) -> list[Pair]:
    """Each photo with the next ones, as long as there are pairs to give."""
    pairs: list[Pair] = []
    distance = 1
    while len(pairs) < num_pairs and distance < num_images:
        pairs += [(_name(i), _name(i + distance)) for i in range(num_images - distance)]
        distance += 1
    return pairs[:num_pairs]


def _name(index: int) -> str:
    return f"db/{index:06d}.jpg"


@functools.lru_cache(maxsize=64)
def _corners(index: int) -> np.ndarray:
    return np.random.default_rng(index).uniform(0, 1, (CORNERS_PER_IMAGE, 2)) * IMAGE_SIZE


def _correspondences(index0: int, index1: int, num_matches: int) -> dict[str, np.ndarray]:
    """Matches of the corners that two photos share: photo 0 refined, photo 1 on an 8 px grid."""
    rng = np.random.default_rng((index0, index1))
    hidden = (index1 - index0) * NEW_CORNERS
    shared = rng.choice(CORNERS_PER_IMAGE - hidden, num_matches, replace=False)
    refined = _corners(index0)[shared + hidden] + rng.normal(0, 0.7, (num_matches, 2))
    coarse = np.round((_corners(index1)[shared] + 0.5) / 8) * 8 - 0.5
    return {
        "keypoints0": refined.astype(np.float32),
        "keypoints1": coarse.astype(np.float32),
        "scores": rng.uniform(0.2, 1, num_matches).astype(np.float32),
    }


def write_shards(folder: Path, num_images: int, num_pairs: int, num_matches: int) -> None:
    """What the matching leaves behind; not a step of the pipeline."""
    staged = StagedFile(folder / "correspondences.h5", keep_parts=False)
    pairs = sorted(pairs_of(num_images, num_pairs))
    for start in range(0, len(pairs), PAIRS_PER_SHARD):
        entries = {}
        for name0, name1 in pairs[start : start + PAIRS_PER_SHARD]:
            index0, index1 = (int(name[3:9]) for name in (name0, name1))
            entries[names_to_pair(name0, name1)] = _correspondences(index0, index1, num_matches)
        staged.add(entries, dict.fromkeys(entries, "synthetic"))


def merge_shards(folder: Path, num_images: int, num_pairs: int, num_matches: int) -> None:
    """All shards into one file."""
    StagedFile(folder / "correspondences.h5").commit()


def make_keypoints(folder: Path, num_images: int, num_pairs: int, num_matches: int) -> None:
    """Keypoints per photo and one-to-one matches."""
    for name in ("features.h5", "matches.h5"):
        (folder / name).unlink(missing_ok=True)
    aggregate(
        pairs_of(num_images, num_pairs),
        folder / "correspondences.h5",
        folder / "features.h5",
        folder / "matches.h5",
        AggregationOptions(),
        {_name(index): IMAGE_SIZE for index in range(num_images)},
    )


def fill_database(folder: Path, num_images: int, num_pairs: int, num_matches: int) -> None:
    """Cameras, keypoints and matches; without the geometric verification."""
    path = folder / "database.db"
    path.unlink(missing_ok=True)
    camera = pycolmap.Camera.create_from_model_name(1, "SIMPLE_RADIAL", 1920.0, *IMAGE_SIZE)
    with pycolmap.Database.open(path) as database, pycolmap.DatabaseTransaction(database):
        camera_id = database.write_camera(camera)
        for index in range(num_images):
            database.write_image(pycolmap.Image(name=_name(index), camera_id=camera_id))
    import_features(path, folder / "features.h5")
    import_matches(path, pairs_of(num_images, num_pairs), folder / "matches.h5")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="for all files it writes")
    parser.add_argument("--num_images", type=int, default=6697, help="default: %(default)s")
    parser.add_argument("--num_pairs", type=int, default=89000, help="default: %(default)s")
    parser.add_argument("--num_matches", type=int, default=1500, help="default: %(default)s")
    main(**vars(parser.parse_args()))
