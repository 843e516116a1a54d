"""Pictures: what is drawn where, in which colour, and what is refused."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from sfm_matchers.errors import InputError
from sfm_matchers.reports.drawing import (
    count_palette,
    draw_keypoints,
    draw_match_graph,
    draw_matches,
    draw_model,
    encode_image,
    plot_matches,
    write_image,
)

GRAY = np.full((60, 80, 3), 128, dtype=np.uint8)


def changed_center(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Return the centre (x, y) of what was drawn, each pixel weighted by its change."""
    weight = np.abs(after.astype(float) - before).sum(axis=2)
    y, x = np.indices(weight.shape)
    return float((x * weight).sum() / weight.sum()), float((y * weight).sum() / weight.sum())


@pytest.mark.parametrize("point", [(20.0, 30.0), (20.5, 30.25), (41.75, 10.5)])
def test_a_keypoint_is_drawn_where_it_is(point):
    drawn = draw_keypoints(GRAY, np.array([point]))
    assert changed_center(GRAY, drawn) == pytest.approx(point, abs=0.1)


def test_drawing_leaves_its_input_alone():
    image, other = GRAY.copy(), GRAY.copy()
    draw_keypoints(image, np.array([[5, 5]]))
    draw_matches(image, other, np.array([[5, 5]]), np.array([[9, 9]]))
    assert np.array_equal(image, GRAY)
    assert np.array_equal(other, GRAY)


def test_images_of_different_size_and_kind_stand_side_by_side():
    left, right = GRAY, np.full((100, 40), 200, dtype=np.uint8)
    nothing = np.zeros((0, 2))
    drawn = draw_matches(left, right, nothing, nothing)
    assert drawn.shape == (100, 80 + 8 + 40, 3)
    assert drawn.dtype == np.uint8
    assert np.array_equal(drawn[:60, :80], left)
    assert (drawn[:, 88:] == 200).all()


def test_a_match_joins_its_two_keypoints():
    drawn = draw_matches(GRAY, GRAY, np.array([[10, 20]]), np.array([[70, 40]]))
    line = (np.abs(drawn[:, :80].astype(int) - 128).sum(axis=2) > 60).nonzero()
    on_line = 20 + (line[1] - 10) * 20 / (88 + 70 - 10)
    away_from_dots = line[1] > 16
    assert away_from_dots.sum() > 50
    assert np.abs(line[0] - on_line)[away_from_dots].max() < 1.6
    assert drawn[40, 88 + 70].tolist() == [70, 220, 120]


def test_confidence_is_drawn_from_red_to_blue():
    keypoints = np.array([[20.0, 10], [20, 30], [20, 50]])
    drawn = draw_matches(GRAY, GRAY, keypoints, keypoints, np.array([0.0, 0.5, 1.0]))
    low, middle, high = (drawn[y, 20].astype(int) for y in (10, 30, 50))
    assert low[0] > low[2] + 100
    assert min(middle[0], middle[1]) > middle[2] + 100
    assert high[2] > high[0] + 100


def test_confident_matches_lie_on_top_whatever_their_order():
    same = np.array([[20.0, 30], [20, 30]])
    for scores in ([0.0, 1.0], [1.0, 0.0]):
        drawn = draw_matches(GRAY, GRAY, same, same, np.array(scores))
        assert drawn[30, 20].tolist() == [50, 180, 255]


def test_of_many_matches_an_even_subset_is_drawn():
    keypoints = np.stack([np.full(50, 40.0), np.arange(50) + 5.0], axis=1)
    few = draw_matches(GRAY, GRAY, keypoints, keypoints, max_matches=2)
    ends = draw_matches(GRAY, GRAY, keypoints[[0, -1]], keypoints[[0, -1]])
    assert np.array_equal(few, ends)


def test_points_far_outside_do_no_harm():
    drawn = draw_matches(GRAY, GRAY, np.array([[-1e12, 5]]), np.array([[1e12, 5]]))
    assert drawn.shape == (60, 168, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((GRAY.astype(float), GRAY, np.zeros((1, 2)), np.zeros((1, 2))), "uint8"),
        ((GRAY[..., :2], GRAY, np.zeros((1, 2)), np.zeros((1, 2))), "must be"),
        ((GRAY, GRAY, np.zeros((1, 3)), np.zeros((1, 3))), "keypoints0"),
        ((GRAY, GRAY, np.zeros((2, 2)), np.zeros((1, 2))), "as many"),
        ((GRAY, GRAY, np.zeros((2, 2)), np.zeros((2, 2)), np.zeros(3)), "as many scores"),
    ],
)
def test_wrong_arrays_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        draw_matches(*arguments)


