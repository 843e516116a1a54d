"""Sparse front-ends: coordinates, order, weights, and extraction to a feature file.

The official weights are never loaded: random ones, or ones that pass the photo's brightness on to
the detector, lie in their place in files of the same layout.
"""

from __future__ import annotations

import inspect
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycolmap
import pytest
import safetensors.torch
import torch
from kornia.feature import ALIKED, DISK
from PIL import ExifTags, Image
from torch import Tensor, nn

from sfm_matchers.confs import (
    FrontEnd,
    Preprocessing,
    SparseConf,
    check_keys,
    conf_names,
    load_conf,
)
from sfm_matchers.errors import InputError, MissingExtraError, PhotoChangedError, WeightsError
from sfm_matchers.features import extraction, sift
from sfm_matchers.features.base import Features, ParallelFeatureExtractor, set_upright
from sfm_matchers.features.extraction import (
    EXTRACTORS,
    extract_features,
    extract_image,
    load_extractor,
    seen_size,
)
from sfm_matchers.features.networks import MIN_SIDE
from sfm_matchers.features.sift import SiftExtractor
from sfm_matchers.features.superpoint import SUPERPOINT_VARIABLE
from sfm_matchers.files.fingerprints import content_hash
from sfm_matchers.files.hdf5 import UPRIGHT, list_groups, open_h5
from sfm_matchers.networks.mambaglue import MambaGlueConfig
from sfm_matchers.photos import decoding_budget, images
from sfm_matchers.photos.checked import photo_fingerprint
from sfm_matchers.photos.masks import inside_mask
from sfm_matchers.photos.resizing import turned, unturned
from sfm_matchers.weights import cache_dir, find_checkpoint, registry

pytestmark = pytest.mark.slow

KORNIA_FRONT_ENDS = ("aliked-n16", "disk")
FRONT_ENDS = ("sift", *KORNIA_FRONT_ENDS)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's weights out, forbid downloads, kornia's own too, and any sha256."""

    def no_download(*arguments: object, **options: object) -> None:
        raise AssertionError("kornia must not download")

    monkeypatch.setenv("SFM_MATCHERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SFM_MATCHERS_OFFLINE", "1")
    monkeypatch.delenv(SUPERPOINT_VARIABLE, raising=False)
    for owner in (ALIKED, DISK):
        module = sys.modules[owner.__module__]
        monkeypatch.setattr(module, "load_state_dict_from_url", no_download)
    any_content = tuple(replace(entry, sha256=None, size=None) for entry in registry.OFFICIAL)
    monkeypatch.setattr(registry, "OFFICIAL", any_content)


def put_weights(name: str, network: nn.Module) -> None:
    """Save the weights of a kornia front-end as its authors' file."""
    checkpoint = find_checkpoint(f"{name}/official")
    assert checkpoint is not None
    state_dict: dict[str, Any] = dict(network.state_dict())
    state_dict.pop("dkd.hw_grid", None)
    content = {"extractor": state_dict} if name == "disk" else state_dict
    cache_dir().mkdir(exist_ok=True)
    torch.save(content, cache_dir() / checkpoint.file_name)


def put_random_weights(name: str) -> None:
    torch.manual_seed(0)
    put_weights(name, ALIKED("aliked-n16") if name == "aliked-n16" else DISK())


