"""The COLMAP database: cameras, keypoints, verified matches."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pycolmap
from PIL import Image

from sfm_matchers.files.colmap_database import quiet_colmap, read_image_ids
from sfm_matchers.files.hdf5 import open_h5
from sfm_matchers.files.pair_lists import Pair, unique_pairs
from sfm_matchers.files.replacing import make_way
from sfm_matchers.files.scratch import scratch_folder
from sfm_matchers.files.space import Space
from sfm_matchers.files.text import written_whole
from sfm_matchers.machine.progress import progress
from sfm_matchers.mapping.camera_options import CameraOptions
from sfm_matchers.mapping.fixed_pixels import FixedPixels, leave_out_fixed_pixels
from sfm_matchers.mapping.lenses import PERSPECTIVE
from sfm_matchers.mapping.wide_cameras import guess_wide_focal_lengths
from sfm_matchers.photos import heif
from sfm_matchers.photos.cameras import CameraGroups
from sfm_matchers.photos.images import open_photo
from sfm_matchers.photos.intrinsics import camera_with, may_be_of_exif

logger = logging.getLogger(__name__)


# Pillow's names of what pycolmap's wheels do not decode, and we do.
UNDECODED_FORMATS = ("GIF", "WEBP", heif.FORMAT)


def create_database(
    database_path: Path, image_dir: Path, cameras: CameraGroups, options: CameraOptions
) -> None:
    """Create a COLMAP database with the photos and one camera for each group of them.

    Raises:
        InputError: a photo that COLMAP does not decode is not an image.
    """
    mode = pycolmap.CameraMode.SINGLE
    pycolmap.Database.open(database_path).close()  # creates it
    with quiet_colmap(pycolmap.logging.FATAL):
        for names in cameras.groups:
            reader_options = options.reader_options(names[0], cameras.guess)
            pycolmap.import_images(database_path, image_dir, mode, names, reader_options)
        with pycolmap.Database.open(database_path) as database:
            camera_ids = {image.name: image.camera_id for image in database.read_all_images()}
        for names in cameras.groups:
            undecoded = [name for name in names if name not in camera_ids]
            shared_id = next((camera_ids[name] for name in names if name in camera_ids), -1)
            if undecoded:
                reader_options = options.reader_options(names[0], cameras.guess)
                reader_options.existing_camera_id = shared_id
                _import_undecoded(database_path, image_dir, undecoded, reader_options)
    absurd = _absurd_focal_lengths(database_path, options)
    _forget_focal_lengths(database_path, {*cameras.without_exif, *absurd}, cameras.guess)


def _absurd_focal_lengths(database_path: Path, options: CameraOptions) -> list[str]:
    """Photos whose focal length in EXIF is none, such as 0; `runs.cameras` names them."""
    with pycolmap.Database.open(database_path) as database:
        known = {c.camera_id: c for c in database.read_all_cameras() if c.has_prior_focal_length}
        images = database.read_all_images()
    return [
        image.name
        for image in images
        if image.camera_id in known
        and not may_be_of_exif(known[image.camera_id])
        and not options.of(image.name).params
    ]


def _forget_focal_lengths(database_path: Path, names: Collection[str], factor: float) -> None:
    """Make the focal lengths of some photos' cameras guesses, as those of photos without EXIF."""
    if not names:
        return
    with pycolmap.Database.open(database_path) as database:
        images = database.read_all_images()
        for camera_id in {image.camera_id for image in images if image.name in names}:
            camera = database.read_camera(camera_id)
            size = camera.width, camera.height
            guess = camera_with(camera.model.name, factor * max(size), size)
            guess.camera_id = camera_id
            database.update_camera(guess)


def known_focal_lengths(database_path: Path) -> dict[str, float]:
    """Return photo -> focal length in pixels of those whose camera had one before mapping."""
    with pycolmap.Database.open(database_path) as database:
        cameras = {camera.camera_id: camera for camera in database.read_all_cameras()}
        return {
            image.name: float(cameras[image.camera_id].mean_focal_length())
            for image in database.read_all_images()
            if cameras[image.camera_id].has_prior_focal_length
            and len(cameras[image.camera_id].focal_length_idxs())
        }


