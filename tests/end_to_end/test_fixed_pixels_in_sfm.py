"""Photos of a walk through whose lower part a dashboard is seen."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest

from sfm_matchers.evaluation.models import compare_models
from sfm_matchers.runs.options import SfmOptions
from sfm_matchers.runs.reconstruct import run
from tests.support.rendered_room import photograph_room

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_report")]


def add_dashboard(folder: Path) -> None:
    """Paste one picture over the lower quarter of each photo."""
    rng = np.random.default_rng(0)
    dashboard = cv2.resize(
        rng.integers(0, 255, (15, 80, 3), np.uint8), (320, 60), interpolation=cv2.INTER_CUBIC
    )
    for path in sorted(folder.iterdir()):
        photo = cv2.imread(str(path))
        photo[180:] = dashboard
        cv2.imwrite(str(path), photo)


def test_a_dashboard_neither_bends_the_model_nor_goes_unsaid(tmp_path: Path) -> None:
    photos = photograph_room(tmp_path / "room", 8)
    add_dashboard(photos / "images")
    options = SfmOptions(photos / "images", tmp_path / "out", "sift", no_longer_tracks=True)
    result = run(options)
    truth = pycolmap.Reconstruction(photos / "truth")
    errors = compare_models(result.models[0], truth)
    assert errors.num_registered == 8
    assert errors.relative_center_errors.max() < 1
    told = result.summary["fixed pixels"]
    assert "at the same pixels of 8 photos" in told
    assert "--mask_dir" in told
    assert run(options).summary["fixed pixels"] == told
