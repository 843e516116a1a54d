"""Poses that rest on what the map sees elsewhere too: the other side of a tower."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pycolmap
import pytest

from sfm_matchers.files.pair_lists import names_to_pair, write_pairs
from sfm_matchers.hloc.steps.models import localize_sfm
from sfm_matchers.localization.in_model import estimate_pose, localize_queries
from sfm_matchers.localization.indexed_model import IndexedModel
from sfm_matchers.localization.local_features import (
    LocalFeatures,
    features_beside_map,
    features_of_map,
)
from sfm_matchers.localization.localizer import Localizer
from sfm_matchers.localization.look_alikes import (
    LookAlikes,
    nearest_photos,
    photos_to_describe,
)
from sfm_matchers.localization.poses import LocalizationOptions, LocalizedQuery, Query, Status
from sfm_matchers.localization.query_files import write_queries
from sfm_matchers.photos.images import read_image
from sfm_matchers.runs.map_build import build
from sfm_matchers.runs.options import MapOptions
from sfm_matchers.synthetic import Camera, look_at, make_scene, write_photos
from tests.support.point_models import Tracks, add_image, add_tracks

CAMERA = pycolmap.Camera(
    model="PINHOLE", width=640, height=480, params=[500.0, 500.0, 320.0, 240.0], camera_id=1
)
OPTIONS = LocalizationOptions()
DOUBTED = Status.LOW_CONFIDENCE
FRONT, AROUND = 60, 60  # points of a side of the tower, and of what stands beside it
TURNED = np.diag([-1.0, -1.0, 1.0])  # half a turn about the tower's axis


class Tower:
    """A tower whose two sides look the same, seen from both by two photos each.

    The map has no points on the side that "back" photos see, as where few photos see it.
    """

    def __init__(self, origin: float = 0.0) -> None:
        rng = np.random.default_rng(0)
        front = rng.uniform([-2, -2.2, 0], [2, -1.8, 6], (FRONT, 3))
        beside = rng.uniform([-8, -5, 0], [8, 5, 6], (2, AROUND, 3))
        beside[..., 0] += 3 * np.sign(beside[..., 0])
        self.origin = origin
        self.points = np.concatenate([front, front @ TURNED, *beside])
        self.kinds = np.repeat([0, 1, 2, 3], [FRONT, FRONT, AROUND, AROUND])
        self.descriptors = rng.normal(size=(len(self.points), 128))
        self.descriptors[self.kinds == 1] = self.descriptors[self.kinds == 0]
        self.model = pycolmap.Reconstruction()
        self.model.add_camera_with_trivial_rig(CAMERA)
        self.features: dict[str, LocalFeatures] = {}
        stored: dict[str, dict[str, np.ndarray]] = {}
        tracks: Tracks = {}
        for image_id, (name, x, side) in enumerate(
            [("front0", -1.0, -1), ("front1", 1.0, -1), ("back0", -1.5, 1), ("back1", 0.5, 1)], 1
        ):
            pose = self.pose(x, side)
            shown = np.flatnonzero(np.isin(self.kinds, (0, 2) if side < 0 else (1, 3)))
            keypoints = self.project(pose, shown)
            stored[name] = self.described(keypoints, shown)
            add_image(self.model, image_id, name, pose, keypoints)
            for row, point in enumerate(shown.tolist()):
                if self.kinds[point] != 1:
                    tracks.setdefault(point, []).append((image_id, row))
        self.ids = np.full(len(self.points), -1)
        ids = add_tracks(self.model, self.points + origin, tracks)
        self.ids[list(ids)] = list(ids.values())
        self.lookup = IndexedModel(self.model)
        for name, arrays in stored.items():
            known = features_of_map(arrays, self.lookup, name)
            assert known is not None
            self.features[name] = known

    def pose(self, x: float, side: int) -> pycolmap.Rigid3d:
        position = np.array([-x * side, 12.0 * side, 1.7])
        pose = pycolmap.Rigid3d(look_at(position, np.array([0, 0, 3.0])))
        back = pycolmap.Rigid3d(pycolmap.Rotation3d(), np.full(3, -self.origin))
        return pose * back

    def project(self, pose: pycolmap.Rigid3d, shown: np.ndarray) -> np.ndarray:
        return np.asarray(CAMERA.img_from_cam(pose * (self.points[shown] + self.origin)))

    def described(self, keypoints: np.ndarray, shown: np.ndarray) -> dict[str, np.ndarray]:
        """As a feature file has them."""
        rng = np.random.default_rng(len(keypoints))
        noisy = self.descriptors[shown] + rng.normal(scale=0.1, size=(len(shown), 128))
        noisy /= np.linalg.norm(noisy, axis=1, keepdims=True)
        return {"keypoints": keypoints - 0.5, "descriptors": noisy.T}

    def query_features(self, side: int) -> LocalFeatures:
        """All that a query of one side shows."""
        shown = np.flatnonzero(np.isin(self.kinds, (0, 2) if side < 0 else (1, 3)))
        arrays = self.described(self.project(self.pose(0.2, side), shown), shown)
        return LocalFeatures.of_query(arrays["keypoints"], arrays["descriptors"])

    def localize(self, side: int, *, num_around: int) -> LocalizedQuery:
        """A query of one side, of which matches are known with the front of the tower, whichever
        it sees, and with some points beside it."""
        seen = np.flatnonzero(self.kinds == (0 if side < 0 else 1))
        matched = np.flatnonzero(self.kinds == 0)
        around = np.flatnonzero(self.kinds == (2 if side < 0 else 3))[:num_around]
        keypoints = self.project(self.pose(0.2, side), np.concatenate([seen, around]))
        ids = self.ids[np.concatenate([matched, around])]
        points = np.array([self.model.points3D[int(index)].xyz for index in ids])
        found = estimate_pose(Query("q", CAMERA), keypoints, points, len(ids), OPTIONS, 30.0)
        found.point_ids, found.database_names = ids, ["front0", "front1"]
        assert found.status is Status.LOCALIZED
        return found

    def check(self, found: LocalizedQuery, features: LocalFeatures | None = None) -> LocalizedQuery:
        names = sorted(self.features)
        LookAlikes(
            self.lookup,
            self.features.get,
            lambda name: [other for other in names if other != name],
            OPTIONS.max_error,
        ).check(found, features)
        return found


@pytest.mark.parametrize("origin", [0.0, 5e5])
@pytest.mark.parametrize("side", [-1, 1])
def test_a_pose_that_rests_on_what_is_elsewhere_too_is_doubted(side: int, origin: float) -> None:
    tower = Tower(origin)
    found = tower.check(tower.localize(side, num_around=0))
    assert found.status is Status.LOW_CONFIDENCE
    assert found.reason.startswith("60 of the 60 keypoints that fit its pose show what back")
    assert "look alike" in found.reason


def test_what_stands_around_tells_where_it_is() -> None:
    tower = Tower()
    found = tower.check(tower.localize(-1, num_around=40))
    assert found.status is Status.LOCALIZED
    assert found.reason == ""


@pytest.mark.parametrize("origin", [0.0, 5e5])
@pytest.mark.parametrize("with_rival", [False, True])
@pytest.mark.parametrize(("side", "status"), [(-1, Status.LOCALIZED), (1, Status.LOW_CONFIDENCE)])
def test_what_stands_around_is_looked_for(
    side: int, status: Status, with_rival: bool, origin: float
) -> None:
    """It is there where the pose is right, although it did not match; on the other side not."""
    tower = Tower(origin)
    found = tower.localize(side, num_around=0)
    if with_rival:
        found.status, found.reason = Status.LOW_CONFIDENCE, "a rival"
        found.rival = found.inliers & (np.arange(len(found.inliers)) % 2 == 0)
    tower.check(found, tower.query_features(side))
    assert found.status is status
    assert (found.reason == "") == (status is Status.LOCALIZED)


def test_a_rival_is_believed_where_the_map_knows_of_no_look_alikes() -> None:
    tower = Tower()
    found = tower.localize(-1, num_around=40)
    found.status, found.reason, found.rival = Status.LOW_CONFIDENCE, "a rival", found.inliers
    tower.features.clear()
    tower.check(found, tower.query_features(-1))
    assert (found.status, found.reason) == (Status.LOW_CONFIDENCE, "a rival")


def test_features_beside_a_model_show_the_points_next_to_them() -> None:
    tower = Tower()
    lookup, image = tower.lookup, tower.model.images[1]
    ids = lookup.point_ids(image.name)
    places = np.array([point.xy for point in image.points2D])
    keypoints = np.concatenate([places[::-1] - 0.5 + [3, 0], [[0.0, 0.0]]])
    stored = {"keypoints": keypoints, "descriptors": np.zeros((128, len(keypoints)))}
    shown = features_beside_map(stored, lookup, image.name).point_ids
    distances = np.linalg.norm(places - (keypoints[:, None] + 0.5), axis=2)
    assert shown[-1] == -1
    assert (shown[:-1] == ids[distances[:-1].argmin(axis=1)]).all()


def write_files(
    folder: Path, tower: Tower, keypoints: np.ndarray, points: np.ndarray
) -> tuple[Path, Path]:
    """A feature file with keypoints (N, 2) of the query "q", and the matches of the first ones with
    the map's points (M,), of which both photos of the front see each."""
    paths = folder / "features.h5", folder / "matches.h5"
    with h5py.File(paths[0], "w") as features, h5py.File(paths[1], "w") as matches:
        features["q/keypoints"] = (keypoints - 0.5).astype(np.float32)
        for name in ("front0", "front1"):
            row_of = {point: row for row, point in enumerate(tower.lookup.point_ids(name).tolist())}
            matches0 = np.full(len(keypoints), -1, dtype=np.int32)
            matches0[: len(points)] = [row_of[point] for point in tower.ids[points].tolist()]
            matches[f"{names_to_pair('q', name)}/matches0"] = matches0
            features[f"{name}/keypoints"] = tower.features[name].keypoints.astype(np.float32) - 0.5
    return paths


