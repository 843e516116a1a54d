"""New photos in a map: half of a set with its true poses is the map, the other half is localized.

    python -m benchmarks.half_maps ../shared/photos/herz_jesus_p8 --matchers sift jamma
    python -m benchmarks.half_maps POSED/lewis --truth POSED/scene_info/lewis.npz

Every other photo, by name, is in the map. The truth is a COLMAP model (SET/colmap_gt unless said
otherwise) or one of LoFTR's scene_info files. The photos that are localized are expected to be by a
camera of the map. Errors are of camera centres in percent of the largest distance between two true
ones; a pose is wrong beyond 1 % or 2 degrees. Matches are made anew for each matcher.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pycolmap
from scipy.spatial.distance import pdist

from sfm_matchers.evaluation.absolute_poses import pose_errors
from sfm_matchers.evaluation.pair_lists import read_scene_info
from sfm_matchers.exports.images import link_photos, registered_names, without_images
from sfm_matchers.localization.poses import LocalizedQuery, Status
from sfm_matchers.mapping.models import read_model, write_model
from sfm_matchers.photos.cameras import read_photo_header
from sfm_matchers.runs.localize import localize

MAX_PERCENT, MAX_DEGREES = 1.0, 2.0
STATUSES = (Status.LOCALIZED, Status.LOW_CONFIDENCE, Status.FALLBACK, Status.FAILED)


def of_scene_info(path: Path, image_dir: Path) -> pycolmap.Reconstruction:
    """Photos of a scene_info file, a pinhole camera each, named relative to `image_dir`."""
    scene = read_scene_info(path)
    model = pycolmap.Reconstruction()
    for name, intrinsics, pose in zip(
        scene.image_paths, scene.intrinsics, scene.poses, strict=True
    ):
        if name is None or intrinsics is None or pose is None:
            continue
        name, number = PurePosixPath(name).name, len(model.cameras) + 1
        width, height = read_photo_header(image_dir / name).size
        (fx, _, cx), (_, fy, cy), _ = intrinsics.tolist()
        params = [fx, fy, cx + 0.5, cy + 0.5]  # COLMAP's convention
        model.add_camera_with_trivial_rig(
            pycolmap.Camera(
                model="PINHOLE", width=width, height=height, params=params, camera_id=number
            )
        )
        image = pycolmap.Image(name=name, camera_id=number, image_id=number)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose[:3]))
    return model


def row(
    matcher: str,
    queries: Sequence[LocalizedQuery],
    truth: Mapping[str, pycolmap.Rigid3d],
    seconds: float,
) -> str:
    """A row of the table: statuses, wrong ones among them, errors of those with a pose."""
    centers = np.array([pose.inverse().translation for pose in truth.values()])
    extent = pdist(centers).max()
    errors: dict[Status, list[tuple[float, float]]] = {status: [] for status in STATUSES}
    for query in queries:
        name = PurePosixPath(query.name).name
        found = {name: query.cam_from_world} if query.cam_from_world else {}
        distance, degrees = pose_errors(found, {name: truth[name]})[name]
        errors[query.status].append((100 * distance / extent, degrees))
    cells = []
    for status, here in errors.items():
        wrong = sum(percent > MAX_PERCENT or degrees > MAX_DEGREES for percent, degrees in here)
        is_pose = status in (Status.LOCALIZED, Status.LOW_CONFIDENCE)
        cells.append(f"{len(here)}, {wrong} wrong" if is_pose and wrong else str(len(here)))
    median = "-"
    if located := errors[Status.LOCALIZED]:
        median = "{:.3f} %, {:.3f} degrees".format(*np.median(located, axis=0))
    return f"| {matcher} | {' | '.join(cells)} | {median} | {seconds:.0f} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photo_set", type=Path, help="folder with images/")
    parser.add_argument("--truth", type=Path, help="model or scene_info (default: SET/colmap_gt)")
    parser.add_argument("--matchers", nargs="+", default=["sift"], help="default: sift")
    options = parser.parse_args(arguments)
    logging.getLogger("sfm_matchers").setLevel(logging.WARNING)
    image_dir = options.photo_set / "images"
    path = options.truth or options.photo_set / "colmap_gt"
    truth = of_scene_info(path, image_dir) if path.suffix == ".npz" else read_model(path)
    names = registered_names(truth)
    poses = {image.name: image.cam_from_world() for image in truth.images.values()}
    print(f"{len(names[::2])} photos of {options.photo_set.name} are the map")
    print(
        "| matcher | localized | low confidence | fallback | failed | median error of localized | "
        "CPU s |\n|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        map_dir, query_dir = Path(folder) / "map", Path(folder) / "queries"
        write_model(without_images(truth, names[1::2]), map_dir)
        link_photos(names[1::2], image_dir, query_dir)
        for matcher in options.matchers:
            start = time.process_time()
            result = localize(
                map_dir,
                image_dir,
                query_dir,
                Path(folder) / matcher,
                matcher=matcher,
                camera_from_map=True,
            )
            print(row(matcher, result.queries, poses, time.process_time() - start), flush=True)


if __name__ == "__main__":
    main()
