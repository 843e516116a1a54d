"""HEIC photos, as phones take them: read where pillow-heif is installed, named where it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image

from sfm_matchers.errors import InputError
from sfm_matchers.exports import export_model
from sfm_matchers.mapping.camera_options import CameraOptions
from sfm_matchers.mapping.database import create_database
from sfm_matchers.photos import heif
from sfm_matchers.photos.cameras import CameraGroups, read_photo_header
from sfm_matchers.photos.checked import check_photos
from sfm_matchers.photos.folders import find_images
from sfm_matchers.photos.images import decoded_size, exif_orientation, read_image, to_upright
from sfm_matchers.photos.masks import read_opacity
from tests.support.point_models import add_image, add_tracks

pytest.importorskip("pillow_heif", reason="needs the extra heic")

WIDTH, HEIGHT = 96, 64
INSTALL = 'pip install "sfm-matchers[heic]"'


def picture() -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([2 * columns, 3 * rows, 255 - columns - rows], axis=-1).astype(np.uint8)


def save(path: Path, orientation: int = 1, image: Image.Image | None = None) -> None:
    """A photo as a phone writes it: 4.2 mm, 26 mm on film; the pixels as the sensor lies."""
    heif.register()
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0112] = "Maker", "Phone 7", orientation
    exif.get_ifd(0x8769)[0x920A] = 4.2
    exif.get_ifd(0x8769)[0xA405] = 26
    image = image or Image.fromarray(picture())
    image.save(path, "HEIF", quality=95, exif=exif.tobytes())


def forget_pillow_heif(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    patch.setattr(heif, "can_read", lambda: False)


@pytest.mark.parametrize("orientation", [1, 2, 3, 6, 8])
@pytest.mark.parametrize("name", ["photo.heic", "photo.HEIF", "heic_named.jpg"])
def test_heic_is_read_upright(tmp_path: Path, orientation: int, name: str) -> None:
    """Its container says how it is turned, and decoders turn it: no EXIF orientation is left."""
    path = tmp_path / name
    save(path, orientation)
    upright = to_upright(picture(), orientation)
    assert find_images(tmp_path) == [name]
    assert decoded_size(path) == read_photo_header(path).size == upright.shape[1::-1]
    assert exif_orientation(path) == 1
    assert np.abs(read_image(path).astype(int) - upright).mean() < 3
    luma = upright @ [0.299, 0.587, 0.114]
    assert np.abs(read_image(path, gray=True) - luma).mean() < 3


def test_the_lens_of_heic_is_known(tmp_path: Path) -> None:
    save(tmp_path / "a.heic", 6)
    header = read_photo_header(tmp_path / "a.heic")
    assert (header.make, header.model, header.focal_length) == ("Maker", "Phone 7", 4.2)


@pytest.mark.parametrize("orientation", [1, 6])
def test_colmap_is_told_size_and_focal_length_of_heic(tmp_path: Path, orientation: int) -> None:
    save(tmp_path / "a.heic", orientation)
    save(tmp_path / "b.heic", orientation)
    create_database(
        tmp_path / "database.db",
        tmp_path,
        CameraGroups([["a.heic", "b.heic"]]),
        CameraOptions("SIMPLE_RADIAL"),
    )
    with pycolmap.Database.open(tmp_path / "database.db") as database:
        (camera,) = database.read_all_cameras()
        assert len(database.read_all_images()) == 2
    assert camera.has_prior_focal_length
    diagonal = np.hypot(WIDTH, HEIGHT) / np.hypot(36, 24)
    assert camera.params[0] == pytest.approx(26 * diagonal, rel=1e-3)
    assert (camera.width, camera.height) == ((WIDTH, HEIGHT), (HEIGHT, WIDTH))[orientation == 6]


def test_transparent_parts_of_heic_are_masked(tmp_path: Path) -> None:
    image = Image.fromarray(picture()).convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, WIDTH // 2, HEIGHT))
    save(tmp_path / "a.heic", image=image)
    opaque = read_opacity(tmp_path / "a.heic")
    assert opaque is not None
    assert opaque[:, WIDTH // 2 + 2 :].all()
    assert not opaque[:, : WIDTH // 2 - 2].any()


def test_half_a_heic_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.heic"
    save(path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(InputError, match=r"a\.heic (cannot be read|is not an image)"):
        decoded_size(path)


def test_without_pillow_heif_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    forget_pillow_heif(monkeypatch)
    for name in ("a.heic", "b.HEIC", "c.heif"):
        (tmp_path / name).touch()
    assert find_images(tmp_path) == []
    assert f"left out: 2 photos .heic: to read them {INSTALL}" in caplog.text
    assert f"left out: 1 photo .heif: to read them {INSTALL}" in caplog.text


def test_heic_named_jpg_is_read_once_the_extra_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path / "a.jpg")
    with pytest.MonkeyPatch.context() as patch:
        forget_pillow_heif(patch)
        assert check_photos(tmp_path, tmp_path / "out") == {}
        assert f"a.jpg is a HEIC photo: to read it {INSTALL}" in caplog.text
    assert list(check_photos(tmp_path, tmp_path / "out")) == ["a.jpg"]


def test_tools_that_read_no_heic_get_png(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera.create_from_model_id(
        1, pycolmap.CameraModelId.PINHOLE, 100, WIDTH, HEIGHT
    )
    model.add_camera_with_trivial_rig(camera)
    for number in (1, 2):
        save(tmp_path / f"{number}.heic")
        add_image(model, number, f"{number}.heic", pycolmap.Rigid3d(), np.ones((1, 2)))
    add_tracks(model, np.array([[0, 0, 3.0]]), {0: [(1, 0), (2, 0)]})
    output = tmp_path.with_name(f"{tmp_path.name}-out")
    undistorted, *others = export_model(
        model, tmp_path, output, ["undistorted", "gsplat", "nerfstudio"]
    )
    assert undistorted.path is not None
    with Image.open(undistorted.path / "images/1.png") as photo:
        assert photo.size == (WIDTH, HEIGHT)
    for export in others:
        assert export.path is None
        assert "no HEIC photos: take the export undistorted" in export.notes[0]
        assert f"export {export.format}: not written; " in caplog.text  # a quiet run says it too
