"""Photos, names and lists as users have them: they work, or are named and the rest is done."""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
from PIL import Image, TiffImagePlugin
from rendered_room import photograph_room

from pipelines.sfm import main
from sfm_matchers.errors import InputError
from sfm_matchers.files.pair_lists import read_pairs, write_pairs
from sfm_matchers.mapping.camera_options import CameraOptions
from sfm_matchers.mapping.database import create_database
from sfm_matchers.photos.cameras import CameraGroups, read_photo_header
from sfm_matchers.photos.checked import check_photos
from sfm_matchers.photos.folders import find_images
from sfm_matchers.photos.images import decoded_size, read_image
from sfm_matchers.photos.masks import read_mask
from sfm_matchers.photos.resizing import network_size, resize_image

pytestmark = [pytest.mark.filterwarnings("ignore:::PIL"), pytest.mark.slow]

WIDTH, HEIGHT = 96, 64
ORIENTATION = 0x0112  # EXIF and TIFF


def picture() -> np.ndarray:
    """Colours that change slowly, so that lossy formats keep them."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([2 * columns, 3 * rows, 255 - columns - rows], axis=-1).astype(np.uint8)


def image() -> Image.Image:
    return Image.fromarray(picture())


def other_pictures() -> list[Image.Image]:
    return [image().rotate(180), image().rotate(180)]


# ---------------------------------------------------------------------------------------------
# Photos that work: written by the function, read as the picture above


def png_named_jpg(path: Path) -> None:
    image().save(path, "PNG")


def cmyk_jpeg(path: Path) -> None:
    image().convert("CMYK").save(path, "JPEG", quality=98)


def png_of_16_bits(path: Path) -> None:
    content = cv2.imencode(".png", picture()[..., ::-1].astype(np.uint16) * 257)[1]
    path.write_bytes(content.tobytes())


def opaque_png(path: Path) -> None:
    image().convert("RGBA").save(path, "PNG")


def transparent_png(path: Path) -> None:
    transparent = image().convert("RGBA")
    transparent.putalpha(0)
    transparent.save(path, "PNG")


def animated_png(path: Path) -> None:
    image().save(path, "PNG", save_all=True, append_images=other_pictures())


def tiff_of_many_pages(path: Path) -> None:
    image().save(path, "TIFF", save_all=True, append_images=other_pictures())


def turned_by_exif(path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image().save(path, "JPEG", quality=98, exif=exif)


def turned_tiff(orientation: int) -> Callable[[Path], None]:
    return lambda path: image().save(path, "TIFF", tiffinfo={ORIENTATION: orientation})


def turned_big_tiff(path: Path) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[ORIENTATION] = 6
    image().save(path, "TIFF", tiffinfo=tags, big_tiff=True)


def several_jpegs(path: Path) -> None:
    image().save(path, "MPO", quality=98, save_all=True, append_images=other_pictures())


def webp(path: Path) -> None:
    image().save(path, "WEBP", lossless=True)


WORKING = {
    "PNG named .jpg": png_named_jpg,
    "CMYK JPEG": cmyk_jpeg,
    "PNG of 16 bits": png_of_16_bits,
    "RGBA PNG": opaque_png,
    "RGBA PNG, all transparent": transparent_png,
    "animated PNG: its first picture": animated_png,
    "TIFF of many pages: the first": tiff_of_many_pages,
    "WebP": webp,
    "several JPEGs, as of phones: the first": several_jpegs,
    "BigTIFF turned by 6: as stored": turned_big_tiff,
    "turned by EXIF: as stored": turned_by_exif,
    **{f"TIFF turned by {turn}: as stored": turned_tiff(turn) for turn in range(1, 9)},
}


@pytest.mark.parametrize("write", WORKING.values(), ids=WORKING.keys())
def test_odd_photos_are_read_as_stored(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "photo.jpg"
    write(path)
    assert decoded_size(path) == read_photo_header(path).size == (WIDTH, HEIGHT)
    difference = np.abs(read_image(path).astype(int) - picture())
    assert difference.mean() < 3
    luma = picture() @ [0.299, 0.587, 0.114]
    assert np.abs(read_image(path, gray=True) - luma).mean() < 3


def test_a_gray_photo_has_three_equal_channels(tmp_path: Path) -> None:
    for name in ("photo.jpg", "photo.png"):
        image().convert("L").save(tmp_path / name)
        read = read_image(tmp_path / name)
        assert read.shape == (HEIGHT, WIDTH, 3)
        assert (read == read[..., :1]).all()


@pytest.mark.parametrize("form", ["GIF", "WEBP"])
def test_of_an_animation_the_first_picture_is_read_or_it_is_named(
    tmp_path: Path, form: str
) -> None:
    """OpenCV before 4.11 reads neither."""
    path = tmp_path / "photo.jpg"
    image().save(path, form, save_all=True, append_images=other_pictures(), lossless=True)
    if tuple(map(int, cv2.__version__.split(".")[:2])) < (4, 11):
        with pytest.raises(InputError, match="cannot be decoded"):
            read_image(path)
    else:
        difference = np.abs(read_image(path).astype(int) - picture())
        assert difference.mean() < 6  # a GIF has 256 colours


# ---------------------------------------------------------------------------------------------
# Photos that do not: written by the function, which returns what is said


def empty(path: Path) -> str:
    path.touch()
    return "is empty"


def text_named_jpg(path: Path) -> str:
    path.write_text("not a photo")
    return "is not an image"


def cut_off(share: float, form: str, message: str = "cannot be") -> Callable[[Path], str]:
    def write(path: Path) -> str:
        image().save(path, form)
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        return message

    return write


def floating_point_tiff(path: Path) -> str:
    cv2.imwrite(str(path.with_suffix(".tif")), np.zeros((48, 64, 3), np.float32))
    path.with_suffix(".tif").rename(path)
    return (
        "is not an image, or a TIFF of colours, or of 64 bits, in floating point: convert it to 8 "
        "or 16 bits"
    )


def chunk_longer_than_file(path: Path) -> str:
    """OpenCV would take 4 GB for it."""
    image().save(path, "PNG")
    path.write_bytes(path.read_bytes()[:33] + b"\xff\xff\xff\xffIDAT" + bytes(99))
    return "cannot be decoded"


def too_large(path: Path) -> str:
    """A PNG of a million rows and columns, of which only the header is there."""
    image().save(path, "PNG")
    content = bytearray(path.read_bytes())
    content[16:24] = (1_000_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)
    return "has more than 178 megapixels: reduce it"


def too_long(path: Path) -> str:
    """A PNG with a gigabyte of zeros behind it, which take no place on the disk."""
    image().save(path, "PNG")
    with path.open("r+b") as file:
        file.truncate(1 << 30)
    return f"has 1073 MB for {WIDTH} x {HEIGHT} pixels"


def link_to_nothing(path: Path) -> str:
    path.symlink_to("nowhere.jpg")
    return "is missing"


def link_to_itself(path: Path) -> str:
    path.symlink_to(path.name)
    return "is missing"


def pipe(path: Path) -> str:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes here")
    os.mkfifo(path)
    return "is no file"


def unreadable(path: Path) -> str:
    if not Path("/proc/self/mem").exists():
        pytest.skip("needs a file that opens but cannot be read, as Linux has")
    path.symlink_to("/proc/self/mem")
    return "cannot be read: Input/output error"


USELESS = {
    "empty": empty,
    "text named .jpg": text_named_jpg,
    "JPEG, half of it": cut_off(0.5, "JPEG"),
    "JPEG, all but its end": cut_off(0.98, "JPEG"),
    "JPEG, its header": cut_off(0.02, "JPEG", "is not an image"),
    "PNG, half of it": cut_off(0.5, "PNG"),
    "PNG, a chunk longer than it": chunk_longer_than_file,
    "WebP, half of it": cut_off(0.5, "WEBP"),
    "TIFF of floating point": floating_point_tiff,
    "too large": too_large,
    "too long": too_long,
    "link to nothing": link_to_nothing,
    "link to itself": link_to_itself,
    "pipe": pipe,
    "unreadable": unreadable,
}


@pytest.mark.parametrize("write", USELESS.values(), ids=USELESS.keys())
def test_a_useless_photo_is_named_and_the_others_stay(
    tmp_path: Path, write: Callable[[Path], str], caplog: pytest.LogCaptureFixture
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    image().save(images / "good.png")
    message = write(images / "bad.jpg")
    photos = check_photos(images, tmp_path / "out")
    assert list(photos) == ["good.png"]
    assert photos["good.png"].size == (WIDTH, HEIGHT)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"left out: {images / 'bad.jpg'} ")
    assert message in line
    assert "\n" not in line


def test_weights_for_a_matcher_without_any_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image().save(tmp_path / "a.png")
    folders = ["--image_dir", str(tmp_path), "--outputs", str(tmp_path / "out")]
    assert main([*folders, "--matcher", "sift", "--weights", "mine.safetensors"]) == 2
    assert "--weights mine.safetensors: sift has none" in capsys.readouterr().err


def test_damaged_exif_is_no_exif(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    image().save(path, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + 40 * b"\x01\x0f\0\x02")
    header = read_photo_header(path)
    assert header.size == (WIDTH, HEIGHT)
    assert not header.has_exif_camera


# ---------------------------------------------------------------------------------------------
# Sizes


@pytest.mark.parametrize(("least_side", "shrink"), [(33, 1), (32, 2), (16, 4), (8, 8), (1, 8)])
def test_photos_are_read_smaller_where_that_is_enough(
    tmp_path: Path, least_side: int, shrink: int
) -> None:
    image().save(tmp_path / "photo.jpg", quality=98)
    read = read_image(tmp_path / "photo.jpg", least_side=least_side)
    assert read.shape == (HEIGHT // shrink, WIDTH // shrink, 3)
    cells = picture().reshape(HEIGHT // shrink, shrink, WIDTH // shrink, shrink, 3)
    assert np.abs(read - cells.mean((1, 3))).mean() < 3


@pytest.mark.parametrize(("width", "height"), [(1, 1), (20_000, 50), (1, 5000)])
def test_photos_of_odd_sizes_have_few_features_and_match_nothing(
    tmp_path: Path, width: int, height: int
) -> None:
    from sfm_matchers import load_matcher

    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "odd.png")
    image().save(tmp_path / "good.png")
    assert decoded_size(tmp_path / "odd.png") == (width, height)
    assert len(load_matcher("sift").match(tmp_path / "odd.png", tmp_path / "good.png")) == 0


def peak_memory(job: Callable[[], object]) -> int:
    """Bytes that a job takes at most, OpenCV's and torch's included."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    except OSError:
        pytest.skip("needs Linux, to measure memory")

    def kibibytes(key: str) -> int:
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith(key))

    before = kibibytes("VmRSS")
    job()
    return 1024 * (kibibytes("VmHWM") - before)