def guessed_focal_lengths(database_path: Path) -> set[str]:
    """Return the photos whose cameras, perspective ones, had none before mapping but a guess."""
    with pycolmap.Database.open(database_path) as database:
        cameras = {
            camera.camera_id
            for camera in database.read_all_cameras()
            if camera.model.name in PERSPECTIVE and not camera.has_prior_focal_length
        }
        return {image.name for image in database.read_all_images() if image.camera_id in cameras}


def read_verified_matches(database_path: Path) -> dict[tuple[int, int], np.ndarray]:
    """Return the verified matches (M, 2) of each pair of image ids that has any."""
    with pycolmap.Database.open(database_path) as database:
        pair_ids, geometries = database.read_two_view_geometries()
    return {
        pycolmap.pair_id_to_image_pair(pair_id): np.asarray(geometry.inlier_matches, np.int64)
        for pair_id, geometry in zip(pair_ids, geometries, strict=True)
        if len(geometry.inlier_matches)
    }


def _import_undecoded(
    database_path: Path, image_dir: Path, names: list[str], options: pycolmap.ImageReaderOptions
) -> None:
    """Add photos that COLMAP does not decode: it is shown black ones of their size and EXIF."""
    logger.debug("%d photos, such as %s, are not decoded by COLMAP, but here", len(names), names[0])
    with scratch_folder() as folder:
        for name in names:
            stand_in = folder / name
            stand_in.parent.mkdir(parents=True, exist_ok=True)
            with open_photo(image_dir / name) as photo:
                exif = photo.info.get("exif", b"")
                Image.new("L", photo.size).save(stand_in, "PNG", exif=exif)
        pycolmap.import_images(database_path, folder, pycolmap.CameraMode.SINGLE, names, options)


def import_features(database_path: Path, feature_path: Path) -> None:
    """Write the keypoints of every photo of the database; a photo without features gets none."""
    space = Space(database_path)
    with (
        pycolmap.Database.open(database_path) as database,
        pycolmap.DatabaseTransaction(database),
        open_h5(feature_path) as features,
    ):
        for image in database.read_all_images():
            keypoints = np.zeros((0, 2))
            if image.name in features:
                camera = database.read_camera(image.camera_id)
                keypoints = features.keypoints(image.name, (camera.width, camera.height))
            space.take(_row_bytes(keypoints.size * 4))
            database.write_keypoints(image.image_id, (keypoints + 0.5).astype(np.float32))


