"""Exports of models: that other tools' readers, re-told here, see the same scene in them."""

from __future__ import annotations

import json
import os
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
from PIL import Image

from pipelines import export as command
from sfm_matchers.choices import EXPORTS
from sfm_matchers.errors import InputError, OutputError
from sfm_matchers.exports import (
    FORMATS,
    export_model,
    outdated_formats,
    parse_formats,
    remove_exports,
    undistorted,
)
from sfm_matchers.exports import images as exported_images
from sfm_matchers.files import space
from sfm_matchers.files.notes import write_memory

SIZE = 160, 120
CAMERAS = {
    "SIMPLE_PINHOLE": [180, 80, 60],
    "PINHOLE": [180, 190, 82, 59],
    "SIMPLE_RADIAL": [180, 80, 60, 0.08],
    "RADIAL": [180, 79, 62, -0.1, 0.02],
    "OPENCV": [180, 185, 80, 60, -0.1, 0.02, 0.003, -0.002],
    "SIMPLE_FISHEYE": [120, 80, 60],
    "FISHEYE": [120, 124, 80, 60],
    "SIMPLE_RADIAL_FISHEYE": [120, 80, 60, 0.03],
    "RADIAL_FISHEYE": [120, 80, 60, 0.03, -0.01],
    "OPENCV_FISHEYE": [120, 124, 81, 59, 0.03, -0.01, 0.002, -0.001],
    "EQUIRECTANGULAR": [160, 120],
    "FULL_OPENCV": [180, 185, 80, 60, -0.1, 0.02, 0.003, -0.002, 0.01, 0.01, 0, 0],
}


@dataclass
class Scene:
    """A model and its photos, as a run leaves them."""

    model: pycolmap.Reconstruction
    model_dir: Path
    photos: Path
    output: Path

    def export(self, *formats: str) -> dict[str, Path | None]:
        exports = export_model(self.model_dir, self.photos, self.output, formats)
        return {export.format: export.path for export in exports}


