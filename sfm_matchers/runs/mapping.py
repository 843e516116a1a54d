"""Database and models of a run, with the cameras that agree best."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import cast

import pycolmap

from sfm_matchers.files import revisions
from sfm_matchers.files.fingerprints import file_fingerprint, fingerprint
from sfm_matchers.files.pair_lists import Pair
from sfm_matchers.files.replacing import temporary_beside
from sfm_matchers.files.text import folder_written_whole
from sfm_matchers.mapping.camera_models import CameraChoice
from sfm_matchers.mapping.camera_options import CameraOptions
from sfm_matchers.mapping.database import build_database
from sfm_matchers.mapping.mapper import reconstruct
from sfm_matchers.mapping.models import read_model, write_model
from sfm_matchers.mapping.shared_cameras import (
    OwnCameras,
    listed_focal_lengths,
    median_error,
    regrouped,
    try_own_cameras,
)
from sfm_matchers.mapping.tracks import lengthen_tracks
from sfm_matchers.photos.cameras import CameraGroups
from sfm_matchers.runs.camera_models import (
    choose_for_models,
)
from sfm_matchers.runs.matching import MatchingJob
from sfm_matchers.runs.notes import read_memory, write_memory
from sfm_matchers.runs.options import AUTO, SfmOptions

logger = logging.getLogger("sfm_matchers.sfm")


@dataclass(frozen=True)
class _Build:
    """Database and models of matched photos; those that are there already are taken."""

    options: SfmOptions
    job: MatchingJob
    camera_options: CameraOptions
    fixed: set[str]
    pairs: Sequence[Pair]
    feature_path: Path
    match_path: Path

    def source(self, cameras: CameraGroups) -> str:
        """Return the fingerprint of what a database is made of."""
        return fingerprint(
            revisions.DATABASE,
            self.pairs,
            file_fingerprint(self.feature_path),
            file_fingerprint(self.match_path),
            cameras.groups,
            self.options.camera_model,
            self.options.camera_params,
            self.job.conf.min_inlier_ratio,
            *([asdict(camera) for camera in self.camera_options.given]),
        )

    def model_source(self, cameras: CameraGroups) -> str:
        """Return the fingerprint of what the mapper's models are made of."""
        return fingerprint(
            revisions.MODEL, self.source(cameras), self.options.mapper, self.options.no_refine
        )

    def finished_source(self, cameras: CameraGroups) -> str:
        """Return the fingerprint of what finished models are made of."""
        return fingerprint(
            self.model_source(cameras),
            revisions.CAMERA_MODELS,
            revisions.LONGER_TRACKS,
            self.options.no_longer_tracks,
        )

    def __call__(
        self, cameras: CameraGroups, folder: Path | None = None
    ) -> list[pycolmap.Reconstruction]:
        """Return the models, made in the outputs, or afresh in a folder of their own."""
        steps = self.job.steps
        database_path = (folder or self.job.outputs) / "database.db"
        model_dir = (folder or self.job.outputs) / "sparse"
        source = self.source(cameras)
        model_source = self.model_source(cameras)

        def database() -> None:
            if folder is None and steps.is_done("database.db", source):
                return
            build_database(
                database_path,
                self.job.image_dir,
                cameras,
                self.camera_options,
                self.pairs,
                self.feature_path,
                self.match_path,
                min_inlier_ratio=self.job.conf.min_inlier_ratio,
            )
            if folder is None:
                steps.set_done("database.db", source, database_path)

        def mapping() -> list[pycolmap.Reconstruction]:
            if folder is None and (
                steps.is_done("mapped", model_source)
                or steps.is_done("sparse", self.finished_source(cameras))
            ):
                return [read_model(path) for path in _model_dirs(model_dir)]
            models = reconstruct(
                database_path,
                self.job.image_dir,
                model_dir,
                self.options.mapper,
                fixed_intrinsics=self.fixed,
                num_threads=self.options.mapper_threads,
                robust=not self.options.no_refine,
            )
            if folder is None:
                steps.set_done("mapped", model_source, model_dir)
            return models

        steps.timed("verification", database)
        return cast(list[pycolmap.Reconstruction], steps.timed("mapping", mapping))

    def take(self, cameras: CameraGroups, folder: Path) -> None:
        """Put the database and the models that were made in a folder into the outputs."""
        steps, names = self.job.steps, ("database.db", "sparse")
        targets = [self.job.outputs / name for name in names]
        steps.forget(*names, "mapped")
        for name, target in zip(names, targets, strict=True):
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(folder / name, target)
        steps.set_done(names[0], self.source(cameras), targets[0])
        steps.set_done("mapped", self.model_source(cameras), targets[1])

    def finish(
        self,
        cameras: CameraGroups,
        models: Sequence[pycolmap.Reconstruction],
        known: Collection[str],
    ) -> tuple[list[pycolmap.Reconstruction], list[CameraChoice]]:
        """Make the mapper's models better: camera models by evidence, points in more photos.

        Args:
            cameras: which photos share one.
            models: as they lie in the outputs; the better ones take their place.
            known: photos whose cameras are given.

        Returns:
            The models, and the camera models of the first one.
        """
        steps, outputs = self.job.steps, self.job.outputs
        model_dir, memory_path = outputs / "sparse", outputs / "camera_models.json"
        source = self.finished_source(cameras)
        if steps.is_done("sparse", source):
            return list(models), [CameraChoice(**one) for one in read_memory(memory_path)["first"]]
        better, choices = list(models), []
        refines = not self.options.no_refine
        if refines and self.options.camera_model == AUTO and len(known) < len(self.job.photos):
            choose = partial(
                choose_for_models,
                models,
                known,
                outputs / "database.db",
                self.options.mapper_threads,
            )
            better, choices = steps.timed("camera models", choose)
        if refines and not self.options.no_longer_tracks:
            better = steps.timed("longer tracks", partial(self._lengthened, better))
        steps.forget("mapped")
        if any(new is not old for new, old in zip(better, models, strict=True)):
            with folder_written_whole(model_dir) as temporary:
                for index, model in enumerate(better):
                    write_model(model, temporary / str(index))
        write_memory(memory_path, {"first": [asdict(one) for one in choices]})
        steps.set_done("sparse", source, model_dir, memory_path)
        return better, choices

    def _lengthened(
        self, models: Sequence[pycolmap.Reconstruction]
    ) -> list[pycolmap.Reconstruction]:
        longer = []
        for model in models:
            images = [model.images[i] for i in model.reg_image_ids()]
            fixed = {image.camera_id for image in images if image.name in self.fixed}
            image_dir, mask_dir = self.job.image_dir, self.job.mask_dir
            new, _ = lengthen_tracks(model, image_dir, mask_dir=mask_dir, fixed_cameras=fixed)
            longer.append(new)
        return longer


