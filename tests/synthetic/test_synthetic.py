"""Rendered scenes: is the truth that comes with the pictures true?"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest

from sfm_matchers.errors import InputError
from sfm_matchers.synthetic import (
    KINDS,
    Appearance,
    Camera,
    Quad,
    Rendering,
    Scene,
    camera_path,
    look_at,
    make_scene,
    project,
    random_appearance,
    render,
    unproject,
    write_photos,
)
from sfm_matchers.synthetic.sampling import remap

pytestmark = pytest.mark.slow

CAMERA = Camera.from_field_of_view(320, 240)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return make_scene(1, kind="courtyard", texture_size=256)


@pytest.fixture(scope="module")
def poses(scene: Scene) -> list[np.ndarray]:
    return camera_path(scene, 12)


@pytest.fixture(scope="module")
def views(scene: Scene, poses: list[np.ndarray]) -> list[Rendering]:
    appearance = Appearance(noise=0.0)
    return [render(scene, CAMERA, pose, appearance) for pose in poses[:2]]


def quad(origin: list[float], u: list[float], v: list[float], texture: np.ndarray) -> Quad:
    return Quad(np.array(origin), np.array(u), np.array(v), texture)


def grey(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)


def read_at(image: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Bilinear values (N,) of an image (H, W) at pixels (N, 2)."""
    return remap(image.astype(np.float32), pixels[:, 0], pixels[:, 1], cv2.INTER_LINEAR)


# Cameras


def test_project_by_hand():
    camera = Camera(640, 480, 500.0, 510.0, 319.5, 239.5)
    pose = look_at([1.0, 2.0, 3.0], [1.0, 12.0, 3.0])  # looks north: x east, z north
    pixel, depth = project(np.array([2.0, 6.0, 2.5]), camera, pose)
    np.testing.assert_allclose(pixel, [319.5 + 500 / 4, 239.5 + 510 * 0.5 / 4], atol=1e-12)
    assert depth == pytest.approx(4.0)


def test_poses_are_rigid(poses):
    for pose in poses:
        np.testing.assert_allclose(pose[:, :3] @ pose[:, :3].T, np.eye(3), atol=1e-12)
        assert np.linalg.det(pose[:, :3]) == pytest.approx(1.0)


def test_colmap_camera_has_its_pixel_centres_half_a_pixel_further():
    colmap_camera = CAMERA.to_colmap()
    assert colmap_camera.principal_point_x == CAMERA.width / 2
    point = np.array([0.3, -0.2, 1.7])
    pixel, _ = project(point, CAMERA, np.eye(3, 4))
    np.testing.assert_allclose(colmap_camera.img_from_cam(point), pixel + 0.5, atol=1e-10)


def test_unproject_inverts_project(views, poses):
    points = unproject(views[0].depth, CAMERA, poses[0])
    seen = views[0].depth > 0
    assert np.isnan(points[~seen]).all()
    pixels, depth = project(points, CAMERA, poses[0])
    y, x = np.nonzero(seen)
    np.testing.assert_allclose(pixels[seen], np.column_stack([x, y]), atol=1e-6)
    np.testing.assert_allclose(depth[seen], views[0].depth[seen], rtol=1e-6)


# Depth


def test_depth_and_surface_agree_with_plain_ray_casting(scene, views, poses):
    """Every tenth ray along both axes against every quad, one by one in double precision."""
    rotation, translation = poses[0][:, :3], poses[0][:, 3]
    eye = -rotation.T @ translation
    y, x = np.mgrid[5:240:10, 5:320:10].reshape(2, -1)
    rays = np.column_stack([x, y, np.ones(x.size)]) @ np.linalg.inv(CAMERA.K).T @ rotation
    depth, ids = np.full(x.size, np.inf), np.full(x.size, -1)
    for index, surface in enumerate(scene.surfaces):
        normal = np.cross(surface.u, surface.v)
        distance = ((surface.origin - eye) @ normal) / (rays @ normal)
        offset = eye + distance[:, None] * rays - surface.origin
        a, b = np.linalg.lstsq(np.column_stack([surface.u, surface.v]), offset.T, rcond=None)[0]
        hit = (distance > 0) & (distance < depth) & (a >= 0) & (a <= 1) & (b >= 0) & (b <= 1)
        if surface.mask is not None:
            height, width = surface.mask.shape
            row, column = (b * height).astype(int), (a * width).astype(int)
            hit &= surface.mask[row.clip(0, height - 1), column.clip(0, width - 1)]
        depth[hit], ids[hit] = distance[hit], index
    rendered_ids, rendered_depth = views[0].surface_ids[y, x], views[0].depth[y, x]
    same = rendered_ids == ids
    assert same.mean() > 0.995  # single precision decides who owns a pixel on an edge
    seen = same & (ids >= 0)
    assert seen.mean() > 0.5
    np.testing.assert_allclose(rendered_depth[seen], depth[seen], rtol=1e-6)
    assert (rendered_depth[same & (ids < 0)] == 0).all()


