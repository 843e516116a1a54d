"""From features and matches to a COLMAP model, by pycolmap: import, verify, map.

HDF5 keypoints have (0, 0) at the centre of the top-left pixel, COLMAP has (0.5, 0.5) there: 0.5 is
added on import, in `import_features`, and nowhere else.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
from PIL import Image
from tqdm import tqdm

from sfm_matchers.cameras import CameraGroups
from sfm_matchers.errors import InputError, SfmMatchersError, one_line
from sfm_matchers.images import open_photo, read_image
from sfm_matchers.intrinsics import (
    GivenCamera,
    Size,
    check_given,
    find_camera,
    format_params,
    parse_params,
)
from sfm_matchers.models import write_model
from sfm_matchers.storage import (
    Pair,
    Space,
    folder_written_whole,
    holds,
    is_of_full_disk,
    open_h5,
    read_keypoints,
    read_matches,
    unique_pairs,
    written_whole,
)

logger = logging.getLogger(__name__)

MAPPERS = ("incremental", "global", "hierarchical")

# Pillow's names of what pycolmap's wheels do not decode, and OpenCV does.
UNDECODED_FORMATS = ("GIF", "WEBP")

# Pixels. No detector is more exact, and a smaller scale would make the adjustment ill-conditioned.
MIN_ROBUST_SCALE = 0.1

# Change of the cost, relative, at which the last adjustment ends: it converges slowly, and later
# steps move cameras by a few hundredths of their error at most.
ROBUST_TOLERANCE = 1e-5
# Of the longer side: focal lengths that are tried for a wide lens where none is known. From a guess
# far off, as COLMAP's 1.2 may be, the mapper ends in a model that is bent, or of two photos.
WIDE_FOCAL_LENGTHS = (0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.5)
MAX_TRIED_PAIRS = 20

# Models that are a pinhole's by default, and parameters that make them nearly a fisheye.
WIDE_SHAPES = {"FOV": (1.0,), "EUCM": (0.6, 1.0)}
# Matches that a guess must fit, as a multiple of those that given parameters fit, to replace them.
CLEARLY_MORE = 1.15

MIN_OBSERVATIONS = 4  # of a registered photo: three points do not determine its pose

# COLMAP keeps only models of at least ten photos; users of small folders want theirs too.
MIN_MODEL_SIZE = 3


@dataclass(frozen=True)
class CameraOptions:
    """Camera models of new photos, and what is known of their intrinsics.

    Attributes:
        model: COLMAP camera model.
        params: known intrinsics in COLMAP's order, comma-separated, in pixels ("" = estimate them,
            starting from EXIF). Known intrinsics are kept as they are while mapping.
        given: cameras of single photos, which go before the others.
    """

    model: str = "SIMPLE_RADIAL"
    params: str = ""
    given: Sequence[GivenCamera] = ()

    def of(self, name: str) -> GivenCamera:
        """What is known of the camera of a photo.

        Raises:
            InputError: unknown camera model, or parameters that are none of it.
        """
        params = tuple(parse_params(self.model, self.params))
        return find_camera(self.given, name) or GivenCamera("*", self.model, params)

    def check(self, sizes: Mapping[str, Size]) -> None:
        """Compare what is known with the photos: name -> size.

        Raises:
            InputError: see `intrinsics.check_given`.
        """
        params = tuple(parse_params(self.model, self.params))
        if self.given or params:
            others = [GivenCamera("*", self.model, params)] if params else []
            check_given([*self.given, *others], sizes)

    def split(self, cameras: CameraGroups, sizes: Mapping[str, Size], mode: str) -> CameraGroups:
        """Photos that share a camera: those of one line of `given` and one size do.

        In the mode ``per_image`` all photos have their own, as before.
        """
        if not self.given or mode == "per_image":
            return cameras
        groups: dict[Any, list[str]] = {}
        for index, group in enumerate(cameras.groups):
            for name in group:
                line = find_camera(self.given, name)
                key = (index, None) if line is None else (line, sizes[name])
                groups.setdefault(key, []).append(name)
        lines = sum(isinstance(key[0], GivenCamera) for key in groups)
        reason = f"{lines} camera(s) given; {cameras.reason}"
        return CameraGroups(list(groups.values()), reason)

    def reader_options(self, name: str = "") -> pycolmap.ImageReaderOptions:
        """Return pycolmap's options for a photo.

        Raises:
            InputError: unknown camera model, or the wrong number of parameters.
        """
        camera = self.of(name)
        return pycolmap.ImageReaderOptions(
            camera_model=camera.model, camera_params=format_params(camera.params)
        )


@contextlib.contextmanager
def quiet_colmap(least: pycolmap.logging.Level = pycolmap.logging.ERROR) -> Iterator[None]:
    """Silence COLMAP's own log below a level."""
    level = pycolmap.logging.minloglevel
    pycolmap.logging.minloglevel = int(least)
    try:
        yield
    finally:
        pycolmap.logging.minloglevel = level


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
            reader_options = options.reader_options(names[0])
            pycolmap.import_images(database_path, image_dir, mode, names, reader_options)
        with pycolmap.Database.open(database_path) as database:
            camera_ids = {image.name: image.camera_id for image in database.read_all_images()}
        for names in cameras.groups:
            undecoded = [name for name in names if name not in camera_ids]
            shared_id = next((camera_ids[name] for name in names if name in camera_ids), -1)
            if undecoded:
                reader_options = options.reader_options(names[0])
                reader_options.existing_camera_id = shared_id
                _import_undecoded(database_path, image_dir, undecoded, reader_options)


