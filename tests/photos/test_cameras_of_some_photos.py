"""Intrinsics that users give for some of their photos."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfm_matchers.errors import InputError
from sfm_matchers.mapping.camera_options import CameraOptions
from sfm_matchers.photos.cameras import CameraGroups
from sfm_matchers.photos.given_cameras import (
    check_given,
    check_one_size,
    find_camera,
    read_cameras,
)

SIZE = (1024, 768)
LANDSCAPE = [900.0, 905.0, 520.0, 380.0]


def test_photos_of_several_sizes_do_not_share_parameters() -> None:
    check_one_size("--camera_params", {"a.jpg": SIZE, "b.jpg": SIZE})
    with pytest.raises(
        InputError,
        match=r"these have 2: 2 of 1024 x 768 \(a.jpg\), 1 of 768 x 1024 \(c.jpg\).*--cameras",
    ):
        check_one_size("--camera_params", {"a.jpg": SIZE, "b.jpg": SIZE, "c.jpg": SIZE[::-1]})


def test_a_file_of_cameras(tmp_path: Path) -> None:
    path = tmp_path / "cameras.txt"
    path.write_text(
        "# pattern, model, parameters\n"
        "left/* PINHOLE 900,905,520,380 fixed\n"
        "right PINHOLE 910 905 520 380 start\n"
        "my photo.jpg, SIMPLE_RADIAL, 900, 512, 384, 0.1\n"
        "query/a.jpg SIMPLE_RADIAL 1024 768 900 512 384 0.1\n"
        "fish/* OPENCV_FISHEYE\n"
    )
    cameras = read_cameras(path)
    assert [c.pattern for c in cameras] == [
        "left/*",
        "right",
        "my photo.jpg",
        "query/a.jpg",
        "fish/*",
    ]
    assert [c.is_fixed for c in cameras] == [True, False, True, True, False]
    assert cameras[3].size == SIZE
    found = [
        find_camera(cameras, name)
        for name in ("left/1.jpg", "right/x/1.jpg", "my photo.jpg", "query/a.jpg", "other.jpg")
    ]
    assert found == [*cameras[:4], None]
    assert cameras[0].camera(SIZE).params.tolist() == LANDSCAPE


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("left/*", "expected PATTERN MODEL"),
        ("left/* PINHOLES 1,2,3,4", "expected PATTERN MODEL"),
        ("left/* PINHOLE 1,2,3", "line 2: PINHOLE takes fx, fy, cx, cy: 4 numbers"),
        ("left/* PINHOLE 1,2,3,x", "line 2: PINHOLE takes fx, fy, cx, cy, got"),
        ("a.jpg PINHOLE 1024.5 768 900 905 520 380", "whole numbers"),
        ("a.jpg PINHOLE 1024 768 900 905 2080 1520", "outside the photo"),
    ],
)
def test_wrong_lines_are_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "cameras.txt"
    path.write_text(f"# cameras\n{line}\n")
    with pytest.raises(InputError, match=message):
        read_cameras(path)


def test_given_cameras_are_held_against_their_photos(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cameras.txt"
    path.write_text("left PINHOLE 900,905,520,380\nnobody PINHOLE 900,905,520,380\n")
    cameras = read_cameras(path)
    check_given(cameras, {"left/a.jpg": SIZE, "b.jpg": (1, 1)})
    assert "line 2: no photo is meant by nobody" in caplog.text
    with pytest.raises(InputError, match=r"line 1: one set .* 768 x 1024 \(left/b.jpg\)"):
        check_given(cameras, {"left/a.jpg": SIZE, "left/b.jpg": SIZE[::-1]})
    with pytest.raises(InputError, match="no photo is called or lies in left"):
        check_given(cameras, {"a.jpg": SIZE})
    path.write_text("* PINHOLE 900,905,520,380\na.jpg PINHOLE 910,915,520,380\n")
    check_given(read_cameras(path), {"a.jpg": SIZE})
    assert f"line 2: a.jpg is of no effect: its photos are meant by {path}, line 1" in caplog.text
    path.write_text("1 PINHOLE 1024 768 900 905 520 380\n2 PINHOLE 1024 768 900 905 520 380\n")
    with pytest.raises(InputError, match="names or patterns of photos in place of ids"):
        check_given(read_cameras(path), {"a.jpg": SIZE})
    path.write_text("a.jpg PINHOLE 512 384 450,452,260,190\n")
    with pytest.raises(InputError, match=r"a.jpg has 1024 x 768 pixels, the line says 512 x 384"):
        check_given(read_cameras(path), {"a.jpg": SIZE})


def test_photos_of_a_line_share_a_camera(tmp_path: Path) -> None:
    path = tmp_path / "cameras.txt"
    path.write_text("left PINHOLE 900,905,520,380 start\n")
    options = CameraOptions(given=read_cameras(path))
    sizes = {name: SIZE for name in ("a.jpg", "b.jpg", "left/a.jpg", "left/b.jpg")}
    alone = CameraGroups([[name] for name in sizes], "one each")
    assert options.split(alone, sizes, "auto").groups == [
        ["a.jpg"],
        ["b.jpg"],
        ["left/a.jpg", "left/b.jpg"],
    ]
    assert options.split(alone, sizes, "per_image") == alone
    assert options.of("left/a.jpg").model == "PINHOLE"
    assert options.of("a.jpg").model == "SIMPLE_RADIAL"
