"""Training data, losses, the loop and the measures it reports."""

from __future__ import annotations

import numpy as np
from conftest import shared_path

from sfm_matchers.evaluation import pose_auc, pose_error, symmetric_epipolar_distance


def test_pose_measures_jamma_golden() -> None:
    golden = np.load(shared_path("networks/jamma/golden/metrics.npz"))
    distances = symmetric_epipolar_distance(
        golden["pts0"], golden["pts1"], golden["E"], golden["K0"], golden["K1"]
    )
    np.testing.assert_allclose(distances, golden["sym_epi"], rtol=1e-6)
    for pose, rotation, translation, expected in zip(
        golden["T_0to1"], golden["R"], golden["t"], golden["t_err_R_err"], strict=True
    ):
        rotation_error, translation_error = pose_error(pose, rotation, translation)
        np.testing.assert_allclose([translation_error, rotation_error], expected, rtol=1e-5)
    np.testing.assert_allclose(pose_auc(golden["auc_errors"]), golden["auc"], rtol=1e-6)