MAX_CAMERA_TRIALS = 3
SAFER_CAMERAS = "try --camera_mode per_image, or per_folder with a folder for each camera"


def _build_and_check_cameras(
    build: _Build, cameras: CameraGroups, guessed: set[str]
) -> tuple[CameraGroups, list[pycolmap.Reconstruction]]:
    """Make the models, and make them again with other cameras if they contradict the first ones.

    Args:
        build: makes them.
        cameras: which photos share one.
        guessed: photos of which only their size says so.

    Returns:
        The cameras and the models that agree best.
    """
    memory_path = build.job.outputs / "cameras.json"
    first_source = fingerprint(revisions.CAMERAS, build.model_source(cameras))
    memory = read_memory(memory_path)
    if memory.get("source") == first_source:
        cameras = CameraGroups(memory["groups"], memory["reason"])
        logger.info("Cameras: %s", cameras.reason)
        return cameras, build(cameras)
    models = build(cameras)
    by_size = cameras.groups
    shared = {name for group in by_size if len(group) > 1 for name in group} & guessed
    first_error = median_error(models[0], shared) if models else math.inf
    for _ in range(MAX_CAMERA_TRIALS if shared else 0):
        if not models or not shared.intersection(image.name for image in models[0].images.values()):
            break
        own = build.job.steps.timed("cameras", partial(try_own_cameras, models[0], shared))
        groups = regrouped(by_size, own.focal_lengths)
        if not own.contradicts and len(groups) >= len(cameras.groups):
            break
        others = _with_other_cameras(build, groups, models[0], own, first_error)
        if others is None:
            if own.contradicts:
                cameras = _doubtful(cameras, own)
            break
        cameras, models = others
    remembered = {"source": first_source, "groups": cameras.groups, "reason": cameras.reason}
    write_memory(memory_path, remembered)
    return cameras, models


def _with_other_cameras(
    build: _Build,
    groups: list[list[str]],
    model: pycolmap.Reconstruction,
    own: OwnCameras,
    first_error: float,
) -> tuple[CameraGroups, list[pycolmap.Reconstruction]] | None:
    """Make the models again with other cameras; None if they are not better than this one.

    `first_error` is the median reprojection error with one camera per size.
    """
    folder = temporary_beside(build.job.outputs / "cameras")
    folder.mkdir()
    try:
        models = build(CameraGroups(groups), folder)
        error = median_error(models[0], own.focal_lengths) if models else math.inf
        # Fewer cameras than before have less freedom.
        limit = own.shared_error if own.contradicts else 1.1 * own.shared_error
        if not error < limit or models[0].num_reg_images() < model.num_reg_images():
            return None
        focal_lengths = {
            image.name: models[0].cameras[image.camera_id].mean_focal_length()
            for image in models[0].images.values()
            if image.name in own.focal_lengths
        }
        reason = (
            f"{len(focal_lengths)} photos without EXIF are of one size, but not of one camera, as "
            f"the reprojection errors tell (median {error:.2f} px now, {first_error:.2f} px "
            f"before): {len(groups)} camera(s), of focal lengths "
            f"{listed_focal_lengths(groups, focal_lengths)}"
        )
        if any(len(group) == 1 for group in groups):
            reason += f"; this is not certain: {SAFER_CAMERAS}"
        cameras = CameraGroups(groups, reason)
        logger.warning("Cameras: %s", reason)
        build.take(cameras, folder)
        return cameras, models
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _doubtful(cameras: CameraGroups, own: OwnCameras) -> CameraGroups:
    """Say that the photos may be of other cameras."""
    warning = (
        f"the median reprojection error is {own.shared_error:.2f} px, and {own.own_error:.2f} px "
        "with a camera for each photo: they may be of several cameras, and the model wrong: "
        f"{SAFER_CAMERAS}"
    )
    logger.warning("Cameras: %s", warning)
    return CameraGroups(cameras.groups, f"{cameras.reason}; {warning}")


def _model_dirs(model_dir: Path) -> list[Path]:
    numbered = (path for path in model_dir.iterdir() if path.name.isdecimal())
    return sorted(numbered, key=lambda path: int(path.name))
