"""The matchers behind their protocols: photos of any size, units of features, the plain matcher."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from sfm_matchers.confs import CONF_DIR, load_conf
from sfm_matchers.errors import InputError
from sfm_matchers.matchers.efficient_loftr import EfficientLoFTRMatcher
from sfm_matchers.matchers.jamma import JamMaMatcher
from sfm_matchers.matchers.mambaglue import MambaGlueMatcher
from sfm_matchers.matchers.nearest_neighbor import NearestNeighborMatcher
from sfm_matchers.matchers.photo_matchers import load_matcher
from sfm_matchers.networks.efficient_loftr import EfficientLoFTR, EfficientLoFTRConfig
from sfm_matchers.networks.jamma import JamMa, JamMaConfig
from sfm_matchers.networks.mambaglue import MambaGlue, MambaGlueConfig
from sfm_matchers.photos.resizing import turned, unturned


def photo(width: int, height: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.repeat(np.repeat(coarse, 8, 0), 8, 1)[:height, :width]


def sift_like(size: tuple[int, int], count: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    descriptors = rng.random((128, count), dtype=np.float32)
    return {
        "keypoints": (rng.random((count, 2)) * size).astype(np.float32),
        "descriptors": descriptors / np.linalg.norm(descriptors, axis=0),
        "scores": rng.random(count, dtype=np.float32),
        "scales": 2 + 8 * rng.random(count, dtype=np.float32),
        "oris": (360 * rng.random(count, dtype=np.float32) - 180),
        "image_size": np.array(size),
    }


def detector_free(kind: str) -> JamMaMatcher | EfficientLoFTRMatcher:
    torch.manual_seed(0)
    if kind == "jamma":
        network = JamMa(JamMaConfig(coarse_threshold=0.0, fine_threshold=0.0, border=0)).eval()
        return JamMaMatcher(network, resize_max=96)
    config = EfficientLoFTRConfig(coarse_threshold=-1.0, border=0)
    return EfficientLoFTRMatcher(EfficientLoFTR(config).eval(), resize_max=96)


@pytest.mark.parametrize("kind", ["jamma", "eloftr"])
def test_photos_of_any_two_sizes_are_matched(kind: str) -> None:
    matcher = detector_free(kind)
    sizes = (333, 120), (75, 211)
    encoded = [matcher.encode(photo(*size, seed)) for seed, size in enumerate(sizes)]
    matches = matcher.match_encoded(*encoded)
    assert len(matches) > 0
    for points, size in zip((matches.keypoints0, matches.keypoints1), sizes, strict=True):
        # A point may leave the photo by a few pixels of the network's image.
        slack = 8 * max(size) / 96
        assert (points > -slack).all()
        assert (points < np.add(size, slack)).all()


def test_mambaglue_sees_sift_as_the_detector_did() -> None:
    """A photo four times as large as the detector's image gives the same matches."""
    torch.manual_seed(0)
    config = MambaGlueConfig(features="sift", num_layers=2, filter_threshold=0.0)
    matcher = MambaGlueMatcher(MambaGlue(config).eval(), resize_max=400)
    small = [sift_like((400, 300), 40, seed) for seed in range(2)]
    large = [
        {
            **one,
            "keypoints": (one["keypoints"] + 0.5) * 4 - 0.5,
            "scales": 4 * one["scales"],
            "image_size": 4 * one["image_size"],
        }
        for one in small
    ]
    matches0, scores0 = matcher.match(*small)
    matches0_large, scores0_large = matcher.match(*large)
    assert (matches0 >= 0).any()
    np.testing.assert_array_equal(matches0_large, matches0)
    np.testing.assert_allclose(scores0_large, scores0, atol=1e-5)


def test_mambaglue_takes_orientations_in_degrees() -> None:
    torch.manual_seed(0)
    config = MambaGlueConfig(features="sift", num_layers=2, filter_threshold=0.0)
    matcher = MambaGlueMatcher(MambaGlue(config).eval())
    features = sift_like((400, 300), 30, 0)
    given = matcher._features([features])
    assert given.oris is not None
    np.testing.assert_allclose(given.oris[0].numpy(), np.deg2rad(features["oris"]), rtol=1e-6)


def test_mambaglue_names_what_it_lacks() -> None:
    matcher = MambaGlueMatcher(MambaGlue(MambaGlueConfig(features="sift", num_layers=1)).eval())
    features = sift_like((400, 300), 10, 0)
    for name in ("keypoints", "descriptors", "image_size", "scales"):
        with pytest.raises(InputError, match=name):
            matcher.match({k: v for k, v in features.items() if k != name}, features)


def test_mambaglue_in_batches_gives_each_pair_the_same() -> None:
    torch.manual_seed(0)
    config = MambaGlueConfig(features="sift", num_layers=2, filter_threshold=0.0)
    matcher = MambaGlueMatcher(MambaGlue(config).eval())
    counts = [(20, 30), (0, 7), (33, 5)]
    pairs = [
        (sift_like((400, 300), count0, 2 * row), sift_like((300, 400), count1, 2 * row + 1))
        for row, (count0, count1) in enumerate(counts)
    ]
    together = matcher.match_batch(pairs)
    assert [len(matches0) for matches0, _ in together] == [20, 0, 33]
    for pair, (matches0, scores0) in zip(pairs, together, strict=True):
        alone, alone_scores = matcher.match(*pair)
        np.testing.assert_array_equal(matches0, alone)
        np.testing.assert_allclose(scores0, alone_scores, atol=1e-5)
    assert (together[0][0] >= 0).any()


