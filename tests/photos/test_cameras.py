"""Which photos share a camera."""

from __future__ import annotations

import pytest

from sfm_matchers.errors import InputError
from sfm_matchers.photos.cameras import PhotoHeader, group_photos

PHONE = PhotoHeader((4000, 3000), "Maker", "Phone 5", "", 4.2)


def test_exif_of_one_camera_is_one_camera() -> None:
    zoomed = PhotoHeader((4000, 3000), "Maker", "Phone 5", "", 6.9)
    found = group_photos({"a.jpg": PHONE, "b.jpg": PHONE, "c.jpg": zoomed})
    assert sorted(found.groups) == [["a.jpg", "b.jpg"], ["c.jpg"]]


def test_one_size_without_exif_is_one_camera_and_is_said() -> None:
    headers = {f"{index}.jpg": PhotoHeader((1024, 683)) for index in range(19)}
    found = group_photos(headers)
    assert len(found.groups) == 1
    assert "without EXIF" in found.reason


def test_mixed_sizes_without_exif_are_many_cameras() -> None:
    headers = {f"{index}.jpg": PhotoHeader((1024, 660 + index)) for index in range(6)}
    assert len(group_photos(headers).groups) == 6


def test_a_few_sizes_of_several_photos_each_are_a_few_cameras() -> None:
    sizes = {f"{index}.jpg": PhotoHeader(((400, 300), (360, 300))[index % 2]) for index in range(7)}
    found = group_photos(sizes)
    assert sorted(map(len, found.groups)) == [3, 4]
    assert "57% of one size: taken for one camera per size, 2 camera(s)" in found.reason
    del sizes["1.jpg"], sizes["2.jpg"], sizes["4.jpg"]  # two of each left
    assert sorted(map(len, group_photos(sizes).groups)) == [1, 1, 1, 1]


def test_upright_photos_get_a_camera_of_their_own() -> None:
    headers = {"a.jpg": PhotoHeader((640, 480)), "b.jpg": PhotoHeader((480, 640))}
    assert sorted(group_photos(headers).groups) == [["a.jpg"], ["b.jpg"]]


def test_folders_and_single() -> None:
    headers = {name: PhotoHeader((640, 480)) for name in ("x/a.jpg", "x/b.jpg", "y/c.jpg")}
    assert sorted(group_photos(headers, "per_folder").groups) == [
        ["x/a.jpg", "x/b.jpg"],
        ["y/c.jpg"],
    ]
    assert len(group_photos(headers, "single").groups) == 1
    assert len(group_photos(headers, "per_image").groups) == 3
    headers["z.jpg"] = PhotoHeader((100, 100))
    with pytest.raises(InputError, match="2 different sizes"):
        group_photos(headers, "single")
