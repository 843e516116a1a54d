"""Matches on which OpenCV's MAGSAC raises."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from sfm_matchers.geometry.robust_estimation import estimate_robustly
from sfm_matchers.matchers.looks import agreeing, exact_look
from sfm_matchers.matchers.protocols import Matches

# Half pixels, of two photos of 160 x 120 pixels.
POINTS0 = [
    (60, 42), (212, 44), (73, 60), (249, 60), (87, 78), (108, 77), (116, 96), (149, 111),
    (83, 120), (68, 137), (137, 146), (172, 146), (177, 128), (197, 138), (192, 176), (24, 192),
]  # fmt: skip
POINTS1 = [
    (85, 43), (233, 43), (96, 60), (268, 57), (109, 76), (128, 76), (137, 93), (169, 110),
    (103, 117), (89, 132), (135, 142), (173, 141), (197, 128), (217, 137), (199, 171), (44, 180),
]  # fmt: skip


def test_matches_on_which_magsac_fails_are_judged_too() -> None:
    points = [np.array(half, np.float32) / 2 for half in (POINTS0, POINTS1)]
    photo = np.zeros((120, 160), np.uint8)
    matches = Matches(points[0], points[1], np.ones(16, np.float32))
    agrees = agreeing(exact_look(matches), (photo, photo))
    assert agrees.sum() >= 8


def test_other_errors_are_not_hidden() -> None:
    with pytest.raises(cv2.error):
        estimate_robustly(lambda method: cv2.findHomography(np.ones(3), np.ones(3), method))
