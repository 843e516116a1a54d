"""Models made again with other cameras, where the photos contradict what was taken for granted.

What is taken for granted are cameras that photos of one size, or of one camera by EXIF, share,
focal lengths from EXIF, which those of cropped, edited or scanned photos are not, and COLMAP's
guess where nothing tells them. Each other hypothesis is mapped and held against the models before
by their reprojection errors.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import pycolmap

from sfm_matchers.files import revisions
from sfm_matchers.files.fingerprints import fingerprint
from sfm_matchers.files.notes import read_memory, write_memory
from sfm_matchers.mapping.adjustment import median_error
from sfm_matchers.mapping.database import guessed_focal_lengths, known_focal_lengths
from sfm_matchers.mapping.given_intrinsics import try_free_cameras
from sfm_matchers.mapping.mapper import MIN_MODEL_SIZE
from sfm_matchers.mapping.misplaced import own_focal_lengths
from sfm_matchers.mapping.registration import left_out
from sfm_matchers.mapping.shared_cameras import (
    BENT,
    MAX_ERROR_RATIO,
    NEARLY_BENT,
    OwnCameras,
    are_pairs_uncalibrated,
    contradicted_focal_lengths,
    error_if_fisheye,
    error_if_stretched,
    error_over_pairs,
    focal_lengths_of,
    is_bent,
    listed_focal_lengths,
    regrouped,
    try_own_cameras,
)
from sfm_matchers.photos.cameras import CameraGroups
from sfm_matchers.photos.intrinsics import impossibility, improbability
from sfm_matchers.runs.cameras import KnownCameras
from sfm_matchers.runs.mapping import Build
from sfm_matchers.runs.options import AUTO
from sfm_matchers.runs.workspace import Workspace

logger = logging.getLogger("sfm_matchers.sfm")

MAX_CAMERA_TRIALS = 4
MIN_PHOTOS_KEPT = 0.75  # of those registered before
# Of the photos whose focal length EXIF tells: where the model has others for so many, EXIF is
# doubted. In collections of many cameras it is wrong for a few.
MIN_CONTRADICTED = 0.5
MIN_REGISTERED = 0.5  # of those photos: two fit any focal length
# Observations of photos that get other cameras over those before: 1.18 and more where they are of
# others, 1.01 where long lenses leave theirs open.
MIN_GAIN = 1.1
# Median error over the one before, of fewer cameras, or of such by which photos explain more.
MAX_LOSS = 1.2
# Of the longer side. COLMAP's guess, 1.2, is far from what phones, drones and videos have, and from
# there the mapper may end in a model that is bent, or of few photos.
WIDE_GUESS = 0.75
# A model of so many photos has found its focal length, unless it is plainly bent. Of fewer, a bent
# one had 1.97 times the error of its pairs; right ones have 1.6 at most.
SURE_PHOTOS, MAYBE_BENT = 30, 1.6
SAFER_CAMERAS = "try --camera_mode per_image, or per_folder with a folder for each camera"
# What is left where a model with a camera for each photo was made, and was no better.
KNOWN_CAMERAS = (
    "give their intrinsics (--cameras FILE), or a folder for each (--camera_mode per_folder)"
)

_Models = list[pycolmap.Reconstruction]


def make_and_check_cameras(build: Build, known: KnownCameras) -> tuple[CameraGroups, _Models]:
    """Make the models, and make them again with other cameras if they contradict the first ones.

    Args:
        build: makes them.
        known: the cameras before mapping.

    Returns:
        The cameras and the models that agree best.
    """
    workspace, cameras = build.job.workspace, known.groups
    first_source = fingerprint(revisions.CAMERAS, build.model_source(cameras))
    memory = read_memory(workspace.cameras)
    if memory.get("source") == first_source:
        first_reason = cameras.reason
        cameras = CameraGroups(
            memory["groups"], memory["reason"], memory["without_exif"], memory["guess"]
        )
        if cameras.reason != first_reason:  # which has been said
            logger.info("Cameras: %s", cameras.reason)
        return cameras, build.make(cameras)
    models = build.make(cameras)
    shared = {name for group in cameras.groups if len(group) > 1 for name in group} & known.assumed
    exif = {}
    if known.told_by_exif:
        before = known_focal_lengths(workspace.database)
        exif = {name: before[name] for name in known.told_by_exif.intersection(before)}
    guessed = guessed_focal_lengths(workspace.database)
    if shared or exif or guessed:
        trials = _CameraTrials(build, cameras.groups, shared, exif, guessed)
        cameras, models = trials.run(cameras, models)
    remembered = {
        "source": first_source,
        "groups": cameras.groups,
        "reason": cameras.reason,
        "without_exif": cameras.without_exif,
        "guess": cameras.guess,
    }
    write_memory(workspace.cameras, remembered)
    return cameras, models


def _median_error(models: Sequence[pycolmap.Reconstruction], names: Collection[str]) -> float:
    return median_error(models[0], names) if models else math.inf


def _num_photos(models: Sequence[pycolmap.Reconstruction]) -> int:
    return int(models[0].num_reg_images()) if models else 0


def _num_observations(models: Sequence[pycolmap.Reconstruction], names: Collection[str]) -> int:
    images = models[0].images.values() if models else ()
    return sum(image.num_points3D for image in images if image.name in names)


def _parted(before: Sequence[Sequence[str]], after: Sequence[Sequence[str]]) -> set[str]:
    """Photos that no longer share the camera of most photos of their group.

    >>> sorted(_parted([["a", "b", "c"], ["d"]], [["a", "b"], ["c"], ["d"]]))
    ['c']
    """
    group_of = {name: index for index, group in enumerate(after) for name in group}
    parted = set()
    for group in before:
        largest = Counter(group_of[name] for name in group).most_common(1)[0][0]
        parted |= {name for name in group if group_of[name] != largest}
    return parted


def _partition(groups: Sequence[Sequence[str]]) -> set[frozenset[str]]:
    """Groups of photos, in whatever order."""
    return {frozenset(group) for group in groups}


def _can_be(model: pycolmap.Reconstruction) -> bool:
    """True if all its cameras can exist: where cameras only turn, all fit."""
    return not any(impossibility(c) or improbability(c) for c in model.cameras.values())


@dataclass(frozen=True)
class _CameraTrials:
    """Makes models again with other cameras.

    Attributes:
        build: makes them.
        first_groups: photos that share a camera at first.
        shared: those that do by their size or EXIF, and of which the user does not say so.
        exif: focal length in pixels of photos that have it from EXIF.
        guessed: photos whose focal length nothing tells.
    """

    build: Build
    first_groups: list[list[str]]
    shared: set[str]
    exif: dict[str, float]
    guessed: set[str]

    def run(self, cameras: CameraGroups, models: _Models) -> tuple[CameraGroups, _Models]:
        """Return the cameras and the models that agree best."""
        is_doubted = self._is_bent(models)
        if self.exif and (is_doubted or self._contradicts_exif(models)):
            first = models
            cameras, models = self._without_exif(cameras, models)
            is_doubted = is_doubted and (models is first or self._is_bent(models))
        first = models
        cameras, models = self._from_wide_guess(cameras, models)
        is_doubted = is_doubted and (models is first or self._is_bent(models))
        if not self.shared or (is_doubted and self._have_other_intrinsics(models)):
            return cameras, models
        first = models
        cameras, models, doubtful = self._split(cameras, models)
        if doubtful or (is_doubted if models is first else self._is_bent(models)):
            # From a model that is bent no way leads to the right one.
            if single := self._of_single_photos(cameras, models):
                cameras, models, doubtful = self._split(*single)
            elif models and not doubtful:
                own = try_own_cameras(models[0], self.shared)
                doubtful = own if own.are_several(self.first_groups) else None
        if doubtful:
            cameras = _doubtful(cameras, doubtful)
        return cameras, models

    @property
    def _doubted(self) -> set[str]:
        """Photos whose cameras may be others."""
        return self.shared | self.exif.keys()

    def _is_bent(self, models: _Models) -> bool:
        if not models:
            return True
        database = self.build.job.workspace.database
        return bool(self._doubted) and is_bent(models[0], database, self._doubted)

    def _doubt(self, own: OwnCameras, models: _Models) -> OwnCameras | None:
        """Return what contradicts the cameras of models; None if the first one is not bent.

        Where photos fit it as well as each other, cameras of their own help those whose lens moves
        (focus, stabilisation).
        """
        if not own.contradicts:
            return None
        database = self.build.job.workspace.database
        ratio = error_over_pairs(models[0], database, self._doubted)
        return None if 0 < ratio < NEARLY_BENT else own  # 0 where matches are too few to tell

    def _have_other_intrinsics(self, models: _Models, own: OwnCameras | None = None) -> bool:
        """True if photos fit another principal point, as cropped ones do, or another lens as well
        as cameras of their own, or better.

        That is found when the camera models are chosen.
        """
        if not models or not self.shared.intersection(
            image.name for image in models[0].images.values()
        ):
            return False
        own = own or try_own_cameras(models[0], self.shared)
        free = try_free_cameras(models[0], self.shared)
        if free.has_other_centre and free.free_error <= own.own_error:
            return True
        return self._have_another_lens(models[0], own)

    def _have_another_lens(self, model: pycolmap.Reconstruction, own: OwnCameras) -> bool:
        """True if photos fit two focal lengths, as stretched ones do, or a fisheye as well as
        cameras of their own, or better."""
        options = self.build.options
        if options.no_refine or options.camera_model != AUTO:  # no camera models are chosen
            return False
        return (
            error_if_stretched(model, self.shared) <= own.own_error
            or error_if_fisheye(model, self.shared) <= own.own_error
        )

    def _contradicts_exif(self, models: _Models) -> bool:
        """True if the model has other focal lengths, or is such that others may be better."""
        registered = {image.name for image in models[0].images.values()} & self.exif.keys()
        wrong = contradicted_focal_lengths(models[0], self.exif)
        if wrong and len(wrong) >= MIN_CONTRADICTED * len(registered):
            return True
        if len(registered) < MIN_REGISTERED * len(self.exif):
            return True
        database = self.build.job.workspace.database
        return are_pairs_uncalibrated(database, self.exif.keys()) and (
            len(registered) < len(self.exif)
            or error_over_pairs(models[0], database, self.exif.keys()) > NEARLY_BENT
        )

    def _without_exif(self, cameras: CameraGroups, models: _Models) -> tuple[CameraGroups, _Models]:
        """Make the models as if there were no EXIF; return them if they are better."""
        others = replace(cameras, without_exif=sorted(self.exif))
        error, num_photos = _median_error(models, self._doubted), _num_photos(models)
        # With the freedom of before what fits better is better; but a few photos fit anything.
        is_possible = bool(models) and _can_be(models[0])
        with self.build.job.workspace.trial() as trial:
            found = self._make(others, trial, math.inf, num_photos)
            has_more = MIN_PHOTOS_KEPT * _num_photos(found or []) >= num_photos
            if found and is_possible and not has_more:
                found = found if _median_error(found, self._doubted) < error else None
            if found:
                self.build.take(others, trial)
                models = found
        wrong = contradicted_focal_lengths(models[0], self.exif) if models else {}
        text = _said_of_exif(self.exif, wrong)
        if found:
            text = text or "the model is better without EXIF's focal length"
            now = _shown(_median_error(found, self._doubted))
            text += f" (median error {now}, {_shown(error)} with it)"
        if text:
            logger.warning("Cameras: %s", text)
        said = "; ".join([cameras.reason, text] if text else [cameras.reason])
        return replace(others if found else cameras, reason=said), models

    def _from_wide_guess(
        self, cameras: CameraGroups, models: _Models
    ) -> tuple[CameraGroups, _Models]:
        """Make models that are poor from a shorter focal length; return them if they are better."""
        names = self.guessed.union(cameras.without_exif)
        if not names or not self._is_poor(models, names):
            return cameras, models
        others = replace(cameras, guess=WIDE_GUESS)
        with self.build.job.workspace.trial() as trial:
            found = self.build.make(others, trial)
            if not self._is_better(found, trial, models, names):
                return cameras, models
            self.build.take(others, trial)
        now, before = (
            f"{_num_photos(some)} photos, {_shown(_median_error(some, names))}"
            for some in (found, models)
        )
        text = (
            f"mapped from a focal length of {WIDE_GUESS} times the longer side on (then {now}; "
            f"{before} from {cameras.guess} times on)"
        )
        logger.info("Cameras: %s", text)
        return replace(others, reason=f"{cameras.reason}; {text}"), found

    def _is_poor(self, models: _Models, names: Collection[str]) -> bool:
        """True if models of photos whose focal length was a guess may have suffered from it."""
        if not models:
            return True
        database = self.build.job.workspace.database
        over_pairs = error_over_pairs(models[0], database, names)
        if _num_photos(models) >= SURE_PHOTOS:
            return over_pairs > BENT
        return over_pairs > MAYBE_BENT or bool(left_out(models, database))

    def _is_better(
        self, found: _Models, trial: Workspace, models: _Models, names: Collection[str]
    ) -> bool:
        """True if models from another guess have more photos, or the same ones far more exactly."""
        if _num_photos(found) < MIN_MODEL_SIZE or not _can_be(found[0]):
            return False
        database = self.build.job.workspace.database
        num_left_out = len(left_out(models, database)), len(left_out(found, trial.database))
        gains = _num_photos(found) - _num_photos(models), num_left_out[0] - num_left_out[1]
        if min(gains) < 0:
            return False
        limit = MAX_LOSS if max(gains) > 0 else MAX_ERROR_RATIO
        if not _median_error(found, names) < limit * _median_error(models, names):
            return False
        was_bent = not models or is_bent(models[0], database, names)
        return was_bent or not is_bent(found[0], trial.database, names)

    def _split(
        self, cameras: CameraGroups, models: _Models
    ) -> tuple[CameraGroups, _Models, OwnCameras | None]:
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
                if own.contradicts and self._have_other_intrinsics(models, own):
                    break
                focal_lengths = dict(own.focal_lengths)
                if not own.contradicts:  # else nothing in the model is right to estimate from
                    database = self.build.job.workspace.database
                    focal_lengths |= own_focal_lengths(models[0], database, self.shared)
            groups = regrouped(self.first_groups, focal_lengths)
            if _partition(groups) == _partition(cameras.groups):  # the models would be the same
                return cameras, models, self._doubt(own, models)
            if not own.contradicts and self._have_another_lens(models[0], own):
                break
            # Fewer cameras than before have less freedom. Where a few photos of many are of another
            # one, they hardly fit anything, so that the median error tells nothing: what is right
            # explains more.
            limit, parted = MAX_LOSS * own.shared_error, set[str]()
            if len(groups) >= len(cameras.groups):
                if own.contradicts:
                    limit = own.shared_error
                else:
                    parted = _parted(cameras.groups, groups)
            least = _num_photos(models)
            others = self._regrouped(cameras, groups, models, limit, least, parted)
            if others is None:
                return cameras, models, self._doubt(own, models)
            cameras, models = others
        return cameras, models, None

    def _of_single_photos(
        self, cameras: CameraGroups, models: _Models
    ) -> tuple[CameraGroups, _Models] | None:
        """Make the models with a camera for each photo; None if they are not clearly better."""
        groups = [
            part
            for group in self.first_groups
            for part in ([[name] for name in group] if self.shared.intersection(group) else [group])
        ]
        limit = MAX_ERROR_RATIO * _median_error(models, self.shared)
        # A few photos may not find their way without knowing the camera; they come back with it.
        least = math.ceil(MIN_PHOTOS_KEPT * _num_photos(models))
        return self._regrouped(cameras, groups, models, limit, least)

    def _regrouped(
        self,
        cameras: CameraGroups,
        groups: list[list[str]],
        models: _Models,
        limit: float,
        num_photos: int,
        parted: Collection[str] = (),
    ) -> tuple[CameraGroups, _Models] | None:
        """Make the models again with other groups of photos that share a camera; None where they
        are no better, or explain hardly more of the photos that are parted from others."""
        before = _median_error(models, self.shared)
        others = replace(cameras, groups=groups)
        with self.build.job.workspace.trial() as trial:
            found = self._make(others, trial, limit, num_photos)
            if found is None:
                return None
            had = _num_observations(models, parted)
            if _num_observations(found, parted) < MIN_GAIN * had:
                return None
            errors = f"median {_median_error(found, self.shared):.2f} px now"
            evidence = f"reprojection errors tell ({errors}, {_shown(before)} before)"
            if parted:
                count = _num_observations(found, parted)
                evidence = f"observations of {len(parted)} of them tell ({count} now, {had} before)"
            others = replace(others, reason=self._reason(groups, found[0], evidence))
            logger.warning("Cameras: %s", others.reason)
            self.build.take(others, trial)
            return others, found

    def _make(
        self, cameras: CameraGroups, trial: Workspace, limit: float, num_photos: int
    ) -> _Models | None:
        """Make the models with other cameras in a workspace of their own.

        Returns:
            None if the median reprojection error is not below a limit in pixels, or the model has
            fewer photos or a camera that hardly exists.
        """
        found = self.build.make(cameras, trial)
        names = self.shared or self._doubted
        if not _median_error(found, names) < limit or _num_photos(found) < num_photos:
            return None
        return found if _can_be(found[0]) else None

    def _reason(
        self, groups: list[list[str]], model: pycolmap.Reconstruction, evidence: str
    ) -> str:
        focal_lengths = {
            name: value for name, value in focal_lengths_of(model).items() if name in self.shared
        }
        reason = (
            f"{len(focal_lengths)} photos of one size or one camera by EXIF are not of one camera, "
            f"as the {evidence}: {len(groups)} camera(s), of focal lengths "
            f"{listed_focal_lengths(groups, focal_lengths)}"
        )
        if any(len(group) == 1 for group in groups):
            reason += f"; this is not certain: {SAFER_CAMERAS}"
        return reason


def _shown(error: float) -> str:
    return f"{error:.2f} px" if error < math.inf else "no model"


def _said_of_exif(exif: Mapping[str, float], wrong: Mapping[str, float]) -> str:
    """Say which focal lengths of EXIF the model contradicts; "" if none."""
    if not wrong:
        return ""
    worst = max(wrong, key=lambda name: abs(math.log(wrong[name] / exif[name])))
    return (
        f"EXIF's focal length is not that of {len(wrong)} photo(s), of {worst} it is "
        f"{wrong[worst]:.0f} px and not {exif[worst]:.0f} px"
    )


def _doubtful(cameras: CameraGroups, own: OwnCameras) -> CameraGroups:
    """Say that the photos may be of other cameras."""
    warning = (
        f"the median reprojection error is {own.shared_error:.2f} px, and {own.own_error:.2f} px "
        "with a camera for each photo: they may be of several cameras, and the model bent: "
        f"{KNOWN_CAMERAS}"
    )
    logger.warning("Cameras: %s", warning)
    return replace(cameras, reason=f"{cameras.reason}; {warning}")
