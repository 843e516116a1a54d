"""What the report says of cameras, errors, matches and the run, and that photos stand upright."""

from __future__ import annotations

import html
import re
import sys
from pathlib import Path

import h5py
import numpy as np
import pycolmap
import pytest
from hypothesis import given
from hypothesis import strategies as st
from many_photos import make_many_photos
from PIL import Image
from report_page import NUM_IMAGES, Page, Scene, make_scene

import sfm_matchers
from sfm_matchers.photos.cameras import FILM_DIAGONAL, exif_pixel_size
from sfm_matchers.photos.images import from_upright, points_to_upright, to_upright, up_in_camera
from sfm_matchers.reports import histograms, matches, model_in_3d
from sfm_matchers.reports.histograms import histograms_html
from sfm_matchers.reports.model_in_3d import build_scene, model_errors
from sfm_matchers.reports.page import command_line
from sfm_matchers.reports.pictures import read_picture

ORIENTATION = 0x0112
FOCAL_LENGTH, ON_FILM = 0x920A, 0xA405


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return make_scene(tmp_path)


@pytest.mark.parametrize("level", ["good", "fair", "poor"])
def test_the_verdict_stands_in_a_box_of_its_level(scene, level):
    scene.summary = {"verdict": "2 of 6 <b>photos", "verdict_level": level}
    path = scene.write()
    text = path.read_text(encoding="utf-8")
    assert f'<p class="verdict {level}" role="status">2 of 6 &lt;b&gt;photos</p>' in text
    assert not any(row[0].startswith("verdict") for row in Page(path).rows if row)


def test_a_line_of_the_verdict_does_not_end_within_an_option(scene):
    scene.summary = {"verdict": "2 of 6 photos; try --matcher jamma", "verdict_level": "poor"}
    text = scene.write().read_text(encoding="utf-8")
    assert 'try <span class="option">--matcher</span> jamma</p>' in text
    assert ".option { white-space: nowrap; }" in text


def test_without_a_verdict_there_is_no_box(scene):
    assert 'class="verdict' not in scene.write().read_text(encoding="utf-8")


