"""COLMAP models as users have them."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from sfm_matchers.errors import InputError
from sfm_matchers.mapping.models import read_model
from tests.support.point_models import add_image, add_tracks

NAMES = ["a.jpg", "cam1/b.jpg", "0003", "d.jpg", "e.jpg"]


@pytest.fixture
def model() -> pycolmap.Reconstruction:
    """Five photos; the second and third see a point."""
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera(
        model="PINHOLE", width=64, height=48, params=[60, 60, 32, 24], camera_id=1
    )
    model.add_camera_with_trivial_rig(camera)
    for image_id, name in enumerate(NAMES, start=1):
        keypoints = np.array([[1.5, 2.5], [3.5, 4.5], [30.25, 20.5], [9.0, 9.0]])
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(), [image_id, 0, 0])
        add_image(model, image_id, name, pose, keypoints if image_id in (2, 3) else None)
    add_tracks(model, np.ones((1, 3)), {0: [(2, 0), (3, 0)]})
    return model


def poses_of(model: pycolmap.Reconstruction) -> dict[str, float]:
    return {i.name: float(i.cam_from_world().translation[0]) for i in model.images.values()}


EXPECTED = {name: float(index) for index, name in enumerate(NAMES, start=1)}


def write_by_hand(model: pycolmap.Reconstruction, folder: Path, *, points: bool) -> Path:
    """Cameras and images only, without the second lines where they are empty."""
    folder.mkdir()
    model.write_text(folder)
    lines = (folder / "images.txt").read_text().split("\n")
    kept = [line for line in lines if line.strip()]
    if not points:
        kept = [line for line in kept if line.split()[-1] not in ("-1", "1") or "jpg" in line]
        (folder / "points3D.txt").unlink()
    (folder / "images.txt").write_text("\n".join(kept))
    (folder / "rigs.txt").unlink()
    (folder / "frames.txt").unlink()
    return folder


def test_images_without_their_empty_second_lines(
    model: pycolmap.Reconstruction, tmp_path: Path
) -> None:
    found = read_model(write_by_hand(model, tmp_path / "points", points=True))
    assert poses_of(found) == EXPECTED
    assert [found.images[i].num_points2D() for i in range(1, 6)] == [0, 4, 4, 0, 0]
    assert found.num_points3D() == 1
    found = read_model(write_by_hand(model, tmp_path / "none", points=False))
    assert poses_of(found) == EXPECTED
    assert found.num_points3D() == 0


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\n\n\n"])
@pytest.mark.parametrize("table", ["", "# 3D point list\n", None])
def test_the_last_image_has_no_second_line(
    model: pycolmap.Reconstruction, tmp_path: Path, end: str, table: str | None
) -> None:
    """Editors and scripts end a file as they like."""
    model.delete_point3D(1)
    (tmp_path / "model").mkdir()
    model.write_text(tmp_path / "model")
    if table is None:
        for name in ("points3D.txt", "frames.txt", "rigs.txt"):
            (tmp_path / "model" / name).unlink()
    else:
        (tmp_path / "model/points3D.txt").write_text(table)
    images = tmp_path / "model/images.txt"
    images.write_text(images.read_text().rstrip() + end)
    assert poses_of(read_model(tmp_path / "model")) == EXPECTED


def test_keypoints_of_points_that_are_not_given(
    model: pycolmap.Reconstruction, tmp_path: Path
) -> None:
    model.write_text(tmp_path)
    (tmp_path / "points3D.txt").unlink()
    found = read_model(tmp_path)
    assert poses_of(found) == EXPECTED
    assert found.num_points3D() == 0


def test_lines_that_cannot_be_are_named(model: pycolmap.Reconstruction, tmp_path: Path) -> None:
    images = write_by_hand(model, tmp_path / "model", points=False) / "images.txt"
    lines = images.read_text().split("\n")
    first = next(index for index, line in enumerate(lines) if "a.jpg" in line)
    lines[first] = lines[first][:9]
    images.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"images\.txt: IMAGE_ID QW .* NAME expected, found '1 "):
        read_model(tmp_path / "model")
    lines[first] = next(line for line in lines if "d.jpg" in line)
    images.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"images\.txt: image 4 is there twice"):
        read_model(tmp_path / "model")


@pytest.mark.parametrize("has_second_lines", [True, False])
def test_names_with_spaces(
    model: pycolmap.Reconstruction, tmp_path: Path, has_second_lines: bool
) -> None:
    """COLMAP writes them, and reads them up to the first space."""
    names = ["my photo 1.jpg", "my photo 2.jpg", "c/3  4.jpg", "d.jpg", "5 6 7.jpg"]
    for image_id, name in enumerate(names, start=1):
        model.images[image_id].name = name
    model.write_text(tmp_path)
    if not has_second_lines:
        lines = (tmp_path / "images.txt").read_text().split("\n")
        (tmp_path / "images.txt").write_text("\n".join(line for line in lines if line.strip()))
    found = read_model(tmp_path)
    assert poses_of(found) == {name: float(index) for index, name in enumerate(names, start=1)}
    assert found.num_points3D() == 1


@pytest.mark.parametrize("write", ["write_text", "write_binary"])
def test_models_of_colmap_are_read_as_they_are(
    model: pycolmap.Reconstruction, tmp_path: Path, write: str
) -> None:
    getattr(model, write)(tmp_path)
    found = read_model(str(tmp_path))
    assert poses_of(found) == EXPECTED
    assert [found.images[i].num_points2D() for i in range(1, 6)] == [0, 4, 4, 0, 0]


@pytest.mark.parametrize("below", ["", "0", "sparse/0", "sparse"])
def test_the_model_is_found_below_the_folder(
    model: pycolmap.Reconstruction, tmp_path: Path, below: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / below
    folder.mkdir(parents=True, exist_ok=True)
    model.write(folder)
    if below.endswith("0"):
        (folder.parent / "1").mkdir()
    with caplog.at_level(logging.INFO):
        assert poses_of(read_model(tmp_path)) == EXPECTED
    assert ("The model is" in caplog.text) == bool(below)
    assert ("holds 2 models" in caplog.text) == below.endswith("0")


def test_what_is_no_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a COLMAP model") as caught:
        read_model(tmp_path)
    assert ".cc:" not in str(caught.value)
    with pytest.raises(InputError, match="there is no such file or folder"):
        read_model(tmp_path / "nowhere")
    for name in ("cameras.txt", "images.txt"):
        (tmp_path / name).write_text("this is\nno table\n")
    with pytest.raises(InputError, match="is not a COLMAP model"):
        read_model(tmp_path)
    (tmp_path / "images.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not a COLMAP model"):
        read_model(tmp_path)


def test_rigs_without_frames_are_refused(model: pycolmap.Reconstruction, tmp_path: Path) -> None:
    model.write(tmp_path)
    (tmp_path / "frames.bin").unlink()
    with pytest.raises(InputError, match=r"rigs\.bin is there, but no file frames\.bin"):
        read_model(tmp_path)


@pytest.mark.parametrize("write", ["write_text", "write_binary"])
@pytest.mark.parametrize("params", [[60, -60, 32, 24], [0, 60, 32, 24], [60, 60, 1e300, 24]])
def test_cameras_that_cannot_be_are_refused(
    model: pycolmap.Reconstruction, tmp_path: Path, write: str, params: list[float]
) -> None:
    model.cameras[1].params = params
    getattr(model, write)(tmp_path)
    with pytest.raises(
        InputError,
        match="its table cameras is damaged: camera 1 cannot be|"
        r"cameras\.bin is damaged: camera 1 cannot be",
    ):
        read_model(tmp_path)


def test_poses_that_cannot_be_are_refused(model: pycolmap.Reconstruction, tmp_path: Path) -> None:
    model.images[3].frame.rig_from_world = pycolmap.Rigid3d(
        pycolmap.Rotation3d(), np.array([0, 1e300, 0])
    )
    model.write(tmp_path)
    with pytest.raises(InputError, match="the pose of '0003' is none"):
        read_model(tmp_path)


def test_damage_of_text_is_said_of_the_users_model(
    model: pycolmap.Reconstruction, tmp_path: Path
) -> None:
    model.write_text(tmp_path)
    path = tmp_path / "points3D.txt"
    lines = [line for line in path.read_text().splitlines() if line.startswith("#")]
    path.write_text("\n".join(lines))
    with pytest.raises(InputError) as caught:
        read_model(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} is not a COLMAP model: its table images is damaged: "
        "keypoints are of points that do not exist"
    )


@pytest.mark.parametrize("suffix", ["binary", "text"])
@pytest.mark.parametrize("table", ["keypoints", "points"])
def test_places_that_no_photo_shows_are_refused(
    model: pycolmap.Reconstruction, tmp_path: Path, table: str, suffix: str
) -> None:
    if table == "points":
        next(iter(model.points3D.values())).xyz = np.array([1e200, 0, 0])
    else:
        model.images[2].points2D[1].xy = np.array([1e200, 0])
    write = model.write_text if suffix == "text" else model.write_binary
    write(tmp_path)
    with pytest.raises(InputError, match=rf"{tmp_path} is not a COLMAP model: .* are nowhere"):
        read_model(tmp_path)
