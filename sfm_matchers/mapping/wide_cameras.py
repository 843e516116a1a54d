"""Focal lengths of fisheye cameras, guessed from the matches."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pycolmap

from sfm_matchers.mapping.camera_options import CameraOptions

logger = logging.getLogger(__name__)

# Of the longer side: focal lengths that are tried for a wide lens where none is known. From a guess
# far off, as COLMAP's 1.2 may be, the mapper ends in a model that is bent, or of two photos.
WIDE_FOCAL_LENGTHS = (0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.5)
MAX_TRIED_PAIRS = 20

# Models that are a pinhole's by default, and parameters that make them nearly a fisheye.
WIDE_SHAPES = {"FOV": (1.0,), "EUCM": (0.6, 1.0)}
# Matches that a guess must fit, as a multiple of those that given parameters fit, to replace them.
MIN_SUPPORT_RATIO = 1.15


def guess_wide_focal_lengths(database_path: Path, options: CameraOptions | None = None) -> None:
    """Guess the focal length of fisheye, EUCM and FOV cameras that have none from EXIF.

    Of a wide lens the matches of a pair tell it: the number of those that fit one essential matrix
    within a pixel has its maximum within a tenth of the truth. Looked at are the strongest pairs of
    one camera's photos, of all such cameras' where it has but one. Parameters that the user gives
    to start from, see `options`, stay unless a guess fits clearly more matches.
    """
    with pycolmap.Database.open(database_path) as database:
        images = database.read_all_images()
        camera_of = {image.image_id: image.camera_id for image in images}
        started = {
            image.camera_id for image in images if options and options.of(image.name).is_start
        }
        cameras = {
            camera.camera_id: camera
            for camera in database.read_all_cameras()
            if (camera.is_perspective_fisheye() or camera.model_name in WIDE_SHAPES)
            and (not camera.has_prior_focal_length or camera.camera_id in started)
        }
        if not cameras:
            return
        pair_ids, counts = database.read_num_matches()
        pairs: dict[int | None, list[tuple[int, int]]] = {}
        for index in np.argsort(counts)[::-1]:
            pair = pycolmap.pair_id_to_image_pair(pair_ids[index])
            camera_ids = {camera_of[image_id] for image_id in pair}
            if camera_ids <= cameras.keys():
                pairs.setdefault(None, []).append(pair)
                if len(camera_ids) == 1:
                    pairs.setdefault(camera_ids.pop(), []).append(pair)
        guesses: dict[int | None, tuple[float, int]] = {}
        for camera_id, camera in cameras.items():
            key = camera_id if camera_id in pairs else None
            if key not in pairs:
                continue
            tried = pairs[key][:MAX_TRIED_PAIRS]
            if key not in guesses:
                guesses[key] = _most_supported(database, tried, camera_of)
            guess, support = guesses[key]
            if camera_id in started:
                own = sum(_num_fitting(database, pair, camera_of, None) for pair in tried)
                if support <= MIN_SUPPORT_RATIO * own:
                    continue
            _set_wide_focal_length(camera, guess * max(camera.width, camera.height))
            database.update_camera(camera)


def _set_wide_focal_length(camera: pycolmap.Camera, focal_length: float) -> None:
    logger.info("Camera %d: focal length about %.0f px", camera.camera_id, focal_length)
    params = camera.params.copy()
    params[camera.focal_length_idxs()] = focal_length
    if camera.model_name in WIDE_SHAPES:
        params[camera.extra_params_idxs()] = WIDE_SHAPES[camera.model_name]
    camera.params = params
    camera.has_prior_focal_length = True


def _most_supported(
    database: pycolmap.Database,
    pairs: Sequence[tuple[int, int]],
    camera_of: Mapping[int, int],
) -> tuple[float, int]:
    """The focal length, in longer sides, for which most matches fit an essential matrix; these."""
    support = {
        guess: sum(_num_fitting(database, pair, camera_of, guess) for pair in pairs)
        for guess in WIDE_FOCAL_LENGTHS
    }
    best = max(support, key=lambda guess: support[guess])
    return best, support[best]


def _num_fitting(
    database: pycolmap.Database,
    pair: tuple[int, int],
    camera_of: Mapping[int, int],
    guess: float | None,
) -> int:
    """Matches of a pair that fit an essential matrix with the cameras as they are, or a guess."""
    options = pycolmap.TwoViewGeometryOptions()
    options.ransac.random_seed = 0
    cameras = [database.read_camera(camera_of[image_id]) for image_id in pair]
    points = [database.read_keypoints(image_id)[:, :2] for image_id in pair]
    sides = [max(camera.width, camera.height) for camera in cameras]
    options.ransac.max_error = max(1.0, max(sides) / 1000)
    if guess is not None:
        cameras = [
            pycolmap.Camera.create_from_model_name(
                camera.camera_id, "SIMPLE_FISHEYE", guess * side, camera.width, camera.height
            )
            for camera, side in zip(cameras, sides, strict=True)
        ]
    geometry = pycolmap.estimate_calibrated_two_view_geometry(
        cameras[0], points[0], cameras[1], points[1], database.read_matches(*pair), options
    )
    return len(geometry.inlier_matches)