def test_a_photo_of_108_megapixels_takes_seven_bytes_a_pixel(tmp_path: Path) -> None:
    path = tmp_path / "huge.jpg"
    Image.new("RGB", (12_000, 9000), (90, 120, 130)).save(path)

    def read_reduced() -> None:
        size = decoded_size(path)
        assert size == (12_000, 9000)
        reduced = resize_image(read_image(path), network_size(size, 1600, multiple=1))
        assert reduced.pixels.shape == (1200, 1600, 3)

    assert peak_memory(read_reduced) < 7 * 12_000 * 9000


# ---------------------------------------------------------------------------------------------
# Names

NAMES = {
    "space": "my photo.jpg",
    "leading space": " photo.jpg",
    "quotes": 'Bob\'s "best".jpg',
    "hash": "a#1.jpg",
    "leading hash": "#1.jpg",
    "leading dash": "-1.jpg",
    "backslash": "a\\b.jpg",
    "separator of lines": "a\u2028b.jpg",
    "hard space": "a\u00a0b.jpg",
    "not ASCII": "Brücke 日本 🏛.jpg",
    "decomposed": "Bru\u0308cke.jpg",
    "200 letters": 196 * "x" + ".jpg",
    "255 letters": 251 * "x" + ".jpg",
    "folders": "a b/c d/e f.jpg",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_odd_names_work(tmp_path: Path, name: str) -> None:
    images = tmp_path / "images"
    for written in (name, "good.jpg"):
        (images / written).parent.mkdir(parents=True, exist_ok=True)
        image().save(images / written, "JPEG")
    names = sorted([name, "good.jpg"])
    assert find_images(images) == names
    assert list(check_photos(images, tmp_path / "out", mask_dir=images)) == names
    assert read_mask(images, name, (WIDTH, HEIGHT)) is None
    pairs = [("good.jpg", name), (name, "good.jpg")]
    write_pairs(tmp_path / "pairs.txt", pairs)
    assert read_pairs(tmp_path / "pairs.txt", names) == pairs
    create_database(
        tmp_path / "database.db", images, CameraGroups([names]), CameraOptions("PINHOLE")
    )
    with pycolmap.Database.open(tmp_path / "database.db") as database:
        assert sorted(found.name for found in database.read_all_images()) == names


REFUSED = {
    "line break": (["a\nb.jpg"], "'a\\nb.jpg': the name contains a line break"),
    "carriage return": (["a\rb.jpg"], "'a\\rb.jpg': the name contains a line break"),
    "tab": (["a\tb.jpg"], "'a\\tb.jpg': the name contains a control character"),
    "escape": (["a\x1b[2Jb.jpg"], "'a\\x1b[2Jb.jpg': the name contains a control character"),
    "drive": (["c:b.jpg"], "'c:b.jpg': the name is not relative to a folder"),
    "not UTF-8": ([os.fsdecode(b"a\xff.jpg")], "'a\\udcff.jpg': the name is not valid UTF-8"),
    "same in a match file": (
        ["a/b.jpg", "a-b.jpg"],
        "'a/b.jpg': the name is the same as 'a-b.jpg' in a match file",
    ),
}


@pytest.mark.parametrize(("names", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_names_that_cannot_be_stored_are_left_out(
    tmp_path: Path, names: list[str], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    for name in [*names, "good.jpg"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image().save(os.path.join(tmp_path, name), "JPEG")  # noqa: PTH118  (pathlib drops what is odd)
    assert find_images(tmp_path) == sorted([*names[1:], "good.jpg"])
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"left out: {message}")
    assert line.endswith(": rename it")


def test_notes_of_an_earlier_run_that_are_damaged_are_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image().save(tmp_path / "photo.png")
    first = check_photos(tmp_path, tmp_path / "out")
    for content in ("", '{"photo.png": {"si', "[1]", "null"):
        (tmp_path / "out" / "photos.json").write_text(content)
        assert check_photos(tmp_path, tmp_path / "out") == first
        assert "photos.json is damaged" in caplog.text
        caplog.clear()


def test_photos_of_other_formats_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.dng", "b.DNG", "c.gif", "e.JP2", "f.raf", "notes.txt", "d.jpg"):
        (tmp_path / name).touch()
    assert find_images(tmp_path) == ["d.jpg"]
    assert "left out: 1 photo .jp2: convert them to JPEG or PNG" in caplog.text
    assert "left out: 1 photo .raf: convert them to JPEG or PNG" in caplog.text
    assert "left out: 1 photo .gif: convert them to JPEG or PNG" in caplog.text
    assert "left out: 2 photos .dng: convert them to JPEG or PNG" in caplog.text


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "photo.jpg").touch()
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "itself").symlink_to("itself")
    (tmp_path / "round").symlink_to("about")
    (tmp_path / "about").symlink_to("round")
    assert find_images(tmp_path) == ["b/photo.jpg"]


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "photo.jpg").touch()
    scandir = os.scandir

    def scan(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    assert find_images(tmp_path) == ["photo.jpg"]
    assert f"left out: {tmp_path / 'locked'}: Permission denied" in caplog.text


# ---------------------------------------------------------------------------------------------
# Lists of pairs

AB, AC = ("a.jpg", "b.jpg"), ("a.jpg", "c d.jpg")
KNOWN = ["a.jpg", "b.jpg", "c d.jpg", "d.jpg", "#e.jpg", "c"]
LINES = {
    "CRLF": (b"a.jpg b.jpg\r\nb.jpg d.jpg\r\n", [AB, ("b.jpg", "d.jpg")]),
    "CR": (b"a.jpg b.jpg\rb.jpg d.jpg", [AB, ("b.jpg", "d.jpg")]),
    "blank lines": (b"\n \na.jpg b.jpg\n\t\n", [AB]),
    "byte order mark": (b"\xef\xbb\xbfa.jpg b.jpg", [AB]),
    "comments": (b"# of mine\n#a.jpg b.jpg\na.jpg b.jpg", [AB]),
    "name that begins like a comment": (b"#e.jpg b.jpg", [("#e.jpg", "b.jpg")]),
    "tabs and more spaces": (b" a.jpg\tb.jpg \na.jpg   d.jpg", [AB, ("a.jpg", "d.jpg")]),
    "names with spaces": (b"a.jpg c d.jpg\nc d.jpg a.jpg ", [AC, AC[::-1]]),
    "unknown names": (b"a.jpg x.jpg", [("a.jpg", "x.jpg")]),
    "duplicates and self pairs": (b"a.jpg a.jpg\na.jpg a.jpg", [("a.jpg", "a.jpg")] * 2),
    "nothing": (b"", []),
}


@pytest.mark.parametrize(("content", "expected"), LINES.values(), ids=LINES.keys())
def test_lists_of_pairs_as_users_write_them(
    tmp_path: Path, content: bytes, expected: list[tuple[str, str]]
) -> None:
    path = tmp_path / "pairs.txt"
    path.write_bytes(content)
    assert read_pairs(path, KNOWN) == expected


BAD_LISTS = {
    "one name": (b"a.jpg b.jpg\na.jpg\n", "line 2: expected two image names, found 'a.jpg'"),
    "three names": (b"a.jpg b.jpg d.jpg", "line 1: expected two image names"),
    "two ways to split": (b"c d.jpg d.jpg", "line 1: expected two image names"),
    "UTF-16": ("a.jpg b.jpg".encode("utf-16"), "is not a text file in UTF-8"),
    "a photo": (b"\xff\xd8\xff\xe0", "is not a text file in UTF-8"),
}


@pytest.mark.parametrize(("content", "message"), BAD_LISTS.values(), ids=BAD_LISTS.keys())
def test_lists_that_are_not_of_pairs_are_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "pairs.txt"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_pairs(path, [*KNOWN, "c d.jpg d.jpg", "d.jpg d.jpg"])
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_line_break_in_a_name_is_not_written_to_a_list(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'b\\nc.jpg': the name contains a line break"):
        write_pairs(tmp_path / "pairs.txt", [("a.jpg", "b\nc.jpg")])
    assert not (tmp_path / "pairs.txt").exists()


# ---------------------------------------------------------------------------------------------
# All at once


def test_a_folder_full_of_bad_photos_gives_the_model_of_the_good_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photograph_room(tmp_path, 5)
    images = tmp_path / "images"
    # Good ones in odd forms and names, of the same place.
    for path in sorted(images.iterdir()):
        with Image.open(path) as good:
            good.save(path.with_suffix(".webp"), exif=good.getexif(), lossless=True)
        path.unlink()
    with Image.open(images / "0002.webp") as good:
        good.convert("RGBA").save(images / "#2 as RGBA.png", exif=b"")
    useless = {}
    for label, write in USELESS.items():
        useless[f"{label}.jpg"] = write(images / f"{label}.jpg")
    for name in REFUSED["same in a match file"][0] + REFUSED["line break"][0]:
        (images / name).parent.mkdir(exist_ok=True)
        image().save(images / name, "JPEG")
    Image.new("RGB", (1, 1)).save(images / "one pixel.png")
    (images / "round").symlink_to(images)
    with caplog.at_level(logging.INFO):
        status = main(["--image_dir", str(images), "--outputs", str(tmp_path / "out")])
    assert status == 0
    skipped = [line for line in caplog.messages if line.startswith("left out: ")]
    expected_lines = {f"{images / name} {message}" for name, message in useless.items()} | {
        "'a\\nb.jpg': the name contains a line break",
        "'a/b.jpg': the name is the same as 'a-b.jpg'",
    }
    for expected_line in expected_lines:
        assert sum(line.startswith(f"left out: {expected_line}") for line in skipped) == 1
    assert len(skipped) == len(expected_lines)
    model = pycolmap.Reconstruction(tmp_path / "out" / "sparse" / "0")
    expected = {f"000{index}.webp" for index in range(5)} | {"#2 as RGBA.png"}
    assert {photo.name for photo in model.images.values()} == expected
    with pycolmap.Database.open(tmp_path / "out" / "database.db") as database:
        for name in expected - {"#2 as RGBA.png"}:  # which has no EXIF
            camera = database.read_camera(database.read_image_with_name(name).camera_id)
            assert camera.has_prior_focal_length
    assert all(point.color.any() for point in model.points3D.values())


def test_many_files_that_are_no_photos_take_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for index in range(30):
        (images / f"{index:02}.jpg").write_text("no photo")
    (images / "30.jpg").touch()
    assert check_photos(images, tmp_path / "out") == {}
    many, one = caplog.messages
    assert many == (
        f"left out: 30 files of {images}: each is not an image: 00.jpg, 01.jpg, 02.jpg, 03.jpg, "
        "... 26 more (photos.json names all)"
    )
    assert one == f"left out: {images / '30.jpg'} is empty"