def _row_bytes(num_bytes: int) -> int:
    """Bytes of a row of a database with so much data in it."""
    page = 4096  # what does not fit into one has pages of its own
    return 1000 + (num_bytes if num_bytes < page else page * -(-num_bytes // page))


def import_matches(
    database_path: Path,
    pairs: Sequence[Pair],
    match_path: Path,
    min_match_score: float | None = None,
) -> int:
    """Write the matches of all pairs whose two photos are in the database.

    Args:
        database_path: a database with its photos.
        pairs: repeated and reversed pairs count once.
        match_path: the match file.
        min_match_score: only matches with a higher score count.

    Returns:
        The number of pairs with at least one match.

    Raises:
        InputError: the match file lacks a pair, or was made with other features.
    """
    num_matched = 0
    space = Space(database_path)
    with (
        pycolmap.Database.open(database_path) as database,
        pycolmap.DatabaseTransaction(database),
        open_h5(match_path) as file,
    ):
        image_ids = read_image_ids(database)
        counts = {
            name: database.num_keypoints_for_image(image_id) for name, image_id in image_ids.items()
        }
        listed = unique_pairs(pairs)
        for name0, name1 in progress(listed, title="Importing matches", unit="pair", stays=False):
            if name0 not in image_ids or name1 not in image_ids:
                continue
            matches, scores = file.matches(name0, name1, (counts[name0], counts[name1]))
            if min_match_score is not None:
                matches = matches[scores > min_match_score]
            if len(matches):
                space.take(2 * _row_bytes(8 * len(matches)))  # and what verification adds
                database.write_matches(
                    image_ids[name0], image_ids[name1], matches.astype(np.uint32)
                )
                num_matched += 1
    return num_matched


def verify_geometry(database_path: Path, min_inlier_ratio: float = 0.0) -> int:
    """Verify all matches of a database by two-view geometry.

    Cameras of a fisheye model count as of known focal length from then on: a guess is good enough
    to verify with, and without one COLMAP verifies none of their pairs.

    Args:
        database_path: the database.
        min_inlier_ratio: share of a pair's matches that must be inliers, beside COLMAP's number.

    Returns:
        The number of pairs that passed.
    """
    with pycolmap.Database.open(database_path) as database:
        for camera in database.read_all_cameras():
            if camera.is_perspective_fisheye() and not camera.has_prior_focal_length:
                camera.has_prior_focal_length = True
                database.update_camera(camera)
    options = pycolmap.TwoViewGeometryOptions(min_inlier_ratio=min_inlier_ratio)
    options.ransac.random_seed = 0
    with quiet_colmap():
        pycolmap.geometric_verification(database_path, two_view_geometry_options=options)
    with pycolmap.Database.open(database_path) as database:
        # `num_verified_image_pairs` counts the pairs that were looked at.
        return len(database.read_two_view_geometry_num_inliers()[0])


def accept_matches(database_path: Path) -> int:
    """Take all matches of a database for verified.

    Returns:
        The number of pairs.
    """
    with (
        pycolmap.Database.open(database_path) as database,
        pycolmap.DatabaseTransaction(database),
    ):
        pair_ids, all_matches = database.read_all_matches()
        for pair_id, matches in zip(pair_ids, all_matches, strict=True):
            write_inliers(database, pair_id, matches)
    return len(pair_ids)


def write_inliers(database: pycolmap.Database, pair_id: int, matches: np.ndarray) -> None:
    """Write the verified matches (M, 2) of a pair."""
    geometry = pycolmap.TwoViewGeometry()
    # COLMAP ignores a geometry without its kind, without a word.
    geometry.config = pycolmap.TwoViewGeometryConfiguration.CALIBRATED
    geometry.inlier_matches = matches
    database.write_two_view_geometry(*pycolmap.pair_id_to_image_pair(pair_id), geometry)


def build_database(
    database_path: Path,
    image_dir: Path,
    cameras: CameraGroups,
    camera_options: CameraOptions,
    pairs: Sequence[Pair],
    feature_path: Path,
    match_path: Path,
    *,
    min_match_score: float | None = None,
    min_inlier_ratio: float = 0.0,
    verify: bool = True,
    without_fixed_pixels: bool = False,
) -> FixedPixels | None:
    """Create, fill and verify a COLMAP database; it appears at `database_path` only when complete.

    With `verify` False all matches count as verified; `min_match_score` as in `import_matches`,
    `min_inlier_ratio` as in `verify_geometry`.

    Returns:
        What stands at the same pixels of the photos, if its matches are to be left out.
    """
    make_way(database_path)
    with written_whole(database_path) as temporary:
        Space(database_path).take(1000 * sum(map(len, cameras.groups)))
        create_database(temporary, image_dir, cameras, camera_options)
        import_features(temporary, feature_path)
        import_matches(temporary, pairs, match_path, min_match_score)
        fixed = leave_out_fixed_pixels(temporary) if without_fixed_pixels else None
        if verify:
            guess_wide_focal_lengths(temporary, camera_options)
            verify_geometry(temporary, min_inlier_ratio)
        else:
            accept_matches(temporary)
    return fixed


def is_undecoded(path: Path) -> bool:
    """Return whether a photo is of a format that COLMAP does not decode.

    Raises:
        InputError: as `open_photo`.
    """
    with open_photo(path) as photo:
        return photo.format in UNDECODED_FORMATS
