"""Database and models of a run, with the cameras that agree best."""

from __future__ import annotations

import logging
import math
import operator
import shutil
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import pycolmap

from sfm_matchers.files import revisions
from sfm_matchers.files.fingerprints import content_hash, fingerprint
from sfm_matchers.files.notes import read_memory, write_memory
from sfm_matchers.files.pair_lists import Pair
from sfm_matchers.files.text import folder_written_whole
from sfm_matchers.mapping.adjustment import median_error
from sfm_matchers.mapping.camera_models import CameraChoice
from sfm_matchers.mapping.camera_options import CameraOptions
from sfm_matchers.mapping.database import build_database
from sfm_matchers.mapping.mapper import reconstruct
from sfm_matchers.mapping.merging import merge_models
from sfm_matchers.mapping.models import read_model, write_model
from sfm_matchers.mapping.shared_cameras import (
    MAX_ERROR_RATIO,
    OwnCameras,
    is_bent,
    listed_focal_lengths,
    regrouped,
    try_own_cameras,
)
from sfm_matchers.mapping.tracks import lengthen_tracks
from sfm_matchers.photos.cameras import CameraGroups
from sfm_matchers.photos.intrinsics import impossibility, improbability
from sfm_matchers.runs.camera_models import camera_ids, choose_for_models
from sfm_matchers.runs.match_graph import check_pairs
from sfm_matchers.runs.matching import MatchingJob
from sfm_matchers.runs.options import AUTO, SfmOptions
from sfm_matchers.runs.workspace import Workspace

logger = logging.getLogger("sfm_matchers.sfm")

# Names of the notes of what is done.
_DATABASE, _MAPPED, _FINISHED = "database.db", "mapped", "sparse"


@dataclass(frozen=True)
class Build:
    """Database and models of matched photos; those that are there already are taken."""

    options: SfmOptions
    job: MatchingJob
    camera_options: CameraOptions
    fixed: set[str]
    pairs: Sequence[Pair]
    feature_path: Path
    match_path: Path

    @cached_property
    def _inputs(self) -> tuple[str, str]:
        """Hashes of features and matches, which may be gigabytes and are asked for often."""
        return content_hash(self.feature_path), content_hash(self.match_path)

    def source(self, cameras: CameraGroups) -> str:
        """Return the fingerprint of what a database is made of."""
        return fingerprint(
            revisions.DATABASE,
            self.pairs,
            *self._inputs,
            cameras.groups,
            self.options.camera_model,
            self.options.camera_params,
            self.job.conf.min_inlier_ratio,
            *(() if self.options.keep_all_pairs else (revisions.LOOK_ALIKES,)),
            self.options.no_refine,  # or pairs of places that look alike are dropped
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
            revisions.MERGING,
            revisions.CAMERA_MODELS,
            revisions.LONGER_TRACKS,
            self.options.no_longer_tracks,
        )

    def make(
        self, cameras: CameraGroups, workspace: Workspace | None = None
    ) -> list[pycolmap.Reconstruction]:
        """Return the models, made in the run's workspace, or in another one."""
        workspace = workspace or self.job.workspace
        source = self.source(cameras)
        with workspace.timed("verification"):
            is_made = self._make_database(cameras, workspace)
        if is_made:
            with workspace.timed("look-alikes"):
                check_pairs(workspace, self.options)
            workspace.set_done(_DATABASE, source, workspace.database, workspace.look_alikes)
        with workspace.timed("mapping"):
            return self._make_models(cameras, workspace)

    def _make_database(self, cameras: CameraGroups, workspace: Workspace) -> bool:
        """Return whether it was made; if not, it was there."""
        if workspace.is_done(_DATABASE, self.source(cameras)):
            return False
        build_database(
            workspace.database,
            self.job.image_dir,
            cameras,
            self.camera_options,
            self.pairs,
            self.feature_path,
            self.match_path,
            min_inlier_ratio=self.job.conf.min_inlier_ratio,
        )
        return True

    def _make_models(
        self, cameras: CameraGroups, workspace: Workspace
    ) -> list[pycolmap.Reconstruction]:
        source = self.model_source(cameras)
        if not (
            workspace.is_done(_MAPPED, source)
            or workspace.is_done(_FINISHED, self.finished_source(cameras))
        ):
            reconstruct(
                workspace.database,
                self.job.image_dir,
                workspace.models,
                self.options.mapper,
                fixed_intrinsics=self.fixed,
                num_threads=self.options.mapper_threads,
                robust=not self.options.no_refine,
            )
            workspace.set_done(_MAPPED, source, workspace.models)
        return _read_models(workspace)

    def take(self, cameras: CameraGroups, trial: Workspace) -> None:
        """Put the database and the models that were made in another workspace into the run's."""
        workspace = self.job.workspace
        workspace.forget(_DATABASE, _MAPPED, _FINISHED)
        if workspace.models.is_dir():
            shutil.rmtree(workspace.models)
        trial.database.replace(workspace.database)
        trial.look_alikes.replace(workspace.look_alikes)
        trial.models.replace(workspace.models)
        workspace.set_done(
            _DATABASE, self.source(cameras), workspace.database, workspace.look_alikes
        )
        workspace.set_done(_MAPPED, self.model_source(cameras), workspace.models)

    def finish(
        self,
        cameras: CameraGroups,
        models: Sequence[pycolmap.Reconstruction],
        known: Collection[str],
    ) -> tuple[list[pycolmap.Reconstruction], list[CameraChoice]]:
        """Make the mapper's models better: one of several, camera models by evidence, points in
        more photos.

        Args:
            cameras: which photos share one.
            models: as they lie in the workspace; the better ones take their place.
            known: photos whose cameras are given.

        Returns:
            The models, and the camera models of the first one.
        """
        workspace, source = self.job.workspace, self.finished_source(cameras)
        if workspace.is_done(_FINISHED, source):
            chosen = read_memory(workspace.camera_models)["first"]
            return list(models), [CameraChoice(**one) for one in chosen]
        better, choices, joined = list(models), list[CameraChoice](), list[str]()
        refines = not self.options.no_refine
        if refines and len(models) > 1:
            with workspace.timed("merging"):
                better, joined = merge_models(
                    models,
                    workspace.database,
                    {i for model in models for i in camera_ids(model, self.fixed)},
                    num_threads=self.options.mapper_threads,
                )
        if refines and self.options.camera_model == AUTO and len(known) < len(self.job.photos):
            with workspace.timed("camera models"):
                better, choices = choose_for_models(
                    better, known, workspace.database, self.options.mapper_threads
                )
        if refines and not self.options.no_longer_tracks:
            with workspace.timed("longer tracks"):
                better = self._lengthened(better)
        workspace.forget(_MAPPED)
        if len(better) < len(models) or any(map(operator.is_not, better, models)):
            with folder_written_whole(workspace.models) as temporary:
                for index, model in enumerate(better):
                    write_model(model, temporary / str(index))
        first = [asdict(one) for one in choices]
        write_memory(workspace.camera_models, {"first": first, "joined": joined})
        workspace.set_done(_FINISHED, source, workspace.models, workspace.camera_models)
        return _read_models(workspace), choices

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


