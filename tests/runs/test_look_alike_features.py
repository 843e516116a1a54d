"""Of which photos SIFT is made to tell places of a map apart, and what that takes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pycolmap
import pytest

from sfm_matchers.confs import Detail, load_conf
from sfm_matchers.localization.look_alikes import MAX_OTHERS
from sfm_matchers.runs.retrieval import features_of_look_alikes, num_photos_of_sift
from sfm_matchers.runs.workspace import Workspace
from tests.support.point_models import Tracks, add_image, add_tracks

NUM_PHOTOS, NUM_SHARED = 60, 20  # in a row; points that each shares with the next one
NAMES = [f"db/{index:02d}.jpg" for index in range(NUM_PHOTOS)]
QUERIES = ["query/a.jpg", "query/b.jpg"]
PAIRS = [(query, NAMES[index]) for query in QUERIES for index in (10, 11, 12)]


class Job(SimpleNamespace):
    """A job that notes of which photos SIFT is made."""

    def extract(self, conf: Any, names: Any) -> Path:
        self.described = list(names)
        return self.workspace.features(conf)


def job_of(matcher: str, folder: Path) -> Job:
    return Job(
        conf=load_conf(matcher),
        matching=SimpleNamespace(device="cpu", detail=Detail()),
        workspace=Workspace(folder),
        photos=dict.fromkeys([*NAMES, *QUERIES]),
        described=None,
    )


def options_of(**given: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"num_loc": 3, "loc_pairs": None, "retrieval": "vlad", **given})


@pytest.fixture(scope="module")
def model() -> pycolmap.Reconstruction:
    """Photos in a row."""
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(
        pycolmap.Camera(model="PINHOLE", width=64, height=48, params=[50, 50, 32, 24], camera_id=1)
    )
    tracks: Tracks = {}
    for index, name in enumerate(NAMES):
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(), np.array([-float(index), 0.0, 0.0]))
        add_image(model, index + 1, name, pose, np.ones((2 * NUM_SHARED, 2)))
        for row in range(2 * NUM_SHARED):
            tracks.setdefault(index * NUM_SHARED + row, []).append((index + 1, row))
    add_tracks(model, np.random.default_rng(0).normal(size=(2000, 3)), tracks)
    return model


def descriptors(path: Path) -> Path:
    """By which photo 50 is like photo 11, and the others are like those beside them."""
    with h5py.File(path, "w") as file:
        for name in (*NAMES, *QUERIES):
            place = NAMES.index(name) if name in NAMES else 11
            angle = 0.02 * (11 if place == 50 else place)
            file[f"{name}/global_descriptor"] = np.array([np.cos(angle), np.sin(angle)], np.float32)
    return path


@pytest.mark.parametrize("listed", [True, False])
def test_sift_is_made_of_what_can_matter(
    model: pycolmap.Reconstruction, tmp_path: Path, listed: bool
) -> None:
    job = job_of("eloftr", tmp_path)
    options = options_of(loc_pairs=tmp_path / "pairs.txt")
    if not listed:
        options = options_of(retrieval=str(descriptors(tmp_path / "global.h5")))
    path = features_of_look_alikes(job, model, PAIRS, options)
    assert path == tmp_path / "feats-sift.h5"
    assert len(set(job.described)) == len(job.described) <= num_photos_of_sift(job, 2, options)
    numbers = {NAMES.index(name) for name in job.described}
    assert numbers >= {10, 11, 12}
    # Those beside them share points; those next but one do not.
    assert numbers >= {8, 9, 13, 14}
    assert len(numbers) <= 3 + 3 * MAX_OTHERS
    assert (50 in numbers) == (not listed)
    assert numbers <= {*range(5, 18), 50}


def test_vlad_has_made_it_of_all(model: pycolmap.Reconstruction, tmp_path: Path) -> None:
    job = job_of("jamma", tmp_path)
    assert features_of_look_alikes(job, model, PAIRS, options_of())
    assert job.described == NAMES


def test_features_of_the_matcher_serve(model: pycolmap.Reconstruction, tmp_path: Path) -> None:
    job = job_of("aliked+mambaglue", tmp_path)
    assert features_of_look_alikes(job, model, PAIRS, options_of(loc_pairs="pairs.txt")) is None
    assert job.described is None


@pytest.mark.parametrize(
    ("matcher", "given", "num_photos"),
    [
        ("sift", {}, 0),  # those of the matching
        ("aliked+mambaglue", {}, 62),  # of VLAD
        ("aliked+mambaglue", {"retrieval": "megaloc.h5"}, 0),
        ("eloftr", {}, 62),
        ("eloftr", {"loc_pairs": "pairs.txt"}, 60),
        ("eloftr", {"retrieval": "megaloc.h5"}, 2 * 3 * (1 + MAX_OTHERS)),
        ("eloftr", {"retrieval": "megaloc.h5", "num_loc": 50}, 60),
    ],
)
def test_of_how_many_photos_is_foretold(
    tmp_path: Path, matcher: str, given: dict[str, Any], num_photos: int
) -> None:
    assert num_photos_of_sift(job_of(matcher, tmp_path), 2, options_of(**given)) == num_photos
