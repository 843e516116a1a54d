"""What is to be said of the models of a run."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pycolmap

from sfm_matchers.errors import listed
from sfm_matchers.mapping.adjustment import median_error
from sfm_matchers.mapping.diagnosis import (
    ONLY_TURNED,
    Explanation,
    explain,
    poor_photos,
    read_match_graph,
)
from sfm_matchers.mapping.given_intrinsics import FreeCameras, try_free_cameras
from sfm_matchers.mapping.lenses import FISHEYE, MIN_PHOTOS_BEYOND_RADIAL, PERSPECTIVE
from sfm_matchers.mapping.misplaced import find_misplaced, open_focal_lengths, own_focal_lengths
from sfm_matchers.mapping.pair_fit import Misfit, find_misfit
from sfm_matchers.mapping.shared_cameras import (
    BENT,
    EXACT,
    FEW_PHOTOS,
    MAX_ERROR_RATIO,
    NEARLY_BENT,
    PLAINLY_STRETCHED,
    SAME_FOCAL_LENGTH,
    STRETCHED_ERROR_RATIO,
    are_pairs_uncalibrated,
    error_if_fisheye,
    error_if_stretched,
    error_over_pairs,
    is_bent,
    try_own_cameras,
)
from sfm_matchers.mapping.turning import photos_that_only_turned
from sfm_matchers.photos.cameras import CameraGroups
from sfm_matchers.photos.given_cameras import GivenCamera
from sfm_matchers.photos.intrinsics import improbable_focal_length
from sfm_matchers.runs.camera_trials import KNOWN_CAMERAS, SAFER_CAMERAS
from sfm_matchers.runs.cameras import KnownCameras
from sfm_matchers.runs.mapping import Build
from sfm_matchers.runs.match_graph import describe_match_graph, doubt_about_pairs
from sfm_matchers.runs.options import AUTO
from sfm_matchers.runs.verdict import Verdict, judge_model

logger = logging.getLogger("sfm_matchers.sfm")


@dataclass(frozen=True)
class Findings:
    """What is to be said of the models of a run.

    Attributes:
        faults: what is wrong with photos that have no keypoints.
        explanation: why photos are missing.
        verdict: how good the models are.
        match_graph: further lines for the summary.
    """

    faults: dict[str, str]
    explanation: Explanation
    verdict: Verdict
    match_graph: dict[str, Any]


def look_into(
    build: Build,
    models: Sequence[pycolmap.Reconstruction],
    cameras: KnownCameras,
    groups: CameraGroups,
) -> Findings:
    """Say what is wrong with the models, and with the photos that are not in them.

    Args:
        build: has made them.
        models: the largest first.
        cameras: as known before mapping.
        groups: photos that share a camera in the models.
    """
    job = build.job
    graph = read_match_graph(job.workspace.database, build.pairs, models[0] if models else None)
    faults = poor_photos(graph, job.image_dir, job.mask_dir)
    hint = cameras.panoramas
    if models and cameras.is_guess(groups) and not hint:
        hint = "photos of several cameras need --camera_mode per_image or per_folder"
    explanation = explain(graph, models, faults, hint)
    for line in explanation.details:
        logger.warning("%s", line)
    if explanation.reason:
        logger.log(logging.WARNING if models else logging.ERROR, "%s", explanation.reason)
    turned = photos_that_only_turned(models[0], cameras.fixed) if models else []
    if turned:
        logger.warning("%s at %s", ONLY_TURNED, listed(turned))
    verdict = judge_model(
        models,
        sorted(job.photos),
        build.pairs,
        matcher=str(build.options.matcher),
        device=job.matching.device,
        faults=faults,
        doubt=_doubt(build, models, cameras, groups),
        turned=turned,
        cause=explanation.cause,
        masked=job.masked,
    )
    match_graph = describe_match_graph(job.workspace, models, graph)
    return Findings(faults, explanation, verdict, match_graph)


def _doubt(
    build: Build,
    models: Sequence[pycolmap.Reconstruction],
    cameras: KnownCameras,
    groups: CameraGroups,
) -> str:
    """Why the first model may be wrong, or given intrinsics are if photos are missing; or ""."""
    database = build.job.workspace.database
    registered = {image.name for image in models[0].images.values()} if models else set()
    doubt = _against_given(models[0], database, cameras) if models else ""
    doubt = doubt or _given_denied_by_pairs(database, cameras, build.job.photos.keys() - registered)
    if doubt or not models:
        return doubt
    return (
        cameras.panoramas
        or doubt_about_pairs(build.job.workspace)
        or _about_stretched(models[0], cameras.given)
        or _about_uncertain_cameras(groups)
        or _about_named_cameras(models[0], database, cameras, groups)
        or _about_fisheyes(models[0], cameras.given)
        or about_absurd_cameras(models[0], cameras.given)
        or _about_own_cameras(models[0], database, cameras, groups)
        or _about_misplaced(find_misplaced(models[0], database))
        or _about_misfit(find_misfit(models[0], database), cameras.is_guess(groups))
        or _about_principal_points(models[0], build, cameras)
    )


def _about_uncertain_cameras(groups: CameraGroups) -> str:
    """Say what to try where models with other cameras did not settle which are right; or ""."""
    advice = (text for text in (KNOWN_CAMERAS, SAFER_CAMERAS) if text in groups.reason)
    return next((f"its cameras are uncertain: {text}" for text in advice), "")


def about_absurd_cameras(model: pycolmap.Reconstruction, given: Collection[str]) -> str:
    """Say which photos' estimated focal lengths no lens has, so that the model is wrong; or ""."""
    problems = {
        image.name: improbable_focal_length(model.cameras[image.camera_id])
        for image in model.images.values()
        if image.name not in given
    }
    absurd = {name: problem for name, problem in problems.items() if problem}
    if not absurd:
        return ""
    text = f"the model is wrong at {listed(sorted(absurd))}: {absurd[min(absurd)]}"
    return f"{text}; give one camera to photos that share it (--camera_mode), or leave these out"


