"""Models that their verified pairs contradict, though most observations fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfm_matchers.mapping.adjustment import adjust_robustly, robust_adjustment
from sfm_matchers.mapping.pair_fit import find_misfit
from tests.support.rendered_lenses import center_error, lens, place, write_database

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("noise", [0.05, 0.3, 1.5])
def test_a_right_model_fits_its_pairs_however_exact_they_are(tmp_path: Path, noise: float) -> None:
    truth = place(lens("RADIAL", 1000, 640, 480, -0.15, 0.08), noise=noise)
    write_database(tmp_path / "database.db", truth)
    assert find_misfit(truth, tmp_path / "database.db") is None


@pytest.mark.parametrize("focal_length", [600, 1700])
def test_a_bent_model_does_not(tmp_path: Path, focal_length: float) -> None:
    truth = place(lens("SIMPLE_RADIAL", 1000, 640, 480, -0.05))
    write_database(tmp_path / "database.db", truth)
    bent = place(lens("SIMPLE_RADIAL", 1000, 640, 480, -0.05))
    bent.cameras[1].params = [focal_length, 640, 480, -0.05]
    adjust_robustly(bent, robust_adjustment(1), [1])
    assert center_error(bent, truth) > 0.5
    misfit = find_misfit(bent, tmp_path / "database.db")
    assert misfit is not None
    assert misfit.share > 0.3
    assert misfit.error > 3 * misfit.own_error