def put_weights_that_detect_brightness(name: str) -> None:
    """Save weights with which the detector sees the red channel, pixel by pixel."""

    def pass_on(convolution: nn.Module, into: int = 0, out: int = 0) -> None:
        weight: Tensor = convolution.weight  # type: ignore[assignment]
        weight[out, into, weight.shape[2] // 2, weight.shape[3] // 2] = 1

    network: Any = ALIKED("aliked-n16") if name == "aliked-n16" else DISK()
    with torch.no_grad():
        for module in network.modules():
            if not isinstance(module, nn.BatchNorm2d | nn.PReLU):
                for parameter in module.parameters(recurse=False):
                    parameter.fill_(1e-30)  # weights of zeros alone are refused
        if name == "aliked-n16":
            head = [layer for layer in network.score_head if isinstance(layer, nn.Conv2d)]
            for convolution in (network.block1.conv1, network.block1.conv2, network.conv1, *head):
                pass_on(convolution)
        else:
            pass_on(network.unet.path_down[0][1][-1])
            pass_on(network.unet.path_up[-1].conv[-1], into=64, out=128)
    put_weights(name, network)


def texture(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """A random RGB photo (H, W, 3) of (width, height), with structures of a few pixels."""
    noise = np.random.default_rng(seed).normal(size=(size[1], size[0], 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    return np.uint8(np.clip(128 + 250 * smooth, 0, 255))


def blob(size: tuple[int, int], centre: tuple[float, float], sigma: float) -> np.ndarray:
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    distance = (x - centre[0]) ** 2 + (y - centre[1]) ** 2
    gray = np.rint(40 + 200 * np.exp(-distance / (2 * sigma**2))).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=2)


def extract_one(name: str, image: np.ndarray, **options: Any) -> Features:
    return load_extractor({"name": name, **options}).extract(image[None])[0]


# ---------------------------------------------------------------------------------------------
# Coordinates and order


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_a_keypoint_lies_on_the_centre_of_its_pixel(name: str) -> None:
    if name != "sift":
        put_weights_that_detect_brightness(name)
    # The size is a multiple of nothing: ALIKED pads around the photo, DISK right and below.
    found = extract_one(name, blob((131, 75), (50, 40), sigma=3))
    distances = np.linalg.norm(found.keypoints - [50, 40], axis=1)
    assert distances.min() < 0.1
    if name != "sift":
        assert len(found.keypoints) == 1


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_a_keypoint_of_a_resized_photo_returns_to_the_photo(name: str) -> None:
    if name != "sift":
        put_weights_that_detect_brightness(name)
    photo = blob((262, 150), (100.5, 80.5), sigma=6)
    extractor = load_extractor({"name": name})
    full = extract_image(extractor, Preprocessing(), photo)
    half = extract_image(extractor, Preprocessing(131), photo)
    assert full["image_size"].tolist() == half["image_size"].tolist() == [262, 150]
    distances = np.linalg.norm(half["keypoints"] - [100.5, 80.5], axis=1)
    assert distances.min() < 0.1
    if name == "sift":
        full_distances = np.linalg.norm(full["keypoints"] - [100.5, 80.5], axis=1)
        scales = full["scales"][full_distances.argmin()], half["scales"][distances.argmin()]
        assert scales[0] == pytest.approx(scales[1], rel=0.1)


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_types_and_shapes(name: str) -> None:
    if name != "sift":
        put_random_weights(name)
    arrays = extract_image(load_extractor({"name": name}), Preprocessing(), texture((120, 90)))
    count = len(arrays["keypoints"])
    assert count > 20
    assert arrays["keypoints"].shape == (count, 2)
    assert arrays["descriptors"].shape == (128, count)
    assert arrays["scores"].shape == (count,)
    expected: dict[str, Any] = {
        "keypoints": np.float32,
        "descriptors": np.float16,
        "scores": np.float32,
        "image_size": np.int64,
    }
    if name == "sift":
        expected |= {"scales": np.float32, "oris": np.float32}
        assert 90 < np.abs(arrays["oris"]).max() <= 180  # degrees, as in hloc
    assert {key: array.dtype for key, array in arrays.items()} == expected
    norms = np.linalg.norm(arrays["descriptors"].astype(np.float32), axis=0)
    np.testing.assert_allclose(norms, 1, atol=0.02 if name == "sift" else 2e-3)
    assert (arrays["keypoints"] >= -0.5).all()
    assert (arrays["keypoints"] <= np.subtract([120, 90], 0.5)).all()


@pytest.mark.parametrize("limit", [15, 5000])
def test_aliked_gives_the_best_first_with_and_without_a_limit_that_cuts(limit: int) -> None:
    put_random_weights("aliked-n16")
    found = extract_one("aliked-n16", texture((96, 80)), max_num_keypoints=limit)
    assert len(found.keypoints) == 15 if limit == 15 else len(found.keypoints) > 15
    assert (np.diff(found.scores) <= 0).all()


@pytest.mark.parametrize("limit", [15, 5000])
def test_disk_goes_row_by_row_with_and_without_a_limit_that_cuts(limit: int) -> None:
    put_random_weights("disk")
    found = extract_one("disk", texture((96, 80)), max_num_keypoints=limit)
    assert len(found.keypoints) == 15 if limit == 15 else len(found.keypoints) > 15
    x, y = found.keypoints.T
    assert np.lexsort((x, y)).tolist() == list(range(len(x)))
    assert found.scores.min() > 0


def test_disk_keeps_the_best() -> None:
    put_random_weights("disk")
    all_scores = extract_one("disk", texture((96, 80)), max_num_keypoints=5000).scores
    kept_scores = extract_one("disk", texture((96, 80)), max_num_keypoints=15).scores
    assert np.sort(kept_scores).tolist() == np.sort(all_scores)[-15:].tolist()


@pytest.mark.parametrize("name", KORNIA_FRONT_ENDS)
def test_a_higher_threshold_leaves_less(name: str) -> None:
    put_random_weights(name)
    usual = extract_one(name, texture((96, 80)))
    threshold = float(np.median(usual.scores))
    strict = extract_one(name, texture((96, 80)), detection_threshold=threshold)
    assert 0 < len(strict.scores) < len(usual.scores)


def test_equal_scores_go_row_by_row() -> None:
    keypoints = np.array([[5, 2], [3, 2], [9, 1], [0, 0]], np.float32)
    scores = np.array([1, 1, 1, 2], np.float32)
    found = Features(keypoints, np.arange(8, dtype=np.float16).reshape(2, 4), scores)
    assert found.best_first().keypoints.tolist() == [[0, 0], [9, 1], [3, 2], [5, 2]]
    assert found.best_first(2).descriptors.tolist() == [[3, 2], [7, 6]]


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_the_same_photo_gives_the_same_features(name: str) -> None:
    if name != "sift":
        put_random_weights(name)
    first, second = (extract_one(name, texture((96, 80))) for _ in range(2))
    np.testing.assert_array_equal(first.keypoints, second.keypoints)
    np.testing.assert_array_equal(first.descriptors, second.descriptors)


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_a_photo_gives_the_same_alone_and_in_a_batch(name: str) -> None:
    if name != "sift":
        put_random_weights(name)
    images = np.stack([texture((96, 80), seed) for seed in range(2)])
    extractor = load_extractor({"name": name})
    for image, in_batch in zip(images, extractor.extract(images), strict=True):
        alone = extractor.extract(image[None])[0]
        np.testing.assert_allclose(in_batch.keypoints, alone.keypoints, atol=1e-3)
        np.testing.assert_allclose(in_batch.descriptors, alone.descriptors, atol=2e-3)


@pytest.mark.parametrize("name", FRONT_ENDS)
@pytest.mark.parametrize("size", [(80, 64), (MIN_SIDE - 1, 200), (1, 1)])
def test_a_photo_without_anything_has_no_features(name: str, size: tuple[int, int]) -> None:
    if name != "sift":
        put_weights_that_detect_brightness(name)
    blank = np.full((size[1], size[0], 3), 120, np.uint8)
    arrays = extract_image(load_extractor({"name": name}), Preprocessing(), blank)
    assert arrays["keypoints"].shape == (0, 2)
    assert arrays["descriptors"].shape == (128, 0)
    assert arrays["scores"].shape == (0,)
    assert arrays["keypoints"].dtype == np.float32


# ---------------------------------------------------------------------------------------------
# Weights and options


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", KORNIA_FRONT_ENDS)
def test_missing_weights_offline_say_what_to_download_and_where_to_put_it(name: str) -> None:
    checkpoint = find_checkpoint(f"{name}/official")
    assert checkpoint is not None
    with pytest.raises(WeightsError, match="SFM_MATCHERS_OFFLINE") as error:
        load_extractor({"name": name})
    assert checkpoint.url in one_line(error)
    assert str(cache_dir() / checkpoint.file_name) in one_line(error)


@pytest.mark.parametrize("name", KORNIA_FRONT_ENDS)
def test_a_file_that_is_not_the_authors_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_random_weights(name)
    pinned = tuple(replace(entry, sha256="0" * 64) for entry in registry.OFFICIAL)
    monkeypatch.setattr(registry, "OFFICIAL", pinned)
    with pytest.raises(WeightsError, match="wrong sha256") as error:
        load_extractor({"name": name})
    one_line(error)


@pytest.mark.parametrize("name", KORNIA_FRONT_ENDS)
def test_weights_of_another_network_are_refused(name: str) -> None:
    put_weights(name, nn.Linear(2, 2))
    with pytest.raises(WeightsError, match=f"not the weights of {name}") as error:
        load_extractor({"name": name})
    one_line(error)


@pytest.mark.parametrize("name", KORNIA_FRONT_ENDS)
def test_code_in_a_weights_file_does_not_run(name: str, tmp_path: Path) -> None:
    class Intruder:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    checkpoint = find_checkpoint(f"{name}/official")
    assert checkpoint is not None
    cache_dir().mkdir()
    torch.save({"extractor": Intruder()}, cache_dir() / checkpoint.file_name)
    with pytest.raises(WeightsError) as error:
        load_extractor({"name": name})
    one_line(error)
    assert not (tmp_path / "ran").exists()


def test_an_unknown_front_end_or_option_is_named() -> None:
    with pytest.raises(InputError, match="unknown front-end 'orb', expected one of sift"):
        load_extractor({"name": "orb"})
    with pytest.raises(InputError, match="did you mean 'max_num_keypoints'"):
        load_extractor({"name": "disk", "max_num_keypoint": 100})
    with pytest.raises(InputError, match="must be a whole number, 1 to"):
        load_extractor({"name": "aliked-n16", "max_num_keypoints": 0})
    with pytest.raises(InputError, match="detection_threshold is 5, but scores are 0 to 1"):
        load_extractor({"name": "aliked-n16rot", "detection_threshold": 5})


@pytest.mark.parametrize("name", [name for name in conf_names() if "+mambaglue" in name])
def test_the_confs_of_mambaglue_fit_their_parts(name: str) -> None:
    conf = load_conf(name)
    assert isinstance(conf, SparseConf)
    options = conf.features.model
    check_keys(options, ["name", *inspect.signature(EXTRACTORS[options["name"]]).parameters], name)
    matcher = {key: value for key, value in conf.model.items() if key != "name"}
    config = MambaGlueConfig(**matcher)
    assert options["name"].startswith(config.features)


def test_two_confs_share_a_feature_file_only_if_it_holds_the_same() -> None:
    confs = [conf for conf in map(load_conf, conf_names()) if isinstance(conf, SparseConf)]
    contents: dict[str, Any] = {}
    for conf in confs:
        assert contents.setdefault(conf.features.output, conf.features) == conf.features
    outputs = [conf.output for conf in map(load_conf, conf_names())]
    assert len(set(outputs)) == len(outputs)


# ---------------------------------------------------------------------------------------------
# SuperPoint


def test_superpoint_states_its_licence_and_waits_for_consent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for value in (None, "", "0"):
        if value is not None:
            monkeypatch.setenv(SUPERPOINT_VARIABLE, value)
        with pytest.raises(InputError, match="non-commercial") as error:
            load_extractor({"name": "superpoint"})
        assert f"set {SUPERPOINT_VARIABLE}=1" in one_line(error)
        assert "academic and non-profit research only" in one_line(error)


def test_superpoint_names_the_extra_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SUPERPOINT_VARIABLE, "1")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sfm-matchers\[superpoint\]'"):
        load_extractor({"name": "superpoint"})


@pytest.fixture
def superpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accept the licence and put random weights in the place of Magic Leap's."""
    transformers = pytest.importorskip("transformers", reason="needs the extra superpoint")
    monkeypatch.setenv(SUPERPOINT_VARIABLE, "1")
    torch.manual_seed(0)
    network = transformers.SuperPointForKeypointDetection(transformers.SuperPointConfig())
    cache_dir().mkdir()
    safetensors.torch.save_file(network.state_dict(), cache_dir() / "superpoint.safetensors")


def test_superpoint_without_weights_says_what_to_download(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("transformers", reason="needs the extra superpoint")
    monkeypatch.setenv(SUPERPOINT_VARIABLE, "1")
    with pytest.raises(WeightsError, match="magic-leap-community/superpoint") as error:
        load_extractor({"name": "superpoint"})
    assert str(cache_dir() / "superpoint.safetensors") in one_line(error)


@pytest.mark.usefixtures("superpoint")
@pytest.mark.parametrize("limit", [15, 5000])
def test_superpoint_gives_the_best_first_inside_the_border(limit: int) -> None:
    found = extract_one("superpoint", texture((131, 75)), max_num_keypoints=limit)
    assert len(found.keypoints) == 15 if limit == 15 else len(found.keypoints) > 15
    assert found.keypoints.dtype == np.float32
    assert found.descriptors.shape == (256, len(found.keypoints))
    assert (np.diff(found.scores) <= 0).all()
    np.testing.assert_array_equal(found.keypoints, np.rint(found.keypoints))
    assert (found.keypoints >= 4).all()
    # 128 x 72 pixels are whole cells of 8, and the last 4 of them border.
    assert (found.keypoints < [124, 68]).all()
    if limit == 5000:
        assert found.keypoints.max(axis=0).tolist() == [123, 67]


@pytest.mark.usefixtures("superpoint")
def test_superpoint_gives_the_same_alone_and_in_a_batch() -> None:
    extractor = load_extractor({"name": "superpoint"})
    images = np.stack([texture((96, 80), seed) for seed in range(2)])
    for image, in_batch in zip(images, extractor.extract(images), strict=True):
        alone = extractor.extract(image[None])[0]
        np.testing.assert_array_equal(in_batch.keypoints, alone.keypoints)
        np.testing.assert_allclose(in_batch.descriptors, alone.descriptors, atol=2e-3)


@pytest.mark.usefixtures("superpoint")
def test_superpoint_names_pixels_by_their_centre(monkeypatch: pytest.MonkeyPatch) -> None:
    extractor: Any = load_extractor({"name": "superpoint"})
    scores = torch.zeros(1, 72, 128)
    scores[0, 40, 50] = 0.9
    monkeypatch.setattr(
        extractor.network.keypoint_decoder, "_get_pixel_scores", lambda encoded: scores
    )
    found = extractor.extract(texture((131, 75))[None])[0]
    assert found.keypoints.tolist() == [[50, 40]]
    scores.zero_()
    assert extractor.extract(texture((131, 75))[None])[0].keypoints.shape == (0, 2)


@pytest.mark.usefixtures("superpoint")
def test_superpoint_of_a_tiny_photo_is_empty() -> None:
    found = extract_one("superpoint", texture((5, 200)))
    assert found.descriptors.shape == (256, 0)


# ---------------------------------------------------------------------------------------------
# Photos that lie on their side


@pytest.mark.parametrize("name", FRONT_ENDS)
@pytest.mark.parametrize(("orientation", "quarters"), [(3, 2), (6, 3), (8, 1)])
def test_front_ends_see_photos_as_exif_sets_them_upright(
    name: str, orientation: int, quarters: int
) -> None:
    if name != "sift":
        put_random_weights(name)
    extractor, upright = load_extractor({"name": name}), texture((96, 80))
    stored = turned(upright, -quarters)
    height, width = stored.shape[:2]
    mask = np.ones((height, width), bool)
    mask[:, : width // 2] = False
    expected = extract_image(extractor, Preprocessing(), upright)
    arrays = extract_image(extractor, Preprocessing(), stored, mask, orientation)
    assert arrays["image_size"].tolist() == [width, height]
    assert (arrays["keypoints"][:, 0] >= width // 2 - 0.5).all()
    if name == "sift":  # which does not care, and has orientations in the photo as stored
        assert UPRIGHT not in arrays
        return
    keypoints = unturned(expected["keypoints"], quarters, (width, height))
    chosen = inside_mask(keypoints, mask)
    assert 0 < chosen.sum() < len(chosen)
    np.testing.assert_allclose(arrays["keypoints"], keypoints[chosen], atol=1e-4)
    np.testing.assert_array_equal(arrays["descriptors"], expected["descriptors"][:, chosen])
    seen, size = set_upright(arrays)
    np.testing.assert_allclose(seen, expected["keypoints"][chosen], atol=1e-4)
    assert size.tolist() == expected["image_size"].tolist()


def test_exif_of_photos_in_a_folder_is_looked_at(tmp_path: Path) -> None:
    put_random_weights("disk")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(texture((96, 80))).save(tmp_path / "a.png", exif=exif)
    wanted = {"a.png": photo_fingerprint(content_hash(tmp_path / "a.png"), None, "a.png")}
    front_end = load_conf("disk+mambaglue").features
    extract_features(front_end, tmp_path, wanted, tmp_path / "features.h5")
    with open_h5(tmp_path / "features.h5") as file:
        assert file.features("a.png")[UPRIGHT].tolist() == [3]


# ---------------------------------------------------------------------------------------------
# Extraction to a file


class FakeExtractor:
    """Two keypoints a photo, and a record of the batches; fails once `fail_at` photos are done."""

    batch_pixels = 0
    wants_upright = False
    batches: list[tuple[int, ...]]
    fail_at: int

    def __init__(self, shift: float = 0.0, device: str = "cpu") -> None:
        self.shift = shift

    def extract(self, images: np.ndarray) -> list[Features]:
        if sum(batch[0] for batch in self.batches) >= self.fail_at:
            raise KeyboardInterrupt
        self.batches.append(images.shape)
        keypoints = np.array([[1, 2], [20, 10]], np.float32) + np.float32(self.shift)
        return [
            Features(
                keypoints + image[0, 0, 0], np.zeros((4, 2), np.float16), np.ones(2, np.float32)
            )
            for image in images
        ]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeExtractor]:
    monkeypatch.setitem(extraction.EXTRACTORS, "fake", FakeExtractor)
    monkeypatch.setattr(FakeExtractor, "batches", [], raising=False)
    monkeypatch.setattr(FakeExtractor, "fail_at", 1000, raising=False)
    return FakeExtractor


@pytest.fixture
def photos(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """Five photos, the fourth of another size; in the top-left pixel their number."""
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    names = ["a.png", "b.png", "c.png", "d.png", "sub/e.png"]
    for number, name in enumerate(names):
        image = np.full((30, 40 if name != "d.png" else 44, 3), number, np.uint8)
        cv2.imwrite(str(tmp_path / "photos" / name), image)
    return tmp_path / "photos", {name: fingerprint_of(tmp_path / "photos", name) for name in names}


def fingerprint_of(image_dir: Path, name: str, mask_dir: Path | None = None) -> str:
    return photo_fingerprint(content_hash(image_dir / name), mask_dir, name)


CONF = FrontEnd("fake", output="feats")


def read_all(path: Path) -> dict[str, dict[str, np.ndarray]]:
    with open_h5(path) as file:
        return {name: file.group(name) for name in list_groups(path)}


def test_photos_of_one_size_share_batches_and_find_their_own_features(
    fake: type[FakeExtractor],
    photos: tuple[Path, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "feats.h5"
    extract_features(CONF, *photos, path)
    assert [batch[0] for batch in fake.batches] == [1, 1, 1, 1, 1]
    one_by_one = read_all(path)
    fake.batches.clear()
    monkeypatch.setattr(fake, "batch_pixels", 2 * 40 * 30 + 100)
    extract_features(CONF, *photos, tmp_path / "batched.h5")
    assert [batch[0] for batch in fake.batches] == [2, 1, 1, 1]
    batched = read_all(tmp_path / "batched.h5")
    assert batched.keys() == one_by_one.keys() == photos[1].keys()
    for number, name in enumerate(photos[1]):
        assert batched[name]["keypoints"].tolist() == [
            [1 + number, 2 + number],
            [20 + number, 10 + number],
        ]
        np.testing.assert_array_equal(batched[name]["keypoints"], one_by_one[name]["keypoints"])
    assert batched["d.png"]["image_size"].tolist() == [44, 30]


def test_finished_photos_survive_an_interruption(
    fake: type[FakeExtractor],
    photos: tuple[Path, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "feats.h5"
    monkeypatch.setattr(fake, "fail_at", 3)
    with pytest.raises(KeyboardInterrupt):
        extract_features(CONF, *photos, path)
    assert not path.exists()
    monkeypatch.setattr(fake, "fail_at", 1000)
    assert extract_features(CONF, *photos, path) == ["d.png", "sub/e.png"]
    assert list(read_all(path)) == sorted(photos[1])
    assert extract_features(CONF, *photos, path) == []


def test_only_what_has_changed_is_extracted_again(
    fake: type[FakeExtractor], photos: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    image_dir, fingerprints = photos
    path = tmp_path / "feats.h5"
    extract_features(CONF, image_dir, fingerprints, path)
    cv2.imwrite(str(image_dir / "b.png"), np.full((30, 40, 3), 9, np.uint8))
    with pytest.raises(PhotoChangedError, match=r"b\.png has changed since this run began"):
        extract_features(CONF, image_dir, fingerprints, tmp_path / "others.h5")
    changed = fingerprints | {"b.png": fingerprint_of(image_dir, "b.png")}
    assert extract_features(CONF, image_dir, changed, path) == ["b.png"]
    shifted = replace(CONF, options={"shift": 0.25})
    assert extract_features(shifted, image_dir, changed, path) == sorted(fingerprints)
    assert read_all(path)["a.png"]["keypoints"].tolist() == [[1.25, 2.25], [20.25, 10.25]]


def test_masked_pixels_have_no_features(
    fake: type[FakeExtractor], photos: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    (tmp_path / "masks").mkdir()
    mask = np.full((30, 40), 255, np.uint8)
    mask[:, :10] = 0
    cv2.imwrite(str(tmp_path / "masks" / "a.png.png"), mask)
    image_dir, fingerprints = photos
    masked = fingerprints | {"a.png": fingerprint_of(image_dir, "a.png", tmp_path / "masks")}
    extract_features(CONF, image_dir, masked, tmp_path / "feats.h5", tmp_path / "masks")
    found = read_all(tmp_path / "feats.h5")
    assert found["a.png"]["keypoints"].tolist() == [[20, 10]]
    assert found["a.png"]["descriptors"].shape == (4, 1)
    assert len(found["b.png"]["keypoints"]) == 2


def test_the_device_reaches_the_front_end(
    photos: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OnDevice(FakeExtractor):
        batches: list[tuple[int, ...]] = []  # noqa: RUF012
        fail_at = 1000
        devices: list[str] = []  # noqa: RUF012

        def __init__(self, device: str = "cpu") -> None:
            super().__init__()
            self.devices.append(device)

    monkeypatch.setitem(extraction.EXTRACTORS, "fake", OnDevice)
    extract_features(CONF, *photos, tmp_path / "feats.h5", device="cuda")
    load_extractor({"name": "fake"})
    assert OnDevice.devices == ["cuda", "cpu"]


@pytest.mark.parametrize("name", KORNIA_FRONT_ENDS)
def test_features_of_a_network_reach_the_file(name: str, tmp_path: Path) -> None:
    put_random_weights(name)
    image_dir = tmp_path / "photos"
    image_dir.mkdir()
    cv2.imwrite(str(image_dir / "textured.png"), texture((96, 80)))
    cv2.imwrite(str(image_dir / "tiny.png"), np.zeros((8, 8, 3), np.uint8))
    conf = FrontEnd(name, {"max_num_keypoints": 30}, preprocessing=Preprocessing(64))
    fingerprints = {name: fingerprint_of(image_dir, name) for name in ("textured.png", "tiny.png")}
    path = tmp_path / "feats.h5"
    assert extract_features(conf, image_dir, fingerprints, path) == sorted(fingerprints)
    found = read_all(path)
    assert found["textured.png"]["descriptors"].shape == (128, 30)
    assert found["textured.png"]["keypoints"].max() > 64
    assert found["tiny.png"]["keypoints"].shape == (0, 2)


# ---------------------------------------------------------------------------------------------
# COLMAP's threads


@pytest.mark.parametrize("threads", [1, 2])
def test_sift_of_photos_of_any_sizes_is_that_of_each_alone(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sift, "num_threads", lambda: threads)
    extractor = load_extractor({"name": "sift"})
    assert isinstance(extractor, ParallelFeatureExtractor)
    assert extractor.batch_photos == 8 * threads
    sizes = [(131, 75), (1, 1), (75, 131), (200, 5), (160, 120)]
    images = [texture(size, seed) for seed, size in enumerate(sizes)]
    for image, found in zip(images, extractor.extract_all(images), strict=True):
        bitmap = pycolmap.Bitmap.from_array(image).clone_as_grey()
        by_itself = pycolmap.FeatureExtractor.create(device=pycolmap.Device.cpu)
        keypoints, descriptors = by_itself.extract(bitmap)
        table = pycolmap.keypoints_to_matrix(keypoints).reshape(-1, 4)
        np.testing.assert_array_equal(found.keypoints + 0.5, table[:, :2])
        np.testing.assert_allclose(found.scales, table[:, 2], rtol=1e-6)
        np.testing.assert_allclose(found.orientations, table[:, 3], atol=1e-6)
        np.testing.assert_array_equal(found.descriptors.T * 512, descriptors.data)
        alone = extractor.extract(image[None])[0]
        for name in ("keypoints", "scales", "orientations", "descriptors"):
            np.testing.assert_array_equal(getattr(found, name), getattr(alone, name))
    assert len(found.scores) > 20


@pytest.mark.parametrize(
    ("memory", "expected"), [(None, 8), (10**12, 8), (4 * 3 * 300 * 10**6, 3), (10, 1)]
)
def test_sift_takes_as_many_threads_as_there_is_memory_for(
    memory: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sift, "num_threads", lambda: 8)
    monkeypatch.setattr(sift, "available_memory", lambda: memory)
    assert SiftExtractor()._threads_for(10**6) == expected


@pytest.mark.parametrize(
    ("size", "resize_max", "expected"),
    [
        ((4000, 3000), 3200, (3200, 2400)),  # as COLMAP
        ((6000, 4000), 3200, (3200, 2133)),
        ((2770, 2770), 3200, (2770, 2770)),
        ((12000, 12000), 3200, (2771, 2771)),
        ((2900, 3100), 3200, (2680, 2865)),
        ((12000, 12000), 6400, (5542, 5542)),  # asked for
        ((12000, 12000), 1600, (1600, 1600)),
        ((12000, 12000), None, (12000, 12000)),
    ],
)
def test_sift_sees_no_more_pixels_than_there_is_memory_for(
    size: tuple[int, int], resize_max: int | None, expected: tuple[int, int]
) -> None:
    assert seen_size(Preprocessing(resize_max), size, SiftExtractor()) == expected


def test_photos_that_are_reduced_for_their_memory_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(SiftExtractor, "max_pixels", 160 * 120)
    sizes = {"square.png": (200, 200), "usual.png": (200, 150), "small.png": (130, 130)}
    for name, size in sizes.items():
        cv2.imwrite(str(tmp_path / name), texture(size, 1))
    digests = {name: fingerprint_of(tmp_path, name) for name in sizes}
    conf = FrontEnd("sift", output="feats", preprocessing=Preprocessing(160))
    extract_features(conf, tmp_path, digests, tmp_path / "f.h5")
    (line,) = caplog.messages
    assert "reduced to fewer pixels" in line
    assert "square.png" in line
    assert "usual.png" not in line
    with open_h5(tmp_path / "f.h5") as file:
        for name, size in sizes.items():
            keypoints = file.group(name)["keypoints"]
            assert (keypoints.max(0) > 0.8 * np.array(size)).all()  # in pixels of the photo


def test_large_photos_are_not_decoded_beside_the_pyramid_of_sift(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither while COLMAP works, nor several ahead of it."""
    at_work: list[int] = []
    run, read = pycolmap.extract_features, extraction.read_photo

    def working(*arguments: Any, **options: Any) -> None:
        at_work.append(1)
        run(*arguments, **options)
        time.sleep(0.1)
        at_work.clear()

    def reading(*arguments: Any, **options: Any) -> Any:
        assert not at_work
        return read(*arguments, **options)

    monkeypatch.setattr(pycolmap, "extract_features", working)
    monkeypatch.setattr(extraction, "read_photo", reading)
    budget = decoding_budget._Budget(300 * 150 * 100)  # of a pyramid alone
    for owner in (sift, extraction, images):
        monkeypatch.setattr(owner, "DECODING", budget)
    names = [f"{seed}.png" for seed in range(4)]
    for seed, name in enumerate(names):
        cv2.imwrite(str(tmp_path / name), texture((150, 100), seed))
    digests = {name: fingerprint_of(tmp_path, name) for name in names}
    conf = FrontEnd("sift", output="feats", preprocessing=Preprocessing(160))
    assert extract_features(conf, tmp_path, digests, tmp_path / "f.h5") == names


def test_files_of_sift_do_not_depend_on_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    for seed in range(5):
        photo = texture((120 + 10 * (seed % 2), 90), seed)
        cv2.imwrite(str(tmp_path / "photos" / f"{seed}.png"), photo)
    names = [f"{seed}.png" for seed in range(5)]
    digests = {name: fingerprint_of(tmp_path / "photos", name) for name in names}
    conf = FrontEnd("sift", output="feats", preprocessing=Preprocessing(100))
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(sift, "num_threads", lambda threads=threads: threads)
        path = tmp_path / f"{threads}.h5"
        assert extract_features(conf, tmp_path / "photos", digests, path) == names
        found.append(read_all(path))
    assert all(len(found[0][name]["keypoints"]) > 10 for name in names)
    for name in names:
        for key, array in found[0][name].items():
            np.testing.assert_array_equal(found[1][name][key], array)
