"""Database and models of a run."""

from __future__ import annotations

import logging
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
from sfm_matchers.mapping.camera_models import CameraChoice
from sfm_matchers.mapping.camera_options import CameraOptions
from sfm_matchers.mapping.database import build_database
from sfm_matchers.mapping.fixed_pixels import FixedPixels
from sfm_matchers.mapping.mapper import reconstruct
from sfm_matchers.mapping.merging import merge_models
from sfm_matchers.mapping.models import read_model, write_model
from sfm_matchers.mapping.tracks import lengthen_tracks
from sfm_matchers.photos.cameras import CameraGroups
from sfm_matchers.photos.intrinsics import GUESSED_FOCAL_LENGTH
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

    @property
    def _lengthens_tracks(self) -> bool:
        """Whether models are adjusted once more in the end, so that a draft is enough before."""
        return not (self.options.no_refine or self.options.no_longer_tracks)

    def source(self, cameras: CameraGroups) -> str:
        """Return the fingerprint of what a database is made of."""
        return fingerprint(
            revisions.DATABASE,
            self.pairs,
            *self._inputs,
            cameras.groups,
            *([cameras.without_exif] if cameras.without_exif else ()),
            *([cameras.guess] if cameras.guess != GUESSED_FOCAL_LENGTH else ()),
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
            revisions.MODEL,
            self.source(cameras),
            self.options.mapper,
            self.options.no_refine,
            self._lengthens_tracks,
        )

    def finished_source(self, cameras: CameraGroups) -> str:
        """Return the fingerprint of what finished models are made of."""
        return fingerprint(
            self.model_source(cameras),
            revisions.MERGING,
            revisions.CAMERA_MODELS,
            revisions.LONGER_TRACKS,
        )

    def make(
        self, cameras: CameraGroups, workspace: Workspace | None = None
    ) -> list[pycolmap.Reconstruction]:
        """Return the models, made in the run's workspace, or in another one."""
        workspace = workspace or self.job.workspace
        source = self.source(cameras)
        with workspace.timed("verification"):
            is_made, fixed = self._make_database(cameras, workspace)
        if is_made:
            with workspace.timed("look-alikes"):
                check_pairs(workspace, self.options, fixed)
            workspace.set_done(_DATABASE, source, workspace.database, workspace.look_alikes)
        with workspace.timed("mapping"):
            return self._make_models(cameras, workspace)

    def _make_database(
        self, cameras: CameraGroups, workspace: Workspace
    ) -> tuple[bool, FixedPixels | None]:
        """Return whether it was made; if not, it was there. And what was left out of it."""
        if workspace.is_done(_DATABASE, self.source(cameras)):
            return False, None
        fixed = build_database(
            workspace.database,
            self.job.image_dir,
            cameras,
            self.camera_options,
            self.pairs,
            self.feature_path,
            self.match_path,
            min_inlier_ratio=self.job.conf.min_inlier_ratio,
            without_fixed_pixels=not self.options.no_refine,
        )
        return True, fixed

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
                is_draft=self._lengthens_tracks,
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
                    better,
                    known,
                    workspace.database,
                    self.options.mapper_threads,
                    is_draft=self._lengthens_tracks,
                )
        if self._lengthens_tracks:
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
