"""Matched points move until the photos agree around them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from material import matches_of_a_folder

from sfm_matchers.confs import DetectorFreePreprocessing
from sfm_matchers.matchers.least_squares_matching import (
    REACH,
    align_patches,
    blurred,
    least_squares_matching,
)
from sfm_matchers.matchers.photo_matchers import load_matcher
from sfm_matchers.matchers.protocols import EncodedImage, Matches
from sfm_matchers.photos.resizing import turned
from sfm_matchers.synthetic import Camera, camera_path, make_scene, project, render, unproject

pytestmark = pytest.mark.slow

SIZE = (320, 240)


def texture(size: tuple[int, int] = SIZE, finest: float = 1.5) -> np.ndarray:
    """Spots of all sizes, RGB (H, W, 3) float32 in 60..180."""
    random = np.random.default_rng(0)
    spots = np.zeros((size[1], size[0], 3), np.float32)
    for sigma in (finest, 2 * finest, 4 * finest):
        layer = cv2.GaussianBlur(
            random.standard_normal(spots.shape).astype(np.float32), (0, 0), sigma
        )
        spots += layer / layer.std()
    return np.asarray(120 + 60 * spots / np.abs(spots).max())


def two_views(
    linear: np.ndarray, size: tuple[int, int] = SIZE, finest: float = 1.5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A plane seen twice, in other light, and the affine map (2, 3) of photo 0 to photo 1."""
    centre = (np.array(size) - 1) / 2
    affine = np.hstack([linear, (centre - linear @ centre + (3.3, -2.6))[:, None]])
    first = texture(size, finest)
    second = cv2.warpAffine(first, affine, size, flags=cv2.INTER_CUBIC) * 0.7 + 20
    return first.astype(np.uint8), second.clip(0, 255).astype(np.uint8), affine


def noisy_matches(affine: np.ndarray, noise: float, size: tuple[int, int] = SIZE) -> Matches:
    random = np.random.default_rng(1)
    points0 = (0.2 + 0.6 * random.random((300, 2))) * size
    points1 = points0 @ affine[:, :2].T + affine[:, 2] + random.uniform(-noise, noise, (300, 2))
    scores = random.random(300)
    return Matches(*(array.astype(np.float32) for array in (points0, points1, scores)))


def errors(matches: Matches, affine: np.ndarray) -> np.ndarray:
    truth = matches.keypoints0 @ affine[:, :2].T + affine[:, 2]
    return np.asarray(np.linalg.norm(matches.keypoints1 - truth, axis=1))


def turn(degrees: float, scale: float = 1.0) -> np.ndarray:
    return np.asarray(cv2.getRotationMatrix2D((0, 0), degrees, scale)[:, :2])


@pytest.mark.parametrize(
    "linear",
    [np.eye(2), turn(35), turn(0, 0.6), turn(10, 1.5), np.array([[0.7, 0.1], [0.0, 1.0]])],
    ids=["same", "turned", "farther", "nearer", "slanted"],
)
def test_points_are_found_to_a_tenth_of_a_pixel(linear: np.ndarray) -> None:
    first, second, affine = two_views(linear, finest=2.0)
    matches = noisy_matches(affine, noise=1.0)
    moved = least_squares_matching(first, second, matches)
    assert np.median(errors(matches, affine)) > 0.6
    assert np.median(errors(moved, affine)) < 0.1
    assert (errors(moved, affine) < 0.3).mean() > 0.9
    np.testing.assert_array_equal(moved.keypoints0, matches.keypoints0)
    np.testing.assert_array_equal(moved.scores, matches.scores)
    assert moved.keypoints1.dtype == np.float32


def test_numpy_and_torch_align_alike() -> None:
    """To the 32nd of a pixel that OpenCV 4 rounds places of samples to."""
    first, second, affine = two_views(turn(10, 1.2), finest=2.0)
    matches = noisy_matches(affine, noise=1.0)
    linear = np.broadcast_to(affine[:, :2], (300, 2, 2))
    arrays = [blurred(cv2.cvtColor(each, cv2.COLOR_RGB2GRAY), 1.0) for each in (first, second)]
    arrays += [matches.keypoints0, matches.keypoints1, linear]
    arrays = [np.ascontiguousarray(array, np.float32) for array in arrays]
    for is_affine in (False, True):
        ours = align_patches(*arrays, spacing=1.0, affine=is_affine)
        theirs = align_patches(*map(torch.from_numpy, arrays), spacing=1.0, affine=is_affine)
        same = ours.succeeded & theirs.succeeded.numpy()
        assert (ours.succeeded == theirs.succeeded.numpy()).mean() > 0.98
        assert same.mean() > 0.5
        assert np.abs(ours.points - theirs.points.numpy())[same].max() < 1 / 32
        np.testing.assert_allclose(ours.texture, theirs.texture, rtol=1e-2)
        assert {part.dtype for part in ours} == {np.dtype(np.float32), np.dtype(bool)}


def test_a_run_of_sift_needs_no_torch() -> None:
    """It takes a second to import; longer tracks align patches too."""
    modules = "sfm_matchers.runs.reconstruct, sfm_matchers.mapping.tracks"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_large_photos_are_aligned_coarsely_first() -> None:
    size = (2048, 1536)
    first, second, affine = two_views(turn(4), size, finest=2.0)
    matches = noisy_matches(affine, noise=3.0, size=size)
    moved = least_squares_matching(first, second, matches)
    assert np.median(errors(matches, affine)) > 2
    assert np.median(errors(moved, affine)) < 0.1
    assert (errors(moved, affine) < 0.3).mean() > 0.9


