"""A tower whose opposite sides are the same: COLMAP makes one of them, a run tells them apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from sfm_matchers.evaluation.models import compare_models
from sfm_matchers.runs.options import SfmOptions
from sfm_matchers.runs.reconstruct import run
from sfm_matchers.synthetic import Camera, make_scene, write_photos

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_report")]

CAMERA = Camera.from_field_of_view(480, 360)
NUM_PHOTOS = 4  # of each side
SIDES = {"south": -90, "north": 90}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photos of the south side and four of the north side, none between them."""
    folder = tmp_path_factory.mktemp("tower")
    scene = make_scene(1, kind="tower", texture_size=384)
    for seed, (name, degrees) in enumerate(SIDES.items()):
        angles = np.radians(np.linspace(degrees - 25, degrees + 25, 9))
        places = np.column_stack([11 * np.cos(angles), 11 * np.sin(angles), np.full(9, 1.7)])
        walk = np.stack([places, places * [0, 0, 2.2]], axis=1)
        side = replace(scene, walk=walk)
        write_photos(folder, side, NUM_PHOTOS, seed, camera=CAMERA, subfolder=name)
    return folder


def options(photos: Path, outputs: Path, **others: bool) -> SfmOptions:
    return SfmOptions(
        photos / "images", outputs, "sift", pairs="exhaustive", no_longer_tracks=True, **others
    )


def sides(model: pycolmap.Reconstruction) -> set[str]:
    return {image.name.split("/")[0] for image in model.images.values()}


def test_opposite_sides_that_look_alike_are_told_apart(photos: Path, tmp_path: Path) -> None:
    wrong = run(options(photos, tmp_path, no_refine=True))
    assert sides(wrong.models[0]) == set(SIDES)  # COLMAP's own model has both sides in one place
    assert "seem to show two places" in wrong.summary["verdict"]

    result = run(options(photos, tmp_path))
    assert len(result.models) == 2
    for model in result.models:
        (side,) = sides(model)
        errors = compare_models(model, pycolmap.Reconstruction(photos / "truth" / side))
        assert errors.num_registered == NUM_PHOTOS
        assert errors.center_errors.mean() < 0.02  # metres
    told = result.summary["look-alikes"]
    assert any("they look alike, but what stands around differs" in line for line in told.values())
    assert "a photo taken between" in result.summary["models apart"]
    assert "look-alikes" in result.summary["seconds"]

    again = run(options(photos, tmp_path))
    assert again.summary["look-alikes"] == told
    assert again.summary["models apart"] == result.summary["models apart"]

    kept = run(options(photos, tmp_path, keep_all_pairs=True))
    assert sides(kept.models[0]) == set(SIDES)
    assert "look-alikes" not in kept.summary
