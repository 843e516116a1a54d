"""Photos that the mapper left out are tried again, once the cameras are known better."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from pathlib import Path

import pycolmap

from sfm_matchers.errors import listed
from sfm_matchers.files.colmap_database import quiet_colmap
from sfm_matchers.mapping.adjustment import adjust_robustly, median_error, robust_adjustment
from sfm_matchers.mapping.camera_models import complete_tracks

logger = logging.getLogger(__name__)

MAX_GROWTH = 1.3  # of the median error, beyond which a registered photo contradicts the model


def left_out(models: Iterable[pycolmap.Reconstruction], database_path: Path) -> set[str]:
    """Photos of a database that no model has."""
    with pycolmap.Database.open(database_path) as database:
        names = {image.name for image in database.read_all_images()}
    return names.difference(image.name for model in models for image in model.images.values())


def register_missing(
    model: pycolmap.Reconstruction,
    names: Collection[str],
    database_path: Path,
    fixed_cameras: Collection[int] = (),
    *,
    refines_principal_point: bool = False,
    num_threads: int = 1,
) -> pycolmap.Reconstruction:
    """Register photos with a model as it is now, by COLMAP's own rules, and adjust.

    Args:
        model: left as it is.
        names: photos to try.
        database_path: the database that the model was mapped from.
        fixed_cameras: ids of cameras whose intrinsics are kept.
        refines_principal_point: whether principal points are adjusted too.
        num_threads: of the adjustment.

    Returns:
        The model with more photos; `model` itself if none was registered, or if its other photos
        would fit worse.
    """
    registered = {model.images[image_id].name for image_id in model.reg_image_ids()}
    larger = pycolmap.Reconstruction(model)
    with quiet_colmap(), pycolmap.Database.open(database_path) as database:
        options = pycolmap.DatabaseCacheOptions(image_names=registered.union(names))
        cache = pycolmap.DatabaseCache.create(database, options)
    for camera_id, camera in model.cameras.items():  # COLMAP refuses other models of cameras
        if cache.exists_camera(camera_id):
            cache.cameras[camera_id] = camera
    with quiet_colmap():
        if not _register(larger, cache, set(fixed_cameras)):
            return model
        complete_tracks(larger, database_path)
        adjustment = robust_adjustment(num_threads, refines_principal_point=refines_principal_point)
        adjust_robustly(larger, adjustment, set(fixed_cameras).intersection(larger.cameras))
    kept = {larger.images[image_id].name for image_id in larger.reg_image_ids()}
    if not kept > registered or median_error(larger) > MAX_GROWTH * median_error(model):
        return model
    larger.update_point_3d_errors()
    logger.info("left out before, registered now: %s", listed(sorted(kept - registered)))
    return larger


def _register(
    model: pycolmap.Reconstruction, cache: pycolmap.DatabaseCache, fixed_cameras: set[int]
) -> int:
    """Register all photos of a cache that COLMAP finds a pose for; return how many."""
    mapper = pycolmap.IncrementalMapper(cache)
    mapper.begin_reconstruction(model)
    options = pycolmap.IncrementalMapperOptions(random_seed=0, num_threads=1)
    options.constant_cameras = fixed_cameras
    triangulation = pycolmap.IncrementalTriangulatorOptions(random_seed=0)
    count = 0
    while True:
        next_images = mapper.find_next_images(options, structure_less=False)
        done = next((i for i in next_images if mapper.register_next_image(options, i)), None)
        if done is None:
            break
        mapper.triangulate_image(triangulation, done)
        count += 1
    mapper.end_reconstruction(discard=False)
    return count