def test_match_graph_tells_never_matched_unverified_and_verified_apart():
    inliers = np.array([[-1, 0, 1], [0, -1, 500], [1, 500, -1]])
    drawn = draw_match_graph(inliers, ["a", "b", "c"])
    colors = {tuple(color) for color in drawn.reshape(-1, 3).tolist()}
    palette = count_palette().tolist()
    assert {(238, 238, 236), (205, 205, 202), tuple(palette[0]), tuple(palette[-1])} <= colors


@pytest.mark.parametrize("count", [0, 1, 30, 256])
def test_match_graph_of_any_size_fits_a_screen(count):
    names = [f"schön {row}.jpg" for row in range(count)]
    drawn = draw_match_graph(np.full((count, count), -1), names)
    assert max(drawn.shape) < 1300


def one_camera_at(x: float, y: float, z: float) -> np.ndarray:
    corners = [[0, 0, 0], [-1, 1, -1], [1, 1, -1], [1, 1, 1], [-1, 1, 1]]
    return np.array([corners], dtype=float) * 0.02 + (x, y, z)


def test_model_shows_cameras_where_they_are():
    points = np.random.default_rng(0).uniform(-1, 1, (500, 3))
    black = np.zeros((500, 3), dtype=np.uint8)
    drawn = draw_model(points, black, one_camera_at(0.5, -3, 0), size=400).astype(int)
    assert drawn.shape == (400, 800, 3)
    is_camera = (drawn[..., 0] - drawn[..., 2] > 60).nonzero()
    top_view = is_camera[1] < 400
    assert is_camera[0][top_view].mean() > 350, "a camera in front is at the bottom of the top view"
    assert 200 < is_camera[1][top_view].mean() < 300


def test_cameras_have_the_colours_they_are_given():
    two = np.concatenate([one_camera_at(-1, 0, 0), one_camera_at(1, 0, 0)])
    nothing = np.zeros((0, 3))
    colors = np.array([[220, 0, 0], [0, 0, 220]])
    drawn = draw_model(nothing, nothing.astype(np.uint8), two, 200, colors).astype(int)
    red, blue = drawn[..., 0] - drawn[..., 2], drawn[..., 2] - drawn[..., 0]
    assert (red[:, :100] > 60).any()
    assert not (red[:, 100:200] > 60).any()
    assert (blue[:, 100:200] > 60).any()


def test_a_stray_point_does_not_shrink_the_model():
    points = np.random.default_rng(0).uniform(-1, 1, (500, 3))
    colors = np.zeros((500, 3), dtype=np.uint8)
    camera = one_camera_at(0, -2, 0)
    alone = draw_model(points, colors, camera, size=300)
    points[0] = 1e6
    with_stray = draw_model(points, colors, camera, size=300)
    assert (with_stray < 100).sum() > 0.9 * (alone < 100).sum()


def test_model_without_anything_is_an_empty_picture():
    nothing = np.zeros((0, 3))
    drawn = draw_model(nothing, nothing.astype(np.uint8), np.zeros((0, 5, 3)), size=100)
    assert drawn.shape == (100, 200, 3)


def test_pictures_are_written_as_rgb_under_any_name(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    path = write_image(tmp_path / "Bild ä.png", image)
    decoded = cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(decoded[..., ::-1], image)


def test_an_unknown_picture_format_is_refused():
    with pytest.raises(InputError, match=r"\.png or \.jpg"):
        encode_image(GRAY, ".nothing")


def test_plot_matches_goes_from_photos_to_a_picture(tmp_path):
    from sfm_matchers.matchers.protocols import Matches

    photo0, photo1 = write_image(tmp_path / "0.png", GRAY), write_image(tmp_path / "1.png", GRAY)
    point = np.array([[20, 30]], dtype=np.float32)
    matches = Matches(point, point + 4, np.ones(1, dtype=np.float32))
    path = tmp_path / "matches.png"
    expected = draw_matches(GRAY, GRAY, point, point + 4, np.ones(1))
    assert np.array_equal(plot_matches(str(photo0), photo1, matches, str(path)), expected)
    assert np.array_equal(cv2.imread(str(path))[..., ::-1], expected)
    path.unlink()
    assert np.array_equal(plot_matches(GRAY, photo1, matches), expected)
    assert not path.exists()
    with pytest.raises(InputError, match=r"missing\.png"):
        plot_matches(tmp_path / "missing.png", photo1, matches, path)