def make_scene(root: Path, *cameras: str, num_points: int = 60) -> Scene:
    """A scene with a camera of each of the models, two photos each, in folders."""
    model = pycolmap.Reconstruction()
    rng = np.random.default_rng(3)
    points = rng.uniform(-1, 1, (num_points, 3)) + [0, 0, 6]
    ids = [
        model.add_point3D(point, pycolmap.Track(), rng.integers(0, 256, 3, dtype=np.uint8))
        for point in points
    ]
    for index, name in enumerate(cameras):
        camera = pycolmap.Camera(
            camera_id=index + 3, model=name, width=SIZE[0], height=SIZE[1], params=CAMERAS[name]
        )
        model.add_camera_with_trivial_rig(camera)
        for shot in range(2):
            number = 2 * index + shot
            image = pycolmap.Image(
                name=f"{name.lower()}/shot {shot}.v1.jpg" if shot else f"überblick{index}.png",
                camera_id=camera.camera_id,
                image_id=number + 11,
            )
            turn = pycolmap.Rotation3d(np.array([0.1, 0.2 * number - 0.3, 0.05]))
            pose = pycolmap.Rigid3d(turn, turn * np.array([0.5 * number, 0.2, 0.0]) * -1)
            centred = pose * np.array([0.0, 0, 6])  # looks at the points
            pose = pycolmap.Rigid3d(turn, pose.translation - centred + [0, 0, 6])
            pixels = camera.img_from_cam(pose * points)
            image.points2D = [pycolmap.Point2D(xy) for xy in pixels]
            model.add_image_with_trivial_frame(image, pose)
            for point_index, point_id in enumerate(ids):
                model.add_observation(point_id, pycolmap.TrackElement(image.image_id, point_index))
    model.update_point_3d_errors()
    photos = root / "photos"
    for image in model.images.values():
        path = photos / image.name
        path.parent.mkdir(parents=True, exist_ok=True)
        photo = Image.fromarray(rng.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[274] = 6  # a portrait photo, stored lying
        photo.save(path, exif=exif)
    model_dir = root / "model"
    model_dir.mkdir()
    model.write(model_dir)
    return Scene(model, model_dir, photos, root / "out")


def observations(model: pycolmap.Reconstruction, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 2) of an image, and the points (N, 3) seen there."""
    image = model.find_image_with_name(name)
    seen = [point for point in image.points2D if point.has_point3D()]
    xyz = [model.point3D(point.point3D_id).xyz for point in seen]
    return np.array([point.xy for point in seen]), np.array(xyz)


# ---------------------------------------------------------------------------------------------
# Readers' rules, in our words


def read_ply(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates and colours of a PLY file, by what its header says."""
    header, data = path.read_bytes().split(b"end_header\n", 1)
    lines = header.decode("ascii").split("\n")
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    kinds = {"double": "<f8", "float": "<f4", "uchar": "u1"}
    fields = [line.split()[1:] for line in lines if line.startswith("property")]
    vertices = np.frombuffer(data, [(name, kinds[kind]) for kind, name in fields])
    assert f"element vertex {len(vertices)}" in lines
    xyz, rgb = ("x", "y", "z"), ("red", "green", "blue")
    return tuple(np.stack([vertices[name] for name in names], 1) for names in (xyz, rgb))


def read_inria(folder: Path) -> dict[str, dict]:
    """Cameras as Inria's 3DGS: names below ``images``, the principal point in the middle."""
    cameras, images = {}, {}
    with (folder / "sparse/0/cameras.bin").open("rb") as file:
        for _ in range(struct.unpack("<Q", file.read(8))[0]):
            camera_id, model, width, height = struct.unpack("<iiQQ", file.read(24))
            assert model in (0, 1), "pinhole cameras only"
            params = struct.unpack(f"<{3 + model}d", file.read(8 * (3 + model)))
            cameras[camera_id] = (width, height, params[0], params[model])
    with (folder / "sparse/0/images.bin").open("rb") as file:
        for _ in range(struct.unpack("<Q", file.read(8))[0]):
            _, w, x, y, z, *translation, camera_id = struct.unpack("<idddddddi", file.read(64))
            name = b"".join(iter(lambda: file.read(1), b"\0")).decode()
            file.seek(24 * struct.unpack("<Q", file.read(8))[0], os.SEEK_CUR)
            rotation = pycolmap.Rotation3d(np.array([x, y, z, w])).matrix()
            images[name] = {"R": rotation, "t": np.array(translation), "camera": cameras[camera_id]}
            with Image.open(folder / "images" / name) as photo:
                assert photo.size == cameras[camera_id][:2]
    return images


def project_nerfstudio(scene: dict, frame: dict, points: np.ndarray) -> np.ndarray:
    """Project points (N, 3) of the saved world as nerfstudio's cameras see them."""
    entries = {**{key: value for key, value in scene.items() if key != "frames"}, **frame}
    world_from_camera = np.array(entries["transform_matrix"])
    x, y, z = (np.linalg.inv(world_from_camera) @ np.c_[points, np.ones(len(points))].T)[:3]
    x, y, z = x, -y, -z  # OpenGL's axes to OpenCV's
    kind = scene["camera_model"]
    if kind == "EQUIRECTANGULAR":
        xn = np.arctan2(x, z) / np.pi
        yn = np.arctan2(y, np.hypot(x, z)) / np.pi
    elif kind == "OPENCV_FISHEYE":
        radius = np.hypot(x, y)
        angle = np.arctan2(radius, z)
        ks = (entries[f"k{index}"] for index in range(1, 5))
        bent = angle * (1 + sum(k * angle ** (2 * n) for n, k in enumerate(ks, 1)))
        xn, yn = x / radius * bent, y / radius * bent
    else:
        distortion = np.array([entries[key] for key in ("k1", "k2", "p1", "p2")])
        rays = np.stack([x / z, y / z, np.ones_like(z)], 1)
        xn, yn = cv2.projectPoints(rays, np.zeros(3), np.zeros(3), np.eye(3), distortion)[0][:, 0].T
    pixels = entries["fl_x"] * xn + entries["cx"], entries["fl_y"] * yn + entries["cy"]
    return np.stack(pixels, 1)


# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cameras",
    [
        *[[name] for name in CAMERAS if name != "FULL_OPENCV"],
        ["PINHOLE", "SIMPLE_RADIAL", "OPENCV"],
        ["SIMPLE_FISHEYE", "OPENCV_FISHEYE"],
    ],
    ids="-".join,
)
def test_nerfstudio_sees_the_points_where_the_photos_show_them(tmp_path, cameras):
    scene = make_scene(tmp_path, *cameras)
    path = scene.export("nerfstudio")["nerfstudio"]
    assert path == scene.output / "transforms.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["applied_transform"] == [[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0]]
    assert ("fl_x" in content) == (len(cameras) == 1)
    assert [frame["file_path"] for frame in content["frames"]] == sorted(
        f"images/{image.name}" for image in scene.model.images.values()
    )
    turned = np.array(content["applied_transform"])[:, :3]
    for frame in content["frames"]:
        assert (scene.output / frame["file_path"]).is_file()
        pixels, points = observations(scene.model, frame["file_path"].removeprefix("images/"))
        projected = project_nerfstudio(content, frame, points @ turned.T)
        np.testing.assert_allclose(projected, pixels, atol=1e-4)
    xyz, rgb = read_ply(scene.output / content["ply_file_path"])
    ids = sorted(scene.model.points3D)
    np.testing.assert_allclose(xyz @ turned, [scene.model.point3D(i).xyz for i in ids])
    np.testing.assert_array_equal(rgb, [scene.model.point3D(i).color for i in ids])


