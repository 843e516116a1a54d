"""Camera models chosen by evidence.

A model that was mapped with SIMPLE_RADIAL is adjusted again with RADIAL, OPENCV, FULL_OPENCV and,
of wide or strongly distorting lenses, with the fisheye models. What counts is the error of
observations that were held out, a third of each longer track: points, poses and intrinsics are
estimated without them, so that freedom without need does not pay. A camera keeps the simpler model
unless the other one is better by a margin for each parameter, beyond chance, and is a lens that
can be: rays and pixels one to one inside the photo, the principal point near the middle (or of
cropped photos, by a clear gain), observations near the border. A few photos of a camera tell of
radial distortion only.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pycolmap
from numpy.typing import NDArray

from sfm_matchers.files.colmap_database import quiet_colmap
from sfm_matchers.mapping.adjustment import (
    MIN_ROBUST_SCALE,
    adjust_robustly,
    place_points,
    robust_adjustment,
    robust_scale,
    solve_robustly,
)
from sfm_matchers.mapping.held_out import (
    HIGHLY_SIGNIFICANT,
    is_better,
    is_clearly_better,
    split_observations,
)
from sfm_matchers.mapping.lenses import (
    FISHEYE,
    LADDERS,
    MIN_PHOTOS_BEYOND_RADIAL,
    PERSPECTIVE,
    converted,
    implausibility,
    is_off_centre,
    is_rare,
    may_be_fisheye,
    num_refined,
    reaches_border,
)
from sfm_matchers.mapping.shared_cameras import error_over_pairs

FloatArray = NDArray[np.float64]

# Change of the cost, relative, at which a trial ends: far below the margin.
TOLERANCE = 1e-5
MIN_HELD_OUT = 100  # observations of a camera; fewer tell nothing
# Of the photos: where fewer are of such cameras, principal points, which all cameras get or none,
# must be clearly better, as those of cropped photos are.
MOST = 0.75
SIMPLEST = {PERSPECTIVE[0], FISHEYE[0]}
# Median error over that of the verified pairs, beyond which cameras of stretched or cropped photos
# are not believed: of such photos it is 0.7 to 1.3, where no one camera took them 1.5 to 3.5.
MAX_OVER_PAIRS = 1.4
NO_ONE_CAMERA = "the pairs of photos fit much better by themselves: they are of no one camera"
# Where this many times as many observations fit with the chosen cameras, they may tell more.
WORTH_A_SECOND_LOOK = 1.01


@dataclass(frozen=True)
class CameraChoice:
    """The model of one camera.

    Attributes:
        camera_id: of the model.
        num_images: registered photos of this camera.
        before: name of its camera model before.
        after: the chosen one.
        refines_principal_point: the principal point was adjusted too.
        held_out_before: robust root mean square of the held-out observations' errors in pixels.
        held_out_after: with the chosen one.
        reason: why no other was taken, where one was refused; "" otherwise.
    """

    camera_id: int
    num_images: int
    before: str
    after: str
    refines_principal_point: bool
    held_out_before: float
    held_out_after: float
    reason: str = ""

    @property
    def has_changed(self) -> bool:
        """True if the camera got another model, or another principal point."""
        return self.before != self.after or self.refines_principal_point

    def refused(self, why: str) -> CameraChoice:
        """The choice undone."""
        if not self.has_changed:
            return self
        return replace(
            self,
            after=self.before,
            refines_principal_point=False,
            held_out_after=self.held_out_before,
            reason=f"{self.after} refused: {why}",
        )

    def summary(self) -> str:
        """One line for a person."""
        name = self.after + (" with principal point" if self.refines_principal_point else "")
        line = f"camera {self.camera_id} ({self.num_images} photos): {name}"
        if self.has_changed:
            line += (
                f" instead of {self.before}, held-out error {self.held_out_before:.3f} -> "
                f"{self.held_out_after:.3f} px"
            )
        return line + (f" ({self.reason})" if self.reason else "")


def choose_camera_models(
    model: pycolmap.Reconstruction,
    fixed_cameras: Collection[int] = (),
    *,
    database_path: Path | None = None,
    num_threads: int = 1,
    is_draft: bool = False,
) -> tuple[pycolmap.Reconstruction, list[CameraChoice]]:
    """Choose the camera model of each camera, and adjust the model with it.

    Args:
        model: left as it is. Cameras of other models than `PERSPECTIVE` and `FISHEYE` keep theirs:
            somebody chose them, or they are panoramas.
        fixed_cameras: ids of cameras with known intrinsics, which stay as they are.
        database_path: the database it was mapped from. Observations near the border that did not
            fit before are taken from there.
        num_threads: of the adjustment.
        is_draft: the model will be adjusted again, so that a rough adjustment is enough.

    Returns:
        The model, `model` itself if nothing changes, and a choice for each camera that was looked
        at; one that too few observations tell something of is not among them.
    """
    last = _LastAdjustment(fixed_cameras, num_threads, is_draft=is_draft)
    chosen, choices = _chosen(model, database_path, last)
    if database_path is not None and _is_rare_in_vain(chosen, choices, database_path):
        chosen, choices = _chosen(model, database_path, replace(last, may_be_rare=False))
        if _is_rare_in_vain(chosen, choices, database_path):
            return model, [choice.refused(NO_ONE_CAMERA) for choice in choices]
    if chosen.num_reg_images() < model.num_reg_images():
        return model, [choice.refused("photos were lost") for choice in choices]
    return chosen, choices


def _chosen(
    model: pycolmap.Reconstruction, database_path: Path | None, last: _LastAdjustment
) -> tuple[pycolmap.Reconstruction, list[CameraChoice]]:
    """Choose, and adjust; `model` itself without a change."""
    chosen, choices = _choose(model, last)
    if chosen is model:
        return model, choices
    # Some points are still those of the cameras before, but it converges from there.
    last.adjust(chosen, choices, robust_scale(model))
    if database_path is None:
        return chosen, choices
    return _look_again(chosen, choices, database_path, last)


def _is_rare_in_vain(
    model: pycolmap.Reconstruction, choices: Sequence[CameraChoice], database_path: Path
) -> bool:
    """Whether cameras that are rare were chosen, and photos fit them much worse than their pairs.

    Where no one camera took the photos (each cut out elsewhere by a stabilisation, or exposed row
    by row), any freedom gains a little, and level photos hardly tell two focal lengths.
    """
    rare = {
        choice.camera_id
        for choice in choices
        if choice.has_changed and is_rare(model.cameras[choice.camera_id])
    }
    names = {image.name for image in model.images.values() if image.camera_id in rare}
    return bool(names) and error_over_pairs(model, database_path, names) > MAX_OVER_PAIRS


def _look_again(
    chosen: pycolmap.Reconstruction,
    choices: list[CameraChoice],
    database_path: Path,
    last: _LastAdjustment,
) -> tuple[pycolmap.Reconstruction, list[CameraChoice]]:
    """Take the observations that fit the chosen cameras, and choose again if they are many."""
    completed = copy.deepcopy(chosen)
    complete_tracks(completed, database_path)
    before = chosen.compute_num_observations()
    if completed.compute_num_observations() <= WORTH_A_SECOND_LOOK * before:
        return chosen, choices
    again, second = _choose(completed, last)
    if again is not completed:
        choices = _joined(choices, second)
    last.adjust(again, choices, robust_scale(chosen))
    return again, choices


def _choose(
    model: pycolmap.Reconstruction, last: _LastAdjustment
) -> tuple[pycolmap.Reconstruction, list[CameraChoice]]:
    """Choose; the model with the chosen cameras, not adjusted yet, or itself without a change."""
    used = {image.camera_id for image in model.images.values() if image.has_pose}
    free = {
        camera_id
        for camera_id in used.difference(last.fixed_cameras)
        if model.cameras[camera_id].model.name in LADDERS
    }
    trials = _Trials(model, free, last.num_threads, may_be_rare=last.may_be_rare)
    if not trials.camera_ids:
        return model, []
    trials.run()
    choices = trials.choices()
    if not any(choice.has_changed for choice in choices):
        return model, choices
    chosen = copy.deepcopy(model)
    for best in trials.best.values():
        _set_camera(chosen, best.camera)
    _place_as(chosen, trials.state)
    return chosen, choices


@dataclass(frozen=True)
class _LastAdjustment:
    """The adjustment of a model with chosen cameras; attributes as of `choose_camera_models`.

    Attributes:
        may_be_rare: the cameras may be those of stretched or cropped photos.
    """

    fixed_cameras: Collection[int]
    num_threads: int
    is_draft: bool
    may_be_rare: bool = True

    def adjust(
        self, model: pycolmap.Reconstruction, choices: Sequence[CameraChoice], scale: float
    ) -> None:
        """Adjust under a loss of a scale in pixels; refine the principal points of all free cameras
        if they were chosen. In a draft poses and cameras stay as the trials have adjusted them."""
        if self.is_draft:
            place_points(model, self.num_threads, scale)
            return
        refines = any(choice.refines_principal_point for choice in choices)
        adjustment = robust_adjustment(self.num_threads, refines_principal_point=refines)
        constant = set(self.fixed_cameras)
        if refines:  # the principal points of those that were looked at only
            constant = set(model.cameras).difference(choice.camera_id for choice in choices)
        constant = constant.intersection(model.cameras)
        adjust_robustly(model, adjustment, constant, scale)


def _joined(first: Sequence[CameraChoice], second: Sequence[CameraChoice]) -> list[CameraChoice]:
    """The choices of a second look at a model whose cameras were chosen before.

    It has more observations, which the first look's errors know nothing of. So both errors are of
    the look that chose last.
    """
    later = {choice.camera_id: choice for choice in second if choice.has_changed}
    return [
        replace(
            later.get(choice.camera_id, choice),
            before=choice.before,
            refines_principal_point=choice.refines_principal_point
            or any(other.refines_principal_point for other in second),
        )
        for choice in first
    ]


def complete_tracks(model: pycolmap.Reconstruction, database_path: Path) -> None:
    """Add the verified matches that fit the poses and cameras of a model now."""
    names = {image.name for image in model.images.values() if image.has_pose}
    with quiet_colmap(), pycolmap.Database.open(database_path) as database:
        cache_options = pycolmap.DatabaseCacheOptions(image_names=names)
        cache = pycolmap.DatabaseCache.create(database, cache_options)
        graph = cache.correspondence_graph
        manager = pycolmap.ObservationManager(model, graph)
        triangulator = pycolmap.IncrementalTriangulator(graph, model, manager)
        options = pycolmap.IncrementalTriangulatorOptions(random_seed=0)
        triangulator.complete_all_tracks(options)
        triangulator.merge_all_tracks(options)
        triangulator.retriangulate(options)
        for image_id in sorted(model.reg_image_ids()):
            triangulator.triangulate_image(options, image_id)


def _place_as(model: pycolmap.Reconstruction, part: pycolmap.Reconstruction) -> None:
    """Take the poses and points of a part of a model that was adjusted with its cameras."""
    for image_id in part.reg_image_ids():
        image = model.images[image_id]
        frame = image.frame
        if frame is not None and image.is_ref_in_frame():
            frame.set_cam_from_world(image.camera_id, part.images[image_id].cam_from_world())
    points3D = model.points3D
    for point_id, point in part.points3D.items():
        points3D[point_id].xyz = point.xyz


def _set_camera(model: pycolmap.Reconstruction, camera: pycolmap.Camera) -> None:
    mine = model.cameras[camera.camera_id]
    mine.model = camera.model
    mine.params = camera.params.tolist()


@dataclass
class _Best:
    """The best so far of one camera; `losses` (H,) of its held-out observations, square pixels."""

    camera: pycolmap.Camera
    losses: FloatArray
    first_loss: float
    reason: str = ""


class _Trials:
    """Adjusts a part of a model without the held-out observations, with one model of the cameras
    after the other."""

    def __init__(
        self,
        model: pycolmap.Reconstruction,
        camera_ids: Collection[int],
        num_threads: int,
        *,
        may_be_rare: bool = True,
    ) -> None:
        self.num_threads, self.may_be_rare = num_threads, may_be_rare
        self.state, self.held_out = split_observations(model)
        self.camera_ids = [
            camera_id
            for camera_id in sorted(camera_ids)
            if (self.held_out.camera_ids == camera_id).sum() >= MIN_HELD_OUT
        ]
        self.constant = set(model.cameras).difference(self.camera_ids)
        self.refines_centre = False
        self.originals = {i: copy.copy(model.cameras[i]) for i in self.camera_ids}
        self.num_images = Counter(image.camera_id for image in self.state.images.values())
        self.beyond_radial = {  # cameras
            i for i in self.camera_ids if self.num_images[i] >= MIN_PHOTOS_BEYOND_RADIAL
        }
        self.best: dict[int, _Best] = {}
        self.simple = self.state  # with two coefficients at most, before there are tangential ones
        # A richer model was better, even if by little or refused, or was chosen before.
        self.is_hinted = not {one.model.name for one in self.originals.values()} <= SIMPLEST
        self.scale = MIN_ROBUST_SCALE
        if self.camera_ids:
            self.scale = max(self.scale, 2 * float(np.median(self.held_out.errors(model))))
        self.reaches_border = {
            i: reaches_border(self.held_out.pixels[self.held_out.camera_ids == i], camera)
            for i, camera in self.originals.items()
        }

    def run(self) -> None:
        """Try all camera models, the simpler ones first, then with the principal points too."""
        self._measure()
        self._climb(PERSPECTIVE)
        self._climb(FISHEYE)
        has_photos = self.state.num_reg_images() >= MIN_PHOTOS_BEYOND_RADIAL
        if has_photos and (self.is_hinted or self._is_centre_hinted()):
            self._try_principal_points()
        if self.is_hinted and any(map(self._may_be_fisheye, self.camera_ids)):
            self._try_fisheye()
        if len(self._models()) > 1:
            self._measure()
            self._drop_what_gains_nothing()

    def _models(self) -> set[str]:
        return {best.camera.model.name for best in self.best.values()}

    def _measure(self) -> None:
        """Adjust with the best models so far, of which cameras have had others beside them."""
        starts = {i: best.camera for i, best in self.best.items()} or self.originals
        self.state = self._adjusted(starts)
        for i in self.camera_ids:
            camera, losses = copy.copy(self.state.cameras[i]), self._losses(self.state, i)
            if i in self.best:
                self.best[i] = replace(self.best[i], camera=camera, losses=losses)
            else:
                self.best[i] = _Best(camera, losses, float(losses.mean()))

    def _drop_what_gains_nothing(self) -> None:
        """Undo models that were better only as long as other cameras had other ones too."""
        if self.refines_centre:  # of all cameras or none, which has been weighed over all of them
            return
        for i, best in self.best.items():
            original, name = self.originals[i], best.camera.model.name
            if name != original.model.name and best.losses.mean() >= best.first_loss:
                reason = f"{name} refused: it predicts no better beside the other cameras"
                self.best[i] = replace(best, camera=original, reason=reason)
                self._measure()

    def _climb(self, ladder: Sequence[str]) -> None:
        """Try the richer models of a ladder; the richest perspective one only if it is near."""
        for model in ladder[1:]:
            if model != PERSPECTIVE[-1] or PERSPECTIVE[-2] in self._models():
                self._attempt(model)

    def _attempt(self, model: str) -> None:
        """Adjust all cameras that may have a model with it; those that gain by it keep it."""
        starts = {i: self._start(i, model) for i in self.camera_ids}
        changed = [i for i in self.camera_ids if starts[i].model != self.best[i].camera.model]
        if not changed:
            return
        trial = self._adjusted(starts)
        if not self.refines_centre and model in (PERSPECTIVE[1], FISHEYE[1]):
            self.simple = trial
        for i in changed:
            best, camera = self.best[i], copy.copy(trial.cameras[i])
            losses = self._losses(trial, i)
            num_more = num_refined(camera) - num_refined(best.camera)
            self.is_hinted |= is_better(losses, best.losses, 0, significant=1)
            if not is_better(losses, best.losses, num_more):
                continue
            # Photos are stretched rarely, and it is plain then.
            is_plain = is_clearly_better(losses, best.losses, num_more)
            is_stretched = self.may_be_rare and is_plain
            if problem := self._problem(i, camera, is_stretched=is_stretched):
                best.reason = f"{model} refused: {problem}"
            else:
                self.best[i] = replace(best, camera=camera, losses=losses, reason="")
                self.state = trial

    def _start(self, camera_id: int, model: str) -> pycolmap.Camera:
        """The best camera so far, in another model if it may have that."""
        camera = self.best[camera_id].camera
        ladder = LADDERS[camera.model.name]
        is_next = model in ladder and ladder.index(model) > ladder.index(camera.model.name)
        is_next = is_next and (camera_id in self.beyond_radial or model in ladder[:2])
        return converted(camera, model) if is_next else camera

    def _tell_centres(self) -> bool:
        """True if most photos are of cameras with enough of them for principal points."""
        photos = {i: self.num_images[i] for i in self.camera_ids}
        return sum(photos[i] for i in self.beyond_radial) >= MOST * sum(photos.values())

    def _may_be_fisheye(self, camera_id: int) -> bool:
        camera = self.best[camera_id].camera
        return camera.model.name in PERSPECTIVE and may_be_fisheye(camera)

    def _try_fisheye(self) -> None:
        """Try the fisheye models for the cameras of which it may be."""
        plain, plain_state = self.best, self.state
        mine = set(filter(self._may_be_fisheye, self.camera_ids))
        self.best = {
            i: replace(best, camera=converted(best.camera, FISHEYE[0])) if i in mine else best
            for i, best in plain.items()
        }
        self._measure()
        plain_simple, self.simple = self.simple, self.state
        self._climb(FISHEYE)
        for i in self.camera_ids:
            camera, before = self.best[i].camera, plain[i]
            # Where both are as good, a lens is rather no fisheye.
            num_more = max(0, num_refined(camera) - num_refined(before.camera))
            losses = self.best[i].losses
            is_worth = i in mine and is_better(losses, before.losses, num_more, HIGHLY_SIGNIFICANT)
            if not is_worth or self._problem(i, camera):
                self.best[i] = before
        if not self._models().intersection(FISHEYE):
            self.state, self.simple = plain_state, plain_simple
        elif self.refines_centre:
            self._drop_principal_points()
        elif self.state.num_reg_images() >= MIN_PHOTOS_BEYOND_RADIAL:
            self._try_principal_points()

    def _problem(
        self, camera_id: int, camera: pycolmap.Camera, *, is_stretched: bool = True
    ) -> str:
        """Why no camera is like that; "" where one may be.

        Whether photos are stretched was looked at when the model was tried first.
        """
        has_more = num_refined(camera) > num_refined(self.originals[camera_id])
        if (has_more or self.refines_centre) and not self.reaches_border[camera_id]:
            return "the observations cover the middle of the photos only"
        is_cropped = self.may_be_rare and self.refines_centre and is_off_centre(camera)
        return implausibility(camera, is_cropped=is_cropped, is_stretched=is_stretched)

    def _try_principal_points(self) -> None:
        """Try all again with principal points adjusted too.

        COLMAP does so with all free cameras, or with none. Tangential distortion and a principal
        point off the middle look much alike, so this begins without the former.
        """
        plain, plain_state = self.best, self.state
        self.refines_centre, self.state, self.best = True, self.simple, {}
        for i, best in plain.items():
            ladder = LADDERS[best.camera.model.name]
            rung = min(1, ladder.index(best.camera.model.name))
            simple = copy.copy(self.simple.cameras[i])
            simple = simple if simple.model.name in ladder else best.camera
            camera = converted(simple, ladder[rung])
            self.best[i] = replace(best, camera=camera)
        self._measure()
        for ladder in {LADDERS[model] for model in self._models()}:
            self._climb(ladder[1:])
        before, after = self._all_losses(plain), self._all_losses(self.best)
        more = {
            i: 2 + num_refined(best.camera) - num_refined(plain[i].camera)
            for i, best in self.best.items()
        }
        is_plausible = not any(
            self._problem(i, best.camera) or self._is_hardly_cropped(i, plain[i], more[i])
            for i, best in self.best.items()
        )
        is_worth = is_better if self._tell_centres() else is_clearly_better
        if not is_plausible or not is_worth(after, before, float(np.mean(list(more.values())))):
            self.refines_centre, self.state, self.best = False, plain_state, plain

    def _is_hardly_cropped(self, camera_id: int, plain: _Best, num_more: float) -> bool:
        """True if a principal point is far from the middle, as of cropped photos, for little."""
        best = self.best[camera_id]
        return is_off_centre(best.camera) and not is_clearly_better(
            best.losses, plain.losses, num_more
        )

    def _is_centre_hinted(self) -> bool:
        """True if other principal points are better, even if by little."""
        self.refines_centre = True
        trial = self._adjusted({i: best.camera for i, best in self.best.items()})
        self.refines_centre = False
        losses = np.concatenate([self._losses(trial, i) for i in self.camera_ids])
        return is_better(losses, self._all_losses(self.best), 0, significant=HIGHLY_SIGNIFICANT)

    def _drop_principal_points(self) -> None:
        """Leave the principal points where they were, unless that is clearly worse."""
        moved, moved_state = self.best, self.state
        self.refines_centre, self.best = False, {}
        for i, best in moved.items():
            camera, middle = copy.copy(best.camera), list(best.camera.principal_point_idxs())
            params = camera.params.copy()
            original = self.originals[i]
            params[middle] = original.params[list(original.principal_point_idxs())]
            camera.params = params
            self.best[i] = replace(best, camera=camera)
        self._measure()
        if is_better(self._all_losses(moved), self._all_losses(self.best), 2):
            self.refines_centre, self.state, self.best = True, moved_state, moved

    def _all_losses(self, best: Mapping[int, _Best]) -> FloatArray:
        return np.concatenate([best[i].losses for i in self.camera_ids])

    def _adjusted(self, cameras: Mapping[int, pycolmap.Camera]) -> pycolmap.Reconstruction:
        trial = copy.deepcopy(self.state)
        for camera in cameras.values():
            _set_camera(trial, camera)
        adjustment = robust_adjustment(
            self.num_threads, refines_principal_point=self.refines_centre
        )
        # Points that have lost observations move far: they converge sooner by themselves.
        adjustment.ceres.solver_options.use_inner_iterations = not self.best
        solve_robustly(trial, adjustment, self.constant, self.scale, TOLERANCE)
        return trial

    def _losses(self, trial: pycolmap.Reconstruction, camera_id: int) -> FloatArray:
        mine = self.held_out.camera_ids == camera_id
        return self.held_out.losses(trial, self.scale)[mine]

    def choices(self) -> list[CameraChoice]:
        """What came out, by camera."""
        return [
            CameraChoice(
                i,
                self.num_images[i],
                self.originals[i].model.name,
                best.camera.model.name,
                self.refines_centre,
                float(np.sqrt(best.first_loss)),
                float(np.sqrt(best.losses.mean())),
                best.reason,
            )
            for i, best in self.best.items()
        ]
