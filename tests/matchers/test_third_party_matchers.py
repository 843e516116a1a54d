"""Matchers that other packages bring by entry points: the example, and what can go wrong."""

from __future__ import annotations

from pathlib import Path

import cv2
import entry_points
import h5py
import numpy as np
import pytest

from pipelines.hloc import main as hloc
from sfm_matchers.errors import InputError
from sfm_matchers.files.pair_lists import write_pairs
from sfm_matchers.matchers import registry
from sfm_matchers.matchers.photo_matchers import load_matcher

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SHIFT = np.array([12, 8])


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The example and a broken package, as if they were installed."""
    entries = {"orb": "third_party_matcher:load", "broken": "no_such_module:load"}
    entry_points.install(monkeypatch, tmp_path / "site-packages", registry.PLUGINS, entries)
    monkeypatch.syspath_prepend(EXAMPLES)


@pytest.fixture
def photos() -> tuple[np.ndarray, np.ndarray]:
    """Two photos of one texture, the second moved by `SHIFT`."""
    noise = np.random.default_rng(0).integers(0, 255, (60, 70, 3), dtype=np.uint8)
    texture = cv2.resize(noise, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    return texture[:200, :240], texture[8:208, 12:252]


def conf_file(folder: Path, name: str) -> Path:
    """The conf of the example's first lines, for a matcher called `name`."""
    lines = (EXAMPLES / "third_party_matcher.py").read_text().splitlines()
    start = lines.index("    kind: detector_free")
    text = "\n".join(line.strip() for line in lines[start : start + 5])
    path = folder / "orb.yaml"
    path.write_text(text.replace("{name: orb,", f"{{name: {name},"))
    return path


def test_a_third_party_matcher_matches_photos(
    tmp_path: Path, photos: tuple[np.ndarray, np.ndarray]
) -> None:
    matcher = load_matcher(str(conf_file(tmp_path, "orb")))
    matches = matcher.match(*photos)
    moved = matches.keypoints0 - matches.keypoints1
    correct = np.linalg.norm(moved - SHIFT, axis=1) < 3
    assert correct.sum() > 100
    assert correct.mean() > 0.6
    assert len(matcher.match(photos[0], np.zeros((64, 64, 3), np.uint8))) == 0


def test_the_command_hloc_takes_its_conf(
    tmp_path: Path, photos: tuple[np.ndarray, np.ndarray]
) -> None:
    for name, photo in zip(("a.png", "b.png"), photos, strict=True):
        cv2.imwrite(str(tmp_path / name), photo)
    write_pairs(tmp_path / "pairs.txt", [("a.png", "b.png")])
    arguments = ["--conf", conf_file(tmp_path, "orb"), "--pairs", tmp_path / "pairs.txt"]
    arguments += ["--image_dir", tmp_path, "--export_dir", tmp_path / "out"]
    assert hloc(["match_features", *map(str, arguments)]) == 0
    with h5py.File(tmp_path / "out" / "matches-orb_pairs.h5") as file:
        assert (file["a.png/b.png/matches0"][()] >= 0).sum() > 100


def test_a_missing_or_broken_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there are jamma, eloftr, .*orb"):
        load_matcher(str(conf_file(tmp_path, "nobody")))
    with pytest.raises(InputError, match="no_such_module"):
        load_matcher(str(conf_file(tmp_path, "broken")))