def _import_undecoded(
    database_path: Path, image_dir: Path, names: list[str], options: pycolmap.ImageReaderOptions
) -> None:
    """Add photos that COLMAP does not decode: it is shown black ones of their size and EXIF."""
    logger.info("COLMAP does not decode %d photos, such as %s", len(names), names[0])
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            stand_in = Path(folder) / name
            stand_in.parent.mkdir(parents=True, exist_ok=True)
            with open_photo(image_dir / name) as photo:
                exif = photo.info.get("exif", b"")
                Image.new("L", photo.size).save(stand_in, "PNG", exif=exif)
        pycolmap.import_images(database_path, folder, pycolmap.CameraMode.SINGLE, names, options)


def read_image_ids(database: pycolmap.Database) -> dict[str, int]:
    """Return the image ids of a database by name."""
    return {image.name: image.image_id for image in database.read_all_images()}


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
            if holds(features, image.name):
                camera = database.read_camera(image.camera_id)
                keypoints = read_keypoints(features, image.name, (camera.width, camera.height))
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
        for name0, name1 in tqdm(listed, desc="Importing matches", unit="pair", leave=False):
            if name0 not in image_ids or name1 not in image_ids:
                continue
            matches, scores = read_matches(file, name0, name1, (counts[name0], counts[name1]))
            if min_match_score is not None:
                matches = matches[scores > min_match_score]
            if len(matches):
                space.take(2 * _row_bytes(8 * len(matches)))  # and what verification adds
                database.write_matches(
                    image_ids[name0], image_ids[name1], matches.astype(np.uint32)
                )
                num_matched += 1
    return num_matched


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
                if support <= CLEARLY_MORE * own:
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
) -> int:
    """Create, fill and verify a COLMAP database; it appears at `database_path` only when complete.

    With `verify` False all matches count as verified; `min_match_score` as in `import_matches`,
    `min_inlier_ratio` as in `verify_geometry`.

    Returns:
        The number of verified pairs.
    """
    with written_whole(database_path) as temporary:
        Space(database_path).take(1000 * sum(map(len, cameras.groups)))
        create_database(temporary, image_dir, cameras, camera_options)
        import_features(temporary, feature_path)
        import_matches(temporary, pairs, match_path, min_match_score)
        if verify:
            guess_wide_focal_lengths(temporary, camera_options)
            return verify_geometry(temporary, min_inlier_ratio)
        return accept_matches(temporary)