def _read_models(workspace: Workspace) -> list[pycolmap.Reconstruction]:
    """Read the models that are there, also those that were just made.

    In memory their images and points may lie in another order, in which sums of an adjustment have
    other last bits: a run that goes on after a kill would end with another model.
    """
    return [read_model(path) for path in workspace.model_folders()]


MAX_CAMERA_TRIALS = 3
MIN_PHOTOS_KEPT = 0.75  # of those registered before
SAFER_CAMERAS = "try --camera_mode per_image, or per_folder with a folder for each camera"


def make_and_check_cameras(
    build: Build, cameras: CameraGroups, assumed: set[str]
) -> tuple[CameraGroups, list[pycolmap.Reconstruction]]:
    """Make the models, and make them again with other cameras if they contradict the first ones.

    Args:
        build: makes them.
        cameras: which photos share one.
        assumed: photos of which their size or EXIF says so, and not the user.

    Returns:
        The cameras and the models that agree best.
    """
    workspace = build.job.workspace
    first_source = fingerprint(revisions.CAMERAS, build.model_source(cameras))
    memory = read_memory(workspace.cameras)
    if memory.get("source") == first_source:
        first_reason = cameras.reason
        cameras = CameraGroups(memory["groups"], memory["reason"])
        if cameras.reason != first_reason:  # which has been said
            logger.info("Cameras: %s", cameras.reason)
        return cameras, build.make(cameras)
    models = build.make(cameras)
    shared = {name for group in cameras.groups if len(group) > 1 for name in group} & assumed
    if shared:
        trials = _CameraTrials(build, cameras.groups, shared, _median_error(models, shared))
        cameras, models = trials.run(cameras, models)
    remembered = {"source": first_source, "groups": cameras.groups, "reason": cameras.reason}
    write_memory(workspace.cameras, remembered)
    return cameras, models


def _median_error(models: Sequence[pycolmap.Reconstruction], names: Collection[str]) -> float:
    return median_error(models[0], names) if models else math.inf


