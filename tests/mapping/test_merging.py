"""Several models of one place become one where their points agree, and only there."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from sfm_matchers.evaluation.models import compare_models
from sfm_matchers.mapping.database import write_inliers
from sfm_matchers.mapping.diagnosis import read_match_graph
from sfm_matchers.mapping.merging import merge_models, what_is_missing
from sfm_matchers.mapping.models import largest_first
from sfm_matchers.synthetic.cameras import Camera, look_at, project

CAMERA = Camera.from_field_of_view(640, 480)
COUNT = 8  # photos, in a row
APART = pycolmap.Sim3d(
    2.5, pycolmap.Rotation3d(np.array([0.3, -0.8, 0.2])), np.array([4.0, -3.0, 9.0])
)


def write_row(path: Path, matched: set[tuple[int, int]] | None = None, *, mixed: bool = False):
    """Write a database of photos 1 ... in a row, and return the model of their keypoints.

    Args:
        path: of the database.
        matched: pairs of image ids; all by default.
        mixed: the matches of photos 1 to 4 with the others are of random points.
    """
    rng = np.random.default_rng(0)
    points = np.column_stack(
        [rng.uniform(-9, 9, 900), rng.uniform(-2, 3, 900), rng.uniform(0, 5, 900)]
    )
    poses, seen = [], []
    for x in np.linspace(-5, 5, COUNT):
        poses.append(
            look_at(
                np.array([x, 0.1 * x**2 - 9, 1.7 + 0.1 * (x % 3)]), np.array([0.7 * x, 0.0, 2.2])
            )
        )
        pixels, _ = project(points, CAMERA, poses[-1])
        inside = ((pixels >= 0) & (pixels < [640, 480])).all(axis=1)
        kept = np.flatnonzero(inside & (rng.random(900) < 0.7))
        seen.append((kept, pixels[kept] + 0.5 + rng.normal(0, 0.3, (len(kept), 2))))
    with pycolmap.Database.open(path) as database:
        camera_id = database.write_camera(CAMERA.to_colmap())
        rig = pycolmap.Rig()
        rig.add_ref_sensor(pycolmap.sensor_t(pycolmap.SensorType.CAMERA, camera_id))
        rig_id = database.write_rig(rig)
        for number, (_, pixels) in enumerate(seen, start=1):
            image_id = database.write_image(
                pycolmap.Image(name=f"{number}.jpg", camera_id=camera_id)
            )
            frame = pycolmap.Frame()
            frame.rig_id = rig_id
            frame.add_data_id(database.read_image(image_id).data_id)
            database.write_frame(frame)
            database.write_keypoints(image_id, pixels.astype(np.float32))
        for pair in itertools.combinations(range(1, COUNT + 1), 2):
            if matched is not None and pair not in matched:
                continue
            _, one, two = np.intersect1d(
                seen[pair[0] - 1][0], seen[pair[1] - 1][0], return_indices=True
            )
            if mixed and pair[0] <= 4 < pair[1]:
                two = rng.permutation(two)
            matches = np.column_stack([one, two]).astype(np.uint32)
            database.write_matches(*pair, matches)
            write_inliers(database, pycolmap.image_pair_to_pair_id(*pair), matches)
        cache = pycolmap.DatabaseCache.create(database, pycolmap.DatabaseCacheOptions())
    model = pycolmap.Reconstruction()
    model.load(cache)
    for image_id, pose in enumerate(poses, start=1):
        model.frame(model.images[image_id].frame_id).rig_from_world = pycolmap.Rigid3d(pose)
        model.register_frame(model.images[image_id].frame_id)
    for point, xyz in enumerate(points):
        elements = [
            pycolmap.TrackElement(image_id, int(np.searchsorted(ids, point)))
            for image_id, (ids, _) in enumerate(seen, start=1)
            if point in ids
        ]
        if len(elements) > 1:
            model.add_point3D(xyz, pycolmap.Track(elements), np.zeros(3, np.uint8))
    model.update_point_3d_errors()
    return model


def part(
    model: pycolmap.Reconstruction, image_ids: range, moved: pycolmap.Sim3d | None = None
) -> pycolmap.Reconstruction:
    """Return the model of some of the photos, in a frame of its own."""
    model = pycolmap.Reconstruction(model)
    for image_id in set(model.reg_image_ids()).difference(image_ids):
        model.deregister_frame(model.images[image_id].frame_id)
    model.tear_down()
    if moved is not None:
        model.transform(moved)
    return model


@pytest.mark.parametrize("second", [range(5, 9), range(4, 9), range(3, 9)])
def test_models_of_one_place_become_one(tmp_path: Path, second: range) -> None:
    truth = write_row(tmp_path / "database.db")
    parts = [part(truth, range(1, 5)), part(truth, second, APART)]
    sizes = [model.num_reg_images() for model in parts]
    merged, lines = merge_models(parts, tmp_path / "database.db")
    assert [model.num_reg_images() for model in parts] == sizes
    (model,) = merged
    assert len(lines) == 1
    assert f"models of {max(4, len(second))} and" in lines[0]
    errors = compare_models(model, truth)
    assert errors.num_registered == COUNT
    assert errors.relative_center_errors.max() < 0.2
    assert model.num_points3D() < 1.02 * truth.num_points3D()
    assert model.compute_mean_track_length() > 0.98 * truth.compute_mean_track_length()


def test_three_models_become_one(tmp_path: Path) -> None:
    truth = write_row(tmp_path / "database.db")
    parts = [part(truth, ids, APART) for ids in (range(1, 4), range(4, 7), range(7, 9))]
    (model,), lines = merge_models(parts, tmp_path / "database.db")
    assert model.num_reg_images() == COUNT
    assert len(lines) == 2


@pytest.mark.parametrize("mixed", [False, True])
def test_what_does_not_agree_stays_apart_and_is_told(tmp_path: Path, mixed: bool) -> None:
    path = tmp_path / "database.db"
    within = {pair for ids in (range(1, 5), range(5, 9)) for pair in itertools.combinations(ids, 2)}
    truth = write_row(path, None if mixed else within, mixed=mixed)
    parts = [part(truth, range(1, 5)), part(truth, range(5, 9), APART)]
    merged, lines = merge_models(parts, path)
    assert lines == []
    assert all(new is old for new, old in zip(merged, parts, strict=True))
    pairs = [(f"{a}.jpg", f"{b}.jpg") for a, b in itertools.combinations(range(1, COUNT + 1), 2)]
    (line,) = what_is_missing(merged, read_match_graph(path, pairs, merged[0]))
    if mixed:
        assert "are too few or do not agree: a photo taken between" in line
    else:
        assert line.startswith("no pair between the models of 4 photos (1.jpg, ")
        assert "has matches: photos taken between" in line
        (line,) = what_is_missing(merged, read_match_graph(path, pairs[1:-1], merged[0]))
        assert "has matches: photos taken between" in line
        pairs.remove(("1.jpg", "8.jpg"))
        (line,) = what_is_missing(merged, read_match_graph(path, pairs, merged[0]))
        assert "has matches: more pairs (--pairs exhaustive), or photos taken between" in line


def test_what_a_larger_model_has_is_no_model_of_its_own(tmp_path: Path) -> None:
    truth = write_row(tmp_path / "database.db")
    parts = [part(truth, ids) for ids in (range(3, 5), range(1, 5), range(4, 6))]
    assert largest_first(parts) == [parts[1], parts[2]]
    # A beginning that lies in two models lies in the one that they become.
    parts = [part(truth, range(1, 5)), part(truth, range(5, 9), APART), part(truth, range(4, 6))]
    parts[2].transform(pycolmap.Sim3d(7.0, pycolmap.Rotation3d(), np.zeros(3)))
    for point_id in list(parts[2].point3D_ids())[20:]:
        parts[2].delete_point3D(point_id)  # too few to link it
    (model,), _ = merge_models(parts, tmp_path / "database.db")
    assert model.num_reg_images() == COUNT