def test_undistorted_photos_are_those_of_pinhole_cameras(tmp_path):
    scene = make_scene(tmp_path, "OPENCV", "SIMPLE_RADIAL", "OPENCV_FISHEYE")
    folder = scene.export("undistorted")["undistorted"]
    assert folder == scene.output / "undistorted"
    assert sorted(path.name for path in folder.iterdir()) == ["images", "sparse"]
    images = read_inria(folder)
    flat = {image.name.replace("/", "-"): image.name for image in scene.model.images.values()}
    assert set(images) == set(flat)
    for name, image in images.items():
        points = observations(scene.model, flat[name])[1]
        width, height, fx, fy = image["camera"]
        x, y, z = image["R"] @ points.T + image["t"][:, None]
        projected = np.stack([fx * x / z + width / 2, fy * y / z + height / 2], 1)
        expected = observations(pycolmap.Reconstruction(folder / "sparse/0"), name)[0]
        # The middle of the photo is the principal point, to half a pixel.
        np.testing.assert_allclose(projected, expected, atol=0.51)


def test_undistorted_photos_show_what_the_photos_show(tmp_path):
    """A white spot at a point's pixel is at the point's pixel of the undistorted photo too."""
    scene = make_scene(tmp_path, "OPENCV_FISHEYE", num_points=1)
    name = "überblick0.png"
    column, row = np.floor(observations(scene.model, name)[0][0]).astype(int)
    pixels = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    pixels[row - 1 : row + 2, column - 1 : column + 2] = 255
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels).save(scene.photos / name, exif=exif)
    folder = scene.export("undistorted")["undistorted"]
    shown = np.asarray(Image.open(folder / "images" / name).convert("L"), dtype=float)
    rows, columns = np.indices(shown.shape)
    centre = np.array([(columns + 0.5) * shown, (rows + 0.5) * shown]).sum((1, 2)) / shown.sum()
    expected = observations(pycolmap.Reconstruction(folder / "sparse/0"), name)[0][0]
    np.testing.assert_allclose(centre, expected, atol=0.8)