def test_photos_too_long_for_opencv_are_sampled_in_parts() -> None:
    first = np.tile(texture((400, 60), finest=2.0), (1, 100, 1))
    second = np.roll(first, 2, axis=1)
    gray = [
        blurred(cv2.cvtColor(each.astype(np.uint8), cv2.COLOR_RGB2GRAY).astype(np.float32), 1.0)
        for each in (first, second)
    ]
    points = np.stack((np.linspace(10, 39_980, 500), np.full(500, 30.0)), 1).astype(np.float32)
    linear = np.broadcast_to(np.eye(2, dtype=np.float32), (500, 2, 2))
    found = align_patches(*gray, points, points, linear, spacing=1.0, affine=False)
    assert found.succeeded.mean() > 0.9
    np.testing.assert_allclose(
        found.points[found.succeeded][:, 0], points[found.succeeded][:, 0] + 2, atol=0.1
    )


def test_points_that_cannot_be_aligned_stay() -> None:
    """Nothing to see, and photos of other places."""
    first, second, affine = two_views(np.eye(2))
    matches = noisy_matches(affine, noise=0.5)
    blank = np.full_like(first, 90)
    for photos in ((first, blank), (blank, second), (blank, blank)):
        moved = least_squares_matching(*photos, matches)
        np.testing.assert_array_equal(moved.keypoints1, matches.keypoints1)
    elsewhere = least_squares_matching(first, np.ascontiguousarray(second[::-1]), matches)
    assert (elsewhere.keypoints1 == matches.keypoints1).all(1).mean() > 0.85


@settings(max_examples=30)
@given(
    count=st.integers(0, 40),
    sizes=st.tuples(*[st.integers(2, 60)] * 4),
    seed=st.integers(0, 100),
    identical=st.booleans(),
)
def test_whatever_the_matches_points_stay_near_and_in_the_photo(
    count: int, sizes: tuple[int, int, int, int], seed: int, identical: bool
) -> None:
    random = np.random.default_rng(seed)
    photos = [random.integers(0, 256, (*size, 3), np.uint8) for size in (sizes[:2], sizes[2:])]
    share = random.random((2, count, 2))
    if identical:
        share[1] = share[0]
    ends = [(photo.shape[1] - 1, photo.shape[0] - 1) for photo in photos]
    points = [(part * end).astype(np.float32) for part, end in zip(share, ends, strict=True)]
    matches = Matches(*points, np.ones(count, np.float32))
    moved = least_squares_matching(*photos, matches)
    assert moved.keypoints1.shape == (count, 2)
    assert ((moved.keypoints1 >= 0) & (moved.keypoints1 <= ends[1])).all()
    # Two passes; samples are at most four pixels apart, stretched by at most four.
    assert (np.abs(moved.keypoints1 - matches.keypoints1) < 2 * REACH * 16).all()


@pytest.mark.parametrize("name", ["jamma", "eloftr"])
def test_matches_of_networks_become_more_exact(name: str) -> None:
    """The bundled weights on a rendered room, seen from two places."""
    scene = make_scene(1, kind="room", texture_size=512)
    views = camera_path(scene, count=40)[:3:2]
    camera = Camera.from_field_of_view(640, 480)
    renders = [render(scene, camera, view) for view in views]
    matcher = load_matcher(name, device="cpu")
    network = matcher.matcher
    encoded = [network.encode(each.image) for each in renders]
    matches = network.match_encoded(*encoded)
    moved = least_squares_matching(*(each.image for each in renders), matches)

    places = unproject(renders[0].depth, camera, views[0]).astype(np.float32)
    seen = cv2.remap(places, *np.split(matches.keypoints0, 2, axis=1), cv2.INTER_LINEAR)[:, 0]
    truth, _ = project(seen, camera, views[1])
    distances = [np.linalg.norm(each.keypoints1 - truth, axis=1) for each in (matches, moved)]
    near = distances[0] < 4
    assert near.sum() > 100
    before, after = (np.median(each[near]) for each in distances)
    assert after < 0.6 * before


class Shifted:
    """Matches places of a texture, off by a pixel in photo 1."""

    def encode(self, image: np.ndarray) -> EncodedImage:
        return EncodedImage(image.shape[1] > image.shape[0], (1.0, 1.0), 8)

    def match_encoded(self, image0: EncodedImage, image1: EncodedImage) -> Matches:
        matches = noisy_matches(AFFINE, noise=1.0)
        return matches if image1.features else matches.select(np.arange(0))

    resize_max = 10_000


AFFINE = two_views(turn(5))[2]


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("quarters", [0, 1])
def test_pairs_of_a_folder_are_aligned_where_the_conf_says_so(
    tmp_path: Path, asked: bool, quarters: int
) -> None:
    """Also where a photo is turned: its points stay those of the photo as stored."""
    first, second, _ = two_views(turn(5))
    for name, image in (("a.png", first), ("b.png", turned(second, -quarters))):
        cv2.imwrite(str(tmp_path / name), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    preprocessing = DetectorFreePreprocessing(quarter_turns=True, least_squares_matching=asked)
    matches = matches_of_a_folder(tmp_path, Shifted, preprocessing)
    points1 = matches.keypoints1
    if quarters:  # clockwise: what was at (x, y) lies at (bottom - y, x)
        points1 = np.stack([points1[:, 1], SIZE[1] - 1 - points1[:, 0]], -1)
    median = np.median(errors(Matches(matches.keypoints0, points1, matches.scores), AFFINE))
    assert (median < 0.1) == asked