def _about_named_cameras(
    model: pycolmap.Reconstruction, database_path: Path, cameras: KnownCameras, groups: CameraGroups
) -> str:
    """Say that photos which share a camera because the user says so are of several; "" if not."""
    named = {name for group in groups.groups if len(group) > 1 for name in group}
    named -= cameras.assumed | cameras.given
    of_named = {image.camera_id for image in model.images.values() if image.name in named}
    if not of_named or any(model.cameras[i].is_spherical() for i in of_named):
        return ""
    own = try_own_cameras(model, named)
    if own.contradicts or (own.are_several(groups.groups) and is_bent(model, database_path, named)):
        evidence = (
            f"the median error is {own.shared_error:.2f} px, and {own.own_error:.2f} px with a "
            "camera for each photo"
        )
    elif zoomed := own_focal_lengths(model, database_path, named):
        evidence = f"{listed(sorted(zoomed))} fit another focal length much better"
    else:
        return ""
    text = f"photos that share a camera are of several, so that the model is wrong: {evidence}; "
    text += "leave away --camera_mode, or try --camera_mode per_image"
    logger.warning("%s", text)
    return text


def _about_stretched(model: pycolmap.Reconstruction, given: Collection[str]) -> str:
    """Say that the pixels of photos are no squares; "" if they are, or such a lens is chosen.

    No camera of few photos gets two focal lengths by itself.
    """
    names = {image.name for image in model.images.values()}.difference(given)
    counts = Counter(image.camera_id for image in model.images.values() if image.name in names)
    if not counts or max(counts.values()) >= MIN_PHOTOS_BEYOND_RADIAL:
        return ""
    error = median_error(model, names)
    stretched = error_if_stretched(
        model, names, num_photos=FEW_PHOTOS, anisotropy=PLAINLY_STRETCHED
    )
    if stretched >= STRETCHED_ERROR_RATIO * error:
        return ""
    text = (
        f"the photos seem to be stretched: the median error is {error:.2f} px, and {stretched:.2f} "
        f"px with two focal lengths; try --camera_model {PERSPECTIVE[2]}"
    )
    logger.warning("%s", text)
    return text


def _about_fisheyes(model: pycolmap.Reconstruction, given: Collection[str]) -> str:
    """Say that photos whose lens is taken for no fisheye are by one; "" if not."""
    names = {image.name for image in model.images.values()}.difference(given)
    error = median_error(model, names)
    if error <= EXACT or (as_fisheye := error_if_fisheye(model, names)) >= MAX_ERROR_RATIO * error:
        return ""
    text = (
        f"the lens seems to be a fisheye: the median error is {error:.2f} px, and {as_fisheye:.2f} "
        f"px with one; try --camera_model {FISHEYE[2]}"
    )
    logger.warning("%s", text)
    return text


def _about_own_cameras(
    model: pycolmap.Reconstruction, database_path: Path, cameras: KnownCameras, groups: CameraGroups
) -> str:
    """Say that photos with a camera each see too little to estimate it from; "" if none."""
    own = {group[0] for group in groups.groups if len(group) == 1} - cameras.given
    remedy = "give one camera to photos that share it (--camera_mode), or leave these out"
    if found := open_focal_lengths(model, database_path, own):
        mine, others = found[min(found)]
        return (
            f"probably at a wrong place: {listed(sorted(found))}, whose matches fit a focal length "
            f"of {others:.0f} px as well as {mine:.0f} px: {remedy}"
        )
    return ""


def _about_misfit(misfit: Misfit | None, is_guess: bool) -> str:
    """Say that verified pairs contradict a model, whose cameras may be guesses; "" if none do."""
    if misfit is None:
        return ""
    cameras = "--camera_mode per_image if they may be of several cameras, " if is_guess else ""
    return (
        f"the model is probably bent: {100 * misfit.share:.0f} % of the matches are of pairs that "
        f"fit it much worse than each other ({' and '.join(misfit.worst)}: {misfit.error:.2f} px, "
        f"{misfit.own_error:.2f} px by themselves): check what is said of cameras, try {cameras}"
        "--mapper global, or photos between those"
    )


