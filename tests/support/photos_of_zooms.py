"""Photos of rendered places by cameras of one size and several zooms, without EXIF."""

from __future__ import annotations

import hashlib
import shutil
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import pycolmap

from sfm_matchers.runs.options import SfmOptions
from sfm_matchers.runs.reconstruct import run
from sfm_matchers.runs.results import SfmResult
from sfm_matchers.synthetic import (
    Camera,
    Scene,
    camera_path,
    make_scene,
    random_appearance,
    render,
)


def write_photos(
    folder: Path, degrees: tuple[float, ...], count: int, kind: str = "room", seed: int = 3
) -> np.ndarray:
    """Write photos without EXIF of cameras with these fields of view in turn; return centres."""
    folder.mkdir()
    for index in range(count):
        photo = _photo(kind, seed, count, index, degrees[index % len(degrees)])
        (folder / f"{index}.png").write_bytes(photo)
    return np.array([-pose[:, :3].T @ pose[:, 3] for pose in _poses(kind, seed, count)])


def center_error(model: pycolmap.Reconstruction, centers: np.ndarray) -> float:
    """Mean error of the camera centres, as a share of the extent."""
    names = {image.name: image for image in model.images.values()}
    found = np.array([names[f"{index}.png"].projection_center() for index in range(len(centers))])
    world_from_model = pycolmap.estimate_sim3d(found, centers)
    errors = np.linalg.norm(world_from_model * found - centers, axis=1)
    return float(errors.mean() / np.linalg.norm(np.ptp(centers, axis=0)))


# Several tests of a file start from the same photos: rendering them takes longer than some checks.


@lru_cache(maxsize=8)
def _scene(kind: str, seed: int) -> Scene:
    return make_scene(seed, kind=kind, texture_size=384)


def _poses(kind: str, seed: int, count: int) -> list[np.ndarray]:
    return camera_path(_scene(kind, seed), count, seed if kind == "street" else 1)


@lru_cache(maxsize=128)
def _photo(kind: str, seed: int, count: int, index: int, degrees: float) -> bytes:
    """The file of a photo of one of `count` places to stand."""
    camera = Camera.from_field_of_view(320, 240, degrees)
    pose = _poses(kind, seed, count)[index]
    image = render(_scene(kind, seed), camera, pose, random_appearance(index), seed=index).image
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


_matched: dict[str, TemporaryDirectory[str]] = {}


def run_with_sift(folder: Path, **options: Any) -> SfmResult:
    """Map `folder`/photos to `folder`/out; the same photos are matched by the first run only."""
    photos, outputs = folder / "photos", folder / "out"
    digest = hashlib.sha256()
    for path in sorted(photos.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    earlier = _matched.get(digest.hexdigest())
    if earlier is not None:
        shutil.copytree(earlier.name, outputs)
    result = run(SfmOptions(photos, outputs, "sift", no_longer_tracks=True, **options))
    if earlier is None:
        kept = _matched[digest.hexdigest()] = TemporaryDirectory()
        for path in outputs.glob("*sift*"):
            shutil.copy(path, kept.name)
    return result
