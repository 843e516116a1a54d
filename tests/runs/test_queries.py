"""Which photos are to be localized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image

from sfm_matchers.errors import InputError
from sfm_matchers.runs.localize import names_beside, say_what_is_not_in_the_map
from sfm_matchers.runs.options import LocalizeOptions
from sfm_matchers.runs.queries import query_photos


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "list.txt").write_text("a.jpg\n")
    return tmp_path


def test_a_folder_stands_for_its_photos_and_a_photo_for_itself(photos: Path) -> None:
    assert query_photos(photos) == (photos, ["a.jpg", "b.jpg"])
    assert query_photos(photos / "b.jpg") == (photos, ["b.jpg"])


@pytest.mark.parametrize("name", ["list.txt", "nowhere", "nowhere.jpg"])
def test_anything_else_is_refused(photos: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"{name} is no folder of photos, no photo and no video"):
        query_photos(photos / name)


def test_a_list_is_told_its_option(photos: Path) -> None:
    with pytest.raises(InputError, match=r"list.txt is no .*; a list of intrinsics is --cameras"):
        query_photos(photos / "list.txt")


def test_queries_keep_their_names_unless_the_map_has_them(photos: Path) -> None:
    folder, above = photos.resolve(), photos.resolve().parent
    prefix = f"{folder.name}/"
    assert names_beside({"c.jpg", f"{prefix}a.jpg"}, photos, ["a.jpg"]) == (folder, "")
    assert names_beside({"a.jpg"}, photos, ["a.jpg", "b.jpg"]) == (above, prefix)
    with pytest.raises(InputError, match=f"such as {prefix}b.jpg: give the queries in a folder"):
        names_beside({"a.jpg", f"{prefix}b.jpg"}, photos, ["a.jpg", "b.jpg"])


def test_a_photo_that_is_a_link_to_itself_is_counted(
    photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (photos / "c.jpg").symlink_to("c.jpg")
    options = LocalizeOptions(photos, photos, photos / "queries", photos / "out")
    say_what_is_not_in_the_map(options, pycolmap.Reconstruction(), "")
    assert "3 photos of " in caplog.text