@pytest.mark.parametrize("camera", ["OPENCV_FISHEYE", "PINHOLE"])
@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_undistorted_photos_are_transparent_where_the_photos_are(tmp_path, camera, suffix):
    """Their red is as strong as they are opaque, in the photo and without distortion."""
    scene = make_scene(tmp_path, camera)
    image = scene.model.find_image_with_name("überblick0.png")
    image.name = f"cut out.{suffix}"
    rows, columns = np.indices(SIZE[::-1])
    opacity = (128 + 60 * np.sin(rows / 9) + 60 * np.cos(columns / 7)).astype(np.uint8)
    pixels = np.stack([opacity, 255 - opacity, opacity // 2, opacity], -1)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels).save(scene.photos / image.name, exif=exif, lossless=True)
    (export,) = export_model(scene.model, scene.photos, scene.output, ["undistorted"])
    target = export.path / "images" / ("cut out.tif" if suffix == "tif" else "cut out.png")
    with Image.open(target) as photo:
        assert photo.mode == "RGBA"
        shown = np.asarray(photo).astype(int)
    assert np.ptp(shown[..., 3]) > 150
    assert np.abs(shown[..., 3] - shown[..., 0]).max() <= 1


def test_crops_of_photos_that_lie_on_their_side_show_what_is_stored(tmp_path):
    """Pillow turns TIFF when it decodes it, as its orientation says."""
    scene = make_scene(tmp_path, "PINHOLE")
    whole = np.asarray(Image.open(scene.photos / "überblick0.png"))
    scene.model.find_image_with_name("überblick0.png").name = "a.tif"
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(whole).save(scene.photos / "a.tif", exif=exif)
    (export,) = export_model(scene.model, scene.photos, scene.output, ["undistorted"])
    with Image.open(export.path / "images" / "a.tif") as crop:
        np.testing.assert_array_equal(np.asarray(crop), whole[:118, 4:])


def test_crops_of_undistorted_photos_leave_the_photos_alone(tmp_path):
    """Photos of PINHOLE cameras are not undistorted, only cropped: principal point (82, 59)."""
    scene = make_scene(tmp_path, "PINHOLE")
    before = {path: path.read_bytes() for path in scene.photos.rglob("*.*g")}
    (export,) = export_model(scene.model_dir, scene.photos, scene.output, ["undistorted"])
    assert "1 photo has a new name: pinhole/shot 1.v1.jpg is" in export.notes[0]
    folder = scene.output / "undistorted"
    with Image.open(folder / "images" / "überblick0.png") as crop:
        assert crop.size == (156, 118)
        assert crop.getexif()[274] == 1
        shown = np.asarray(crop)
    whole = np.asarray(Image.open(scene.photos / "überblick0.png"))
    np.testing.assert_array_equal(shown, whole[:118, 4:])
    assert {path: path.read_bytes() for path in scene.photos.rglob("*.*g")} == before


def test_gsplat_takes_the_folder_as_it_is(tmp_path):
    scene = make_scene(tmp_path, "PINHOLE", "SIMPLE_PINHOLE")
    assert scene.export("gsplat")["gsplat"] == scene.output
    model = pycolmap.Reconstruction(scene.output / "sparse/0")
    names = sorted(model.image(image_id).name for image_id in model.reg_image_ids())
    files = sorted(
        path.relative_to(scene.output / "images").as_posix()
        for path in (scene.output / "images").rglob("*")
        if path.is_file()
    )
    assert files == names == sorted(read_inria(scene.output))
    assert model.num_points3D() == scene.model.num_points3D()
    assert (scene.output / "images" / names[0]).samefile(scene.photos / names[0])


def test_cameras_that_a_tool_does_not_read_are_named(tmp_path):
    scene = make_scene(tmp_path, "FULL_OPENCV")
    exports = {
        export.format: export
        for export in export_model(scene.model_dir, scene.photos, scene.output)
    }
    for name in ("gsplat", "nerfstudio"):
        assert exports[name].path is None
        assert "FULL_OPENCV" in exports[name].notes[0]
        assert "undistorted" in exports[name].notes[0]
    assert exports["undistorted"].path is not None
    assert not (scene.output / "transforms.json").exists()


def test_what_serves_instead_is_written_too(tmp_path):
    scene = make_scene(tmp_path, "FULL_OPENCV")
    folder = scene.output / "undistorted"
    written = scene.export("nerfstudio", "gsplat")
    assert written == {"nerfstudio": None, "gsplat": None, "undistorted": folder}
    assert (folder / "sparse" / "0" / "images.bin").is_file()
    assert set(make_scene(tmp_path / "other", "OPENCV").export("nerfstudio")) == {"nerfstudio"}
    other = make_scene(tmp_path / "taken", "FULL_OPENCV")
    (other.output / "undistorted").mkdir(parents=True)
    (other.output / "undistorted" / "mine.txt").touch()
    assert set(other.export("nerfstudio")) == {"nerfstudio"}


def test_panoramas_have_no_undistorted_form_and_kinds_are_not_mixed(tmp_path):
    scene = make_scene(tmp_path, "EQUIRECTANGULAR", "PINHOLE")
    exports = export_model(scene.model_dir, scene.photos, scene.output)
    reasons = {export.format: export.notes[0] for export in exports if export.path is None}
    assert "no undistorted form" in reasons["undistorted"]
    assert "one kind" in reasons["nerfstudio"]
    assert set(reasons) == {"undistorted", "nerfstudio", "gsplat"}
    assert not any("take the export" in reason for reason in reasons.values())


def test_inria_is_told_of_distortion_and_of_principal_points(tmp_path):
    scene = make_scene(tmp_path, "SIMPLE_RADIAL")
    (export,) = export_model(scene.model_dir, scene.photos, scene.output, ["gsplat"])
    assert "Inria" in export.notes[0]
    assert "undistorted" in export.notes[0]
    other = make_scene(tmp_path / "other", "PINHOLE")
    (export,) = export_model(other.model_dir, other.photos, other.output, ["gsplat"])
    assert "principal points are up to 1% of a side" in export.notes[0]


def test_missing_and_unfit_photos_are_named_and_the_rest_goes_on(tmp_path, caplog):
    scene = make_scene(tmp_path, "OPENCV", "SIMPLE_RADIAL", "RADIAL")
    (scene.photos / "überblick0.png").unlink()
    Image.new("RGB", (80, 60)).save(scene.photos / "überblick1.png")
    (scene.photos / "überblick2.png").write_bytes(b"no photo")
    paths = scene.export(*FORMATS)
    assert "überblick0.png: it is not in" in caplog.text
    assert "überblick1.png: it has 80 x 60 pixels, its camera 160 x 120" in caplog.text
    assert "überblick2.png" in caplog.text
    rest = ["opencv/shot 1.v1.jpg", "radial/shot 1.v1.jpg", "simple_radial/shot 1.v1.jpg"]
    assert sorted(read_inria(paths["undistorted"])) == [name.replace("/", "-") for name in rest]
    frames = json.loads(paths["nerfstudio"].read_text(encoding="utf-8"))["frames"]
    assert [frame["file_path"] for frame in frames] == [f"images/{name}" for name in rest]
    model = pycolmap.Reconstruction(scene.output / "sparse/0")
    assert sorted(image.name for image in model.images.values()) == rest
    assert len(read_ply(paths["ply"])[0]) == scene.model.num_points3D()


def test_formats_that_colmap_does_not_decode_become_png(tmp_path):
    scene = make_scene(tmp_path, "OPENCV", "RADIAL")
    image = scene.model.find_image_with_name("überblick1.png")
    (scene.photos / image.name).unlink()
    image.name = "b/überblick1.webp"
    (scene.photos / "b").mkdir()
    Image.new("RGB", SIZE, (200, 40, 30)).save(scene.photos / image.name)
    (export,) = export_model(scene.model, scene.photos, scene.output, ["undistorted"])
    assert "3 photos have new names: b/überblick1.webp is b-überblick1.png" in export.notes
    assert "b-überblick1.png" in read_inria(export.path)
    with Image.open(export.path / "images/b-überblick1.png") as photo:
        np.testing.assert_allclose(photo.getpixel((80, 60)), (200, 40, 30), atol=4)


def test_what_colmap_cannot_write_is_left_out_of_the_undistorted_model(tmp_path):
    scene = make_scene(tmp_path, "OPENCV", "RADIAL")
    image = scene.model.find_image_with_name("überblick1.png")
    (scene.photos / image.name).rename(scene.photos / "a.webp")
    image.name = "a.webp"
    for _ in range(2):  # the second time nothing is done
        (export,) = export_model(scene.model, scene.photos, scene.output, ["undistorted"])
        assert export.notes[0].startswith("left out: a.webp: COLMAP cannot")
        assert len(read_inria(export.path)) == 3


def test_names_without_folders_are_not_mixed_up(tmp_path):
    scene = make_scene(tmp_path, "OPENCV", "RADIAL")
    scene.model.find_image_with_name("überblick1.png").name = "opencv-shot 1.v1.JPG"
    Image.new("RGB", SIZE, (0, 200, 0)).save(scene.photos / "opencv-shot 1.v1.JPG", "JPEG")
    (export,) = export_model(scene.model, scene.photos, scene.output, ["undistorted"])
    assert len({name.lower() for name in read_inria(export.path)}) == 4


def test_without_any_photo_nothing_is_written(tmp_path):
    scene = make_scene(tmp_path, "OPENCV")
    (tmp_path / "empty").mkdir()
    fault = rf"^{scene.model_dir}.*: no image of the model can be exported.* is not in"
    with pytest.raises(InputError, match=fault):
        export_model(scene.model_dir, tmp_path / "empty", scene.output)
    with pytest.raises(InputError, match="not a folder of photos"):
        export_model(scene.model_dir, tmp_path / "nowhere", scene.output)
    assert not scene.output.exists()


def test_names_that_lead_out_of_the_folder_are_left_out(tmp_path, caplog):
    scene = make_scene(tmp_path, "OPENCV")
    scene.model.find_image_with_name("überblick0.png").name = "../model/a.png"
    Image.new("RGB", SIZE).save(scene.model_dir / "a.png")
    export_model(scene.model, scene.photos, scene.output, ["gsplat"])
    assert "../model/a.png: the name leads out" in caplog.text
    assert not (scene.output / "model").exists()


def test_links_fall_back_to_symbolic_links_and_copies(tmp_path, monkeypatch):
    scene = make_scene(tmp_path, "OPENCV")

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(exported_images.os, "link", refuse)
    scene.export("gsplat")
    assert (scene.output / "images/überblick0.png").is_symlink()
    monkeypatch.setattr(exported_images.os, "symlink", refuse)
    remove_exports(scene.output)
    scene.export("gsplat")
    copy = scene.output / "images/überblick0.png"
    assert not copy.is_symlink()
    assert not copy.samefile(scene.photos / "überblick0.png")
    assert copy.read_bytes() == (scene.photos / "überblick0.png").read_bytes()


def test_exports_are_replaced_when_something_has_changed_and_kept_otherwise(tmp_path):
    scene = make_scene(tmp_path, "OPENCV")
    scene.export(*FORMATS)
    (scene.output / "images/left over.png").write_bytes(b"")
    marks = [path for path in scene.output.rglob("*") if "exports.json" not in path.name]
    before = {path: path.stat().st_mtime_ns for path in marks if path.name != "points3D.ply"}
    scene.export(*FORMATS)
    kept = {path for path in before if path.stat().st_mtime_ns == before[path]}
    assert kept >= {path for path in before if path.is_file()}
    (scene.photos / "überblick0.png").unlink()
    scene.export(*FORMATS)
    assert sorted(read_inria(scene.output / "undistorted")) == ["opencv-shot 1.v1.jpg"]
    assert not (scene.output / "images/left over.png").exists()
    assert [path.name for path in scene.output.glob(".*")] == [".exports.json.copy"]


def test_exports_of_another_model_are_known(tmp_path):
    scene = make_scene(tmp_path, "OPENCV")

    def outdated() -> list[str]:
        return outdated_formats(scene.model_dir, scene.photos, scene.output)

    assert outdated() == []
    scene.export("nerfstudio", "undistorted", "ply")
    assert outdated() == []
    first = next(iter(scene.model.points3D))
    scene.model.points3D[first].xyz = scene.model.points3D[first].xyz + 0.1
    scene.model.write(scene.model_dir)
    assert outdated() == ["nerfstudio", "undistorted", "ply"]
    scene.export("ply", "nerfstudio")
    assert outdated() == ["undistorted"]


def test_linked_photos_are_outdated_where_the_model_has_others(tmp_path):
    scene = make_scene(tmp_path, "OPENCV")
    scene.export("gsplat")
    scene.model.points3D[next(iter(scene.model.points3D))].error = 3
    scene.model.write(scene.model_dir)
    assert outdated_formats(scene.model_dir, scene.photos, scene.output) == []
    next(path for path in (scene.output / "images").rglob("*.png")).unlink()
    assert outdated_formats(scene.model_dir, scene.photos, scene.output) == ["gsplat"]


@pytest.mark.parametrize("name", ["images", "undistorted", "sparse/0", "transforms.json"])
def test_what_no_export_has_written_is_never_replaced(tmp_path, name):
    scene = make_scene(tmp_path, "OPENCV")
    theirs = scene.output / name / "theirs.jpg"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"theirs")
    with pytest.raises(InputError, match="was not written by an export"):
        scene.export(*FORMATS)
    assert not (scene.output / "exports.json").exists()
    remove_exports(scene.output)
    assert theirs.read_bytes() == b"theirs"


def test_only_exports_are_removed(tmp_path):
    scene = make_scene(tmp_path, "OPENCV")
    scene.export(*FORMATS)
    (scene.output / "theirs.txt").write_text("theirs")
    (scene.output / ".export.0123.tmp").mkdir()  # left by a kill
    (scene.output / ".images.0123.tmp").mkdir()
    remove_exports(scene.output)
    left = sorted(path.name for path in scene.output.iterdir())
    assert left == ["sparse", "theirs.txt"]  # sparse is empty
    write_memory(scene.output / "exports.json", {"../photos": "x", "/photos": ""})
    remove_exports(scene.output)
    assert len(list(scene.photos.rglob("*.*"))) == 2


def test_the_model_of_a_run_stays_and_its_photos_come_beside_it(tmp_path):
    scene = make_scene(tmp_path, "OPENCV")
    (scene.output / "sparse").mkdir(parents=True)
    scene.model_dir.rename(scene.output / "sparse/0")
    before = (scene.output / "sparse/0/images.bin").stat()
    exports = export_model(scene.output, scene.photos, scene.output, ["gsplat", "nerfstudio"])
    assert all(export.path for export in exports)
    assert (scene.output / "sparse/0/images.bin").stat() == before
    assert (scene.output / "images/überblick0.png").is_file()
    # The photos may lie there from the beginning.
    own = tmp_path / "own"
    (own / "sparse").mkdir(parents=True)
    (scene.output / "sparse/0").rename(own / "sparse/0")
    scene.photos.rename(own / "images")
    exports = export_model(own, own / "images", own, ["gsplat", "nerfstudio"])
    assert all(export.path for export in exports)
    remove_exports(own)
    assert (own / "images/überblick0.png").is_file()


def test_exports_do_not_go_among_the_photos(tmp_path):
    scene = make_scene(tmp_path, "OPENCV")
    for output in (scene.photos, scene.photos / "new"):
        with pytest.raises(InputError, match="lies in the folder of the photos"):
            export_model(scene.model_dir, scene.photos, output, ["gsplat"])
    export_model(scene.model_dir, None, scene.photos / "new", ["ply"])


def test_a_failed_export_leaves_the_older_one(tmp_path, monkeypatch):
    scene = make_scene(tmp_path, "OPENCV")
    scene.export("undistorted", "gsplat")
    os.utime(scene.photos / "überblick0.png")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pycolmap, "undistort_images", fail)
    with pytest.raises(OutputError, match=r"cannot write .*undistorted"):
        scene.export("undistorted")
    assert len(read_inria(scene.output / "undistorted")) == 2
    assert [path.name for path in scene.output.glob(".*")] == [".exports.json.copy"]


