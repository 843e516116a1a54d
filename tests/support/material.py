"""Where the tests find golden data and photographs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import h5py
import pytest

from sfm_matchers.confs import DetectorFreeConf, DetectorFreePreprocessing
from sfm_matchers.files.fingerprints import content_hash
from sfm_matchers.matchers.protocols import DetectorFreeMatcher, Matches
from sfm_matchers.matching import match_images
from sfm_matchers.photos.checked import photo_fingerprint

SHARED_ROOT = Path(__file__).resolve().parents[3] / "shared"
SMALLEST_CASES = Path(__file__).resolve().parents[1] / "golden" / "data"


def shared_path(relative: str) -> Path:
    """Return a path below `../shared`, or skip the test where that material is absent.

    Of the golden data the smallest cases are in `tests/golden/data` too.
    """
    for root in (SHARED_ROOT, SMALLEST_CASES):
        if (root / relative).exists():
            return root / relative
    pytest.skip(f"needs the reference material at ../shared/{relative}", allow_module_level=True)


def photo_fingerprints(image_dir: Path, names: Iterable[str]) -> dict[str, str]:
    """Return what a run knows of photos without masks before it begins."""
    return {name: photo_fingerprint(content_hash(image_dir / name), None, name) for name in names}


def matches_of_a_folder(
    folder: Path,
    load_matcher: Callable[[], DetectorFreeMatcher],
    preprocessing: DetectorFreePreprocessing,
) -> Matches:
    """Match a.png with b.png of a folder by a conf with such preprocessing, and read the file."""
    names = ("a.png", "b.png")
    conf = DetectorFreeConf("m", "matches-m", {}, 1, 1, preprocessing)
    path = folder / "correspondences.h5"
    match_images(conf, load_matcher, [names], folder, photo_fingerprints(folder, names), path)
    with h5py.File(path) as file:
        group = file["a.png"]["b.png"]
        return Matches(*(group[key][()] for key in ("keypoints0", "keypoints1", "scores")))