def test_the_run_names_photos_versions_and_command(scene, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python3", "-m", "x", "a <b>"])
    facts = {row[0]: row[1] for row in Page(scene.write()).rows if len(row) == 2}
    assert facts["photo folder"] == str(scene.root / "images")
    assert facts["command"] == "python3 -m x 'a <b>'"
    assert f"sfm_matchers {sfm_matchers.__version__}" in facts["versions"]
    assert f"pycolmap {pycolmap.__version__}" in facts["versions"]
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d", facts["made"])


@pytest.mark.parametrize(
    ("script", "shown"),
    [("/home/me/.venv/bin/sfm-matchers", "sfm-matchers"), ("/home/me/a.py", "python3 a.py")],
)
def test_the_command_has_no_folders(script, shown, monkeypatch):
    monkeypatch.setattr(sys, "argv", [script, "sfm"])
    words = ["/home/me/.venv/bin/python3", script, "sfm", "--images", "/photos"]
    assert command_line(words) == f"{shown} sfm --images /photos"


def test_command_line_of_nothing():
    assert command_line([]) == ""


def test_the_table_of_cameras_holds_the_result_against_the_beginning(scene):
    with pycolmap.Database.open(scene.root / "database.db") as database:
        camera = database.read_all_cameras()[0]
        camera.params = [160.0, 80.0, 60.0, 0.0]
        camera.has_prior_focal_length = False
        database.update_camera(camera)
    scene.model.cameras[1].params = [200.0, 82.5, 59.0, -0.0125]
    (row,) = (row for row in Page(scene.write()).rows if len(row) == 10 and "RADIAL" in row[3])
    assert row[1:] == [
        str(NUM_IMAGES),
        "160 × 120",
        "SIMPLE_RADIAL",
        "200.0",
        "160.0 a guess, +25.0 %",
        "–",
        f"{200 * FILM_DIAGONAL / 200:.1f} mm",
        "+2.5 -1.0",
        "k -0.0125",
    ]


def test_panoramas_have_neither_focal_length_nor_principal_point(scene):
    camera = pycolmap.Camera.create_from_model_name(1, "EQUIRECTANGULAR", 1.0, 160, 120)
    scene.model.cameras[1].model, scene.model.cameras[1].params = camera.model, camera.params
    (row,) = (row for row in Page(scene.write()).rows if len(row) == 10 and "RECT" in row[3])
    assert row[3:] == ["EQUIRECTANGULAR", "–", "–", "–", "–", "–", "none"]


def test_focal_lengths_in_millimetres_where_exif_knows_the_sensor(scene):
    for name in scene.names:
        exif = Image.Exif()
        exif[0x8769] = {FOCAL_LENGTH: 4.0, ON_FILM: 26}
        Image.new("RGB", (160, 120)).save(scene.root / "images" / name, exif=exif)
    assert exif_pixel_size(scene.root / "images" / scene.names[0]) == pytest.approx(
        FILM_DIAGONAL * 4 / 26 / 200
    )
    (row,) = (row for row in Page(scene.write()).rows if len(row) == 10 and "RADIAL" in row[3])
    assert row[6] == f"{200 * FILM_DIAGONAL * 4 / 26 / 200:.2f}"


def test_histograms_count_every_observation_and_point(scene):
    for point_id in list(scene.model.points3D)[::3]:
        scene.model.points3D[point_id].xyz += np.array([0.02, -0.01, 0.03])
    text = histograms_html(scene.model, model_errors(scene.model))
    bars = re.findall(r"<title>[^<]*: ([\d,]+) (\w+)</title>", text)
    for noun, total in (
        ("observations", scene.model.compute_num_observations()),
        ("points", scene.model.num_points3D()),
    ):
        numbers = [int(number.replace(",", "")) for number, kind in bars if kind == noun]
        assert sum(numbers) == total
        # A bare number would be taken for the total, which another tile shows.
        assert f">most in a bar: {max(numbers):,} {noun}</text>" in text


def test_a_track_is_as_long_as_the_photos_in_it_are_many(scene):
    """Two observations of one photo are one: no track is longer than there are photos."""
    shown = min(scene.model.reg_image_ids())
    for point in scene.model.points3D.values():
        for _ in range(NUM_IMAGES):
            point.track.add_element(shown, 0)
    text = histograms_html(scene.model, model_errors(scene.model))
    assert {int(length) for length in re.findall(r"<title>(\d+) photos: ", text)} == {
        *range(2, NUM_IMAGES + 1)
    }
    assert f"the longest track in {NUM_IMAGES}." in text
    assert build_scene(scene.model).track_lengths.max() == NUM_IMAGES


@pytest.mark.parametrize("longest", [2, 3, 12, 13, 17, 19, 24, 60])
def test_the_last_bar_of_the_track_lengths_is_named(scene, monkeypatch, longest):
    lengths = np.arange(scene.model.num_points3D()) % (longest - 1) + 2
    monkeypatch.setattr(histograms, "track_lengths", lambda points: np.append(lengths, longest))
    text = histograms_html(scene.model, model_errors(scene.model))
    last = text.rpartition("</text>")[0].rpartition(">")[2]
    assert last == (f"{histograms.MAX_TRACK_LENGTH}+" if longest > 24 else str(longest))


def test_lines_of_pairs_end_at_the_verified_matches(scene):
    page = Page(scene.write())
    pairs = page.array(page.data["pairs"]["pairs"], "<i4").reshape(-1, 4)
    counts = page.array(page.data["pairs"]["counts"], "<i4")
    lines = page.array(page.data["pairs"]["lines"], "<u2").reshape(-1, 4) / matches.FULL
    assert len(pairs) == len(scene.pairs)
    assert counts.sum() == len(lines)
    starts = np.cumsum(counts) - counts
    with pycolmap.Database.open(scene.root / "database.db") as database:
        ids = {image.name: image.image_id for image in database.read_all_images()}
        for (first, second, verified, _), start, count in zip(pairs, starts, counts, strict=True):
            own = [ids[page.data["names"][row]] for row in (first, second)]
            inliers = database.read_two_view_geometry(*own).inlier_matches
            assert verified == count == len(inliers)
            for side, image_id in enumerate(own):
                true = database.read_keypoints(image_id)[inliers[:, side], :2] / (160, 120)
                drawn = lines[start : start + count, 2 * side : 2 * side + 2]
                assert np.abs(drawn - true).max() < 1e-4


def test_of_many_pairs_the_strongest_of_each_image_are_held(scene, monkeypatch):
    monkeypatch.setattr(matches, "MAX_PARTNERS", 1)
    monkeypatch.setattr(matches, "MAX_LINES_IN_ALL", 40)
    page = Page(scene.write())
    pairs = page.array(page.data["pairs"]["pairs"], "<i4").reshape(-1, 4)
    assert set(pairs[:, :2].ravel().tolist()) == set(range(NUM_IMAGES))
    assert len(pairs) < len(scene.pairs)
    assert page.array(page.data["pairs"]["counts"], "<i4").sum() <= 40


def test_the_shown_model_leads_back_to_its_own_frame(scene):
    page = Page(scene.write())
    shown = page.array(page.data["points"], "<f4").reshape(-1, 3)
    world = page.data["world"]
    upright = np.array(world["upright"]).reshape(3, 3)
    back = (shown * world["radius"] + world["middle"]) @ upright
    true = np.array([scene.model.points3D[i].xyz for i in sorted(scene.model.points3D)])
    assert back == pytest.approx(true, abs=1e-4 * world["radius"])


@given(orientation=st.integers(1, 8), x=st.integers(0, 4), y=st.integers(0, 2))
def test_points_go_where_their_pixels_go(orientation, x, y):
    image = np.zeros((3, 5), np.uint8)
    image[y, x] = 1
    upright = to_upright(image, orientation)
    assert np.array_equal(from_upright(upright, orientation), image)
    share = points_to_upright(np.array([[(x + 0.5) / 5, (y + 0.5) / 3]]), orientation)[0]
    height, width = upright.shape
    row, column = np.argwhere(upright)[0]
    assert share * (width, height) - 0.5 == pytest.approx([column, row])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright_as_pillow_sets_them(tmp_path, orientation):
    from PIL import ImageOps

    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20, :30] = (250, 60, 60)
    pixels[20:, :30] = (60, 250, 60)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    with Image.open(tmp_path / "a.jpg") as photo:
        expected = np.asarray(ImageOps.exif_transpose(photo).convert("RGB"), dtype=float)
    shown = read_picture(tmp_path / "a.jpg")
    assert shown is not None
    assert shown.shape == expected.shape
    assert np.abs(shown - expected).mean() < 3