RETRIEVED = [("q", "front0"), ("q", "front1")]


def localized_beside(
    tower: Tower, features: Path, matches: Path, local: Path | None = None
) -> LocalizedQuery:
    """Localize the query "q", with local features of the map beside, or without any."""
    (found,) = localize_queries(
        tower.model,
        [Query("q", CAMERA)],
        RETRIEVED,
        features,
        matches,
        OPTIONS,
        local_features=local,
    )
    return found


@pytest.fixture
def without_detector(tmp_path: Path) -> tuple[Tower, Path, Path, Path]:
    """A query of one side, matched with photos of the other one: the tower, keypoints, matches, and
    local features of the map beside them."""
    tower = Tower()
    keypoints = tower.project(tower.pose(0.2, 1), np.flatnonzero(tower.kinds == 1))
    paths = write_files(tmp_path, tower, keypoints, np.flatnonzero(tower.kinds == 0))
    with h5py.File(tmp_path / "local.h5", "w") as local:
        for name, known in tower.features.items():
            local[f"{name}/keypoints"] = (known.keypoints + 1).astype(np.float32)
            local[f"{name}/descriptors"] = known.descriptors.astype(np.float32)
    return tower, *paths, tmp_path / "local.h5"


@pytest.mark.parametrize(("beside", "status"), [(False, Status.LOCALIZED), (True, DOUBTED)])
def test_a_matcher_without_detector_has_features_beside(
    without_detector: tuple[Tower, Path, Path, Path],
    beside: bool,
    status: Status,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tower, features, matches, local = without_detector
    found = localized_beside(tower, features, matches, local if beside else None)
    assert found.num_inliers > 50
    assert found.status is status
    assert ("sees elsewhere" in found.reason) == beside
    (line,) = caplog.messages  # what becomes of the query, or that nobody can tell
    assert (f"q: low confidence: {found.reason}" == line) == beside
    assert ("they are not told apart" in line) == (not beside)


@pytest.mark.parametrize(("beside", "status"), [(False, Status.LOCALIZED), (True, DOUBTED)])
def test_so_has_hlocs_step(
    without_detector: tuple[Tower, Path, Path, Path], tmp_path: Path, beside: bool, status: Status
) -> None:
    tower, features, matches, local = without_detector
    (tmp_path / "model").mkdir()
    tower.model.write(tmp_path / "model")
    write_queries(tmp_path / "queries.txt", [Query("q", CAMERA)])
    write_pairs(tmp_path / "pairs.txt", RETRIEVED)
    (found,) = localize_sfm(
        reference_sfm=tmp_path / "model",
        queries=tmp_path / "queries.txt",
        retrieval=tmp_path / "pairs.txt",
        features=features,
        matches=matches,
        results=tmp_path / "poses.txt",
        local_features=local if beside else None,
    )
    assert found.status is status


@pytest.mark.parametrize(("side", "status"), [(-1, Status.LOCALIZED), (1, DOUBTED)])
def test_the_log_says_what_is_finally_true(
    tmp_path: Path, side: int, status: Status, caplog: pytest.LogCaptureFixture
) -> None:
    """A pose with a rival: one that what stands around speaks for, and one that it does not."""
    tower = Tower()
    seen, rival = np.flatnonzero(tower.kinds == (0 if side < 0 else 1)), FRONT // 2
    known, front = tower.query_features(side), np.flatnonzero(tower.kinds == 0)
    elsewhere = tower.project(tower.pose(6.0, -1), front[:rival])
    keypoints = tower.project(tower.pose(0.2, side), seen)
    keypoints = np.concatenate([keypoints, elsewhere, known.keypoints])
    features, matches = write_files(
        tmp_path, tower, keypoints, np.concatenate([front, front[:rival]])
    )
    shown = np.random.default_rng(3).normal(size=(128, len(keypoints)))
    shown /= np.linalg.norm(shown, axis=0)
    shown[:, -len(known.keypoints) :] = known.descriptors
    with h5py.File(features, "a") as file:
        file["q/descriptors"] = shown.astype(np.float32)
        for name, described in tower.features.items():
            file.require_group(name)
            if name not in ("front0", "front1"):
                file[f"{name}/keypoints"] = described.keypoints.astype(np.float32) - 0.5
            file[f"{name}/descriptors"] = described.descriptors.astype(np.float32)
    found = localized_beside(tower, features, matches)
    assert found.rival is not None
    assert found.status is status
    said = [line for line in caplog.messages if "low confidence" in line]
    is_doubted = status is DOUBTED
    assert said == ([f"q: low confidence: {found.reason}"] if is_doubted else [])


def test_few_photos_are_described_to_tell_places_apart() -> None:
    """Those that queries were matched with, and those that show other points, as similar goes."""
    tower = Tower()
    nearest = nearest_photos(tower.lookup)
    assert nearest("front0") == ["front1", "back1", "back0"]
    assert photos_to_describe(["front0", "unknown"], tower.lookup, nearest) == [
        "front0",
        "back1",
        "back0",
    ]
    assert photos_to_describe([], tower.lookup, nearest) == []
    only = photos_to_describe(["back0"], tower.lookup, lambda _: ["front1", "back1"])
    assert only == ["back0", "front1"]


def test_photos_that_are_not_described_are_not_looked_at(
    without_detector: tuple[Tower, Path, Path, Path],
) -> None:
    """Of a large map most are not: the others tell the places apart nevertheless."""
    tower, features, matches, local = without_detector
    with h5py.File(local, "a") as file:
        del file["front1"], file["back0"]
    found = localized_beside(tower, features, matches, local)
    assert found.status is DOUBTED
    assert "back1 sees elsewhere" in found.reason


def test_without_features_nothing_is_known() -> None:
    tower = Tower()
    tower.features.clear()
    assert tower.check(tower.localize(1, num_around=0)).status is Status.LOCALIZED


def test_wrong_matches_make_no_look_alikes() -> None:
    tower = Tower()
    for name in ("back0", "back1"):
        known = tower.features[name]
        tower.features[name] = replace(known, descriptors=known.descriptors[::-1])
    assert tower.check(tower.localize(-1, num_around=0)).status is Status.LOCALIZED


@pytest.mark.slow
def test_no_photo_is_localized_on_the_other_side_of_a_tower(tmp_path: Path) -> None:
    camera = Camera.from_field_of_view(320, 240)
    scene = make_scene(1, kind="tower", texture_size=384)
    write_photos(tmp_path, scene, 12, 1, camera=camera)
    build(MapOptions(tmp_path / "truth", tmp_path / "images", tmp_path / "map", "sift", 6))
    truth = write_photos(tmp_path / "new", scene, 6, 2, camera=camera)
    with Localizer(tmp_path / "map", num_loc=8) as localizer:
        for image in truth.images.values():
            found = localizer.localize(read_image(tmp_path / "new" / "images" / image.name))
            if found.status is Status.LOCALIZED:
                centres = [
                    pose.inverse().translation
                    for pose in (found.cam_from_world, image.cam_from_world())
                ]
                assert np.linalg.norm(centres[0] - centres[1]) < 0.25
