"""`--matcher auto`: what the first matcher leaves out of the model is matched by a stronger one."""

from __future__ import annotations

import logging
from pathlib import Path

import h5py
import numpy as np
import pycolmap
import pytest
from rendered_room import photograph_room

from pipelines.sfm import main
from sfm_matchers.confs import CONF_DIR
from sfm_matchers.evaluation.models import compare_models
from sfm_matchers.files.hdf5 import open_h5
from sfm_matchers.files.pair_lists import read_pairs
from sfm_matchers.keypoints.joining import join_features, join_matches
from sfm_matchers.runs import matcher_auto, reconstruct
from sfm_matchers.runs.matcher_auto import pairs_across_models
from sfm_matchers.runs.options import SfmOptions
from sfm_matchers.runs.reconstruct import run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_report")]

NUM_PHOTOS = 6


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    return photograph_room(folder, NUM_PHOTOS)


@pytest.fixture
def weak_then_strong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """SIFT with few features as the first matcher, and with all as the second."""
    text = (CONF_DIR / "sift.yaml").read_text()
    confs = []
    for name, features in (("weak", 12), ("strong", 8192)):
        path = tmp_path / f"{name}.yaml"
        changed = text.replace("max_num_features: 8192", f"max_num_features: {features}")
        path.write_text(changed.replace("feats-sift", f"feats-{name}").replace("sift-NN", name))
        confs.append(str(path))
    for module in (matcher_auto, reconstruct):
        monkeypatch.setattr(module, "AUTO_MATCHERS", tuple(confs))
    return confs[0], confs[1]


def write_features(path: Path, keypoints: dict[str, int]) -> Path:
    with h5py.File(path, "w") as file:
        for name, count in keypoints.items():
            file[f"{name}/keypoints"] = np.arange(2.0 * count, dtype=np.float32).reshape(-1, 2)
            file[f"{name}/image_size"] = [640, 480]
    return path


def write_matches(path: Path, matches: dict[str, list[int]]) -> Path:
    with h5py.File(path, "w") as file:
        for pair, partner in matches.items():
            file[f"{pair}/matches0"] = np.array(partner, np.int32)
            scores = np.where(np.array(partner) >= 0, 0.5, 0)
            file[f"{pair}/matching_scores0"] = scores.astype(np.float16)
    return path


def test_joined_files_hold_both_kinds_of_keypoints_and_their_matches(tmp_path: Path) -> None:
    first = write_features(tmp_path / "f0.h5", {"a.jpg": 3, "b.jpg": 2, "c/d.jpg": 1})
    second = write_features(tmp_path / "f1.h5", {"a.jpg": 2, "b.jpg": 4})
    matches0 = write_matches(
        tmp_path / "m0.h5", {"a.jpg/b.jpg": [1, -1, 0], "a.jpg/c-d.jpg": [-1, 0, -1]}
    )
    # The other direction, as hloc allows.
    matches1 = write_matches(tmp_path / "m1.h5", {"b.jpg/a.jpg": [-1, 1, -1, 0]})
    features, matches = tmp_path / "f.h5", tmp_path / "m.h5"
    join_features(first, second, features)
    pairs = [("a.jpg", "b.jpg"), ("a.jpg", "c/d.jpg")]
    join_matches(pairs, (first, matches0), (second, matches1), matches)
    with open_h5(features) as file:
        assert [len(file.keypoints(name)) for name in ("a.jpg", "b.jpg", "c/d.jpg")] == [
            5,
            6,
            1,
        ]
        assert file.keypoints("a.jpg")[3].tolist() == [0, 1]
    with open_h5(matches) as file:
        found, scores = file.matches("a.jpg", "b.jpg")
        assert sorted(map(tuple, found.tolist())) == [(0, 1), (2, 0), (3, 5), (4, 3)]
        assert (scores == 0.5).all()
        assert file.matches("a.jpg", "c/d.jpg")[0].tolist() == [[1, 0]]


def test_only_pairs_of_two_photos_of_one_model_are_done(photos: Path) -> None:
    model = pycolmap.Reconstruction(photos / "truth")
    names = sorted(model.image(image_id).name for image_id in model.reg_image_ids())
    pairs = [(names[0], names[1]), (names[0], "new.jpg"), ("new.jpg", "newer.jpg")]
    assert pairs_across_models([model], pairs) == pairs[1:]
    assert pairs_across_models([], pairs) == pairs


def test_photos_left_out_are_matched_again(
    photos: Path,
    tmp_path: Path,
    weak_then_strong: tuple[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    images, outputs = photos / "images", tmp_path / "out"
    weak = run(SfmOptions(images, tmp_path / "weak", weak_then_strong[0]))
    assert max((model.num_reg_images() for model in weak.models), default=0) < NUM_PHOTOS
    with caplog.at_level(logging.INFO):
        result = run(SfmOptions(images, outputs))
    errors = compare_models(result.models[0], pycolmap.Reconstruction(photos / "truth"))
    assert errors.num_registered == NUM_PHOTOS
    assert errors.center_errors.mean() < 0.01 * errors.extent
    again = read_pairs(outputs / "pairs-exhaustive-again.txt")
    assert 0 < len(again) <= NUM_PHOTOS * (NUM_PHOTOS - 1) / 2
    assert (
        f"then {weak_then_strong[1]} for {len(again)} pairs"
        in result.summary["settings"]["matcher"]
    )
    # A second run matches and maps nothing.
    watched = [path for path in outputs.rglob("*") if path.suffix in (".h5", ".bin")]
    before = {path: path.stat().st_mtime_ns for path in watched}
    assert len(run(SfmOptions(images, outputs)).models) == len(result.models)
    assert {path: path.stat().st_mtime_ns for path in watched} == before


def test_nothing_is_matched_again_where_all_photos_are_in_one_model(
    photos: Path, tmp_path: Path
) -> None:
    result = run(SfmOptions(photos / "images", tmp_path))
    assert result.models[0].num_reg_images() == NUM_PHOTOS
    assert result.summary["settings"]["matcher"] == "auto: sift"
    assert read_pairs(tmp_path / "pairs-exhaustive-again.txt") == []
    assert not list(tmp_path.glob("*mambaglue*"))


def test_shards_need_a_matcher_by_name(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--image_dir", str(photos / "images"), "--outputs", str(tmp_path / "out")]
    assert main([*arguments, "--shard", "1/2"]) == 2
    assert "--matcher other than auto" in capsys.readouterr().err