@pytest.mark.parametrize(
    ("orientation", "up"), [(1, [0, -1]), (3, [0, 1]), (6, [-1, 0]), (8, [1, 0])]
)
def test_up_in_the_stored_pixels(orientation, up):
    assert up_in_camera(orientation).tolist() == [*up, 0]


def test_photos_stored_on_their_side_do_not_tip_the_model(scene):
    """The same photos and poses, with a tag that says that the cameras were held upright."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    for name in scene.names:
        Image.new("RGB", (160, 120)).save(scene.root / "images" / name, exif=exif)
    images = [scene.model.images[i] for i in sorted(scene.model.reg_image_ids())]
    built = model_in_3d.build_scene(scene.model, dict.fromkeys(scene.names, 6))
    left = [-image.cam_from_world().inverse().rotation.matrix()[:, 0] for image in images]
    mean = np.mean(left, axis=0)
    if np.linalg.norm(mean) >= 0.5:
        assert built.upright[2] == pytest.approx(mean / np.linalg.norm(mean))
    page = Page(scene.write())
    assert page.data["world"]["upright"] == pytest.approx(built.upright.ravel().tolist())


def test_lines_of_photos_on_their_side_are_upright_too(scene):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.new("RGB", (160, 120)).save(scene.root / "images" / scene.names[0], exif=exif)
    page = Page(scene.write())
    row = page.data["names"].index(scene.names[0])
    pairs = page.array(page.data["pairs"]["pairs"], "<i4").reshape(-1, 4)
    counts = page.array(page.data["pairs"]["counts"], "<i4")
    lines = page.array(page.data["pairs"]["lines"], "<u2").reshape(-1, 4) / matches.FULL
    pair = int(np.flatnonzero(pairs[:, 0] == row)[0])
    start = int(counts[:pair].sum())
    with pycolmap.Database.open(scene.root / "database.db") as database:
        ids = {image.name: image.image_id for image in database.read_all_images()}
        own = [ids[page.data["names"][image]] for image in pairs[pair, :2]]
        inliers = database.read_two_view_geometry(*own).inlier_matches
        x, y = (database.read_keypoints(own[0])[inliers[:, 0], :2] / (160, 120)).T
    drawn = lines[start : start + counts[pair], :2]
    assert drawn == pytest.approx(np.stack([1 - y, x], axis=1), abs=1e-4)


def test_a_missing_feature_file_costs_only_the_lines(scene):
    with h5py.File(scene.root / "features.h5", "w"):
        pass
    page = Page(scene.write())
    assert page.data["pairs"]["lines"] == ""
    assert html.escape(scene.names[0]) in scene.write().read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_page_of_many_photos_stays_small(tmp_path):
    """Of coloured noise, which no JPEG makes small."""
    path = make_many_photos(tmp_path, 300).write()
    assert path.stat().st_size < 10_000_000
    page = Page(path)
    assert len(page.addresses) == 300 + 1 + 2
    assert page.data["matrix"]["block"] == 1
