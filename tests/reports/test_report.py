"""The report: that it says what the database and the model say, and that it stands alone."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from report_page import NUM_IMAGES, NUM_POINTS, Page, Scene, make_scene

from sfm_matchers.errors import InputError
from sfm_matchers.mapping.diagnosis import MatchGraph, likely_reason
from sfm_matchers.photos.images import read_image
from sfm_matchers.reports import model_in_3d, reconstruction
from sfm_matchers.reports.page import fill_page

ODD_NAME = "x</script><b>\"&'{{data}}.png"


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return make_scene(tmp_path)


def test_report_writes_one_page_and_four_pictures(scene):
    path = scene.write()
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "match_graph.png",
        "model.png",
        "report.html",
        "strongest_pair.png",
        "weakest_pair.png",
    ]


def test_page_needs_nothing_else(scene):
    path = scene.write()
    page = Page(path)
    assert page.addresses
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert "link" not in page.tags
    assert not re.search(r"https?://|@import|url\(|fetch\(", path.read_text(encoding="utf-8"))


def test_page_counts_as_colmap_does(scene):
    page = Page(scene.write())
    for fact in (
        f"{NUM_IMAGES} of {NUM_IMAGES}photos registered",
        f"{scene.model.num_points3D()}3D points",
        f"{scene.model.compute_num_observations()}observations",
        f"{scene.model.compute_mean_track_length():.2f}mean track length",
        f"{len(scene.pairs)} of {len(scene.pairs)}pairs verified",
    ):
        assert fact in page.text


def test_row_of_a_photo_says_what_the_model_says(scene):
    for point_id in list(scene.model.points3D)[::3]:
        scene.model.points3D[point_id].xyz += np.array([0.02, -0.01, 0.03])
    page = Page(scene.write())
    for image in scene.model.images.values():
        errors = [
            np.linalg.norm(
                image.project_point(scene.model.points3D[point2D.point3D_id].xyz) - point2D.xy
            )
            for point2D in image.get_observation_points2D()
        ]
        assert np.mean(errors) > 0.05
        assert page.row_of(image.name)[2:] == [
            "yes",
            str(image.num_points2D()),
            str(len(errors)),
            f"{np.mean(errors):.3f}",
        ]


def test_points_and_cameras_keep_their_shape_and_colours(scene):
    scene.model.points3D[min(scene.model.points3D)].color = np.array([1, 2, 3], dtype=np.uint8)
    page = Page(scene.write())
    shown = page.array(page.data["points"], "<f4").reshape(-1, 3)
    true = np.array([scene.model.points3D[i].xyz for i in sorted(scene.model.points3D)])
    frusta = page.array(page.data["frusta"], "<f4").reshape(-1, 5, 3)
    images = [scene.model.images[i] for i in sorted(scene.model.reg_image_ids())]
    shown = np.concatenate([shown, frusta[:, 0]])
    true = np.concatenate([true, [image.projection_center() for image in images]])
    ratio = np.linalg.norm(shown[1:] - shown[:-1], axis=1) / np.linalg.norm(
        true[1:] - true[:-1], axis=1
    )
    assert ratio == pytest.approx(np.full(len(ratio), ratio[0]), rel=1e-4)
    assert np.linalg.norm(shown, axis=1).max() < 2
    assert page.array(page.data["colors"], "u1")[:3].tolist() == [1, 2, 3]
    shown_names = [page.data["names"][row] for row in page.data["cameras"]]
    assert shown_names == [image.name for image in images]
    for image, frustum in zip(images, frusta, strict=True):
        forward = frustum[1:].mean(axis=0) - frustum[0]
        to_points = shown[: -len(images)].mean(axis=0) - frustum[0]
        assert forward @ to_points > 0, f"{image.name} looks away from the points"


def test_matrix_holds_the_verified_matches(scene):
    dropped, emptied = scene.pairs[0], scene.pairs[1]
    with pycolmap.Database.open(scene.root / "database.db") as database:
        ids = {image.name: image.image_id for image in database.read_all_images()}
        for pair in (dropped, emptied):
            database.delete_two_view_geometry(*(ids[name] for name in pair))
        database.delete_matches(*(ids[name] for name in dropped))
        last = scene.pairs[-1]
        expected = len(
            database.read_two_view_geometry(*(ids[name] for name in last)).inlier_matches
        )
    scene.pairs.remove(dropped)
    page = Page(scene.write())
    verified, row = page.matrix("verified"), page.data["names"].index
    assert np.array_equal(verified, verified.T)
    assert verified[row(last[0]), row(last[1])] == expected > 0
    assert verified[row(emptied[0]), row(emptied[1])] == 0
    assert verified[row(dropped[0]), row(dropped[1])] == -1
    assert (np.diag(verified) == -1).all()


def keep_inliers(scene: Scene, pair: tuple[str, str], count: int) -> None:
    with pycolmap.Database.open(scene.root / "database.db") as database:
        ids = {image.name: image.image_id for image in database.read_all_images()}
        pair_ids = [ids[name] for name in pair]
        geometry = database.read_two_view_geometry(*pair_ids)
        geometry.inlier_matches = geometry.inlier_matches[:count]
        database.update_two_view_geometry(*pair_ids, geometry)


def test_strongest_and_weakest_pair_are_named_with_their_counts(scene):
    keep_inliers(scene, scene.pairs[3], 7)
    page = Page(scene.write())
    first, second = sorted(scene.pairs[3])
    assert f"Weakest pair: {first} and {second}, 7 verified matches" in page.text
    assert "Strongest pair: " in page.text


def test_drawn_matches_lie_on_their_keypoints(scene):
    weakest = tuple(sorted(scene.pairs[3]))
    keep_inliers(scene, weakest, 1)
    path = scene.write()
    with pycolmap.Database.open(scene.root / "database.db") as database:
        ids = {image.name: image.image_id for image in database.read_all_images()}
        pair_ids = [ids[name] for name in weakest]
        match = database.read_two_view_geometry(*pair_ids).inlier_matches[0]
        corners = [
            database.read_keypoints(i)[index, :2]
            for i, index in zip(pair_ids, match, strict=True)  # (0, 0) is the pixel's corner here
        ]
    picture = read_image(path.parent / "weakest_pair.png")
    scale = reconstruction.PAIR_HEIGHT / 120
    offset = round(160 * scale) + 8
    for corner, start in zip(corners, (0, offset), strict=True):
        x, y = np.rint(corner * scale - 0.5).astype(int)
        assert picture[y, start + x].tolist() == [50, 180, 255], "a sure match is blue"


def test_names_cannot_break_out_of_the_page(scene):
    scene.pairs.append((scene.names[0], ODD_NAME))
    scene.summary = {"settings": {"<i>key": "</table><script>alert(1)</script>"}}
    plain = Page(Scene(scene.root, scene.model, scene.names, scene.pairs).write())
    page = Page(scene.write())
    assert ODD_NAME in page.data["names"]
    assert page.row_of(ODD_NAME)[2] == "no"
    assert page.tags.count("script") == plain.tags.count("script") == 2
    assert page.tags.count("b") == plain.tags.count("b")
    assert ["<i>key", "</table><script>alert(1)</script>"] in page.rows


def test_summary_tables(scene):
    scene.summary = {
        "model": "big",
        "seconds": {"matching": 4.0, "mapping": 1.0},
        "settings": {"matcher": "jamma", "ratio": 0.8},
    }
    path = scene.write()
    page = Page(path)
    for row in (["model", "big"], ["matcher", "jamma"], ["ratio", "0.8"], ["mapping", "1.0 "]):
        assert row in page.rows
    assert re.findall(r"width:([\d.]+)%", path.read_text(encoding="utf-8")) == ["100.0", "25.0"]


def test_unregistered_photo_is_listed(scene):
    frame_id = min(scene.model.reg_frame_ids())
    name = next(i.name for i in scene.model.images.values() if i.frame_id == frame_id)
    scene.model.deregister_frame(frame_id)
    page = Page(scene.write())
    assert page.row_of(name)[2] == "no"
    assert page.row_of(name)[5] == "–"
    reasons = {row[0]: row[1] for row in page.rows if len(row) == 2}
    assert "with a registered photo" in reasons[name]
    assert len(page.data["cameras"]) == NUM_IMAGES - 1


def test_without_a_model_the_page_says_so_and_old_pictures_go(scene):
    scene.write()
    scene.model = None
    path = scene.write()
    page = Page(path)
    assert f"No model could be built from {NUM_IMAGES} photos." in page.text
    assert page.data["cameras"] == []
    assert not (path.parent / "model.png").exists()
    assert (path.parent / "strongest_pair.png").exists()


def test_a_single_photo(tmp_path):
    with pycolmap.Database.open(tmp_path / "database.db") as database:
        camera = pycolmap.Camera.create_from_model_name(1, "SIMPLE_PINHOLE", 100, 160, 120)
        image = pycolmap.Image()
        image.name, image.camera_id = "only.png", database.write_camera(camera)
        database.write_image(image)
    page = Page(Scene(tmp_path, None, ["only.png"], []).write())
    assert page.row_of("only.png")[2:] == ["no", "0", "0", "–"]
    assert ["only.png", "no keypoints, and in no pair"] in page.rows


def test_missing_photos_cost_only_their_pictures(scene, caplog):
    (scene.root / "images" / scene.names[0]).unlink()
    page = Page(scene.write())
    assert page.row_of(scene.names[0])[2] == "yes"
    assert scene.names[0] in caplog.text


def test_a_missing_database_is_refused_and_not_created(tmp_path):
    with pytest.raises(InputError, match=r"database\.db does not exist"):
        Scene(tmp_path, None, [], []).write()
    assert not (tmp_path / "database.db").exists()


def test_large_models_are_thinned_out(scene, monkeypatch):
    monkeypatch.setattr(model_in_3d, "MAX_POINTS", 10)
    monkeypatch.setattr(reconstruction, "MAX_THUMBNAILS", 2)
    monkeypatch.setattr(reconstruction, "MAX_MATRIX", 3)
    page = Page(scene.write())
    assert len(page.array(page.data["points"], "<f4")) == 3 * 10
    assert f"10 of {NUM_POINTS} points" in page.text
    assert len(page.addresses) == 1 + 2 + 2  # the model, thumbnails and drawn pairs
    assert page.data["matrix"]["block"] == 2
    assert page.matrix("verified").shape == (3, 3)
    assert (page.matrix("verified") > 0).all()


def test_names_are_in_natural_order(scene):
    scene.pairs += [("img10.png", "img9.png"), ("b/1.png", "img9.png")]
    names = Page(scene.write()).data["names"]
    assert names.index("b/1.png") < names.index("img9.png") < names.index("img10.png")


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (2, "at most 12 verified matches with a registered photo; a pose needs 30"),
        (3, "lead only to photos that are not registered either; its best pair has 80"),
        (5, "400 verified matches with a registered photo, but no pose agreed"),
        (6, "in no pair: it was never matched"),
        (7, "none of its 1 pair passed geometric verification"),
        (8, "no keypoints"),
    ],
)
def test_likely_reason(image, reason):
    edges = {(0, 1): 900, (1, 2): 12, (3, 4): 80, (0, 5): 400, (0, 7): 0, (0, 8): 0}
    graph = MatchGraph(
        names=[f"{row}.jpg" for row in range(9)],
        num_keypoints=np.array([1000] * 8 + [0]),
        edges=np.array(list(edges)),
        matches=np.array(list(edges.values())) + 5,
        verified=np.array(list(edges.values())),
        database_path=Path("none.db"),
        image_ids={},
    )
    registered = np.arange(9) < 2
    assert reason in likely_reason(image, graph, registered)
    no_model = likely_reason(3, graph, np.zeros(9, dtype=bool))
    assert no_model == "no model was built; its best pair has 80 verified matches"


def camera_to_world(forward: list[float], down: list[float]) -> np.ndarray:
    z, y = np.array(forward, dtype=float), np.array(down, dtype=float)
    return np.stack([np.cross(y, z), y, z], axis=1)


def test_upright_cameras_say_where_up_is():
    rng = np.random.default_rng(0)
    world = pycolmap.Rotation3d(np.array([0.1, -0.7, 0.4])).matrix()
    circle = [[np.cos(a), np.sin(a), 0] for a in np.arange(0, 6.28, 0.5)]
    rotations = np.array([camera_to_world([-x, -y, 0], [0, 0, -1]) for x, y, _ in circle])
    points = rng.uniform(-1, 1, (300, 3)) * (0.3, 0.3, 1)  # a tower: the spread alone misleads
    upright = model_in_3d._upright_rotation(
        points @ world.T, world @ rotations, 5 * np.array(circle) @ world.T
    )
    assert upright @ upright.T == pytest.approx(np.eye(3), abs=1e-9)
    assert np.linalg.det(upright) == pytest.approx(1)
    assert upright @ world @ [0, 0, 1] == pytest.approx([0, 0, 1], abs=0.02)


KITE = [[1, 0, 0], [0, 1, 0], [0, -1, 0], [1, 1, 0]]  # which swings, and comes back


@pytest.mark.parametrize("headings", [[[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]], KITE])
def test_cameras_that_look_down_from_the_air_are_above_flat_ground(headings):
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (300, 3)) * (3, 2, 0.05)
    centers = np.array([[-1, 0, 4], [0, 0, 4], [1, 0, 4], [2, 0, 4]], dtype=float)
    rotations = np.array([camera_to_world([0, 0, -1], heading) for heading in headings])
    upright = model_in_3d._upright_rotation(points, rotations, centers)
    assert upright[2] == pytest.approx([0, 0, 1], abs=0.05)


def test_the_earth_tells_more_than_photos_down_from_the_air_of_one_heading():
    rng = np.random.default_rng(0)
    world = pycolmap.Rotation3d(np.array([0.1, -0.7, 0.4])).matrix()
    points = rng.uniform(-1, 1, (300, 3)) * (3, 2, 0.5)
    centers = np.array([[-1, 0, 4], [0, 0, 4], [1, 0, 4]], dtype=float)
    rotations = np.array([camera_to_world([0, 0, -1], [0.6, -0.8, 0])] * 3)
    upright = model_in_3d._upright_rotation(
        points @ world.T, world @ rotations, centers @ world.T, earth=world.T
    )
    assert upright @ world == pytest.approx(np.eye(3), abs=1e-9)  # north lies behind


def test_no_points_and_one_camera_still_give_a_rotation():
    rotations = np.array([camera_to_world([0, 1, 0], [0, 0, -1])])
    upright = model_in_3d._upright_rotation(np.zeros((0, 3)), rotations, np.zeros((1, 3)))
    assert upright == pytest.approx(np.eye(3), abs=1e-9)


def test_wide_cameras_are_drawn_at_ninety_degrees():
    camera = pycolmap.Camera.create_from_model_name(1, "EQUIRECTANGULAR", 0, 200, 100)
    frusta = model_in_3d._frusta([camera])
    assert np.abs(frusta[0, 1:]).tolist() == [[1, 0.5, 1]] * 4


@pytest.mark.parametrize("page", ["page.html", "localization.html"])
def test_every_element_the_script_asks_for_exists(page):
    text = fill_page(page, defaultdict(str))
    asked = set(re.findall(r'byId\("([\w-]+)"\)', text))
    assert asked
    assert asked <= set(re.findall(r'\bid="([\w-]+)"', text))
