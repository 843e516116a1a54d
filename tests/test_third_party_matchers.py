"""Matchers that other packages bring by entry points: the example, and what can go wrong."""

from __future__ import annotations

import importlib
import importlib.metadata
from pathlib import Path

import numpy as np
import pytest

from sfm_matchers import matchers
from sfm_matchers.errors import InputError
from sfm_matchers.matchers import load_matcher

CONF = """
kind: detector_free
output: matches-patches
model: {name: NAME, stride: 32}
max_error: 2
cell_size: 8
"""


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example and a broken package, as if they were installed."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    entries = [
        importlib.metadata.EntryPoint(name, target, matchers.PLUGINS)
        for name, target in (
            ("patches", "third_party_matcher:load_patch_matcher"),
            ("broken", "no_such_module:load"),
        )
    ]
    monkeypatch.setattr(matchers, "entry_points", lambda group: entries)


def conf_file(folder: Path, name: str) -> str:
    path = folder / "patches.yaml"
    path.write_text(CONF.replace("NAME", name))
    return str(path)


def test_a_third_party_matcher_matches_photos(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 255, (200, 240, 3), dtype=np.uint8)
    photo0, photo1 = texture[:160, :200], texture[8:168, 12:212]
    matches = load_matcher(conf_file(tmp_path, "patches")).match(photo0, photo1)
    moved = matches.keypoints0 - matches.keypoints1
    inside = (matches.keypoints0 > [28, 24]).all(1)
    assert inside.sum() >= 12
    np.testing.assert_array_equal(moved[inside], np.tile([12, 8], (inside.sum(), 1)))


def test_a_missing_or_broken_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there are jamma, eloftr, patches, broken"):
        load_matcher(conf_file(tmp_path, "nobody"))
    with pytest.raises(InputError, match="no_such_module"):
        load_matcher(conf_file(tmp_path, "broken"))
