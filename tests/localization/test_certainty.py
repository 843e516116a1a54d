"""When several photos of a map agree on a pose."""

from __future__ import annotations

import numpy as np
import pycolmap
import pytest

from sfm_matchers.localization.certainty import is_certain, rivalry
from sfm_matchers.localization.in_model import estimate_pose
from sfm_matchers.localization.poses import LocalizationOptions, LocalizedQuery, Query, Status
from sfm_matchers.localization.resectioning import Matches, Solution

OPTIONS = LocalizationOptions()
CAMERA = pycolmap.Camera.create_from_model_name(1, "PINHOLE", 800.0, 1000, 800)
Seen = tuple[np.ndarray, np.ndarray]


def seen(count: int, seed: int, *, moved: float = 0.0) -> Seen:
    """Keypoints and points that one photo of the map gives; `moved`: an error of its points."""
    rng = np.random.default_rng(seed)
    points = rng.uniform([-3, -2, 8], [3, 2, 14], (count, 3))
    keypoints = CAMERA.img_from_cam(points) + rng.normal(scale=0.3, size=(count, 2))
    return keypoints, points + [moved, 0, 0]


def estimate(photos: list[Seen]) -> LocalizedQuery:
    keypoints, points = (np.concatenate(part) for part in zip(*photos, strict=True))
    query = Query("a.jpg", CAMERA)
    return estimate_pose(query, keypoints, points, len(points), OPTIONS, extent=10.0)


def certain(photos: list[Seen], enough: int = 100) -> bool:
    return is_certain(estimate(photos), photos, 10.0, enough, OPTIONS)


@pytest.mark.parametrize("origin", [0.0, 5e5])
def test_two_photos_that_agree_are_enough(origin: float) -> None:
    photos = [(keypoints, points + origin) for keypoints, points in (seen(80, 1), seen(80, 2))]
    assert certain(photos)
    assert not certain(photos, enough=200)


def test_many_inliers_of_one_photo_are_not() -> None:
    assert not certain([seen(300, 1), seen(10, 2)])


def test_photos_whose_points_are_apart_are_not() -> None:
    """All are inliers of one pose, but each photo says another."""
    photos = [seen(80, 1, moved=-0.11), seen(80, 2, moved=0.11)]
    found = estimate(photos)
    assert found.num_inliers > 100
    found.status, found.reason = Status.LOCALIZED, ""
    assert not is_certain(found, photos, 10.0, 100, OPTIONS)


@pytest.mark.parametrize(("others", "is_rival"), [(60, True), (12, False)])
def test_two_places_that_look_alike_are_doubted(others: int, is_rival: bool) -> None:
    keypoints, points = seen(100, 1)
    elsewhere, there = seen(others, 2)
    there = there * [-1, 1, -1]  # the other side
    found = estimate([(keypoints, points), (elsewhere, there)])
    assert found.status is (Status.LOW_CONFIDENCE if is_rival else Status.LOCALIZED)
    assert ("look alike" in found.reason) == is_rival


@pytest.mark.parametrize(("moved", "status"), [(8.0, "low confidence"), (0.0, "localized")])
def test_a_photo_put_together_of_two_is_doubted(moved: float, status: str) -> None:
    """Side by side in one: no principal point is that of both."""
    (keypoints, points), (others, there) = seen(160, 1), seen(100, 2)
    keypoints = np.concatenate([keypoints + [1000, 0], others + ([1000, 0] if not moved else 0)])
    points = np.concatenate([points, there + [moved, 0, 0]])
    camera = pycolmap.Camera.create_from_model_name(1, "PINHOLE", 800.0, 2000, 800)
    query = Query("a.jpg", camera, may_change=True)
    found = estimate_pose(query, keypoints, points, len(points), OPTIONS, extent=10.0)
    assert found.status.value == status
    assert ("put together of several" in found.reason) == bool(moved)


def test_wrong_matches_are_no_rival() -> None:
    rng = np.random.default_rng(3)
    keypoints, points = seen(60, 1)
    matches = Matches(
        np.concatenate([keypoints, rng.uniform(0, 800, (200, 2))]),
        np.concatenate([points, rng.uniform([-3, -2, 8], [3, 2, 14], (200, 3))]),
        OPTIONS.max_error,
        10.0,
    )
    assert rivalry(Solution(CAMERA, pycolmap.Rigid3d(), matches)) is None
