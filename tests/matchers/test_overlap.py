"""What two photos share is matched again, cut out of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from material import matches_of_a_folder

from sfm_matchers.confs import DetectorFreeConf, DetectorFreePreprocessing, load_conf
from sfm_matchers.matchers.looks import first_looks
from sfm_matchers.matchers.overlap import MIN_ASPECT, _shared_part, match_overlap
from sfm_matchers.matchers.photo_matchers import load_matcher
from sfm_matchers.matchers.protocols import CoarseLook, EncodedImage, Matches
from sfm_matchers.photos.resizing import turned
from sfm_matchers.synthetic import Camera, camera_path, make_scene, render

pytestmark = pytest.mark.slow

SIZE = (240, 180)
SHARED = (30, 40, 110, 100)  # left, top, right, bottom in photo 0
SHIFT = (25, 35)  # of photo 1 against photo 0


def photo(shift: tuple[int, int] = (0, 0)) -> np.ndarray:
    """A photo whose pixels tell where they lie: (x, y, 0)."""
    x, y = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
    return np.stack([x + shift[0], y + shift[1], 0 * x], -1).astype(np.uint8)


@dataclass
class Painted:
    """Matches places of `photo` that lie in `SHARED`, with parallax along x; denser in a part."""

    seen: list[tuple[int, int]] = field(default_factory=list)  # sizes (width, height)
    spacing: int = 6  # pixels between matches
    spacing_of_parts: int = 3
    resize_max: int = 10_000

    def encode(self, image: np.ndarray) -> EncodedImage:
        height, width = image.shape[:2]
        self.seen.append((width, height))
        corner = image[0, 0, :2].astype(np.float32)
        return EncodedImage((corner, (width, height) != SIZE), (1.0, 1.0), 8)

    def match_encoded(self, image0: EncodedImage, image1: EncodedImage) -> Matches:
        (corner0, is_part), (corner1, _) = image0.features, image1.features
        spacing = self.spacing_of_parts if is_part else self.spacing
        left, top, right, bottom = SHARED
        grid = np.meshgrid(np.arange(left, right, spacing), np.arange(top, bottom, spacing))
        places = np.stack(grid, -1).reshape(-1, 2).astype(np.float32)
        parallax = np.random.default_rng(0).integers(0, 9, len(places))
        moved = places + np.stack([parallax, 0 * parallax], -1)
        ones = np.ones(len(places), np.float32)
        return Matches(places - corner0, (moved - corner1).astype(np.float32), ones)


def exact(matches: Matches) -> CoarseLook:
    return CoarseLook(matches, 0.0, lambda: matches)


def look_again(matcher: Painted, first: Matches) -> Matches:
    return match_overlap(matcher, photo(), photo(SHIFT), exact(first))


def first_look(matcher: Painted) -> Matches:
    return matcher.match_encoded(matcher.encode(photo()), matcher.encode(photo(SHIFT)))


def test_the_shared_part_is_matched_again_in_pixels_of_the_photos() -> None:
    matcher = Painted()
    first = first_look(matcher)
    closer = look_again(matcher, first)
    assert len(closer) > 3 * len(first)
    displacement = closer.keypoints0 - closer.keypoints1 - SHIFT
    assert displacement[:, 1] == pytest.approx(0)
    assert -8 <= displacement[:, 0].min() < displacement[:, 0].max() <= 0
    assert closer.keypoints0.min(0) == pytest.approx(SHARED[:2])
    for width, height in matcher.seen[2:]:  # shared are 80 x 60, with a margin
        assert 80 <= width <= 120
        assert 60 <= height <= 90


def test_the_better_look_counts() -> None:
    matcher = Painted(spacing_of_parts=12)
    first = first_look(matcher)
    assert look_again(matcher, first) is first
    assert len(matcher.seen) == 4


def test_photos_that_share_nearly_all_are_not_matched_again() -> None:
    matcher = Painted()
    points = np.random.default_rng(0).random((500, 2), np.float32) * SIZE
    moved = points + np.random.default_rng(1).random((500, 1), np.float32) * (9, 0)
    first = Matches(points, moved.astype(np.float32), points[:, 0])
    assert match_overlap(matcher, photo(), photo(), exact(first)) is first
    assert not matcher.seen


@pytest.mark.parametrize("count", [0, 1, 7, 14, 200])
def test_matches_that_do_not_agree_are_left_alone(count: int) -> None:
    """Where there are many, by chance some do agree: of them there are too few to look closer."""
    matcher = Painted()
    random = np.random.default_rng(2).random((2, count, 2), np.float32) * SIZE
    first = Matches(random[0], random[1], np.ones(count, np.float32))
    found = look_again(matcher, first)
    assert found is first
    assert len(matcher.seen) == (4 if count >= 15 else 0), "of two other scales"


@given(
    width=st.integers(16, 400),
    height=st.integers(16, 400),
    seed=st.integers(0, 1000),
    spread=st.floats(0.0, 1.0),
)
def test_the_part_lies_in_the_photo_around_the_points(
    width: int, height: int, seed: int, spread: float
) -> None:
    random = np.random.default_rng(seed)
    centre = random.random(2) * (width - 1, height - 1)
    points = centre + (random.random((60, 2)) * (width - 1, height - 1) - centre) * spread
    left, top, right, bottom = _shared_part(points, np.zeros((height, width, 3), np.uint8))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    inside = ((points >= (left, top)) & (points <= (right - 1, bottom - 1))).all(1)
    assert inside.mean() >= 0.9
    sides = np.array([right - left, bottom - top])
    needed = np.minimum(MIN_ASPECT * sides.max() - 2, (width, height))
    assert (sides >= needed).all()


@pytest.mark.parametrize("name", ["jamma", "eloftr"])
def test_a_detail_is_matched_more_exactly(name: str) -> None:
    """The bundled weights; photo 1 shows a half of photo 0, by the same number of pixels."""
    scene = make_scene(1, kind="room", texture_size=512)
    view = camera_path(scene, count=40)[0]
    large = render(scene, Camera.from_field_of_view(960, 720), view).image
    left, top, width, height = 300, 200, 480, 360
    detail = cv2.resize(large[top : top + height, left : left + width], (960, 720))
    conf = load_conf(name)
    assert isinstance(conf, DetectorFreeConf)
    matcher = load_matcher(name, device="cpu")
    network = matcher.matcher
    network.resize_max = 320  # type: ignore[attr-defined] # so that the pixels do not suffice
    (look,) = first_looks(network, [(network.encode(large), network.encode(detail))])
    first = look.refined()
    closer = match_overlap(network, large, detail, look)

    def errors(matches: Matches) -> np.ndarray:
        truth = (matches.keypoints0 - (left, top) + 0.5) * 2 - 0.5
        return np.linalg.norm(matches.keypoints1 - truth, axis=1)

    right = [(errors(matches) < 4).sum() for matches in (first, closer)]
    assert right[1] > 1.5 * right[0]
    medians = [np.median(errors(matches)[errors(matches) < 8]) for matches in (first, closer)]
    assert medians[1] < medians[0]


@pytest.mark.parametrize(
    ("spacing", "of_parts", "expected"),
    [(3, 2, ["part"]), (3, 12, ["whole"]), (6, 3, ["whole", "part"])],
)
def test_exact_points_are_wanted_of_the_look_that_counts(
    spacing: int, of_parts: int, expected: list[str]
) -> None:
    """Where cells alone tell which it is; of few of them (the last case) both are wanted."""
    wanted: list[str] = []

    class Coarse(Painted):
        """Knows points by cells first."""

        def look(self, pairs: Sequence[tuple[EncodedImage, EncodedImage]]) -> list[CoarseLook]:
            (pair,) = pairs
            exact = self.match_encoded(*pair)
            cells = Matches(exact.keypoints0 // 2 * 2, exact.keypoints1 // 2 * 2, exact.scores)

            def refined() -> Matches:
                wanted.append("part" if pair[0].features[1] else "whole")
                return exact

            return [CoarseLook(cells, 4.0, refined)]

    matcher = Coarse(spacing=spacing, spacing_of_parts=of_parts)
    (look,) = first_looks(matcher, [(matcher.encode(photo()), matcher.encode(photo(SHIFT)))])
    matches = match_overlap(matcher, photo(), photo(SHIFT), look)
    assert (matches.keypoints0 - matches.keypoints1 - SHIFT)[:, 1] == pytest.approx(0)
    assert wanted == expected


@pytest.mark.parametrize("name", ["jamma", "eloftr"])
def test_a_look_and_its_refinement_are_the_matches(name: str) -> None:
    """Cell by cell first; the points lie in these cells. Two pairs at once may differ a little."""
    scene = make_scene(1, kind="room", texture_size=512)
    camera = Camera.from_field_of_view(288, 224)
    images = [render(scene, camera, view).image for view in camera_path(scene, count=40)[:3]]
    network = load_matcher(name, device="cpu").matcher
    encoded = [network.encode(image) for image in images]
    pairs = [(encoded[0], encoded[1]), (encoded[1], encoded[2])]
    for pair, of_both in zip(pairs, first_looks(network, pairs), strict=True):
        (look,) = first_looks(network, [pair])
        matches, cells, found = network.match_encoded(*pair), look.matches, look.refined()
        assert len(matches) > 30
        assert np.array_equal(found.keypoints0, matches.keypoints0)
        assert np.array_equal(found.keypoints1, matches.keypoints1)
        assert len(of_both.refined()) == pytest.approx(len(matches), rel=0.1)
        assert len(cells) >= len(found)
        assert look.cell == of_both.cell == 8
        nearest = np.abs(found.keypoints0[:, None] - cells.keypoints0).max(2).min(1)
        assert nearest.max() <= 8
        assert np.abs(cells.keypoints0 % 8).max() == 0


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("quarters", [0, 1])
def test_pairs_of_a_folder_are_matched_again_where_the_conf_says_so(
    tmp_path: Path, asked: bool, quarters: int
) -> None:
    """Also where a photo is turned: its mask and points stay those of the photo as stored."""
    for name, image in (("a.png", photo()), ("b.png", turned(photo(SHIFT), -quarters))):
        cv2.imwrite(str(tmp_path / name), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))

    class Positions(Painted):
        """A photo that lies on its side has no matches."""

        def match_encoded(self, image0: EncodedImage, image1: EncodedImage) -> Matches:
            found = super().match_encoded(image0, image1)
            is_upright = (image1.features[0] >= SHIFT).all() and not (
                image1.features[0] > 200
            ).any()
            return found if is_upright else found.select(np.arange(0))

    preprocessing = DetectorFreePreprocessing(quarter_turns=True, match_overlap=asked)
    matches = matches_of_a_folder(tmp_path, Positions, preprocessing)
    keypoints0, keypoints1 = matches.keypoints0, matches.keypoints1
    assert (len(keypoints0) > 400) == asked
    if quarters == 0:
        assert (keypoints0 - keypoints1 - SHIFT)[:, 1] == pytest.approx(0)
    else:  # clockwise: what was at (x, y) lies at (bottom - y, x)
        assert (keypoints0[:, 1] - SHIFT[1]) == pytest.approx(SIZE[1] - 1 - keypoints1[:, 0])