@dataclass(frozen=True)
class _CameraTrials:
    """Makes models again with other cameras for photos that share one by their size or EXIF.

    Attributes:
        build: makes them.
        first_groups: photos that share a camera at first.
        shared: those of which the user does not say so.
        first_error: median reprojection error with these cameras.
    """

    build: Build
    first_groups: list[list[str]]
    shared: set[str]
    first_error: float

    def run(
        self, cameras: CameraGroups, models: list[pycolmap.Reconstruction]
    ) -> tuple[CameraGroups, list[pycolmap.Reconstruction]]:
        """Return the cameras and the models that agree best."""
        cameras, models, doubtful = self._split(cameras, models)
        database = self.build.job.workspace.database
        if not models or doubtful or is_bent(models[0], database, self.shared):
            # From a model that is bent no way leads to the right one.
            if single := self._of_single_photos(models):
                cameras, models, doubtful = self._split(*single)
            elif models and not doubtful:
                doubtful = try_own_cameras(models[0], self.shared)
        if doubtful:
            cameras = _doubtful(cameras, doubtful)
        return cameras, models

    def _split(
        self, cameras: CameraGroups, models: list[pycolmap.Reconstruction]
    ) -> tuple[CameraGroups, list[pycolmap.Reconstruction], OwnCameras | None]:
        """Part photos whose focal lengths differ where each has its own, and join the others.

        Returns:
            The cameras, the models, and what contradicts them.
        """
        for _ in range(MAX_CAMERA_TRIALS):
            registered = {image.name for image in models[0].images.values()} if models else set()
            if not registered & self.shared:
                break
            with self.build.job.workspace.timed("cameras"):
                own = try_own_cameras(models[0], self.shared)
            groups = regrouped(self.first_groups, own.focal_lengths)
            if not own.contradicts and len(groups) >= len(cameras.groups):
                break
            # Fewer cameras than before have less freedom.
            limit = own.shared_error if own.contradicts else 1.1 * own.shared_error
            others = self._with_others(groups, limit, models[0].num_reg_images())
            if others is None:
                return cameras, models, own if own.contradicts else None
            cameras, models = others
        return cameras, models, None

    def _of_single_photos(
        self, models: Sequence[pycolmap.Reconstruction]
    ) -> tuple[CameraGroups, list[pycolmap.Reconstruction]] | None:
        """Make the models with a camera for each photo; None if they are not clearly better."""
        groups = [
            part
            for group in self.first_groups
            for part in ([[name] for name in group] if self.shared.intersection(group) else [group])
        ]
        limit = MAX_ERROR_RATIO * _median_error(models, self.shared)
        num_photos = models[0].num_reg_images() if models else 0
        # A few photos may not find their way without knowing the camera; they come back with it.
        return self._with_others(groups, limit, math.ceil(MIN_PHOTOS_KEPT * num_photos))

    def _with_others(
        self, groups: list[list[str]], limit: float, num_photos: int
    ) -> tuple[CameraGroups, list[pycolmap.Reconstruction]] | None:
        """Make the models again with other cameras.

        Returns:
            None if the median reprojection error is not below a limit in pixels, or the model has
            fewer photos or a camera that hardly exists: where cameras only turn, all fit.
        """
        with self.build.job.workspace.trial() as trial:
            models = self.build.make(CameraGroups(groups), trial)
            error = _median_error(models, self.shared)
            if not error < limit or models[0].num_reg_images() < num_photos:
                return None
            if any(impossibility(c) or improbability(c) for c in models[0].cameras.values()):
                return None
            cameras = CameraGroups(groups, self._reason(groups, models[0], error))
            logger.warning("Cameras: %s", cameras.reason)
            self.build.take(cameras, trial)
            return cameras, models

    def _reason(self, groups: list[list[str]], model: pycolmap.Reconstruction, error: float) -> str:
        focal_lengths = {
            image.name: model.cameras[image.camera_id].mean_focal_length()
            for image in model.images.values()
            if image.name in self.shared
        }
        before = f"{self.first_error:.2f} px" if self.first_error < math.inf else "no model"
        reason = (
            f"{len(focal_lengths)} photos of one size or one camera by EXIF are not of one camera, "
            f"as the reprojection errors tell (median {error:.2f} px now, {before} before): "
            f"{len(groups)} camera(s), of focal lengths "
            f"{listed_focal_lengths(groups, focal_lengths)}"
        )
        if any(len(group) == 1 for group in groups):
            reason += f"; this is not certain: {SAFER_CAMERAS}"
        return reason


def _doubtful(cameras: CameraGroups, own: OwnCameras) -> CameraGroups:
    """Say that the photos may be of other cameras."""
    warning = (
        f"the median reprojection error is {own.shared_error:.2f} px, and {own.own_error:.2f} px "
        "with a camera for each photo: they may be of several cameras, or EXIF's focal length may "
        "be wrong, and the model with it: "
        f"{SAFER_CAMERAS}"
    )
    logger.warning("Cameras: %s", warning)
    return CameraGroups(cameras.groups, f"{cameras.reason}; {warning}")
