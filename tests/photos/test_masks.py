"""What is a photo, what is a mask, and what of a photo may be used."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
from PIL import Image, ImageOps
from rendered_room import photograph_room

from pipelines.sfm import main
from sfm_matchers.errors import InputError
from sfm_matchers.matchers.photo_matchers import load_matcher
from sfm_matchers.photos.checked import check_masks, check_photos
from sfm_matchers.photos.folders import OUTPUT_MARKS, REPORT_PICTURES, find_images
from sfm_matchers.photos.images import decoded_size, read_image
from sfm_matchers.photos.masks import read_mask, usable_pixels
from sfm_matchers.runs.options import SfmOptions
from sfm_matchers.runs.reconstruct import run

pytestmark = pytest.mark.slow

WIDTH, HEIGHT = 24, 16
ORIENTATION = 0x0112  # EXIF and TIFF


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rendered")
    return photograph_room(folder, 6) / "images"


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def write_mask(path: Path, usable: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(usable.astype(np.uint8) * 255).save(path)


def left_half(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Usable: the left half but for its top row, so that no turn or mirror image is the same."""
    usable = np.zeros((height, width), dtype=bool)
    usable[1:, : width // 2] = True
    return usable


def turned_photo(path: Path, orientation: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "gray").save(path, exif=exif)


def seen_in_a_viewer(stored: np.ndarray, orientation: int) -> np.ndarray:
    """What viewers show of a file with these pixels (H, W)."""
    image = Image.fromarray(stored)
    image.getexif()[ORIENTATION] = orientation
    return np.asarray(ImageOps.exif_transpose(image))


# ---------------------------------------------------------------------------------------------
# What is a photo


def test_outputs_among_the_photos_are_no_photos(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(
        tmp_path, "a.jpg", "b.png", "more/model.png", "of this run/model.png", "of this run/x.jpg"
    )
    touch(tmp_path, *(f"earlier/{name}" for name in (*OUTPUT_MARKS, *REPORT_PICTURES)))
    assert find_images(tmp_path, outputs=tmp_path / "of this run") == [
        "a.jpg",
        "b.png",
        "more/model.png",
    ]
    assert f"left out: 4 image(s) in {tmp_path / 'earlier'}: the outputs of a run" in caplog.text
    assert f"left out: 2 image(s) in {tmp_path / 'of this run'}: the outputs of" in caplog.text


def test_the_photo_folder_may_be_that_of_the_outputs(
    rendered: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(rendered, folder)
    run(SfmOptions(folder, folder))
    assert (folder / "match_graph.png").is_file()
    result = run(SfmOptions(folder, folder))
    assert result.summary["registered images"] == "6 of 6"
    assert "pictures of the run whose outputs they are, no photos" in caplog.text
    assert find_images(folder) == sorted(path.name for path in rendered.iterdir())


def test_a_photo_named_as_a_picture_of_the_report_is_kept(rendered: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(rendered, folder)
    (folder / "0000.jpg").rename(folder / "model.png")
    before = (folder / "model.png").read_bytes()
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"model\.png would be overwritten"):
            run(SfmOptions(folder, folder, overwrite=overwrite))
    assert (folder / "model.png").read_bytes() == before


def test_masks_among_the_photos_are_no_photos(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "a.jpg", "b.png", "deep/masks/a.png", "deep/masks/b.png")
    assert find_images(tmp_path, mask_dir=tmp_path / "deep" / "masks") == ["a.jpg", "b.png"]
    assert f"left out: 2 image(s) in {tmp_path / 'deep' / 'masks'}: masks, no photos" in caplog.text

    touch(tmp_path, "one.png")
    photos = find_images(tmp_path, mask_dir=tmp_path / "one.png")
    assert photos == ["a.jpg", "b.png", "deep/masks/a.png", "deep/masks/b.png"]


def test_masks_beside_their_photos_are_no_photos(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "a.jpg", "a.png", "b.png", "b.png.png", "c.png")
    assert find_images(tmp_path, mask_dir=tmp_path) == ["a.jpg", "b.png", "c.png"]
    caplog.clear()
    assert find_images(tmp_path) == ["a.jpg", "a.png", "b.png", "c.png"]
    assert "named as masks of others, such as b.png.png: to use them" in caplog.text


# ---------------------------------------------------------------------------------------------
# Masks


@pytest.mark.parametrize("mask", ["a.jpg.png", "a.png", "."])
def test_masks_are_found_by_both_names_and_one_may_be_that_of_all(
    tmp_path: Path, mask: str
) -> None:
    path = tmp_path / "masks" / mask if mask != "." else tmp_path / "mask.png"
    write_mask(path, left_half())
    mask_dir = path if mask == "." else tmp_path / "masks"
    np.testing.assert_array_equal(read_mask(mask_dir, "a.jpg", (WIDTH, HEIGHT)), left_half())


def test_masks_of_other_names_are_refused(rendered: Path, tmp_path: Path) -> None:
    write_mask(tmp_path / "masks" / "0000_mask.png", left_half(320, 240))
    with pytest.raises(InputError, match=r"no mask of any photo.*0000\.jpg\.png or .*0000\.png"):
        run(SfmOptions(rendered, tmp_path / "out", mask_dir=tmp_path / "masks"))
    with pytest.raises(InputError, match="neither a folder of masks nor a mask"):
        run(SfmOptions(rendered, tmp_path / "out", mask_dir=tmp_path / "nowhere"))


@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (HEIGHT, HEIGHT)], ids=["landscape", "square"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_of_the_upright_photo_is_turned_with_it(
    tmp_path: Path, orientation: int, size: tuple[int, int]
) -> None:
    turned_photo(tmp_path / "photos" / "a.jpg", orientation, size)
    expected = left_half(*size)
    write_mask(tmp_path / "masks" / "a.png", seen_in_a_viewer(expected, orientation))
    found = read_mask(tmp_path / "masks", "a.jpg", size, tmp_path / "photos")
    np.testing.assert_array_equal(found, expected)


def masks_and_photos(folder: Path, orientations: dict[str, int]) -> tuple[Path, Path]:
    for name, orientation in orientations.items():
        turned_photo(folder / "photos" / name, orientation)
        write_mask(folder / "masks" / f"{name}.png", left_half())
    return folder / "masks", folder / "photos"


def test_how_masks_lie_is_said_or_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    masks, photos = masks_and_photos(tmp_path, {"a.jpg": 1, "b.jpg": 6})
    checked = check_photos(photos, tmp_path / "out", mask_dir=masks)
    check_masks(masks, photos, checked)  # both are of the stored pixels
    np.testing.assert_array_equal(read_mask(masks, "b.jpg", (WIDTH, HEIGHT), photos), left_half())
    masks_and_photos(tmp_path, {"c.jpg": 3})
    checked = check_photos(photos, tmp_path / "out", mask_dir=masks)
    with pytest.raises(InputError, match=r"c\.jpg fit the photo as stored and as EXIF"):
        check_masks(masks, photos, checked)
    del checked["b.jpg"]
    check_masks(masks, photos, checked)
    assert "taken for masks of the upright photo, as viewers show it (c.jpg)" in caplog.text
    with pytest.raises(InputError, match="cannot be told"):
        check_masks(masks / "a.jpg.png", photos, checked)  # one for all, of which one is turned


def test_a_mask_that_does_not_fit_names_the_size_that_exif_makes(tmp_path: Path) -> None:
    turned_photo(tmp_path / "a.jpg", 6)
    write_mask(tmp_path / "masks" / "a.png", left_half(40, 30))
    with pytest.raises(InputError, match=r"a\.jpg is 24x16, 16x24 set upright by EXIF"):
        read_mask(tmp_path / "masks", "a.jpg", (WIDTH, HEIGHT), tmp_path)


def test_the_noise_of_a_jpeg_mask_is_black(tmp_path: Path) -> None:
    """1.4 % of what this mask ignores was used, all around what it does not."""
    usable = cv2.circle(np.zeros((300, 400), np.uint8), (260, 150), 100, 255, -1) > 0
    path = tmp_path / "mask.jpg"
    Image.fromarray(usable.astype(np.uint8) * 255).save(path, quality=75)
    found = read_mask(path, "a.jpg", (400, 300))
    assert found is not None
    assert (found != usable).mean() < 1e-3
    Image.fromarray(usable.astype(np.uint8)).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", "a.jpg", (400, 300)), usable)


@pytest.mark.parametrize(
    ("usable", "said"), [(True, "the masks ignore nothing: black"), (False, "ignore the whole")]
)
def test_masks_that_ignore_nothing_or_all_are_said(
    usable: bool, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (WIDTH, HEIGHT), "gray").save(tmp_path / "a.jpg")
    mask = tmp_path / "masks" / "a.png"
    write_mask(mask, np.full((HEIGHT, WIDTH), usable))
    photos = check_photos(tmp_path, tmp_path / "out", mask_dir=mask)
    assert check_masks(mask.parent, tmp_path, photos) == (not usable)
    assert said in caplog.text
    caplog.clear()
    write_mask(mask, left_half())
    assert check_masks(mask.parent, tmp_path, photos) == pytest.approx(1 - left_half().mean())
    assert said not in caplog.text


# ---------------------------------------------------------------------------------------------
# Transparency


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("a.webp", {"lossless": True}),
        *(("a.tif", {"tiffinfo": {ORIENTATION: turn}}) for turn in range(1, 9)),
    ],
)
def test_transparent_pixels_are_not_used(tmp_path: Path, name: str, options: dict) -> None:
    photo = Image.new("RGBA", (WIDTH, HEIGHT), "gray")
    photo.putalpha(Image.fromarray(left_half().astype(np.uint8) * 255))
    photo.save(tmp_path / name, **options)
    used = usable_pixels(tmp_path, name, None, (WIDTH, HEIGHT))
    np.testing.assert_array_equal(used, left_half())
    mask = np.ones((HEIGHT, WIDTH), dtype=bool)
    mask[-1] = False
    orientation = options.get("tiffinfo", {}).get(ORIENTATION, 1)
    write_mask(tmp_path / "mask.png", seen_in_a_viewer(mask, orientation))
    used = usable_pixels(tmp_path, name, tmp_path / "mask.png", (WIDTH, HEIGHT))
    np.testing.assert_array_equal(used, left_half() & mask)


def test_transparent_colours_and_none(tmp_path: Path) -> None:
    palette = Image.fromarray(left_half().astype(np.uint8), mode="P")
    palette.putpalette([0, 0, 0, 255, 255, 255])
    palette.save(tmp_path / "palette.png", transparency=0)
    used = usable_pixels(tmp_path, "palette.png", None, (WIDTH, HEIGHT))
    np.testing.assert_array_equal(used, left_half())
    Image.fromarray(left_half().astype(np.uint8)).save(tmp_path / "gray.png", transparency=0)
    used = usable_pixels(tmp_path, "gray.png", None, (WIDTH, HEIGHT))
    np.testing.assert_array_equal(used, left_half())
    Image.new("RGBA", (WIDTH, HEIGHT), "gray").save(tmp_path / "opaque.png")
    assert usable_pixels(tmp_path, "opaque.png", None, (WIDTH, HEIGHT)) is None


def test_no_keypoint_lies_in_a_transparent_part(rendered: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in sorted(rendered.iterdir())[:2]:
        with Image.open(path) as photo:
            cut_out = photo.convert("RGBA")
        cut_out.putalpha(Image.fromarray(left_half(320, 240).astype(np.uint8) * 255))
        cut_out.save(images / f"{path.stem}.png")
    main(["--image_dir", str(images), "--outputs", str(tmp_path / "out")])
    with pycolmap.Database.open(tmp_path / "out" / "database.db") as database:
        columns = [
            database.read_keypoints(image.image_id)[:, 0] for image in database.read_all_images()
        ]
    assert min(map(len, columns)) > 50
    assert max(values.max() for values in columns) <= 160.5


# ---------------------------------------------------------------------------------------------
# 16 bits


@pytest.mark.parametrize(("scale", "offset"), [(16, 0), (4, 0), (12, 28_000)], ids=str)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_of_a_small_range_are_stretched(
    tmp_path: Path, suffix: str, scale: int, offset: int
) -> None:
    levels = np.tile(np.arange(256, dtype=np.uint16), (64, 1))
    path = tmp_path / f"a{suffix}"
    cv2.imwrite(str(path), levels * scale + offset)
    assert np.abs(read_image(path, gray=True).astype(int) - levels).max() <= 2
    assert np.abs(read_image(path)[..., 1].astype(int) - levels).max() <= 2


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_levels_of_other_kinds_are_stretched(tmp_path: Path, dtype: type) -> None:
    levels = np.tile(np.arange(256), (64, 1))
    path = tmp_path / "a.tif"
    cv2.imwrite(str(path), (levels * 50 - 700).astype(dtype))
    assert np.abs(read_image(path, gray=True, least_side=16).astype(int) - levels).max() <= 2
    assert np.abs(read_image(path)[..., 1].astype(int) - levels).max() <= 2
    assert decoded_size(path) == (256, 64)


def test_pixels_that_were_not_measured_are_black(tmp_path: Path) -> None:
    levels = np.tile(np.linspace(0, 0.01, 256, dtype=np.float32), (64, 1))
    levels[:, 200], levels[:, 201], levels[:, 202] = np.nan, -3.4e38, np.inf
    cv2.imwrite(str(tmp_path / "a.tif"), levels)
    read = read_image(tmp_path / "a.tif", gray=True).astype(int)
    assert not read[:, 200:203].any()
    assert np.abs(read[:, :200] - np.arange(200)).max() <= 2
    cv2.imwrite(str(tmp_path / "blank.tif"), np.full((64, 64), 0.5, np.float32))
    assert not np.ptp(read_image(tmp_path / "blank.tif"))
    cv2.imwrite(str(tmp_path / "none.tif"), np.full((64, 64), np.nan, np.float32))
    assert not read_image(tmp_path / "none.tif").any()


@pytest.mark.parametrize(
    "levels", [np.zeros((64, 64, 3), np.float32), np.zeros((64, 64), np.float64)]
)
def test_other_floating_point_is_refused(tmp_path: Path, levels: np.ndarray) -> None:
    cv2.imwrite(str(tmp_path / "a.tif"), levels)
    with pytest.raises(InputError, match="in floating point: convert it to 8 or 16 bits"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["sift", "jamma"])
def test_a_single_pair_is_masked_too(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (24, 32, 3)).astype(np.uint8)
    image = cv2.resize(small, (256, 192), interpolation=cv2.INTER_CUBIC)
    opacity = np.zeros((192, 256), np.uint8)
    opacity[:, :128] = 255
    cv2.imwrite(str(tmp_path / "a.png"), np.dstack([image, opacity]))
    cv2.imwrite(str(tmp_path / "b.png"), image)
    matcher = load_matcher(name, device="cpu")
    top = np.zeros((192, 256), bool)
    top[:96] = True
    found = matcher.match(tmp_path / "a.png", tmp_path / "b.png", mask1=top)
    assert len(found) > 5
    assert found.keypoints0[:, 0].max() < 128
    assert found.keypoints1[:, 1].max() < 96
    with pytest.raises(InputError, match="a mask has the shape"):
        matcher.match(tmp_path / "a.png", image, mask1=top[:50])


def test_16_bits_of_noise_alone_stay_blank(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 6, (64, 64)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), 2000 + noise)
    assert np.ptp(read_image(tmp_path / "a.png", gray=True)) <= 6


def test_16_bits_of_the_whole_range_keep_their_upper_half(tmp_path: Path) -> None:
    levels = np.tile(np.arange(100, 256, dtype=np.uint16), (64, 1))
    cv2.imwrite(str(tmp_path / "a.png"), levels * 256 + 77)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", gray=True), levels)


def test_photos_of_12_bits_give_a_model(
    rendered: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in rendered.iterdir():
        gray = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(np.uint16)
        cv2.imwrite(str(images / f"{path.stem}.png"), gray * 16)
    with caplog.at_level(logging.INFO):
        result = run(SfmOptions(images, tmp_path / "out"))
    assert result.summary["registered images"] == "6 of 6"
