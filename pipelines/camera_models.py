"""The last steps of `pipelines.sfm`: camera models by evidence, and how sure the poses are."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pycolmap

from pipelines.notes import Steps, read_memory, write_memory
from sfm_matchers import revisions
from sfm_matchers.diagnosis import listed
from sfm_matchers.mapping_new.camera_models import CameraChoice, choose_camera_models
from sfm_matchers.mapping_new.pose_covariances import badly_held, pose_covariances
from sfm_matchers.storage import file_fingerprint, fingerprint

STEP = "camera_models"
MAX_SHOWN = 3


def choose_for_run(
    steps: Steps,
    outputs: Path,
    models: Sequence[pycolmap.Reconstruction],
    known: Collection[str],
    num_threads: int,
    source: str,
) -> tuple[list[pycolmap.Reconstruction], list[CameraChoice]]:
    """Choose the camera models of the models in ``sparse``, and write them there.

    Args:
        steps: of the run.
        outputs: its folder, with the database.
        models: as they lie in ``sparse``.
        known: photos whose cameras are given.
        num_threads: of the adjustment.
        source: the fingerprint of what ``sparse`` is made of.

    Returns:
        The models, and the choices of the first one. A second run takes what is there.
    """
    memory_path, model_dir = outputs / f"{STEP}.json", outputs / "sparse"
    if steps.is_done(STEP, _state(model_dir)):
        return list(models), [CameraChoice(**one) for one in read_memory(memory_path)["choices"]]
    chosen, choices = [], []
    for model in models:
        other, mine = choose_camera_models(
            model,
            camera_ids(model, known),
            database_path=outputs / "database.db",
            num_threads=num_threads,
        )
        chosen.append(other)
        choices.append(mine)
    if any(new is not old for new, old in zip(chosen, models, strict=True)):
        temporary = outputs / "sparse.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        for index, model in enumerate(chosen):
            (temporary / str(index)).mkdir(parents=True)
            model.write(temporary / str(index))
        steps.forget("sparse")
        shutil.rmtree(model_dir)
        os.replace(temporary, model_dir)
        steps.set_done("sparse", source, model_dir)
    first = choices[0] if choices else []
    write_memory(memory_path, {"choices": [asdict(one) for one in first]})
    steps.set_done(STEP, _state(model_dir), memory_path)
    return chosen, first


def _state(model_dir: Path) -> str:
    """The fingerprint of models: another mapping leaves others."""
    paths = sorted(path for path in model_dir.glob("*/*.bin"))
    names = [f"{path.parent.name}/{path.name} {file_fingerprint(path)}" for path in paths]
    return fingerprint(revisions.CAMERA_MODELS, names)


def camera_ids(model: pycolmap.Reconstruction, names: Collection[str]) -> set[int]:
    """Cameras of some photos of a model."""
    return {image.camera_id for image in model.images.values() if image.name in names}


def describe_choices(choices: Sequence[CameraChoice]) -> str:
    """One line for the summary; "" where nothing was looked at."""
    changed = sorted(
        (choice for choice in choices if choice.has_changed), key=lambda one: -one.num_images
    )
    if not changed:
        return (
            f"{choices[0].after} kept: no other predicts held-out points better" if choices else ""
        )
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
