"""Aachen and InLoc with their files and names, of tiny photos; only the matching is invented.

An eighth of the photos; `SFM_MATCHERS_PUBLISHED_SIZE=1` takes as many as the archives have.
Photos stand in a row along a wall. What a matcher would find is written instead of matched: the
keypoints of a photo are the projections of the wall's points, matches are equal points.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import h5py
import numpy as np
import pycolmap
import pytest

from sfm_matchers.errors import InputError
from sfm_matchers.files.pair_lists import Pair, names_to_pair, write_pairs
from sfm_matchers.localization.in_depth_scans import FOCAL_LENGTH_PER_SIDE, transformation_path
from sfm_matchers.localization.poses import Query, Status
from sfm_matchers.localization.query_files import write_queries
from sfm_matchers.machine.memory import peak_memory
from sfm_matchers.runs.benchmarks import localize_aachen, localize_inloc
from sfm_matchers.runs.matching import MatchingJob
from sfm_matchers.runs.options import AachenOptions, InlocOptions
from sfm_matchers.synthetic.benchmarks import write_nvm
from tests.support.point_models import Tracks, add_image, add_tracks

pytestmark = pytest.mark.slow

EVERY = 1 if os.environ.get("SFM_MATCHERS_PUBLISHED_SIZE") else 8  # of the archives' photos
NUM_MAP, NUM_DAY, NUM_NIGHT = 6697, 824, 98
STEP, SPACING, DEPTH = 0.2, 0.25, 5.0  # metres between photos, points, and to the wall
WIDTH, HEIGHT, FOCAL_LENGTH = 64, 48, 50.0
MAX_SECONDS, MAX_GIGABYTES = 600 / EVERY, 1.0 / EVERY
CAMERA = pycolmap.Camera(
    model="SIMPLE_RADIAL",
    width=WIDTH,
    height=HEIGHT,
    params=[FOCAL_LENGTH, WIDTH / 2, HEIGHT / 2, 0.0],
    camera_id=1,
)


class Wall:
    """A wall along x, and photos of it by their place."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.places: dict[str, float] = {}
        self.camera = CAMERA  # of queries; that of the map is CAMERA
        count = int(NUM_MAP / EVERY * STEP / SPACING)
        along = np.arange(count) * SPACING
        self.points = np.column_stack(
            [along, rng.uniform(-2, 2, count), rng.uniform(DEPTH, DEPTH + 2, count)]
        )

    def pose(self, name: str) -> pycolmap.Rigid3d:
        return pycolmap.Rigid3d(pycolmap.Rotation3d(), np.array([-self.places[name], 0.0, 0.0]))

    def seen(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Indices (N,) of the points that a photo shows, and where (N, 2), as COLMAP has it."""
        half = WIDTH / 2 / FOCAL_LENGTH * (DEPTH + 2)
        first, last = (
            int(np.clip((self.places[name] + side * half) / SPACING, 0, len(self.points)))
            for side in (-1, 1)
        )
        indices = np.arange(first, last)
        camera = self.camera if name.startswith("query/") else CAMERA
        pixels = camera.img_from_cam(self.pose(name) * self.points[indices])
        inside = ((pixels > 0) & (pixels < [WIDTH, HEIGHT])).all(axis=1)
        return indices[inside], pixels[inside]

    def write_features(self, path: Path, names: list[str]) -> None:
        with h5py.File(path, "w") as file:
            for name in names:
                file[f"{name}/keypoints"] = (self.seen(name)[1] - 0.5).astype(np.float32)
                file[f"{name}/image_size"] = np.array([WIDTH, HEIGHT])

    def write_matches(self, path: Path, pairs: list[Pair]) -> None:
        with h5py.File(path, "w") as file:
            for pair in dict.fromkeys(tuple(sorted(pair)) for pair in pairs):
                first, second = (self.seen(name)[0] for name in pair)
                _, rows, columns = np.intersect1d(first, second, return_indices=True)
                matches0 = np.full(len(first), -1, np.int32)
                matches0[rows] = columns
                file[f"{names_to_pair(*pair)}/matches0"] = matches0

    def model(self, names: list[str]) -> pycolmap.Reconstruction:
        model = pycolmap.Reconstruction()
        tracks: Tracks = {}
        for image_id, name in enumerate(names, start=1):
            camera = pycolmap.Camera(CAMERA.todict() | {"camera_id": image_id})
            model.add_camera_with_trivial_rig(camera)
            indices, pixels = self.seen(name)
            add_image(model, image_id, name, self.pose(name), pixels, camera_id=image_id)
            for row, index in enumerate(indices.tolist()):
                tracks.setdefault(index, []).append((image_id, row))
        add_tracks(model, self.points, tracks, fewest=1)
        return model


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    """Matches are what the wall says; hours are not measured."""
    wall = Wall()

    def match(job: MatchingJob, pairs: list[Pair], label: str, **_: object) -> tuple[Path, Path]:
        features = job.workspace.path / f"feats-{label}.h5"
        matches = job.workspace.path / f"matches-{label}.h5"
        wall.write_features(features, sorted({name for pair in pairs for name in pair}))
        wall.write_matches(matches, pairs)
        return features, matches

    monkeypatch.setattr(MatchingJob, "match", match)
    monkeypatch.setattr("sfm_matchers.runs.benchmarks.announce_localization", lambda *_: None)
    return wall


def write_photos(folder: Path, names: list[str]) -> None:
    _, content = cv2.imencode(".jpg", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.tobytes())


def write_descriptors(path: Path, wall: Wall) -> Path:
    """Global descriptors (16,) that are alike for places that are near."""
    frequencies = np.random.default_rng(1).normal(scale=0.5, size=8)
    with h5py.File(path, "w") as file:
        for name, place in wall.places.items():
            waves = np.concatenate([np.cos(frequencies * place), np.sin(frequencies * place)])
            file[f"{name}/global_descriptor"] = waves.astype(np.float32)
    return path


def measured(job: Callable[[], object]) -> None:
    """Run a job within `MAX_SECONDS` of the CPU, and with at most `MAX_GIGABYTES` more memory."""
    held, start = peak_memory(), time.process_time()
    job()
    assert time.process_time() - start < MAX_SECONDS
    assert peak_memory() - held < MAX_GIGABYTES


def aachen_names(version: str) -> tuple[list[str], list[str]]:
    """Names of the map and of the queries, with the folders and endings of the archive."""
    database = [f"db/{index}.jpg" for index in range(1, NUM_MAP + 1)]
    if version == "1.1":  # the photos that came later are of walks with a camera on a helmet
        database[4328:] = [
            f"sequences/gopro3_undistorted/gopro3_{index:05d}.png"
            if index < 4728
            else f"sequences/nexus4_sequences/sequence_1/aachen_nexus4_seq1_{index:04d}.png"
            for index in range(4328, NUM_MAP)
        ]
    day = [f"query/day/milestone/2010-10-30_17-47-25_{index}.jpg" for index in range(NUM_DAY)]
    night = [
        f"query/night/nexus5x_additional_night/IMG_20161227_{index:06d}.jpg"
        for index in range(NUM_NIGHT)
    ]
    return database[::EVERY], [*day, *night][::EVERY]


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_aachen_at_its_size(version: str, wall: Wall, tmp_path: Path) -> None:
    database, queries = aachen_names(version)
    places = np.random.default_rng(2).uniform(5, len(database) * STEP - 5, len(queries))
    wall.places = {name: index * STEP for index, name in enumerate(database)}
    wall.places |= dict(zip(queries, places.tolist(), strict=True))
    dataset = tmp_path / "aachen"
    write_photos(dataset / "images_upright", [*database, *queries[:-1]])  # one is not there
    for condition in ("day", "night"):
        listed = [Query(name, CAMERA) for name in queries if f"/{condition}/" in name]
        path = dataset / "queries" / f"{condition}_time_queries_with_intrinsics.txt"
        write_queries(path, listed)
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    models = dataset / "3D-models"
    model = wall.model(database)
    if version == "1.1":
        (models / "aachen_v_1_1").mkdir(parents=True)
        model.write_binary(models / "aachen_v_1_1")
    else:
        write_nvm(models / "aachen_cvpr2018_db.nvm", model)
        write_queries(
            models / "database_intrinsics.txt", [Query(name, CAMERA) for name in database]
        )
        # The archive has the model in bundler's format too.
        (models / "aachen_cvpr2018_db.out").write_text("# Bundle file v0.3\n")
        (models / "aachen_cvpr2018_db.list.txt").write_text("\n".join(database))
    options = AachenOptions(
        dataset,
        tmp_path / "out",
        version=version,
        num_covis=2,
        num_loc=4,
        retrieval=str(write_descriptors(tmp_path / "global.h5", wall)),
    )

    def job() -> None:
        result = localize_aachen(options)
        assert len(result.queries) == len(queries)
        model = pycolmap.Reconstruction(result.files["triangulated map"])
        assert model.num_reg_images() == len(database)
        found = {query.name: query for query in result.queries}
        assert found[queries[-1]].status is Status.FAILED
        assert "missing" in found[queries[-1]].reason
        localized = [one for one in result.queries if one.status is Status.LOCALIZED]
        assert len(localized) > 0.95 * len(queries)
        for one in localized:
            x = one.cam_from_world.inverse().translation[0]
            assert abs(x - wall.places[one.name]) < 0.05
        submitted = result.files["submission"].read_text().splitlines()
        assert len(submitted) == len(queries) - 1
        assert submitted[0].startswith("2010-10-30_17-47-25_0.jpg ")

    measured(job)


def inloc_names() -> tuple[list[str], list[str]]:
    """The archive's cutouts, 36 of each of 277 scans, and the queries of a phone."""
    database = [
        f"database/cutouts/{floor}/{scan:03d}/{building}_cutout_{scan:03d}_{30 * turn}_{tilt}.jpg"
        for floor, building, scans in (
            ("CSE3", "cse", 46),
            ("CSE4", "cse", 46),
            ("CSE5", "cse", 46),
            ("DUC1", "DUC", 70),
            ("DUC2", "DUC", 69),
        )
        for scan in range(scans)
        for tilt in (-30, 0, 30)
        for turn in range(12)
    ]
    queries = [f"query/iphone7/IMG_{index:04d}.JPG" for index in range(731, 731 + 356)]
    return database[::EVERY], queries[::EVERY]


def write_scans(dataset: Path, wall: Wall, names: list[str]) -> None:
    """The wall at each pixel of some cutouts; transformations of all scans."""
    x, y = np.meshgrid(np.arange(WIDTH) - WIDTH / 2, np.arange(HEIGHT) - HEIGHT / 2)
    for name in names:
        scan = np.stack([x, y, np.full(x.shape, FOCAL_LENGTH)], axis=-1) * DEPTH / FOCAL_LENGTH
        scan[..., 0] += wall.places[name]
        with h5py.File(dataset / f"{name}.mat", "w") as file:
            file["XYZcut"] = scan.T
    matrix = "\n".join(" ".join(map(str, row)) for row in np.eye(4))
    for name in wall.places:
        if name.startswith("database/"):
            path = transformation_path(dataset, name)
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("header\n" * 7 + matrix)


def test_inloc_at_its_size(wall: Wall, tmp_path: Path) -> None:
    database, queries = inloc_names()
    wall.points[:, 2] = DEPTH
    width = WIDTH * FOCAL_LENGTH_PER_SIDE
    camera = pycolmap.Camera(CAMERA.todict())
    camera.params = [width, WIDTH / 2, HEIGHT / 2, 0.0]
    wall.camera = camera
    rng = np.random.default_rng(3)
    wall.places = {name: 10 + index * 0.1 for index, name in enumerate(database)}
    queried = rng.uniform(10, 10 + 0.099 * len(database), len(queries))
    wall.places |= dict(zip(queries, queried.tolist(), strict=True))
    dataset = tmp_path / "inloc"
    write_photos(dataset, [*database, *queries])
    pairs = []
    for name in queries:
        nearest = int((wall.places[name] - 10) / 0.1)
        pairs += [(name, database[nearest + offset]) for offset in (0, 1, -1, 5)]
    scanned = sorted({name for _, name in pairs})
    missing = pairs[0][1]
    write_scans(dataset, wall, [name for name in scanned if name != missing])
    write_pairs(tmp_path / "pairs-query-netvlad40.txt", pairs)
    options = InlocOptions(
        dataset, tmp_path / "out", pairs=tmp_path / "pairs-query-netvlad40.txt", skip_matches=8
    )

    def job() -> None:
        result = localize_inloc(options)
        assert len(result.queries) == len(queries)
        localized = [one for one in result.queries if one.status is Status.LOCALIZED]
        assert len(localized) > 0.95 * len(queries)
        for one in localized:
            x = one.cam_from_world.inverse().translation[0]
            assert abs(x - wall.places[one.name]) < 0.1
        lines = result.files["submission"].read_text().splitlines()
        assert lines[0].startswith("IMG_0731.JPG ")

    measured(job)


def test_parts_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"images_upright/db  \(from database_and_query"):
        localize_aachen(AachenOptions(tmp_path, tmp_path / "out"))
    with pytest.raises(InputError, match=r"database/alignments  \(transformations"):
        localize_inloc(InlocOptions(tmp_path, tmp_path / "out"))