def test_two_views_agree(views, poses):
    """Pixels of one view, carried by its depth into the other and back, come home."""
    first, second = views
    y, x = np.nonzero(first.depth > 0)
    pixels, depth = project(unproject(first.depth, CAMERA, poses[0])[y, x], CAMERA, poses[1])
    nearest = np.rint(pixels).astype(int)
    inside = (nearest >= 0).all(axis=1) & (nearest < [320, 240]).all(axis=1) & (depth > 0)
    x, y, pixels, depth, nearest = (
        x[inside],
        y[inside],
        pixels[inside],
        depth[inside],
        nearest[inside],
    )
    same = second.surface_ids[nearest[:, 1], nearest[:, 0]] == first.surface_ids[y, x]
    assert same.mean() > 0.6  # the others are hidden in the second view

    inverse_depth = 1 / np.where(second.depth > 0, second.depth, np.inf)  # affine on planes
    found = 1 / read_at(inverse_depth, pixels[same])
    rays = np.column_stack([pixels[same], np.ones(same.sum())]) @ np.linalg.inv(CAMERA.K).T
    world = (rays * found[:, None] - poses[1][:, 3]) @ poses[1][:, :3]
    home, _ = project(world, CAMERA, poses[0])
    assert np.median(np.linalg.norm(home - np.column_stack([x, y])[same], axis=1)) < 0.1

    colours = read_at(grey(second.image), pixels[same])
    assert np.corrcoef(colours, grey(first.image)[y, x][same])[0, 1] > 0.9


def test_picture_lies_where_geometry_says():
    """An edge painted at a known place appears there, to a small part of a pixel."""
    texture = np.full((256, 256, 3), 110, np.uint8)
    texture[:, 128:] = 130  # through the middle; little contrast, where the tone curve is straight
    wall = quad([-2.0, 4.0, 2.0], [4.0, 0, 0], [0, 0, -4.0], texture)
    scene = Scene("courtyard", (wall,), (), np.zeros((2, 2, 3)))
    appearance = Appearance(noise=0.0, blur=0.0, vignetting=0.0, shadows=False)
    for shift in (0.0, 0.05, 0.121, 0.2):
        pose = look_at([shift, 0.0, 0.0], [shift, 1.0, 0.0])
        row = grey(render(scene, CAMERA, pose, appearance).image)[120, 130:190]
        dark_pixels = np.sum((row[-1] - row) / (row[-1] - row[0]))  # parts of pixels count as such
        expected, _ = project(np.array([0.0, 4.0, 0.0]), CAMERA, pose)
        assert 130 + dark_pixels - 0.5 == pytest.approx(expected[0], abs=0.05)


# Pictures


def test_same_seed_same_picture():
    scenes = [make_scene(1, kind="street", texture_size=64) for _ in range(2)]
    first, second = (render(scene, CAMERA, camera_path(scene, 1)[0]) for scene in scenes)
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.depth, second.depth)


def test_seeds_change_scene_noise_and_path(scene, poses):
    other = make_scene(2, kind="courtyard", texture_size=64)
    assert len(other.surfaces) != len(scene.surfaces) or not np.allclose(
        other.surfaces[-1].origin, scene.surfaces[-1].origin
    )
    first, second = (render(scene, CAMERA, poses[0], seed=seed).image for seed in (0, 1))
    assert (first != second).mean() > 0.2
    assert not np.allclose(camera_path(scene, 12, seed=1)[0], poses[0])


