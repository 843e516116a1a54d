"""The last steps of `pipelines.sfm`: camera models by evidence, and how sure the poses are."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pycolmap

from sfm_matchers.errors import listed
from sfm_matchers.mapping.camera_models import CameraChoice, choose_camera_models
from sfm_matchers.mapping.pose_covariances import badly_held, pose_covariances
from sfm_matchers.mapping.registration import left_out, register_missing

MAX_SHOWN = 3


def choose_for_models(
    models: Sequence[pycolmap.Reconstruction],
    known: Collection[str],
    database_path: Path,
    num_threads: int,
    *,
    is_draft: bool = False,
) -> tuple[list[pycolmap.Reconstruction], list[CameraChoice]]:
    """Choose the camera models of each model; photos that were left out are tried again with them.

    Args:
        models: the largest first.
        known: photos whose cameras are given.
        database_path: with the matches that they are made of.
        num_threads: of the adjustment.
        is_draft: the models will be adjusted again.

    Returns:
        The models, and the choices of the first one.
    """
    unregistered = left_out(models, database_path)
    better, first = [], list[CameraChoice]()
    for index, model in enumerate(models):
        fixed = camera_ids(model, known)
        chosen, choices = choose_camera_models(
            model,
            fixed,
            database_path=database_path,
            num_threads=num_threads,
            is_draft=is_draft,
        )
        if chosen is not model and unregistered:
            chosen = register_missing(
                chosen,
                unregistered,
                database_path,
                fixed,
                refines_principal_point=any(one.refines_principal_point for one in choices),
                num_threads=num_threads,
            )
            unregistered = unregistered.difference(image.name for image in chosen.images.values())
        better.append(chosen)
        first = first if index else choices
    return better, first


def camera_ids(model: pycolmap.Reconstruction, names: Collection[str]) -> set[int]:
    """Cameras of some photos of a model."""
    return {image.camera_id for image in model.images.values() if image.name in names}


def describe_choices(choices: Sequence[CameraChoice]) -> str:
    """One line for the summary; "" where nothing was looked at."""
    changed = sorted(
        (choice for choice in choices if choice.has_changed), key=lambda one: -one.num_images
    )
    if not changed:
        if not choices:
            return ""
        refused = next((choice.reason for choice in choices if choice.reason), "")
        return f"{choices[0].after} kept: {refused or 'no other predicts held-out points better'}"
    shown = [choice.summary() for choice in changed[:MAX_SHOWN]]
    if len(changed) > MAX_SHOWN:
        shown.append(f"{len(changed) - MAX_SHOWN} more")
    if len(choices) > len(changed):
        shown.append(f"{len(choices) - len(changed)} unchanged")
    return "; ".join(shown)


def describe_covariances(
    model: pycolmap.Reconstruction, known: Collection[str], choices: Sequence[CameraChoice]
) -> dict[str, str]:
    """Lines for the summary: how sure the poses are, and which photos are badly held."""
    covariances = pose_covariances(
        model,
        camera_ids(model, known),
        refines_principal_point=any(choice.refines_principal_point for choice in choices),
    )
    if not covariances:
        return {}
    center = np.median([covariance.center for covariance in covariances.values()])
    rotation = np.median([covariance.rotation for covariance in covariances.values()])
    lines = {
        "pose uncertainty": f"centres {100 * center:.3f} % of the extent, rotations "
        f"{rotation:.3f} degrees (median standard deviation, by the noise of the keypoints alone)"
    }
    if badly := badly_held(covariances):
        worst = 100 * covariances[badly[0]].center
        lines["badly held photos"] = f"{listed(badly)}: up to {worst:.2g} % of the extent"
    return lines