def reconstruct(
    database_path: Path,
    image_dir: Path,
    model_dir: Path,
    mapper: str = "incremental",
    *,
    fixed_intrinsics: bool | Collection[str] = False,
    num_threads: int = 1,
    robust: bool = False,
    incremental_options: Mapping[str, Any] | None = None,
) -> list[pycolmap.Reconstruction]:
    """Map the verified matches of a database.

    The models are written to ``model_dir/0``, ``model_dir/1``, ... by decreasing number of
    registered photos; the folder appears only when all are complete.

    Args:
        database_path: a database with verified matches.
        image_dir: the photos, for the colours of the points.
        model_dir: replaced if it exists.
        mapper: ``incremental``, ``global`` or ``hierarchical``.
        fixed_intrinsics: keep the cameras' intrinsics as they are in the database; or the names of
            the photos whose cameras' are kept.
        num_threads: of the mapper. One thread gives the same model every time; more are faster
            where there are hundreds of photos (-1: one per core).
        robust: adjust the models once more, such that observations some pixels off hardly count.
        incremental_options: of pycolmap's `IncrementalPipelineOptions`, nested as there; they go
            before everything else. The global mapper has none of them.

    Returns:
        The models, largest first; empty if none came out.

    Raises:
        InputError: unknown mapper, or one that cannot keep the intrinsics of some cameras only.
    """
    check_mapper(mapper)
    fixed, fixed_intrinsics = _fixed_cameras(database_path, fixed_intrinsics)
    check_mapper(mapper, some_fixed=bool(fixed))
    with folder_written_whole(model_dir) as temporary:
        work_dir = temporary / "work"
        work_dir.mkdir()
        with _naming_failed_checks(temporary), quiet_colmap():
            models = _run_mapper(
                database_path,
                image_dir,
                work_dir,
                mapper,
                fixed_intrinsics,
                fixed,
                num_threads,
                robust,
                incremental_options or {},
            )
        shutil.rmtree(work_dir)
        ordered = sorted(
            (model for model in models if model.num_points3D()),
            key=lambda model: (-model.num_reg_images(), -model.num_points3D()),
        )
        for index, model in enumerate(ordered):
            _color_points_of_undecoded(model, image_dir)
            write_model(model, temporary / str(index))
    return ordered


@contextlib.contextmanager
def _naming_failed_checks(folder: Path) -> Iterator[None]:
    """Turn what a failed check of COLMAP's own raises, unless the disk is full, into one line."""
    try:
        yield
    except SfmMatchersError:  # which may be a ValueError too
        raise
    except (ValueError, RuntimeError) as error:
        if is_of_full_disk(error, folder):
            raise
        raise InputError(
            f"COLMAP cannot map these keypoints and matches: {one_line(error)}"
        ) from error


def check_mapper(mapper: str, *, some_fixed: bool = False) -> None:
    """Check a mapper's name, and that it can keep the intrinsics of some cameras only.

    Raises:
        InputError: unknown mapper, or it cannot.
    """
    if mapper not in MAPPERS:
        raise InputError(f"unknown mapper {mapper!r}, expected one of {', '.join(MAPPERS)}")
    if some_fixed and mapper == "global":
        raise InputError(
            "the global mapper refines all cameras or none: take another, or give all cameras fixed"
        )


def _fixed_cameras(
    database_path: Path, fixed_intrinsics: bool | Collection[str]
) -> tuple[set[int], bool]:
    """Ids of the cameras that are kept where only some are, and whether all are."""
    if isinstance(fixed_intrinsics, bool):
        return set(), fixed_intrinsics
    with pycolmap.Database.open(database_path) as database:
        images = database.read_all_images()
    fixed = {image.camera_id for image in images if image.name in fixed_intrinsics}
    is_all = len(fixed) == len({image.camera_id for image in images})
    return (set() if is_all else fixed), is_all