@pytest.mark.parametrize("kind", KINDS)
def test_no_texture_is_used_twice_and_scenes_are_not_flat(kind):
    scene = make_scene(3, kind=kind, texture_size=96)
    textures = [surface.texture.tobytes() for surface in scene.surfaces]
    repeated = len(textures) - len(set(textures))
    assert (repeated > 0) == (kind == "tower")  # whose opposite sides are the same
    view = render(scene, CAMERA, camera_path(scene, 3)[1])
    normals = np.array([surface.normal for surface in scene.surfaces])
    seen = normals[np.unique(view.surface_ids[view.surface_ids >= 0])]
    assert np.linalg.svd(seen, compute_uv=False).min() > 1
    depth = view.depth[view.depth > 0]
    assert np.percentile(depth, 95) > 1.5 * np.percentile(depth, 5)
    assert grey(view.image).std() > 25


def test_night_is_darker_noisier_and_warmer(scene, poses):
    day = render(scene, CAMERA, poses[0], random_appearance(5))
    night = render(scene, CAMERA, poses[0], random_appearance(5, night=True))
    assert night.image.mean() < 0.7 * day.image.mean()
    np.testing.assert_array_equal(night.depth, day.depth)
    red, _, blue = night.image[night.depth > 0].mean(axis=0)
    assert red > 1.2 * blue
    again = render(scene, CAMERA, poses[0], random_appearance(5, night=True), seed=1)
    surface = night.depth > 0
    difference = night.image[surface].astype(float) - again.image[surface]
    assert 3 < difference.std() < 30


def test_appearances_differ_from_photo_to_photo():
    appearances = {random_appearance(seed) for seed in range(20)}
    assert len(appearances) == 20
    assert len({(a.sun_azimuth, a.sun_elevation) for a in appearances}) == 1


def test_shadow_falls_where_the_sun_throws_it():
    """A board 2 m above the ground, the sun in the south at 45 degrees: shadow 2 m north."""
    white = np.full((8, 8, 3), 200, np.uint8)
    ground = quad([-10, 10, 0], [20, 0, 0], [0, -20, 0], white)
    board = quad([-1, 1, 2], [2, 0, 0], [0, -2, 0], white)
    scene = Scene("courtyard", (ground, board), (), np.zeros((2, 2, 3)))
    appearance = Appearance(sun_azimuth=180, sun_elevation=45, noise=0.0, vignetting=0.0)
    pose = look_at([8.0, -8.0, 9.0], [0.0, 1.0, 0.0])
    lit = grey(render(scene, CAMERA, pose, appearance).image)
    places = np.array([[0, 2, 0], [0.8, 2.8, 0], [0, 3.3, 0], [1.3, 2, 0], [0, -4, 0]])
    shadow_1, shadow_2, *sunny = read_at(lit, project(places, CAMERA, pose)[0])
    assert max(shadow_1, shadow_2) < 0.7 * min(sunny)


def test_render_time(scene, poses, record_property):
    start = time.process_time()
    render(scene, Camera.from_field_of_view(640, 480), poses[0])
    seconds = time.process_time() - start
    record_property("seconds", seconds)
    print(f"640x480 rendered in {seconds:.2f} s of processor time")


# Files


def test_written_photos_and_truth(tmp_path, scene):
    model = write_photos(
        tmp_path, scene, 3, seed=4, camera=CAMERA, subfolder="query/night", night=True, depth=True
    )
    poses = camera_path(scene, 3, seed=4)
    read = pycolmap.Reconstruction(tmp_path / "truth" / "query" / "night")
    assert read.num_images() == model.num_images() == read.num_reg_images() == 3
    assert read.num_points3D() == model.num_points3D() > 50
    assert read.cameras[1].params.tolist() == CAMERA.to_colmap().params.tolist()
    for image_id, image in read.images.items():
        assert image.name == f"query/night/{image_id - 1:04d}.jpg"
        pose = poses[image_id - 1]
        np.testing.assert_allclose(image.cam_from_world().matrix(), pose, atol=1e-9)
        picture = cv2.imread(str(tmp_path / "images" / image.name))
        assert picture.shape == (240, 320, 3)
        depth = np.load((tmp_path / "depth" / image.name).with_suffix(".npy"))
        observed = [point for point in image.points2D if point.has_point3D()]
        points = np.array([read.points3D[point.point3D_id].xyz for point in observed])
        pixels, z = project(points, CAMERA, pose)
        np.testing.assert_allclose([point.xy for point in observed], pixels + 0.5, atol=1e-6)
        nearest = np.rint(pixels).astype(int)
        np.testing.assert_allclose(depth[nearest[:, 1], nearest[:, 0]], z, rtol=0.011)
    assert all(point.track.length() >= 2 for point in read.points3D.values())


