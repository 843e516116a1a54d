"""What a warm map costs: its start, its memory, and one query.

    python -m benchmarks.warm_map start --photos 1000
    python -m benchmarks.warm_map query MAP PHOTO...

The first makes a map of synthetic features, 2,048 a photo, half of them with points that five
photos see, and opens it. Seconds are of the CPU.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pycolmap

from sfm_matchers.confs import SparseConf, load_conf
from sfm_matchers.files.staged import StagedFile
from sfm_matchers.localization import map_folder
from sfm_matchers.localization.map_folder import MapSettings, VladIndex
from sfm_matchers.mapping.models import write_model
from sfm_matchers.matchers.registry import matcher_weights_fingerprint

KEYPOINTS, DIMENSION, TRACK_LENGTH = 2048, 128, 5


def write_synthetic_map(folder: Path, num_photos: int, matcher: str) -> None:
    """Write a map whose features are noise; each photo has 2,048 keypoints."""
    rng = np.random.default_rng(0)
    conf = load_conf(matcher)
    assert isinstance(conf, SparseConf)
    model = _model(num_photos, rng)
    write_model(model, folder / map_folder.MODEL)
    names = sorted(image.name for image in model.images.values())
    staged = StagedFile(folder / map_folder.FEATURES)
    for name in names:
        entry = {
            "keypoints": rng.uniform(0, 700, (KEYPOINTS, 2)).astype(np.float32),
            "descriptors": rng.normal(size=(DIMENSION, KEYPOINTS)).astype(np.float16),
            "scores": np.ones(KEYPOINTS, np.float32),
            "image_size": np.array([1024, 768]),
        }
        staged.add({name: entry}, {name: "synthetic"})
    staged.commit()
    words = rng.normal(size=(64, DIMENSION)).astype(np.float32)
    vlads = rng.normal(size=(num_photos, words.size)).astype(np.float32)
    map_folder.write_index(folder / map_folder.RETRIEVAL, VladIndex(names, words, vlads))
    settings = MapSettings(
        matcher,
        map_folder.conf_content(conf),
        "bundled",
        matcher_weights_fingerprint(conf, "bundled"),
        "synthetic",
        num_photos,
        model.num_points3D(),
    )
    map_folder.write_settings(folder, settings)


def _model(num_photos: int, rng: np.random.Generator) -> pycolmap.Reconstruction:
    """Photos in a row, of whose keypoints every other one has a point that the next ones see."""
    camera = pycolmap.Camera.create_from_model_name(1, "SIMPLE_RADIAL", 900.0, 1024, 768)
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(camera)
    for index in range(num_photos):
        image = pycolmap.Image(
            name=f"{index:05d}.jpg",
            keypoints=rng.uniform(0, 700, (KEYPOINTS, 2)),
            camera_id=1,
            image_id=index + 1,
        )
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(), np.array([-float(index), 0.0, 0.0]))
        model.add_image_with_trivial_frame(image, pose)
    per_photo = KEYPOINTS // 2 // TRACK_LENGTH
    for index in range(num_photos):
        for point in range(per_photo):
            elements = [
                pycolmap.TrackElement(
                    (index + step) % num_photos + 1, 2 * (point * TRACK_LENGTH + step)
                )
                for step in range(min(TRACK_LENGTH, num_photos))
            ]
            place = rng.uniform([index, -2.0, 4.0], [index + 2.0, 2.0, 8.0])
            model.add_point3D(place, pycolmap.Track(elements), np.zeros(3, np.uint8))
    return model


def open_map(folder: Path) -> None:
    """Print what it takes to import the package, to open a map, and the memory after it."""
    start, wall = time.process_time(), time.monotonic()
    from sfm_matchers.localization.localizer import Localizer

    imported = time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Localizer(folder) as localizer:
        seconds = time.process_time() - imported
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        size = sum(file["bytes"] for file in localizer.settings.files.values())
        print(
            f"{localizer.settings.num_photos} photos, {localizer.settings.num_points} points, "
            f"{size / 1e6:.0f} MB: imports {imported - start:.1f} s, start {seconds:.1f} s of the "
            f"CPU ({time.monotonic() - wall:.1f} s in all), memory {after / 1024:.0f} MB, "
            f"{(after - before) / 1024:.0f} MB of the map"
        )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("start")
    start.add_argument("--photos", type=int, default=1000)
    start.add_argument("--matcher", default="aliked+mambaglue")
    start.add_argument("--map", type=Path, help="keep it there, or open the one that is there")
    query = commands.add_parser("query")
    query.add_argument("map", type=Path)
    query.add_argument("photos", type=Path, nargs="+")
    query.add_argument("--num_loc", type=int, default=20)
    query.add_argument("--enough_inliers", type=int, default=100, help="0: match with all")
    options = parser.parse_args()
    if options.command == "query":
        measure_queries(options)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = options.map or Path(name)
        if not map_folder.is_map(folder):
            write_synthetic_map(folder, options.photos, options.matcher)
        open_map(folder)


def measure_queries(options: argparse.Namespace) -> None:
    """Print the CPU seconds of each photo, the first of which warms up."""
    from sfm_matchers.localization.localizer import Localizer

    with Localizer(
        options.map, num_loc=options.num_loc, enough_inliers=options.enough_inliers or None
    ) as localizer:
        for path in [options.photos[0], *options.photos]:
            start = time.process_time()
            found = localizer.localize(path)
            print(
                f"{path.name}: {time.process_time() - start:.2f} s of the CPU, "
                f"{found.status.value}, {found.num_inliers} inliers of {found.num_matches} matches "
                f"with {len(found.database_names)} photos"
            )


if __name__ == "__main__":
    main()
