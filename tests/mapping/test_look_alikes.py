"""Pairs of photos of two places that look alike are found, and no others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest

from sfm_matchers.mapping.database import verify_geometry
from sfm_matchers.mapping.look_alikes import (
    SuspiciousPair,
    VerifiedGraph,
    describe,
    drop_pairs,
    find_look_alikes,
)
from sfm_matchers.synthetic.cameras import Camera, look_at, project

pytestmark = pytest.mark.slow

CAMERA = Camera.from_field_of_view(640, 480)
ANGLES = (-24.0, -8.0, 8.0, 24.0)


def surroundings(rng: np.random.Generator) -> np.ndarray:
    """Points (300, 3) at both sides of the front and behind it."""
    x = rng.choice([-1, 1], 300) * rng.uniform(3.5, 10, 300)
    return np.column_stack([x, rng.uniform(-2, 6, 300), rng.uniform(0, 6, 300)])


def write_places(path: Path, seed: int, num_places: int) -> list[str]:
    """Write a database of photos of places, a/0.jpg ... of the first one, with one front."""
    rng = np.random.default_rng(seed)
    front = np.column_stack(
        [rng.uniform(-3, 3, 400), rng.uniform(-0.3, 0.3, 400), rng.uniform(0, 7, 400)]
    )
    names, seen = [], []
    for place in range(num_places):
        around = surroundings(rng)
        ids = np.concatenate([np.arange(400), 400 + 300 * place + np.arange(300)])
        for number, degrees in enumerate(ANGLES):
            turn = np.radians(degrees + rng.uniform(-2, 2))
            center = np.array([11 * np.sin(turn), -11 * np.cos(turn), 1.7])
            pose = look_at(center, np.array([0.0, 0.0, 3.0]))
            pixels, _ = project(np.concatenate([front, around]), CAMERA, pose)
            inside = ((pixels >= 0) & (pixels < [640, 480])).all(axis=1)
            kept = np.flatnonzero(inside & (rng.random(700) < 0.75))
            seen.append((ids[kept], pixels[kept] + rng.normal(0, 0.3, (len(kept), 2))))
            names.append(f"{'abc'[place]}/{number}.jpg")
    with pycolmap.Database.open(path) as database:
        camera = CAMERA.to_colmap()
        camera.has_prior_focal_length = True
        camera_id = database.write_camera(camera)
        rig = pycolmap.Rig()
        rig.add_ref_sensor(pycolmap.sensor_t(pycolmap.SensorType.CAMERA, camera_id))
        rig_id = database.write_rig(rig)
        for name, (_, pixels) in zip(names, seen, strict=True):
            image_id = database.write_image(pycolmap.Image(name=name, camera_id=camera_id))
            frame = pycolmap.Frame()
            frame.rig_id = rig_id
            frame.add_data_id(database.read_image(image_id).data_id)
            database.write_frame(frame)
            database.write_keypoints(image_id, (pixels + 0.5).astype(np.float32))
        for first in range(len(names)):
            for second in range(first):
                _, one, two = np.intersect1d(seen[second][0], seen[first][0], return_indices=True)
                matches = np.column_stack([one, two]).astype(np.uint32)
                database.write_matches(second + 1, first + 1, matches)
    verify_geometry(path)
    return names


@pytest.mark.parametrize("seed", range(3))
def test_pairs_of_two_places_are_found_and_no_others(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "database.db"
    names = write_places(path, seed, num_places=2)
    found = find_look_alikes(VerifiedGraph.read(path))
    across = {(a, b) for a in names for b in names if a[0] == "a" and b[0] == "b"}
    assert {pair.names for pair in found} == across
    drop_pairs(path, found)
    assert not {
        (graph.photos[a].name[0], graph.photos[b].name[0])
        for graph in [VerifiedGraph.read(path)]
        for a, b in graph.pairs()
    } & {("a", "b"), ("b", "a")}


def test_three_places_with_one_front(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    write_places(path, 5, num_places=3)
    found = find_look_alikes(VerifiedGraph.read(path))
    assert all(pair.names[0][0] != pair.names[1][0] for pair in found)
    assert len(found) == 3 * len(ANGLES) ** 2


@pytest.mark.parametrize("seed", range(3))
def test_one_place_keeps_all_pairs(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "database.db"
    write_places(path, seed, num_places=1)
    graph = VerifiedGraph.read(path)
    assert len(graph.pairs()) == 6
    assert find_look_alikes(graph) == []


def test_a_rotation_that_stronger_pairs_contradict(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    write_places(path, 0, num_places=1)
    graph = VerifiedGraph.read(path)
    geometry = graph.geometries[1, 4]
    graph.posed(1, 4)
    turn = pycolmap.Rotation3d(np.array([0.0, np.radians(40), 0.0]))
    pose = geometry.cam2_from_cam1
    geometry.cam2_from_cam1 = pycolmap.Rigid3d(turn * pose.rotation, pose.translation)
    assert find_look_alikes(graph) == []  # all pairs are about as strong
    matches = {(a, b): graph.matches[a][b] for a, b in ((1, 4), (4, 1))}
    for (first, second), all_matches in matches.items():
        graph.matches[first][second] = all_matches[:29]
    assert find_look_alikes(graph) == []  # too few for a rotation
    for (first, second), all_matches in matches.items():
        graph.matches[first][second] = all_matches[:30]
    (pair,) = find_look_alikes(graph)
    assert pair.names == ("a/0.jpg", "a/3.jpg")
    assert pair.reason == "its rotation contradicts those by way of a/1.jpg, a/2.jpg"


def test_the_strongest_pairs_are_told() -> None:
    pairs = [SuspiciousPair((f"{i}.jpg", "z.jpg"), i, "why") for i in range(20)]
    lines = describe(pairs, are_dropped=True)
    assert lines["19.jpg and z.jpg"] == "dropped, 19 verified matches: why"
    assert lines["others"] == "dropped, 10 more pairs"
    assert describe([], are_dropped=False) == {}