@pytest.mark.parametrize("kind", ["jamma", "eloftr"])
def test_images_in_batches_give_each_pair_the_same(kind: str) -> None:
    matcher = detector_free(kind)
    images = [
        matcher.encode(photo(*size, seed)) for seed, size in enumerate([(333, 120), (75, 211)] * 2)
    ]
    pairs = [(images[0], images[1]), (images[2], images[3]), (images[0], images[3])]
    for pair, matches in zip(pairs, matcher.match_batch(pairs), strict=True):
        alone = matcher.match_encoded(*pair)
        assert len(alone) > 0
        np.testing.assert_allclose(matches.keypoints0, alone.keypoints0, atol=1e-3)
        np.testing.assert_allclose(matches.keypoints1, alone.keypoints1, atol=1e-3)
        np.testing.assert_allclose(matches.scores, alone.scores, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    count0=st.integers(0, 30),
    count1=st.integers(0, 30),
    ratio=st.floats(0.5, 1.0),
    seed=st.integers(0, 1000),
)
def test_nearest_neighbors_are_mutual_and_pass_the_ratio_test(
    count0: int, count1: int, ratio: float, seed: int
) -> None:
    features0, features1 = sift_like((9, 9), count0, seed), sift_like((9, 9), count1, seed + 1)
    matcher = NearestNeighborMatcher(ratio=ratio, max_distance=1.0)
    matches0, scores0 = matcher.match(features0, features1)
    assert matches0.shape == scores0.shape == (count0,)
    angles = np.arccos(np.clip(features0["descriptors"].T @ features1["descriptors"], -1, 1))
    for index0, index1 in enumerate(matches0):
        if index1 < 0:
            assert scores0[index0] == 0
            continue
        assert angles[index0].argmin() == index1
        assert angles[:, index1].argmin() == index0
        for row in (angles[index0], angles[:, index1]):
            best = np.sort(row)[:2]
            assert len(best) == 1 or best[0] <= ratio * best[1] + 1e-3


@pytest.mark.parametrize("share", [-0.1, 1.01])
def test_a_share_of_inliers_beyond_0_and_1_is_named(tmp_path: Path, share: float) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text((CONF_DIR / "sift.yaml").read_text() + f"min_inlier_ratio: {share}\n")
    with pytest.raises(InputError, match="'min_inlier_ratio' must be a share"):
        load_conf(str(path))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("jamma", "fine_threshold: 0.1"),
        ("aliked+mambaglue", "filter_threshold: 0.1"),
    ],
)
@pytest.mark.parametrize("threshold", ["1", "3.0"])
def test_a_threshold_that_no_score_exceeds_is_refused(
    name: str, line: str, threshold: str, tmp_path: Path
) -> None:
    key = line.split(":")[0]
    content = (CONF_DIR / f"{name}.yaml").read_text()
    assert line in content
    path = tmp_path / "conf.yaml"
    path.write_text(content.replace(line, f"{key}: {threshold}"))
    with pytest.raises(InputError, match=f"{key}' is .*, but no score is above 1"):
        load_conf(str(path))


@pytest.mark.parametrize(
    ("name", "given", "wrong"),
    [
        ("jamma", "output: matches-jamma", "output: jamma"),
        ("jamma", "output: matches-jamma", "output: sub/matches-jamma"),
        ("sift", "output: feats-sift", "output: sift"),
    ],
)
def test_outputs_of_other_names_are_refused_before_anything_is_matched(
    tmp_path: Path, name: str, given: str, wrong: str
) -> None:
    path = tmp_path / "mine.yaml"
    text = (CONF_DIR / f"{name}.yaml").read_text()
    assert given in text
    path.write_text(text.replace(given, wrong))
    with pytest.raises(InputError, match="'output' must be a name that begins with"):
        load_conf(str(path))


def test_unknown_matcher_and_device_are_named() -> None:
    with pytest.raises(InputError, match="did you mean 'jamma'"):
        load_matcher("jama")
    with pytest.raises(InputError, match="abacus"):
        load_matcher("sift", device="abacus")


@pytest.mark.slow
def test_features_of_a_photo_that_exif_says_lies_on_its_side_match_as_upright_ones(
    tmp_path: Path,
) -> None:
    upright, stored = photo(320, 240, 0), turned(photo(320, 240, 0), 1)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(stored).save(tmp_path / "stored.png", exif=exif)
    matcher = load_matcher("aliked+mambaglue", device="cpu")
    expected = matcher.match(upright, upright)
    matches = matcher.match(upright, tmp_path / "stored.png")
    assert len(matches) >= 100
    assert len(matches) == len(expected)
    back = unturned(matches.keypoints0, 3, (240, 320))
    assert np.median(np.linalg.norm(matches.keypoints1 - back, axis=1)) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sift", "eloftr"])
def test_a_matcher_says_its_name(name: str) -> None:
    assert f"({name!r})" in repr(load_matcher(name, device="cpu"))