def _run_mapper(
    database_path: Path,
    image_dir: Path,
    work_dir: Path,
    mapper: str,
    fixed_intrinsics: bool,
    fixed_cameras: set[int],
    num_threads: int,
    robust: bool,
    incremental_options: Mapping[str, Any],
) -> list[pycolmap.Reconstruction]:
    pycolmap.set_random_seed(0)
    if mapper == "global":
        global_options = pycolmap.GlobalPipelineOptions()
        global_options.random_seed = 0
        global_options.num_threads = num_threads
        adjustment = global_options.mapper.bundle_adjustment
        if fixed_intrinsics:
            adjustment.refine_focal_length = adjustment.refine_extra_params = False
        models = pycolmap.global_mapping(database_path, image_dir, work_dir, global_options)
    else:
        incremental = pycolmap.IncrementalPipelineOptions()
        incremental.random_seed = 0
        incremental.num_threads = num_threads
        incremental.min_model_size = MIN_MODEL_SIZE
        incremental.constant_cameras = fixed_cameras
        if fixed_intrinsics:
            incremental.ba_refine_focal_length = incremental.ba_refine_extra_params = False
            incremental.mapper.abs_pose_refine_focal_length = False
            incremental.mapper.abs_pose_refine_extra_params = False
        incremental.max_extra_param = _largest_extra_parameter(database_path)
        incremental.mergedict(dict(incremental_options))
        if mapper == "incremental":
            models = _map_incrementally(database_path, image_dir, work_dir, incremental)
        else:
            hierarchical = pycolmap.HierarchicalPipelineOptions()
            hierarchical.incremental_options = incremental
            hierarchical.num_threads = hierarchical.num_workers = num_threads
            models = pycolmap.hierarchical_mapping(database_path, image_dir, work_dir, hierarchical)
        adjustment = incremental.get_global_bundle_adjustment()
    if robust:
        adjustment.ceres.solver_options.num_threads = num_threads
        for model in models.values():
            if model.num_points3D():
                adjust_robustly(model, adjustment, fixed_cameras)
    return list(models.values())


def _largest_extra_parameter(database_path: Path) -> float:
    """Up to which COLMAP believes a camera's parameters beside focal length and principal point.

    Distortion stays below its 1. EUCM's beta is about 1, and FOV's angle may be more: their photos
    would be thrown out one by one.
    """
    with pycolmap.Database.open(database_path) as database:
        models = {camera.model_name for camera in database.read_all_cameras()}
    return 10.0 if models & WIDE_SHAPES.keys() else 1.0


def _map_incrementally(
    database_path: Path,
    image_dir: Path,
    work_dir: Path,
    options: pycolmap.IncrementalPipelineOptions,
) -> dict[int, pycolmap.Reconstruction]:
    with pycolmap.Database.open(database_path) as database:
        total = database.num_images()
    with tqdm(total=total, desc="Mapping", unit="photo") as progress:

        def new_model() -> None:
            progress.n = 0
            progress.update(2)

        def next_photo() -> None:
            progress.update(1)

        return dict(
            pycolmap.incremental_mapping(
                database_path,
                image_dir,
                work_dir,
                options,
                initial_image_pair_callback=new_model,
                next_image_callback=next_photo,
            )
        )


def adjust_robustly(
    model: pycolmap.Reconstruction,
    adjustment: pycolmap.BundleAdjustmentOptions,
    fixed_cameras: Collection[int] = (),
) -> None:
    """Adjust a model once more under a Cauchy loss, refining what `adjustment` says.

    The mappers minimise squares, or Huber's loss, under which the few observations near their bound
    of 4 pixels outweigh the many exact ones. The scale of the loss is 2.385 standard deviations
    (95 % efficient for Gaussian errors; Holland and Welsch, "Robust regression using iteratively
    reweighted least-squares", 1977), which is twice the median length of such an error in two
    dimensions.
    """
    logger.info("Last adjustment of a model of %d photos", model.num_reg_images())
    errors = np.concatenate(list(reprojection_errors(model).values()))
    scale = max(MIN_ROBUST_SCALE, 2 * float(np.median(errors)))
    solve_robustly(model, adjustment, fixed_cameras, scale)
    bounds = pycolmap.IncrementalMapperOptions()
    manager = pycolmap.ObservationManager(model)
    manager.filter_all_points3D(bounds.filter_max_reproj_error, bounds.filter_min_tri_angle)
    # Photos that no point supports any more are not registered.
    for frame_id in manager.filter_frames(0, np.inf, np.inf, MIN_OBSERVATIONS):
        manager.deregister_frame(frame_id)


