"""EXIF's orientation is taken back, and nothing else of a file."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from sfm_matchers.photos.images import read_image
from sfm_matchers.photos.orientation import show_as_stored


@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("extension", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_reader_sees_pixels_as_stored(
    tmp_path: Path, extension: str, orientation: int, order: str
) -> None:
    path = tmp_path / f"photo{extension}"
    pixels = np.random.default_rng(0).integers(0, 255, (24, 40, 3), np.uint8)
    exif = Image.Exif()
    exif.endian = order
    exif[271], exif[274] = "maker", orientation
    Image.fromarray(pixels).save(path, exif=exif)
    (tmp_path / "other").hardlink_to(path)
    before, stored = path.read_bytes(), read_image(path)

    show_as_stored(path)

    assert (tmp_path / "other").read_bytes() == before
    np.testing.assert_array_equal(cv2.imread(str(path))[..., ::-1], stored)
    with Image.open(path) as photo:
        photo.load()
        assert photo.getexif()[271] == "maker"
        assert ImageOps.exif_transpose(photo).size == (40, 24)
    assert len(path.read_bytes()) == len(before)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xd8", b"II*\0\xff\xff\xff\xff", b"\x89PNG\r\n\x1a\n\0"]
)
def test_other_files_stay(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    show_as_stored(path)
    assert path.read_bytes() == content
