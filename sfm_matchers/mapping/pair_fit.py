"""Whether the verified pairs of a model agree with it.

A model that ended in a wrong minimum, by cameras that are not those of the photos or by a first
pair with the wrong pose, fits most of its observations: those that do not fit are none any more. A
pair's fundamental matrix asks for no model. Of rendered and real photos whose model is right, pairs
fit the model as well as themselves (0.5 to 1.4 times as far off; 2.6 at most, of one pair); where
it is bent, a sixth to nine tenths of the matches are of pairs that fit it 3 to 30 times worse.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
from numpy.typing import NDArray

from sfm_matchers.files.pair_lists import Pair
from sfm_matchers.geometry.epipolar import sampson_distance
from sfm_matchers.mapping.database import read_verified_matches

FloatArray = NDArray[np.float64]

MIN_MATCHES = 50  # of a pair that is looked at
MAX_PAIRS, MAX_PAIR_MATCHES = 100, 500  # that are looked at, and of each
MAX_ERROR, LEAST_ERROR = 4.0, 0.1  # pixels: of a pair's geometry; no keypoint is more exact
MUCH_WORSE = 3.0  # times a pair's own median error
MIN_SHARE = 0.1  # of the matches


@dataclass(frozen=True)
class Misfit:
    """What a model's verified pairs say against it.

    Attributes:
        share: of the matches that were looked at, those of pairs that fit much worse in the model.
        worst: the pair among these with most matches.
        error: its median distance from epipolar lines of the model, in pixels.
        own_error: the same of its own fundamental matrix.
    """

    share: float
    worst: Pair
    error: float
    own_error: float


def find_misfit(model: pycolmap.Reconstruction, database_path: Path) -> Misfit | None:
    """Return what the verified pairs of a model say against it; None if they agree."""
    images = {image_id: model.images[image_id] for image_id in model.reg_image_ids()}
    images = {
        image_id: image
        for image_id, image in images.items()
        if not model.cameras[image.camera_id].is_spherical()
    }
    pairs = {
        pair: matches
        for pair, matches in sorted(read_verified_matches(database_path).items())
        if len(matches) >= MIN_MATCHES and images.keys() >= set(pair)
    }
    rng = np.random.default_rng(0)
    some = rng.permutation(np.array(list(pairs)).reshape(-1, 2))[:MAX_PAIRS].tolist()
    total, misfits = 0, []
    options = pycolmap.RANSACOptions(random_seed=0, max_error=MAX_ERROR)
    with pycolmap.Database.open(database_path) as database:
        for first, second in some:
            matches = pairs[first, second]
            few = rng.permutation(len(matches))[:MAX_PAIR_MATCHES]
            pixels = [
                np.asarray(database.read_keypoints(i), np.float64)[matches[few, side], :2]
                for side, i in enumerate((first, second))
            ]
            error = _error_in_model(model, images[first], images[second], pixels[0], pixels[1])
            if error is None:
                continue
            total += len(matches)
            if error <= MUCH_WORSE * LEAST_ERROR:
                continue
            own_errors = distances_in_own_geometry(pixels[0], pixels[1], options)
            own_error = float(np.median(own_errors)) if len(own_errors) else float("inf")
            if error > MUCH_WORSE * max(own_error, LEAST_ERROR):
                names = images[first].name, images[second].name
                misfits.append((len(matches), names, error, own_error))
    share = sum(misfit[0] for misfit in misfits) / max(total, 1)
    if share < MIN_SHARE:
        return None
    _, worst, error, own_error = max(misfits)
    return Misfit(share, worst, error, own_error)


def _error_in_model(
    model: pycolmap.Reconstruction,
    first: pycolmap.Image,
    second: pycolmap.Image,
    pixels0: FloatArray,
    pixels1: FloatArray,
) -> float | None:
    """Median distance in pixels of two photos' matches (N, 2) from epipolar lines of a model; None
    where few are seen in front."""
    cameras = [model.cameras[image.camera_id] for image in (first, second)]
    rays0, rays1 = (
        np.asarray(camera.cam_ray_from_img(pixels))
        for camera, pixels in zip(cameras, (pixels0, pixels1), strict=True)
    )
    seen = np.isfinite(rays0).all(axis=1) & np.isfinite(rays1).all(axis=1)
    seen &= (rays0[:, 2] > 0.1) & (rays1[:, 2] > 0.1)
    if seen.sum() < MIN_MATCHES:
        return None
    pose = second.cam_from_world() * first.cam_from_world().inverse()
    distances = sampson_distance(
        rays0[seen, :2] / rays0[seen, 2:],
        rays1[seen, :2] / rays1[seen, 2:],
        pycolmap.essential_matrix_from_pose(pose),
    )
    focal_length = float(np.mean([camera.mean_focal_length() for camera in cameras]))
    return focal_length * float(np.median(distances))


def distances_in_own_geometry(
    pixels0: FloatArray, pixels1: FloatArray, options: pycolmap.RANSACOptions
) -> FloatArray:
    """Distances (N,) in pixels of matches (N, 2) from the epipolar lines of the fundamental matrix
    that most of them agree with; empty where there is none."""
    found = pycolmap.estimate_fundamental_matrix(pixels0, pixels1, options)
    return np.zeros(0) if found is None else sampson_distance(pixels0, pixels1, found["F"])
