"""Photos are seen in several sizes, or at one scale, where that is better."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import pytest
from material import shared_path

from sfm_matchers.evaluation.pair_lists import read_posed_pairs
from sfm_matchers.evaluation.two_view import matching_precision
from sfm_matchers.matchers import scales
from sfm_matchers.matchers.looks import exact_look, first_looks
from sfm_matchers.matchers.overlap import match_overlap
from sfm_matchers.matchers.photo_matchers import load_matcher
from sfm_matchers.matchers.protocols import EncodedImage, Matches
from sfm_matchers.photos.images import read_image
from sfm_matchers.synthetic import Camera, camera_path, make_scene, render

SIZE = (240, 180)
CORNER, TIMES = np.array([90, 60]), 3  # of the detail in the whole photo; how much larger it is


def whole() -> np.ndarray:
    """A photo whose pixels tell where they lie: (x, y, 0)."""
    x, y = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
    return np.stack([x, y, 0 * x], -1).astype(np.uint8)


def detail() -> np.ndarray:
    """A part of `whole`, seen by as many pixels."""
    (left, top), (width, height) = CORNER, (SIZE[0] // TIMES, SIZE[1] // TIMES)
    return cv2.resize(whole()[top : top + height, left : left + width], SIZE)


class OneScale:
    """Matches places that both photos show, if at one scale, with parallax along x.

    Else it matches anything, as networks do.
    """

    def encode(self, image: np.ndarray) -> EncodedImage:
        places = image[..., :2].astype(np.float64)
        spread = places[-1, -1] - places[0, 0]
        per_place = (np.array(image.shape[1::-1]) - 1) / np.maximum(spread, 1)
        return EncodedImage((places[0, 0], places[-1, -1], per_place), (1.0, 1.0), 8)

    def match_encoded(self, image0: EncodedImage, image1: EncodedImage) -> Matches:
        (low0, high0, times0), (low1, high1, times1) = image0.features, image1.features
        random = np.random.default_rng(0)
        if not 0.6 < times0[0] / times1[0] < 1.7:
            points = random.random((2, 30, 2), np.float32) * 60
            return Matches(points[0], points[1], np.ones(30, np.float32))
        low, high = np.maximum(low0, low1), np.minimum(high0, high1)
        places = low + random.random((120, 2)) * (high - low)
        moved = places + random.random((120, 1)) * (2, 0)
        points0, points1 = (places - low0) * times0, (moved - low1) * times1
        return Matches(points0.astype(np.float32), points1.astype(np.float32), np.ones(120))


@pytest.mark.parametrize("is_exchanged", [False, True])
def test_the_closer_photo_is_reduced(
    monkeypatch: pytest.MonkeyPatch, *, is_exchanged: bool
) -> None:
    monkeypatch.setattr(scales, "FAR_SIDE", 160)
    images = (detail(), whole()) if is_exchanged else (whole(), detail())
    matcher = OneScale()
    first = matcher.match_encoded(*map(matcher.encode, images))
    found = match_overlap(matcher, *images, exact_look(first))
    assert len(found) == 120
    far, near = found.keypoints0, found.keypoints1
    if is_exchanged:
        far, near = near, far
    errors = (near + 0.5) / TIMES - 0.5 + CORNER - far
    assert np.abs(errors[:, 1]).max() < 1.5  # the colours are whole numbers
    assert np.abs(errors[:, 0]).max() < 4  # and the parallax


def test_photos_that_agree_are_left_at_their_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    matcher = OneScale()
    first = matcher.match_encoded(matcher.encode(whole()), matcher.encode(whole()))
    monkeypatch.setattr(scales, "first_looks", lambda *_: pytest.fail("tried"))
    assert match_overlap(matcher, whole(), whole(), exact_look(first)) is first


@dataclass
class LikesSmall:
    """Matches with parallax along x what it sees at 120 px or less, and else anything."""

    resize_max: int = 240

    def encode(self, image: np.ndarray) -> EncodedImage:
        height, width = image.shape[:2]
        scale = max(1.0, max(image.shape) / self.resize_max)
        return EncodedImage((width / scale, height / scale), (scale, scale), 8)

    def match_encoded(self, image0: EncodedImage, image1: EncodedImage) -> Matches:
        is_small = max(*image0.features, *image1.features) <= 120
        random = np.random.default_rng(0)
        points = random.random((2, 60, 2)) * image0.features
        if is_small:
            points[1] = points[0] + random.random((60, 1)) * (2, 0)
        points = (points * image0.scale[0]).astype(np.float32)
        return Matches(points[0], points[1], np.ones(60, np.float32))


@pytest.mark.parametrize(("side", "is_better"), [(120, True), (180, False)])
def test_matches_of_small_copies_are_joined_where_they_agree(
    monkeypatch: pytest.MonkeyPatch, side: int, *, is_better: bool
) -> None:
    monkeypatch.setattr(scales, "SMALL_SIDES", (side,))
    monkeypatch.setattr(scales, "MORE_SIDES", (side // 2,))
    matcher, images = LikesSmall(), (whole(), whole())
    first = matcher.match_encoded(*map(matcher.encode, images))
    found = match_overlap(matcher, *images, exact_look(first))
    is_right = np.abs(found.keypoints0 - found.keypoints1)[:, 1] < 1e-3
    assert is_right.sum() >= 60 if is_better else not is_right.any()
    assert (found is first) != is_better
    assert matcher.resize_max == 240


def test_what_several_looks_match_counts_once() -> None:
    """As the first of them has it."""
    points = np.random.default_rng(0).random((2, 50, 2)).astype(np.float32) * SIZE
    first = Matches(points[0, :40], points[1, :40], np.full(40, 0.9))
    second = Matches(points[0] + 0.5, points[1] - 0.5, np.full(50, 0.5))
    joined, agrees = scales._joined([first, second], (whole(), whole()))
    assert joined.scores.tolist() == [0.9] * 40 + [0.5] * 10
    np.testing.assert_array_equal(joined.keypoints0[40:], points[0, 40:] + 0.5)
    assert len(agrees) == 50


@pytest.mark.slow
def test_blurred_frames_indoors_are_seen_in_several_sizes() -> None:
    """The bundled weights on frames of a phone that walks through a room."""
    folder = shared_path("pairs/scannet")
    pair = read_posed_pairs(folder / "pairs_with_gt.txt", folder)[1]
    images = [read_image(folder / name) for name in (pair.name0, pair.name1)]
    network = load_matcher("eloftr", device="cpu").matcher
    first = network.match_encoded(*map(network.encode, images))

    def num_right(matches: Matches) -> float:
        share = matching_precision(matches.keypoints0, matches.keypoints1, pair)
        return share * len(matches)

    found = match_overlap(network, images[0], images[1], exact_look(first))
    assert num_right(found) > 1.5 * num_right(first)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "times"), [("jamma", 4), ("eloftr", 3)])
def test_a_close_up_is_found_in_the_whole(name: str, times: int) -> None:
    """The bundled weights; photo 1 shows the middle of photo 0, larger."""
    scene = make_scene(3, kind="room", texture_size=512)
    view = camera_path(scene, count=40)[0]
    large = render(scene, Camera.from_field_of_view(1280, 960), view).image
    width, height = 1280 // times, 960 // times
    left, top = (1280 - width) // 2, (960 - height) // 2
    near = cv2.resize(large[top : top + height, left : left + width], (640, 480))
    far = cv2.resize(large, (640, 480), interpolation=cv2.INTER_AREA)
    network = load_matcher(name, device="cpu").matcher
    (look,) = first_looks(network, [(network.encode(far), network.encode(near))])

    def num_right(matches: Matches) -> int:
        truth = (matches.keypoints1 + 0.5) / times - 0.5 + (left / 2, top / 2)
        return int((np.linalg.norm(matches.keypoints0 - truth, axis=1) < 3).sum())

    found = match_overlap(network, far, near, look)
    assert num_right(found) > max(100, 5 * num_right(look.refined()))
    assert num_right(found) > 0.7 * len(found)
