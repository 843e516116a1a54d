"""Photos turned by quarters against each other: found at a small size, matched, brought back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from material import matches_of_a_folder, photo_fingerprints
from PIL import ExifTags, Image, ImageOps

from sfm_matchers.confs import DetectorFreeConf, DetectorFreePreprocessing
from sfm_matchers.errors import InputError, PhotoChangedError
from sfm_matchers.matchers.photo_matchers import load_matcher
from sfm_matchers.matchers.protocols import EncodedImage, Matches
from sfm_matchers.matchers.quarter_turns import QuarterTurns, unturned_matches
from sfm_matchers.matching import match_images
from sfm_matchers.photos.images import exif_orientation, quarters_to_upright, read_image
from sfm_matchers.photos.resizing import turned, unturned
from sfm_matchers.synthetic import Camera, camera_path, make_scene, render

pytestmark = pytest.mark.slow

SIZE = (320, 240)
SHIFT = (24, 16)  # pixels; the second photo shows what lies there in the first
SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


@pytest.fixture(scope="module")
def photos() -> tuple[np.ndarray, np.ndarray]:
    """Two upright photos, RGB, cut from one rendered photo and displaced by `SHIFT`."""
    scene = make_scene(1, kind="room", texture_size=256)
    camera = Camera.from_field_of_view(SIZE[0] + SHIFT[0], SIZE[1] + SHIFT[1])
    large = render(scene, camera, camera_path(scene, count=40)[0]).image
    width, height = SIZE
    darker = (large * 0.8).astype(np.uint8)
    return large[:height, :width], darker[SHIFT[1] :, SHIFT[0] :]


def share_of_right_matches(matches: Matches) -> float:
    displacement = matches.keypoints0 - matches.keypoints1 - SHIFT
    return float((np.abs(displacement).max(1) < 3).mean())


@pytest.mark.parametrize(("name", "quarters"), [("jamma", 1), ("jamma", 2), ("eloftr", 3)])
def test_a_turned_photo_is_matched_like_an_upright_one(
    photos: tuple[np.ndarray, np.ndarray], name: str, quarters: int
) -> None:
    """The bundled weights; points of the turned photo are in pixels of that photo."""
    photo0, photo1 = photos
    matcher = load_matcher(name, device="cpu")
    found = matcher.match(photo0, turned(photo1, quarters))
    height, width = photo1.shape[:2]
    size = (width, height) if quarters == 2 else (height, width)
    assert (found.keypoints1 < np.add(size, 8)).all()
    upright = unturned_matches(found, (0, quarters), ((width, height), (width, height)))
    assert len(upright) > 0.9 * len(matcher.match(photo0, photo1)) > 100
    assert share_of_right_matches(upright) > 0.8


@given(
    quarters=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    sizes=st.tuples(SIZES, SIZES),
    data=st.data(),
)
def test_points_go_back_to_their_pixels(
    quarters: tuple[int, int],
    sizes: tuple[tuple[int, int], tuple[int, int]],
    data: st.DataObject,
) -> None:
    stored, found = [], []
    for (width, height), turns in zip(sizes, quarters, strict=True):
        x = data.draw(st.integers(0, width - 1))
        y = data.draw(st.integers(0, height - 1))
        image = np.zeros((height, width), np.uint8)
        image[y, x] = 1
        row, column = np.argwhere(turned(image, turns))[0]
        stored.append([[x, y]])
        found.append(np.array([[column, row]], np.float32))
    back = unturned_matches(Matches(*found, np.ones(1, np.float32)), quarters, sizes)
    assert [back.keypoints0.tolist(), back.keypoints1.tolist()] == stored


@dataclass
class Marked:
    """Matches photos whose brightest corner is the same: by a grid of points, else by nonsense."""

    resize_max: int = 10_000

    def encode(self, image: np.ndarray) -> EncodedImage:
        corners = image[:: image.shape[0] - 1, :: image.shape[1] - 1].reshape(4, -1).sum(1)
        return EncodedImage((int(corners.argmax()), self.resize_max), (1.0, 1.0), 8)

    def match_encoded(self, image0: EncodedImage, image1: EncodedImage) -> Matches:
        (corner0, size), (corner1, _) = image0.features, image1.features
        grid = np.stack(np.meshgrid(np.arange(6), np.arange(5)), -1).reshape(-1, 2) * 9.0
        agrees = corner0 == corner1
        # Where they disagree, there are more matches.
        other = grid + 1 if agrees else np.random.default_rng(0).random((300, 2)) * 400
        first = grid if agrees else np.random.default_rng(1).random((300, 2)) * 400
        scores = np.full(len(first), size / 10_000)
        return Matches(*(array.astype(np.float32) for array in (first, other, scores)))


def marked(quarters: int) -> np.ndarray:
    image = np.zeros((30, 60, 3), np.uint8)
    image[0, 0] = 255
    return turned(image, quarters)


@pytest.mark.parametrize("quarters", range(4))
def test_agreement_counts_and_not_the_number_of_matches(quarters: int) -> None:
    turns = QuarterTurns(Marked())
    best = turns.between(marked(0), marked(-quarters))
    assert best == quarters


def test_a_turn_must_win_clearly() -> None:
    class Equal(Marked):
        def match_encoded(self, image0: EncodedImage, image1: EncodedImage) -> Matches:
            found = super().match_encoded(image0, image0)
            turned_back = image0.features[0] == image1.features[0]
            return found if turned_back else found.select(np.arange(20))

    turns = QuarterTurns(Equal())
    assert turns.between(marked(0), marked(1)) == 0


def test_photos_without_matches_stay_as_they_are() -> None:
    class Blind(Marked):
        def match_encoded(self, image0: EncodedImage, image1: EncodedImage) -> Matches:
            nothing = np.zeros((0, 2), np.float32)
            return Matches(nothing, nothing, nothing[:, 0])

    turns = QuarterTurns(Blind())
    assert turns.between(marked(0), marked(1)) == 0


def test_a_matcher_must_let_itself_be_resized() -> None:
    with pytest.raises(InputError, match="leave quarter_turns away"):
        QuarterTurns(object())  # type: ignore[arg-type]


def test_the_matcher_itself_goes_on_seeing_photos_large() -> None:
    matcher = Marked()
    QuarterTurns(matcher)
    assert matcher.resize_max == 10_000


@pytest.mark.parametrize("asked", [False, True])
def test_pairs_of_a_folder_are_turned_where_the_conf_says_so(tmp_path: Path, asked: bool) -> None:
    for name, quarters in (("a.png", 0), ("b.png", 3)):
        cv2.imwrite(str(tmp_path / name), marked(quarters))
    preprocessing = DetectorFreePreprocessing(quarter_turns=asked)
    matches = matches_of_a_folder(tmp_path, Marked, preprocessing)
    keypoints0, keypoints1 = matches.keypoints0, matches.keypoints1
    assert matches.scores == pytest.approx(1.0)  # matched at full size
    if not asked:
        assert len(keypoints0) == 300
        return
    assert len(keypoints0) == 30
    # b.png is 30 wide and 60 high; turned by one quarter it is 60 x 30 again.
    x, y = (keypoints0 + 1).T
    np.testing.assert_allclose(keypoints1, np.stack([29 - y, x], 1))


class Upright(Marked):
    """Knows photos whose brightest corner is the first one; any other pair has no matches."""

    def match_encoded(self, image0: EncodedImage, image1: EncodedImage) -> Matches:
        found = super().match_encoded(image0, image1)
        known = image0.features[0] == image1.features[0] == 0
        return found if known else found.select(np.arange(0))


def store(path: Path, image: np.ndarray, orientation: int) -> None:
    """Write a photo whose EXIF has this orientation."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(image).save(path, exif=exif)


