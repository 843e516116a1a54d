"""Small data sets in the layouts of Aachen Day-Night and InLoc, with exact truth.

Both put what the real data set has where it has it; the truth, which the real ones keep to
themselves, lies in ``truth/poses.txt``: ``name qw qx qy qz tx ty tz`` for each query.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pycolmap

from sfm_matchers.files.text import write_text
from sfm_matchers.localization.poses import LocalizedQuery, Query, Status, write_results
from sfm_matchers.localization.query_files import write_queries
from sfm_matchers.synthetic.cameras import Camera, unproject
from sfm_matchers.synthetic.photos import write_photos
from sfm_matchers.synthetic.scenes import Scene

TRUTH = Path("truth") / "poses.txt"


def write_aachen(
    folder: Path,
    scene: Scene,
    *,
    version: str = "1.1",
    num_database: int = 16,
    num_day: int = 4,
    num_night: int = 2,
    seed: int = 0,
    camera: Camera | None = None,
) -> None:
    """Write a data set in the layout of Aachen Day-Night.

    Args:
        folder: made where it does not exist.
        scene: from `make_scene`.
        version: ``1.1`` (a COLMAP model) or ``1.0`` (an NVM model and a list of intrinsics).
        num_database: photos of the map, by day.
        num_day: queries by day.
        num_night: queries by night.
        seed: of the photos.
        camera: of all photos; 640 x 480 with a view of 65 degrees where None.
    """
    images = folder / "images_upright"
    walks = {
        "db": (num_database, seed, False),
        "query/day": (num_day, seed + 1, False),
        "query/night": (num_night, seed + 2, True),
    }
    truths = {}
    for subfolder, (count, walk_seed, night) in walks.items():
        rendered = folder / "rendered"
        truth = write_photos(
            rendered, scene, count, walk_seed, camera=camera, subfolder=subfolder, night=night
        )
        for image in truth.images.values():
            source = rendered / "images" / image.name
            # A submission names photos without their folder: names must differ without it.
            image.name = f"{subfolder}/{Path(subfolder).name}_{Path(image.name).name}"
            (images / image.name).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(source, images / image.name)
        truths[subfolder] = truth
    shutil.rmtree(folder / "rendered")
    queries = {time: _queries(truths[f"query/{time}"]) for time in ("day", "night")}
    for time, of_time in queries.items():
        path = folder / "queries" / f"{time}_time_queries_with_intrinsics.txt"
        write_queries(path, [query for query, _ in of_time])
    _write_truth(folder, queries["day"] + queries["night"])
    models = folder / "3D-models"
    if version == "1.1":
        (models / "aachen_v_1_1").mkdir(parents=True)
        truths["db"].write_binary(models / "aachen_v_1_1")
    else:
        write_nvm(models / "aachen_cvpr2018_db.nvm", truths["db"])
        write_queries(
            models / "database_intrinsics.txt", [query for query, _ in _queries(truths["db"])]
        )


def write_inloc(
    folder: Path,
    scene: Scene,
    *,
    num_database: int = 12,
    num_queries: int = 4,
    seed: int = 0,
    camera: Camera | None = None,
) -> None:
    """Write a data set in the layout of InLoc: cutouts with scans, transformations, queries.

    The scans are ``.mat`` files of version 7.3, which `scans.read_scan` reads without scipy. The
    camera's field of view is that of the real queries, whose focal length is known by convention.
    """
    camera = camera or Camera.from_field_of_view(640, 480, np.rad2deg(2 * np.arctan(18 / 28)))
    rendered = folder / "rendered"
    truth = write_photos(
        rendered, scene, num_database, seed, camera=camera, subfolder="db", depth=True
    )
    rng = np.random.default_rng(seed)
    for image in truth.images.values():
        number = int(Path(image.name).stem)
        scan = f"{number // 4:03d}"
        name = f"database/cutouts/DUC1/{scan}/DUC_cutout_{scan}_{30 * (number % 4)}_0.jpg"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(rendered / "images" / image.name, folder / name)
        transformation = (
            folder / "database/alignments/DUC1/transformations" / f"DUC_trans_{scan}.txt"
        )
        if not transformation.exists():
            write_text(transformation, _transformation_text(rng))
        depth = np.load((rendered / "depth" / image.name).with_suffix(".npy"))
        pose = image.cam_from_world().matrix()
        points = unproject(depth, camera, pose)
        points[depth <= 0] = np.nan
        _write_scan(folder / f"{name}.mat", points, transformation)
    queries = write_photos(
        rendered, scene, num_queries, seed + 1, camera=camera, subfolder="query/iphone7"
    )
    (folder / "query").mkdir(exist_ok=True)
    shutil.move(rendered / "images" / "query" / "iphone7", folder / "query" / "iphone7")
    shutil.rmtree(rendered)
    _write_truth(folder, _queries(queries))


def _queries(model: pycolmap.Reconstruction) -> list[tuple[Query, pycolmap.Rigid3d]]:
    images = sorted(model.images.values(), key=lambda image: image.name)
    return [
        (Query(image.name, model.cameras[image.camera_id]), image.cam_from_world())
        for image in images
    ]


def _write_truth(folder: Path, queries: list[tuple[Query, pycolmap.Rigid3d]]) -> None:
    results = [
        LocalizedQuery(query.name, Status.LOCALIZED, query.camera, pose) for query, pose in queries
    ]
    write_results(folder / TRUTH, results).unlink()


def _transformation_text(rng: np.random.Generator) -> str:
    """An alignment file whose matrix, from the scan to the building, is any rigid motion."""
    rotation = pycolmap.Rotation3d(rng.normal(0, 0.3, 3)).matrix()
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, rng.normal(0, 5, 3)
    header = [f"# header line {number}" for number in range(7)]
    return "\n".join([*header, *(" ".join(f"{x:.12f}" for x in row) for row in matrix), ""])


def _write_scan(path: Path, points: np.ndarray, transformation: Path) -> None:
    import h5py

    from sfm_matchers.localization.in_depth_scans import POINTS_VARIABLE, read_transformation

    matrix = read_transformation(transformation)
    in_scan = (points - matrix[:3, 3]) @ matrix[:3, :3]
    with h5py.File(path, "w") as file:
        file.create_dataset(POINTS_VARIABLE, data=in_scan.T.astype(np.float64), compression=4)


def write_nvm(path: Path, model: pycolmap.Reconstruction) -> None:
    """Write a model as an NVM file; positions of keypoints are relative to the principal point."""
    images = sorted(model.images.values(), key=lambda image: image.name)
    index_of = {image.image_id: index for index, image in enumerate(images)}
    lines = ["NVM_V3", "", str(len(images))]
    for image in images:
        pose = image.cam_from_world()
        x, y, z, w = pose.rotation.quat
        numbers = [model.cameras[image.camera_id].params[0], w, x, y, z, *image.projection_center()]
        lines.append(" ".join([image.name, *(f"{number:.12g}" for number in numbers), "0", "0"]))
    lines += ["", str(model.num_points3D())]
    for point in model.points3D.values():
        words = [f"{value:.9g}" for value in point.xyz] + [str(value) for value in point.color]
        words.append(str(len(point.track.elements)))
        for element in point.track.elements:
            image = model.images[element.image_id]
            principal = model.cameras[image.camera_id].params[2:4]
            xy = image.points2D[element.point2D_idx].xy - principal
            words += [str(index_of[element.image_id]), str(element.point2D_idx)]
            words += [f"{xy[0]:.6g}", f"{xy[1]:.6g}"]
        lines.append(" ".join(words))
    write_text(path, "\n".join(lines) + "\n0\n")