def robust_adjustment(
    num_threads: int, *, refines_principal_point: bool = False
) -> pycolmap.BundleAdjustmentOptions:
    """COLMAP's own options of a global adjustment, under a Cauchy loss."""
    pipeline = pycolmap.IncrementalPipelineOptions()
    pipeline.num_threads = num_threads
    adjustment = pipeline.get_global_bundle_adjustment()
    adjustment.refine_principal_point = refines_principal_point
    adjustment.ceres.solver_options.num_threads = num_threads
    adjustment.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
    adjustment.print_summary = False
    return adjustment


def solve_robustly(
    model: pycolmap.Reconstruction,
    adjustment: pycolmap.BundleAdjustmentOptions,
    fixed_cameras: Collection[int],
    scale: float,
) -> None:
    """Adjust a model under a Cauchy loss of a scale in pixels, and remove nothing."""
    adjustment.print_summary = False
    adjustment.ceres.solver_options.function_tolerance = ROBUST_TOLERANCE
    adjustment.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
    adjustment.ceres.loss_function_scale = scale
    config = pycolmap.BundleAdjustmentConfig()
    for image_id in model.reg_image_ids():
        config.add_image(image_id)
    for camera_id in fixed_cameras:
        config.set_constant_cam_intrinsics(camera_id)
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    pycolmap.create_default_bundle_adjuster(adjustment, config, model).solve()


def reprojection_errors(model: pycolmap.Reconstruction) -> dict[str, np.ndarray]:
    """Return, for every registered image, its observations' errors (M,) in pixels."""
    # Arrays first: a look-up in pycolmap's own map costs more than all the rest.
    point_ids = np.array(sorted(model.points3D), dtype=np.uint64)
    world_points = point_positions(model, point_ids.tolist())
    errors = {}
    for image_id in model.reg_image_ids():
        image = model.images[image_id]
        observations = list(image.get_observation_points2D())
        observed = np.array([point2D.xy for point2D in observations]).reshape(-1, 2)
        seen = np.array([point2D.point3D_id for point2D in observations], dtype=np.uint64)
        cam_from_world = image.cam_from_world().matrix()
        world = world_points[np.searchsorted(point_ids, seen)]
        in_camera = world @ cam_from_world[:, :3].T + cam_from_world[:, 3]
        camera = model.cameras[image.camera_id]
        projected = camera.img_from_cam(in_camera, check_cheirality=False)
        errors[image.name] = np.linalg.norm(projected - observed, axis=1)
    return errors


def point_positions(model: pycolmap.Reconstruction, point_ids: Sequence[int]) -> np.ndarray:
    """Return the points (N, 3) of a model."""
    points3D = model.points3D
    return np.array([points3D[i].xyz for i in point_ids], dtype=np.float64).reshape(-1, 3)


def _color_points_of_undecoded(model: pycolmap.Reconstruction, image_dir: Path) -> None:
    """Colour the points that COLMAP left black because it does not decode their photos."""
    for image in sorted(model.images.values(), key=lambda image: image.name):
        with contextlib.suppress(InputError):  # the photos may be gone by now
            if not is_undecoded(image_dir / image.name):
                continue
            seen = [
                (point.xy, model.points3D[point.point3D_id])
                for point in image.get_observation_points2D()
            ]
            photo = read_image(image_dir / image.name)
            for xy, point in seen:
                if not point.color.any():
                    last = (photo.shape[1] - 1, photo.shape[0] - 1)
                    column, row = np.clip(xy.astype(int), 0, last)
                    point.color = photo[row, column]


def is_undecoded(path: Path) -> bool:
    """Return whether a photo is of a format that COLMAP does not decode.

    Raises:
        InputError: as `open_photo`.
    """
    with open_photo(path) as photo:
        return photo.format in UNDECODED_FORMATS
