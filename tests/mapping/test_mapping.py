"""From verified matches to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest

from sfm_matchers.choices import MAPPERS
from sfm_matchers.evaluation.models import compare_models
from sfm_matchers.mapping.mapper import reconstruct


def write_database(path: Path, seed: int) -> pycolmap.Reconstruction:
    """Eight photos of 150 points, a tenth of them seen 2.5 pixels off; returns the truth."""
    pycolmap.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_frames_per_rig, options.num_points3D = 1, 8, 150
    options.num_points2D_without_point3D = 0
    options.camera_has_prior_focal_length = True
    with pycolmap.Database.open(path) as database:
        truth = pycolmap.synthesize_dataset(options, database)
        for image in database.read_all_images():
            keypoints = database.read_keypoints(image.image_id)
            keypoints[:, :2] += rng.normal(0, 0.2, (len(keypoints), 2))
            off = rng.random(len(keypoints)) < 0.1
            keypoints[off, :2] += rng.choice([-2.5, 2.5], (off.sum(), 2))
            database.update_keypoints(image.image_id, keypoints)
    return truth


def map_database(folder: Path, **options: Any) -> pycolmap.Reconstruction:
    return reconstruct(folder / "database.db", folder, folder / "sparse", **options)[0]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("mapper", "gain"),
    [("incremental", 0.6), ("hierarchical", 0.6), ("global", 1.0)],  # the last has Huber's loss
)
def test_observations_some_pixels_off_hardly_count(
    seed: int, mapper: str, gain: float, tmp_path: Path
) -> None:
    truth = write_database(tmp_path / "database.db", seed)

    def error(robust: bool) -> float:
        model = map_database(tmp_path, mapper=mapper, robust=robust)
        assert model.num_reg_images() == 8
        stored = pycolmap.Reconstruction(tmp_path / "sparse" / "0")
        assert (stored.image(1).projection_center() == model.image(1).projection_center()).all()
        return compare_models(model, truth).center_errors.mean()

    assert error(robust=True) < gain * error(robust=False)


def test_where_there_is_no_model_colmap_says_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_database(tmp_path / "database.db", 0)
    with pycolmap.Database.open(tmp_path / "database.db") as database:
        database.clear_two_view_geometries()
    assert reconstruct(tmp_path / "database.db", tmp_path, tmp_path / "sparse") == []
    assert capfd.readouterr() == ("", "")


def test_the_robust_adjustment_refines_only_what_the_mapper_refines(tmp_path: Path) -> None:
    truth = write_database(tmp_path / "database.db", 0)

    def params(**options: Any) -> np.ndarray:
        return map_database(tmp_path, robust=True, **options).cameras[1].params

    known = truth.cameras[1].params
    assert (params() != known).any()
    for mapper in MAPPERS:
        assert (params(mapper=mapper, fixed_intrinsics=True) == known).all()
    kept = params(incremental_options={"ba_refine_focal_length": False})
    assert kept[0] == known[0]
    assert kept[3] != known[3]