@pytest.mark.parametrize(("orientation", "quarters"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_photos_are_set_upright_as_exif_tells(
    tmp_path: Path, orientation: int, quarters: int
) -> None:
    """Both photos of a pair; matched points are in pixels of the photos as stored."""
    for name in ("a.png", "b.png"):
        store(tmp_path / name, marked(-quarters), orientation)
    assert np.array_equal(
        turned(read_image(tmp_path / "a.png"), quarters),
        ImageOps.exif_transpose(Image.open(tmp_path / "a.png")),
    )
    matches = matches_of_a_folder(tmp_path, Upright, DetectorFreePreprocessing(quarter_turns=True))
    assert len(matches) == 30
    upright = Upright().match_encoded(*[Upright().encode(marked(0))] * 2)
    size = marked(-quarters).shape[1::-1]
    np.testing.assert_allclose(matches.keypoints0, unturned(upright.keypoints0, quarters, size))
    np.testing.assert_allclose(matches.keypoints1, unturned(upright.keypoints1, quarters, size))


def test_exif_counts_only_where_the_conf_asks_for_turns(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        store(tmp_path / name, marked(-1), 8)
    assert len(matches_of_a_folder(tmp_path, Upright, DetectorFreePreprocessing())) == 0


@pytest.mark.parametrize("orientation", [0, 2, 5, 9, 700])
def test_other_orientations_are_no_turns(tmp_path: Path, orientation: int) -> None:
    """Mirrored photos, and values that EXIF does not know."""
    store(tmp_path / "a.jpg", marked(0), orientation)
    assert quarters_to_upright(exif_orientation(tmp_path / "a.jpg")) == 0


def test_damaged_exif_is_no_turn(tmp_path: Path) -> None:
    store(tmp_path / "a.jpg", marked(0), 6)
    content = (tmp_path / "a.jpg").read_bytes()
    assert quarters_to_upright(exif_orientation(tmp_path / "a.jpg")) == 3
    start = content.index(b"Exif") + 6
    (tmp_path / "a.jpg").write_bytes(content[:start] + b"??" + content[start + 2 :])
    assert quarters_to_upright(exif_orientation(tmp_path / "a.jpg")) == 0


def test_files_lying_on_their_side_are_matched_like_upright_ones(
    photos: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    """`load_matcher` with paths: the bundled weights see the same pixels."""
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path, photo in zip(paths, photos, strict=True):
        store(path, turned(photo, 1), 6)
    matcher = load_matcher("jamma", device="cpu")
    expected, found = matcher.match(*photos), matcher.match(*paths)
    sizes = ((SIZE[1], SIZE[0]), (SIZE[1], SIZE[0]))
    assert len(expected) > 100
    upright = unturned_matches(expected, (3, 3), sizes)
    np.testing.assert_allclose(found.keypoints0, upright.keypoints0, atol=1e-3)
    np.testing.assert_allclose(found.keypoints1, upright.keypoints1, atol=1e-3)


def test_a_photo_that_changes_before_it_is_read_again_is_named(tmp_path: Path) -> None:
    for name, quarters in (("a.png", 0), ("b.png", 3), ("c.png", 0)):
        cv2.imwrite(str(tmp_path / name), marked(quarters))

    class Changes(Marked):
        def match_encoded(self, image0: EncodedImage, image1: EncodedImage) -> Matches:
            cv2.imwrite(str(tmp_path / "b.png"), marked(2))
            return super().match_encoded(image0, image1)

    names = ("a.png", "b.png", "c.png")
    wanted = photo_fingerprints(tmp_path, names)
    conf = DetectorFreeConf(
        "m", "matches-m", {}, 1, 1, DetectorFreePreprocessing(quarter_turns=True)
    )
    pairs = [("a.png", "b.png"), ("a.png", "c.png"), ("b.png", "c.png")]
    path = tmp_path / "correspondences.h5"
    with pytest.raises(PhotoChangedError, match=r"b\.png has changed"):
        match_images(conf, partial(Changes), pairs, tmp_path, wanted, path)
    with h5py.File(path) as file:
        assert list(file["a.png"]) == ["c.png"]
        assert "b.png" not in file
