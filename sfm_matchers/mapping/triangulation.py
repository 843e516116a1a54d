"""Points for a model whose poses are known: import, check matches against the poses, triangulate.

The result has the cameras, rigs, frames and images of the reference model, with their ids.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pycolmap

from sfm_matchers.errors import InputError
from sfm_matchers.files.colmap_database import quiet_colmap, read_image_ids
from sfm_matchers.files.hdf5 import open_h5
from sfm_matchers.files.pair_lists import Pair
from sfm_matchers.files.replacing import flush, move_files, remove_left_behind, temporary_beside
from sfm_matchers.files.space import Space, writing
from sfm_matchers.machine.progress import progress
from sfm_matchers.mapping.database import (
    accept_matches,
    import_features,
    import_matches,
    verify_geometry,
    write_inliers,
)
from sfm_matchers.mapping.models import check_written

logger = logging.getLogger(__name__)

Verification = Literal["known_poses", "two_view", "none"]

# Largest distance of a match from its epipolar line, times the uncertainty of the keypoints.
MAX_EPIPOLAR_ERROR = 4.0  # pixels


def triangulate(
    reference: pycolmap.Reconstruction,
    model_dir: Path,
    image_dir: Path,
    pairs: Sequence[Pair],
    feature_path: Path,
    match_path: Path,
    *,
    verification: Verification = "known_poses",
    min_match_score: float | None = None,
) -> pycolmap.Reconstruction:
    """Triangulate matches into the poses of a model.

    `model_dir` gets ``database.db`` and the COLMAP model; what lies there is replaced only when
    there are points.

    Args:
        reference: its images with poses and cameras; its points are not used.
        model_dir: made if it does not exist.
        image_dir: the photos, for the colours of the points.
        pairs: pairs whose two images are in the model are used.
        feature_path: keypoints; the attribute ``uncertainty`` (pixels) of a dataset counts.
        match_path: matches of all pairs.
        verification: ``known_poses`` keeps matches within 4 px (times the keypoints' uncertainty)
            of their epipolar lines in both images; ``two_view`` estimates the geometry of each
            pair, like an ordinary reconstruction; ``none`` takes all matches.
        min_match_score: only matches with a higher score count.

    Returns:
        The model with its points.

    Raises:
        InputError: an image of the model has no pose, a file lacks a pair or does not belong to
            the others, or no point came out.
    """
    _check_arguments(reference, verification)
    remove_left_behind(model_dir)
    temporary = temporary_beside(model_dir / "triangulation")
    try:
        with writing(model_dir):
            temporary.mkdir(parents=True)
            database_path = temporary / "database.db"
            create_database_of_model(reference, database_path)
            import_features(database_path, feature_path)
            num_matched = import_matches(database_path, pairs, match_path, min_match_score)
            _verify(verification, reference, database_path, feature_path)
            model = _triangulate_points(reference, database_path, image_dir, temporary)
        if not model.num_points3D():
            raise InputError(
                f"no 3D point came out of {num_matched} matched pairs: check that {feature_path} "
                f"and {match_path} belong to the photos of the model, and that its poses are right"
            )
        check_written(model, temporary)
        flush(database_path)
        move_files(temporary, model_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return model


def _check_arguments(reference: pycolmap.Reconstruction, verification: str) -> None:
    if verification not in get_args(Verification):
        known = ", ".join(get_args(Verification))
        raise InputError(f"verification={verification!r}: expected one of {known}")
    unposed = [image.name for image in reference.images.values() if not image.has_pose]
    if unposed:
        raise InputError(f"the model has no pose of {unposed[0]}: leave it out of the model")
    if reference.num_reg_images() < 2:
        raise InputError("the model has no two photos with poses: points need two")


def _verify(
    verification: Verification,
    reference: pycolmap.Reconstruction,
    database_path: Path,
    feature_path: Path,
) -> None:
    """Choose the matches to triangulate, see `triangulate`."""
    if verification == "two_view":
        verify_geometry(database_path)
    elif verification == "none":
        accept_matches(database_path)
    else:
        _check_against_poses(reference, database_path, feature_path)


def create_database_of_model(model: pycolmap.Reconstruction, database_path: Path) -> None:
    """Create a COLMAP database with the cameras, rigs, frames and images of a model."""
    Space(database_path).take(1000 * model.num_images())
    with (
        pycolmap.Database.open(database_path) as database,
        pycolmap.DatabaseTransaction(database),
    ):
        for camera in model.cameras.values():
            database.write_camera(camera, use_camera_id=True)
        for rig in model.rigs.values():
            database.write_rig(rig, use_rig_id=True)
        for frame in model.frames.values():
            database.write_frame(frame, use_frame_id=True)
        for image in model.images.values():
            database.write_image(image, use_image_id=True)


def _check_against_poses(
    model: pycolmap.Reconstruction, database_path: Path, feature_path: Path
) -> None:
    """Take those matches of each pair for verified that fit the poses."""
    num_matches = num_kept = 0
    with (
        pycolmap.Database.open(database_path) as database,
        pycolmap.DatabaseTransaction(database),
        open_h5(feature_path) as features,
    ):
        uncertainties = {
            image_id: uncertainty
            for name, image_id in read_image_ids(database).items()
            if (uncertainty := features.uncertainty(name)) is not None
        }
        pair_ids, _ = database.read_num_matches()
        for pair_id in progress(pair_ids, title="Checking matches", unit="pair", stays=False):
            id0, id1 = pycolmap.pair_id_to_image_pair(pair_id)
            image0, image1 = model.images[id0], model.images[id1]
            matches = database.read_matches(id0, id1)
            num_matches += len(matches)
            points = [
                database.read_keypoints(image_id)[matches[:, side], :2]
                for side, image_id in enumerate((id0, id1))
            ]
            limits = [MAX_EPIPOLAR_ERROR * uncertainties[i] for i in (id0, id1)]
            matches = matches[fits_poses(image0, image1, points, limits)]
            num_kept += len(matches)
            write_inliers(database, pair_id, matches)
    logger.info("%d of %d matches agree with the poses", num_kept, num_matches)


def fits_poses(
    image0: pycolmap.Image,
    image1: pycolmap.Image,
    points: Sequence[np.ndarray],
    limits: Sequence[float],
) -> np.ndarray:
    """Which matches (N,) lie near their epipolar lines in both images."""
    rays, thresholds = [], []
    for image, xy, limit in zip((image0, image1), points, limits, strict=True):
        camera = image.camera
        assert camera is not None
        rays.append(np.asarray(camera.cam_from_img(xy.astype(np.float64))))
        thresholds.append(camera.cam_from_img_threshold(limit))
    cam1_from_cam0 = image1.cam_from_world() * image0.cam_from_world().inverse()
    errors = epipolar_errors(cam1_from_cam0, rays[0], rays[1])
    return np.asarray((errors[0] <= thresholds[0]) & (errors[1] <= thresholds[1]))


def epipolar_errors(
    cam1_from_cam0: pycolmap.Rigid3d, rays0: np.ndarray, rays1: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Distances of matches from their epipolar lines, in image 0 and in image 1.

    Args:
        cam1_from_cam0: relative pose.
        rays0: (N, 2) points of image 0 at depth 1.
        rays1: (N, 2) of image 1.

    Returns:
        Two arrays (N,), in the units of the rays; NaN where there is no epipolar line, which is
        everywhere if both photos were taken from one place.
    """
    homogeneous0, homogeneous1 = (
        np.concatenate([rays, np.ones((len(rays), 1))], axis=1) for rays in (rays0, rays1)
    )
    x, y, z = cam1_from_cam0.translation
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    essential = cross @ cam1_from_cam0.rotation.matrix()
    lines1, lines0 = homogeneous0 @ essential.T, homogeneous1 @ essential
    residuals = np.abs(np.sum(homogeneous1 * lines1, axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (
            residuals / np.linalg.norm(lines0[:, :2], axis=1),
            residuals / np.linalg.norm(lines1[:, :2], axis=1),
        )


def _triangulate_points(
    reference: pycolmap.Reconstruction, database_path: Path, image_dir: Path, model_dir: Path
) -> pycolmap.Reconstruction:
    options = pycolmap.IncrementalPipelineOptions()
    options.random_seed = 0
    options.num_threads = 1  # the same model every time
    pycolmap.set_random_seed(0)
    with quiet_colmap():
        return pycolmap.triangulate_points(
            pycolmap.Reconstruction(reference),
            database_path,
            image_dir,
            model_dir,
            clear_points=True,
            options=options,
        )