def test_exif_tells_the_focal_length(tmp_path, scene):
    for exif in (True, False):
        write_photos(tmp_path / str(exif), scene, 1, camera=CAMERA, exif=exif)
    with_exif, without = (
        pycolmap.infer_camera_from_image(tmp_path / str(exif) / "images" / "0000.jpg")
        for exif in (True, False)
    )
    assert with_exif.has_prior_focal_length
    assert with_exif.focal_length == pytest.approx(CAMERA.fx, rel=0.02)
    assert not without.has_prior_focal_length


def test_sift_matches_obey_the_true_epipolar_geometry(tmp_path, scene, poses):
    camera = Camera.from_field_of_view(480, 360)
    (tmp_path / "images").mkdir()
    for index, pose in enumerate(poses[:2]):
        image = render(scene, camera, pose, random_appearance(index), seed=index).image
        cv2.imwrite(str(tmp_path / "images" / f"{index}.jpg"), image[..., ::-1])
    database_path = tmp_path / "database.db"
    pycolmap.extract_features(database_path, tmp_path / "images", device=pycolmap.Device.cpu)
    pycolmap.match_exhaustive(database_path, device=pycolmap.Device.cpu)
    with pycolmap.Database.open(database_path) as database:
        ids = [database.read_image_with_name(f"{index}.jpg").image_id for index in (0, 1)]
        matches = database.read_two_view_geometry(*ids).inlier_matches
        keypoints = [database.read_keypoints(image_id)[:, :2] - 0.5 for image_id in ids]
    assert len(matches) > 100

    pose0, pose1 = (np.vstack([pose, [0, 0, 0, 1]]) for pose in poses[:2])
    relative = pose1 @ np.linalg.inv(pose0)
    x, y, z = relative[:3, 3]
    essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ relative[:3, :3]
    fundamental = np.linalg.inv(camera.K).T @ essential @ np.linalg.inv(camera.K)
    points0, points1 = (
        np.column_stack([points[rows], np.ones(len(rows))])
        for points, rows in zip(keypoints, matches.T, strict=True)
    )
    lines = points0 @ fundamental.T
    distances = np.abs((lines * points1).sum(axis=1)) / np.linalg.norm(lines[:, :2], axis=1)
    print(f"{len(matches)} matches, median epipolar error {np.median(distances):.3f} px")
    assert np.median(distances) < 0.5


# Errors and the example


def test_bad_input_is_named(scene, poses):
    with pytest.raises(InputError, match=r"castle.*courtyard"):
        make_scene(0, kind="castle")
    with pytest.raises(InputError, match="64"):
        make_scene(0, texture_size=8)
    with pytest.raises(InputError, match="at least one"):
        camera_path(scene, 0)
    with pytest.raises(InputError, match="sideways"):
        look_at([0, 0, 0], [0, 0, 1])
    with pytest.raises(InputError, match="degrees"):
        Camera.from_field_of_view(640, 480, 180)
    with pytest.raises(InputError, match=r"\(4, 4\)"):
        render(scene, CAMERA, np.eye(4))


def test_example_render_scene(tmp_path):
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "examples/render_scene.py", str(tmp_path)]
    options = ["--count", "2", "--texture-size", "64", "--kind", "room"]
    done = subprocess.run(
        [*command, *options],
        cwd=root,
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "2 photographs of a room" in done.stdout
    assert len(list((tmp_path / "images").glob("*.jpg"))) == 2
    assert pycolmap.Reconstruction(tmp_path / "truth").num_images() == 2