def test_undistorting_asks_for_space_first(tmp_path, monkeypatch):
    """Where a disk is full libjpeg ends the process."""
    scene = make_scene(tmp_path, "OPENCV")
    free = shutil.disk_usage(tmp_path).free
    monkeypatch.setattr(space, "MIN_SPACE", free - (1 << 28))
    with (scene.photos / "überblick0.png").open("ab") as photo:
        photo.truncate(1 << 27)
    monkeypatch.setattr(undistorted.pycolmap, "undistort_images", lambda *arguments: 1 / 0)
    with pytest.raises(OutputError, match="no space is left"):
        scene.export("undistorted")


def test_georeferenced_points_keep_their_millimetres(tmp_path):
    scene = make_scene(tmp_path, "PINHOLE")
    far = np.array([500_000.0, 5_300_000.0, 200.0])
    scene.model.transform(pycolmap.Sim3d(1.0, pycolmap.Rotation3d(), far))
    export_model(scene.model, scene.photos, scene.output, ["ply"])
    ids = sorted(scene.model.points3D)
    expected = [scene.model.point3D(i).xyz for i in ids]
    np.testing.assert_allclose(read_ply(scene.output / "points3D.ply")[0], expected, atol=1e-6)


def test_formats_are_read_from_a_list():
    assert tuple(FORMATS) == tuple(EXPORTS)
    assert parse_formats("ply,GSplat, ply") == ("ply", "gsplat")
    assert parse_formats("") == ()
    with pytest.raises(InputError, match=r"'gsplats': did you mean 'gsplat'\?"):
        parse_formats("ply,gsplats")
    with pytest.raises(InputError, match="did you mean 'nerfstudio'"):
        parse_formats("nerf")


def test_command_line(tmp_path, capsys):
    scene = make_scene(tmp_path, "FULL_OPENCV")
    place = ["--image_dir", str(scene.photos), "--output", str(scene.output)]
    assert command.main(["model", str(scene.model_dir), *place, "--formats", "ply"]) == 0
    assert f"ply  {scene.output / 'points3D.ply'}" in capsys.readouterr().out
    assert command.main(["model", str(scene.model_dir), *place]) == 1
    assert "gsplat       not written" in capsys.readouterr().out
    assert command.main(["model", str(tmp_path / "none"), *place]) == 2
    assert "is not a COLMAP model" in capsys.readouterr().err
