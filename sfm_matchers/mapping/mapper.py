"""COLMAP's mappers: a database to models."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from sfm_matchers.choices import MAPPERS
from sfm_matchers.errors import InputError, SfmMatchersError, one_line
from sfm_matchers.files.colmap_database import quiet_colmap
from sfm_matchers.files.space import is_of_full_disk
from sfm_matchers.files.text import folder_written_whole
from sfm_matchers.machine.progress import progress
from sfm_matchers.mapping.adjustment import adjust_robustly
from sfm_matchers.mapping.database import is_undecoded
from sfm_matchers.mapping.misplaced import place_again
from sfm_matchers.mapping.models import largest_first, write_model
from sfm_matchers.mapping.registration import left_out, register_missing
from sfm_matchers.mapping.wide_cameras import WIDE_SHAPES
from sfm_matchers.photos.images import read_image

# COLMAP keeps only models of at least ten photos; users of small folders want theirs too.
MIN_MODEL_SIZE = 3
# Change of the cost, relative, at which COLMAP's adjustments of all photos end where a robust one
# follows; else they go on until the gradient vanishes.
GLOBAL_TOLERANCE = 1e-5


def reconstruct(
    database_path: Path,
    image_dir: Path,
    model_dir: Path,
    mapper: str = "incremental",
    *,
    fixed_intrinsics: bool | Collection[str] = False,
    num_threads: int = 1,
    robust: bool = False,
    is_draft: bool = False,
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
        is_draft: the models will be adjusted again, so that a rough adjustment is enough.
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
    mapper_options = dict(incremental_options or {})
    if robust:
        mapper_options.setdefault("ba_global_function_tolerance", GLOBAL_TOLERANCE)
    with folder_written_whole(model_dir) as temporary:
        work_dir = temporary / "work"
        work_dir.mkdir()
        # Where there is no model, the reason is found and said later.
        with _naming_failed_checks(temporary), quiet_colmap(pycolmap.logging.FATAL):
            models, adjustment = _run_mapper(
                database_path,
                image_dir,
                work_dir,
                mapper,
                fixed_intrinsics,
                fixed,
                num_threads,
                mapper_options,
            )
            models = _usable(models)
            if robust:
                for model in models:
                    adjust_robustly(model, adjustment, fixed, is_draft=is_draft)
                models = _with_all_photos(
                    models, database_path, None if fixed_intrinsics else fixed, num_threads
                )
        shutil.rmtree(work_dir)
        ordered = _usable(models)
        for index, model in enumerate(ordered):
            _color_points_of_undecoded(model, image_dir)
            write_model(model, temporary / str(index))
    return ordered


def _with_all_photos(
    models: Sequence[pycolmap.Reconstruction],
    database_path: Path,
    fixed_cameras: Collection[int] | None,
    num_threads: int,
) -> list[pycolmap.Reconstruction]:
    """Give photos that are missing from all models, or at a wrong place in one, another try.

    Args:
        models: the largest first; adjusted, so that more may fit than when COLMAP gave up.
        database_path: with the matches that they are made of.
        fixed_cameras: ids of cameras whose intrinsics are kept; None for all.
        num_threads: of the adjustments.
    """
    missing = left_out(models, database_path)
    found = []
    for model in models:
        fixed = list(model.cameras) if fixed_cameras is None else fixed_cameras
        if missing:
            model = register_missing(model, missing, database_path, fixed, num_threads=num_threads)
            missing.difference_update(image.name for image in model.images.values())
        found.append(place_again(model, database_path, fixed, num_threads=num_threads))
    return found


def _usable(models: Iterable[pycolmap.Reconstruction]) -> list[pycolmap.Reconstruction]:
    """Models that have points, the largest first; adjustments may leave further ones too small."""
    found = largest_first(model for model in models if model.num_points3D())
    return found[:1] + [model for model in found[1:] if model.num_reg_images() >= MIN_MODEL_SIZE]


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
    incremental_options: Mapping[str, Any],
) -> tuple[list[pycolmap.Reconstruction], pycolmap.BundleAdjustmentOptions]:
    """Run one; return its models, and how it adjusts all photos."""
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
    adjustment.ceres.solver_options.num_threads = num_threads
    return list(models.values()), adjustment


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
    with progress(total=total, title="Mapping", unit="photo") as bar:

        def new_model() -> None:
            bar.n = 0
            bar.update(2)

        def next_photo() -> None:
            bar.update(1)

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
