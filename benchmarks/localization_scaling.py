"""Seconds and memory of localization by the number of queries, on a synthetic map.

    python -m benchmarks.localization_scaling

The map has 50 photos that all see the same 2,000 points; each query is matched to 20 of them, with
a quarter of wrong matches. Queries are localized one by one, as `pipelines.aachen` does; each
number of queries runs in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from multiprocessing.queues import Queue
from pathlib import Path

import h5py
import numpy as np
import pycolmap

from sfm_matchers.files.pair_lists import names_to_pair
from sfm_matchers.localization.in_model import localize_queries
from sfm_matchers.localization.poses import Query, Status
from sfm_matchers.machine.memory import peak_memory

NUM_POINTS, NUM_IMAGES, NUM_RETRIEVED = 2000, 50, 20
CAMERA = pycolmap.Camera(
    model="SIMPLE_PINHOLE", width=640, height=480, params=[500.0, 320.0, 240.0], camera_id=1
)


def main(counts: list[int]) -> None:
    """Print a line per number of queries."""
    context = multiprocessing.get_context("spawn")
    for count in counts:
        queue: Queue[tuple[int, float, float, float]] = context.Queue()
        process = context.Process(target=_localize, args=(count, queue))
        process.start()
        localized, seconds, before, peak = queue.get()
        process.join()
        print(
            f"{count:6d} queries: {localized} localized, {1000 * seconds / count:.1f} CPU ms each, "
            f"peak memory {1024 * peak:.0f} MB, {1024 * before:.0f} MB before the first one",
            flush=True,
        )


def _localize(count: int, queue: Queue) -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform([-2, -1.5, 4], [2, 1.5, 9], (NUM_POINTS, 3))
    model = _map(points)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        queries = [Query(f"query/{index}.jpg", CAMERA) for index in range(count)]
        pairs = _write_matches(folder, queries, points, rng)
        before, begin = peak_memory(), time.process_time()
        results = localize_queries(
            model, queries, pairs, folder / "features.h5", folder / "matches.h5"
        )
        localized = sum(result.status == Status.LOCALIZED for result in results)
        queue.put((localized, time.process_time() - begin, before, peak_memory()))


def _pose(x: float) -> pycolmap.Rigid3d:
    return pycolmap.Rigid3d(pycolmap.Rotation3d(), np.array([-x, 0.0, 0.0]))


def _map(points: np.ndarray) -> pycolmap.Reconstruction:
    """Photos in a row, each with all points; keypoint k is point k."""
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(CAMERA)
    image_ids = range(1, NUM_IMAGES + 1)
    for image_id in image_ids:
        pose = _pose(image_id / NUM_IMAGES)
        keypoints = CAMERA.img_from_cam(pose * points)
        image = pycolmap.Image(
            name=f"db/{image_id}.jpg", keypoints=keypoints, camera_id=1, image_id=image_id
        )
        model.add_image_with_trivial_frame(image, pose)
    for index, xyz in enumerate(points):
        elements = [pycolmap.TrackElement(image_id, index) for image_id in image_ids]
        model.add_point3D(xyz, pycolmap.Track(elements), np.zeros(3, np.uint8))
    return model


def _write_matches(
    folder: Path, queries: list[Query], points: np.ndarray, rng: np.random.Generator
) -> list[tuple[str, str]]:
    pairs = []
    with (
        h5py.File(folder / "features.h5", "w") as features,
        h5py.File(folder / "matches.h5", "w") as matches,
    ):
        for query in queries:
            pixels = CAMERA.img_from_cam(_pose(rng.uniform()) * points) - 0.5
            noise = rng.normal(0, 0.5, pixels.shape)
            features[f"{query.name}/keypoints"] = (pixels + noise).astype(np.float32)
            for image_id in rng.choice(NUM_IMAGES, NUM_RETRIEVED, replace=False) + 1:
                matched = np.where(rng.uniform(size=NUM_POINTS) < 0.2, np.arange(NUM_POINTS), -1)
                wrong = rng.uniform(size=NUM_POINTS) < 0.07
                matched[wrong] = rng.integers(0, NUM_POINTS, wrong.sum())
                pair = (query.name, f"db/{image_id}.jpg")
                matches[f"{names_to_pair(*pair)}/matches0"] = matched.astype(np.int32)
                pairs.append(pair)
    return pairs


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", nargs="+", type=int, default=[125, 250, 500, 1000])
    main(parser.parse_args().counts)