def _about_misplaced(denied: Mapping[str, float]) -> str:
    """Say which photos lie elsewhere than most of their matches say; "" if none."""
    if not denied:
        return ""
    share = 100 * min(denied.values())
    return (
        f"probably at a wrong place: {listed(sorted(denied))} (as few as {share:.0f} % of the "
        "matches agree), unless what they show has moved: give photos of another camera or zoom "
        "theirs by --cameras, turn mirrored ones back, or leave them out"
    )


def _about_principal_points(
    model: pycolmap.Reconstruction, build: Build, cameras: KnownCameras
) -> str:
    """Say that photos fit another principal point, which a named camera model keeps; "" if not."""
    names = {
        image.name
        for image in model.images.values()
        if image.name not in cameras.given and not model.cameras[image.camera_id].is_spherical()
    }
    if build.options.camera_model == AUTO or build.options.no_refine or not names:
        return ""
    free = try_free_cameras(model, names)
    if not free.has_other_centre:
        return ""
    text = f"{_some_photos(free.photos, model)} fit {_what_fits(free)}: if they are cropped, "
    text += f"--camera_model {AUTO} finds it"
    logger.warning("%s", text)
    return text


def _against_given(
    model: pycolmap.Reconstruction, database_path: Path, cameras: KnownCameras
) -> str:
    """Say that the given intrinsics are not those of the photos; "" if they may be.

    Those that are only a start are looked at too: their principal point stays, and from a wrong
    focal length not every way leads to the right one.
    """
    photos: dict[int, list[str]] = {}
    for image in model.images.values():
        is_given = bool(cameras.options.of(image.name).params)
        if is_given and not model.cameras[image.camera_id].is_spherical():
            photos.setdefault(image.camera_id, []).append(image.name)
    if not photos:
        return ""
    effect = "the model is bent"
    free = try_free_cameras(model, {name for names in photos.values() for name in names})
    if free.contradicts:
        names, error = free.photos, free.given_error
        if free.error_ratio >= MAX_ERROR_RATIO:  # turned as much, the photos fit nearly as well
            degrees = math.degrees(math.atan2(free.centre_offset, free.given.mean_focal_length()))
            effect = f"rotations are {degrees:.1f} degrees off"
        instead = f"{free.free_error:.2f} px with {_what_fits(free)}"
    else:  # where a model is bent much, no adjustment leads out of it
        errors = {i: error_over_pairs(model, database_path, photos[i]) for i in photos}
        worst = max(errors, key=errors.__getitem__)
        known = cameras.fixed.intersection(photos[worst])
        is_denied = errors[worst] > NEARLY_BENT and are_pairs_uncalibrated(database_path, known)
        if not is_denied and errors[worst] <= BENT:
            return ""
        names, error = sorted(photos[worst]), median_error(model, photos[worst])
        instead = f"{error / errors[worst]:.2f} px between two photos each"
    text = (
        f"the given intrinsics contradict {_some_photos(names, model)}, so that {effect}: "
        f"the median error is {error:.2f} px, and {instead}; check the parameters, or leave them "
        "away"
    )
    logger.warning("%s", text)
    return text


def _what_fits(free: FreeCameras) -> str:
    """Say which intrinsics fit instead of given ones."""
    given, found = free.given.mean_focal_length(), free.found.mean_focal_length()
    parts = []
    if abs(found / given - 1) > SAME_FOCAL_LENGTH:
        parts.append(f"a focal length of {found:.0f} instead of {given:.0f} px")
    if free.has_other_centre:
        x, y = free.found.params[list(free.found.principal_point_idxs())]
        parts.append(f"a principal point {free.centre_offset:.0f} px away, at ({x:.0f}, {y:.0f})")
    return " and ".join(parts) or "another distortion or principal point"


def _given_denied_by_pairs(database_path: Path, cameras: KnownCameras, missing: Set[str]) -> str:
    """Say that photos are missing whose verified pairs deny the given intrinsics; "" if none."""
    photos: dict[GivenCamera, list[str]] = {}
    for name in cameras.fixed:
        photos.setdefault(cameras.options.of(name), []).append(name)
    for names in photos.values():
        if not missing.isdisjoint(names) and are_pairs_uncalibrated(database_path, names):
            text = (
                f"the given intrinsics contradict {listed(sorted(names))}: their verified pairs "
                "fit better without them; check the parameters, or leave them away"
            )
            logger.warning("%s", text)
            return text
    return ""


def _some_photos(names: Sequence[str], model: pycolmap.Reconstruction) -> str:
    return "the photos" if len(names) == model.num_reg_images() else listed(names)
