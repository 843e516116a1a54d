"""Models in metres: by noisy positions of photos, by ground control points."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from sfm_matchers.errors import InputError
from sfm_matchers.geometry.coordinates import WGS84, Frame, geodetic_from_local
from sfm_matchers.mapping.control_points import (
    ControlPoint,
    ControlPoints,
    check_pixels,
    is_control_points,
    read_control_points,
)
from sfm_matchers.mapping.georeference import (
    centres,
    describe,
    describe_on_head,
    georeference,
    write_georeference,
)
from sfm_matchers.mapping.similarity import fit_similarity
from sfm_matchers.pairs.positions import Positions
from tests.support.point_models import Tracks, add_image, add_tracks

FRAME = Frame(WGS84, (48.0, 11.0, 500.0))
CAMERA = (1000.0, 600.0, 450.0, -0.05)
# What the mapper's axes and units may be.
ARBITRARY = pycolmap.Sim3d(
    0.037, pycolmap.Rotation3d(np.array([0.3, -2.0, 1.1])), np.array([4.0, -1.0, 7.0])
)


def make_flight(
    rows: int, columns: int, seed: int = 0, *, noise: float = 0.5, step: float = 20.0
) -> pycolmap.Reconstruction:
    """Photos from 50 m above flat ground, looking down, in metres; keypoints with noise."""
    rng = np.random.default_rng(seed)
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera.create_from_model_name(1, "SIMPLE_RADIAL", 1000.0, 1200, 900)
    camera.params = np.array(CAMERA)
    model.add_camera_with_trivial_rig(camera)
    points = rng.uniform((-50, -50, 0), (columns * step + 40, rows * step + 40, 8), (800, 3))
    tracks: Tracks = {}
    for index in range(rows * columns):
        center = step * np.array([index % columns, index // columns, 0]) + rng.normal(0, 0.7, 3)
        center += [0, 0, 50]
        down = np.diag([1.0, -1.0, -1.0]) @ pycolmap.Rotation3d(rng.normal(0, 0.05, 3)).matrix()
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(down), -down @ center)
        seen = camera.img_from_cam(points @ down.T - down @ center)
        visible = np.flatnonzero(((seen > 0) & (seen < [1200, 900])).all(axis=1))
        keypoints = seen[visible] + rng.normal(0, noise, (len(visible), 2))
        add_image(model, index + 1, f"{index}.jpg", pose, keypoints)
        for number, point in enumerate(visible.tolist()):
            tracks.setdefault(point, []).append((index + 1, number))
    add_tracks(model, points, tracks)
    return model


@pytest.fixture(scope="module")
def flight() -> pycolmap.Reconstruction:
    """8 x 8 photos over 140 m, in metres: the truth."""
    return make_flight(8, 8)


def as_mapped(truth: pycolmap.Reconstruction) -> pycolmap.Reconstruction:
    model = pycolmap.Reconstruction(truth)
    model.transform(ARBITRARY)
    return model


def measured(
    truth: pycolmap.Reconstruction, std: float, seed: int = 0, *, told: bool = False
) -> Positions:
    rng = np.random.default_rng(seed)
    xyz = {name: xyz + rng.normal(0, std, 3) for name, xyz in centres(truth).items()}
    return Positions(xyz, FRAME, "GPS", dict.fromkeys(xyz, std) if told else {})


def rms(model: pycolmap.Reconstruction, truth: pycolmap.Reconstruction) -> float:
    own, true = centres(model), centres(truth)
    return float(np.sqrt(np.mean([((own[name] - true[name]) ** 2).sum() for name in true])))


LEVEL_PLACES = {
    f"{i}.jpg": np.array([7.0 * (i % 4), 9.0 * (i // 4), 0.1 * (i % 3)]) for i in range(12)
}


def photos_at(tilt: float, orientation: int = 1) -> pycolmap.Reconstruction:
    """A mapped model of photos at `LEVEL_PLACES` with all headings, `tilt` degrees from down.

    They lie as an EXIF orientation (1 or 3) says.
    """
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera.create_from_model_name(1, "SIMPLE_RADIAL", 1000.0, 1200, 900)
    model.add_camera_with_trivial_rig(camera)
    turned = pycolmap.Rotation3d(np.array([0, 0, np.pi * (orientation == 3)]))
    for index, (name, center) in enumerate(LEVEL_PLACES.items()):
        down = pycolmap.Rotation3d(np.array([np.pi, 0, 0]))
        raised = pycolmap.Rotation3d(np.radians([-tilt, 0, 0]))
        heading = pycolmap.Rotation3d(np.array([0, 0, 2.0 * index]))
        rotation = turned * raised * down * heading
        pose = pycolmap.Rigid3d(rotation, -(rotation.matrix() @ center))
        add_image(model, index + 1, name, pose, np.zeros((0, 2)))
    return as_mapped(model)


def test_exact_positions_give_the_exact_model(flight: pycolmap.Reconstruction) -> None:
    place, model = georeference(as_mapped(flight), measured(flight, 0))
    assert rms(model, flight) < 1e-6
    assert place.outliers == []
    assert place.transform.scale * ARBITRARY.scale == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_metres_of_noise_leave_a_percent_of_the_scale(
    flight: pycolmap.Reconstruction, seed: int
) -> None:
    place, model = georeference(as_mapped(flight), measured(flight, 2.0, seed))
    assert place.transform.scale * ARBITRARY.scale == pytest.approx(1, abs=0.01)
    assert 0.002 < place.scale_std < 0.01
    assert rms(model, flight) < 1.5
    assert len(place.outliers) <= 1
    assert np.std(list(place.residuals.values())) == pytest.approx(2, rel=0.15)


def test_wrong_positions_are_named(flight: pycolmap.Reconstruction) -> None:
    positions = measured(flight, 1.0)
    for name, shift in (("3.jpg", [300, 0, 0]), ("40.jpg", [0, -25, 0]), ("9.jpg", [0, 0, 4000])):
        positions.xyz[name][:] += shift
    place, model = georeference(as_mapped(flight), positions)
    assert sorted(place.outliers) == ["3.jpg", "40.jpg", "9.jpg"]
    assert place.residuals["3.jpg"][0] == pytest.approx(-300, abs=5)
    assert rms(model, flight) < 1
    assert "3.jpg" in describe(place, 64)


@pytest.mark.parametrize(
    ("axes", "is_told"), [([0, 1, 2], False), ([1, 0, 2], True)], ids=["right", "exchanged"]
)
@pytest.mark.parametrize("orientation", [1, 3])
@pytest.mark.parametrize("tilt", [0.0, 50.0, 90.0, 110.0])
def test_exchanged_axes_are_told(
    tilt: float, orientation: int, axes: list[int], is_told: bool
) -> None:
    """Straight down, obliquely, level, looking up: mirrored places fit as well as right ones."""
    positions = Positions({name: xyz[axes] for name, xyz in LEVEL_PLACES.items()}, FRAME, "a table")
    place, model = georeference(photos_at(tilt, orientation), positions)
    assert np.linalg.norm(list(place.residuals.values()), axis=1).max() < 1.0
    told = describe_on_head(model, dict.fromkeys(LEVEL_PLACES, orientation))
    assert ("exchanged" in told) == is_told


def test_coarse_altitudes_are_no_outliers(flight: pycolmap.Reconstruction) -> None:
    rng = np.random.default_rng(1)
    positions = measured(flight, 1.0)
    for xyz in positions.xyz.values():
        xyz[2] += rng.normal(0, 4)
    place, _ = georeference(as_mapped(flight), positions)
    assert len(place.outliers) <= 1


def restricted(positions: Positions, names: list[str]) -> Positions:
    return replace(positions, xyz={name: positions.xyz[name] for name in names})


def test_what_does_not_determine_a_place_is_refused(flight: pycolmap.Reconstruction) -> None:
    model = as_mapped(flight)
    positions = measured(flight, 1.0)
    with pytest.raises(InputError, match="there are 2 of them, three at least"):
        georeference(model, restricted(positions, ["0.jpg", "9.jpg"]))
    with pytest.raises(InputError, match="on a line"):
        georeference(model, restricted(positions, [f"{i}.jpg" for i in range(8)]))
    noise = measured(flight, 100.0)
    with pytest.raises(InputError, match="too near to each other"):
        georeference(model, noise)
    same = replace(positions, xyz={name: np.zeros(3) for name in positions.xyz})
    with pytest.raises(InputError, match="at one place"):
        georeference(model, same)


def test_three_points_by_gps_have_to_be_far_apart(flight: pycolmap.Reconstruction) -> None:
    model = as_mapped(flight)
    near, far = ["0.jpg", "1.jpg", "8.jpg"], ["0.jpg", "7.jpg", "56.jpg"]
    with pytest.raises(InputError, match=r"near to each other|on a line"):
        georeference(model, restricted(measured(flight, 0.0), near))
    place, _ = georeference(model, restricted(measured(flight, 0.0), far))
    assert place.transform.scale * ARBITRARY.scale == pytest.approx(1, abs=1e-6)


def test_random_points_have_no_similarity() -> None:
    rng = np.random.default_rng(0)
    for count in (6, 10, 40):
        with pytest.raises(InputError):
            fit_similarity(rng.normal(0, 1, (count, 3)), rng.normal(0, 10, (count, 3)))


def bent(truth: pycolmap.Reconstruction) -> pycolmap.Reconstruction:
    """The truth as an adjustment without positions leaves it."""
    model = pycolmap.Reconstruction(truth)
    options = pycolmap.BundleAdjustmentOptions()
    options.print_summary = False
    pycolmap.bundle_adjustment(model, options)
    model.transform(ARBITRARY)
    return model


def test_exact_positions_unbend_a_long_strip() -> None:
    truth = make_flight(2, 24, noise=2.0, step=25.0)
    model = bent(truth)
    without, rigid = georeference(model, measured(truth, 0.03))
    place, model_in_metres = georeference(model, measured(truth, 0.03, told=True))
    assert not without.is_adjusted
    assert place.is_adjusted
    assert rms(model_in_metres, truth) < 0.5 * rms(rigid, truth)
    assert "adjusted" in describe(place, 48)


def test_coarse_positions_do_not_bend_a_model(flight: pycolmap.Reconstruction) -> None:
    place, _ = georeference(as_mapped(flight), measured(flight, 2.0, told=True))
    assert not place.is_adjusted


# ---------------------------------------------------------------------------------------------
# Ground control points

PLACES = {"A": (10, 10, 0), "B": (120, 15, 2), "C": (60, 110, 1), "D": (20, 90, 3)}


def control_points(truth: pycolmap.Reconstruction, *, checks: int = 1) -> ControlPoints:
    points = []
    places = {**PLACES, **{f"check {i}": (70 + 9 * i, 60, 1) for i in range(checks)}}
    for name, place in places.items():
        observations = {}
        for image in truth.images.values():
            in_camera = (image.cam_from_world() * np.array(place, float)).reshape(1, 3)
            pixel = image.camera.img_from_cam(in_camera)[0]
            if ((pixel > 0) & (pixel < [1200, 900])).all():
                observations[image.name] = pixel
        points.append(
            ControlPoint(name, np.array(place, float), observations, name.startswith("check"))
        )
    return ControlPoints(points, FRAME, "gcp_list.txt")


def test_control_points_give_the_exact_model(flight: pycolmap.Reconstruction) -> None:
    place, model = georeference(as_mapped(flight), control_points(flight))
    assert rms(model, flight) < 1e-4
    assert sorted(place.points) == ["A", "B", "C", "D", "check 0"]
    for point in place.points.values():
        assert np.linalg.norm(point.metres) < 1e-4
        assert point.pixels < 1e-2
    assert place.points["check 0"].is_check


def test_check_points_tell_errors_truly(flight: pycolmap.Reconstruction) -> None:
    known = control_points(flight, checks=2)
    for point in known.points:
        if point.name == "check 0":
            point.xyz[:] += [0.3, 0, -0.4]
    place, _ = georeference(as_mapped(flight), known)
    assert place.points["check 0"].metres == pytest.approx([-0.3, 0, 0.4], abs=1e-3)
    # 0.3 m seen from 50 m with 1000 px.
    assert place.points["check 0"].pixels == pytest.approx(6, rel=0.3)
    assert np.linalg.norm(place.points["check 1"].metres) < 1e-4
    text = describe(place, 64)
    assert "4 ground control points" in text
    assert "2 check points: 0.21 m horizontally, 0.28 m vertically" in text


def test_two_control_points_are_not_enough(flight: pycolmap.Reconstruction) -> None:
    known = control_points(flight, checks=0)
    with pytest.raises(InputError, match="2 of them, three at least"):
        georeference(as_mapped(flight), replace(known, points=known.points[:2]))


def test_pixels_outside_of_the_photo_are_an_error(flight: pycolmap.Reconstruction) -> None:
    known = control_points(flight)
    next(iter(known.points[0].observations.values()))[:] = [1000, 1100]
    with pytest.raises(InputError, match=r"\(1000, 1100\) is outside of"):
        georeference(as_mapped(flight), known)


@pytest.mark.parametrize(("factor", "size"), [(0.5, "600 x 450"), (4.0, "4800 x 3600")])
def test_pixels_of_photos_of_another_size_are_named(
    flight: pycolmap.Reconstruction, factor: float, size: str
) -> None:
    known = control_points(flight)
    for point in known.points:
        for pixel in point.observations.values():
            pixel *= factor
    with pytest.raises(InputError, match="only so do marks of one point meet") as error:
        georeference(as_mapped(flight), known)
    width, height = map(int, size.split(" x "))
    told = re.search(r"of about (\d+) x (\d+) pixels, and these have 1200 x 900", str(error.value))
    assert told is not None
    assert [int(side) for side in told.groups()] == pytest.approx([width, height], rel=0.05)


def test_random_marks_are_of_no_size(flight: pycolmap.Reconstruction) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        known = control_points(flight)
        for point in known.points:
            for name in list(point.observations)[2:]:  # the fewer, the more meets by chance
                del point.observations[name]  # type: ignore[attr-defined]
            for pixel in point.observations.values():
                pixel[:] = rng.uniform((0, 0), (1200, 900))
        check_pixels(known, flight)


def write_gcp_list(path: Path, known: ControlPoints, header: str) -> None:
    lines = [header]
    for point in known.points:
        latitude, longitude, altitude = geodetic_from_local(point.xyz, FRAME)[0]
        if header == "EPSG:4326":
            place = (longitude, latitude, altitude)
        else:
            transform = pycolmap.GPSTransform(pycolmap.GPSTransformEllipsoid.WGS84)
            east_north, zone = transform.ellipsoid_to_utm(
                np.array([[latitude, longitude, altitude]])
            )
            assert zone == 32
            place = tuple(east_north[0])
        for name, pixel in point.observations.items():
            numbers = " ".join(f"{number:.9f}" for number in (*place, *pixel))
            lines.append(f"{numbers} {name} {point.name}")
    path.write_text("\n".join([*lines, ""]))


@pytest.mark.parametrize("header", ["EPSG:4326", "WGS84 UTM 32N", "EPSG:32632"])
def test_control_points_from_a_file(
    flight: pycolmap.Reconstruction, tmp_path: Path, header: str
) -> None:
    path = tmp_path / "gcp_list.txt"
    write_gcp_list(path, control_points(flight), header)
    assert is_control_points(path)
    known = read_control_points(path, list(centres(flight)))
    assert [point.name for point in known.points] == [*PLACES, "check 0"]
    place, model = georeference(as_mapped(flight), known)
    assert place.transform.scale * ARBITRARY.scale == pytest.approx(1, abs=1e-6)
    assert max(np.linalg.norm(point.metres) for point in place.points.values()) < 1e-3
    # The frame's origin is in the middle of the points; its axes are those of the truth, but for
    # the curvature of the earth.
    own, true = centres(model), centres(flight)
    shifts = np.array([own[name] - true[name] for name in own])
    assert np.ptp(shifts, axis=0).max() < 0.01


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3 4 5 0.jpg\n", "no coordinate system"),
        ("EPSG:4326\n11 48 0 4 0.jpg\n", "expected 'x y z px py photo"),
        ("EPSG:4326\n11 48 0 4 5 other.jpg\n", "names no photo"),
        ("EPSG:4326\n48 111 0 4 5 0.jpg\n", "do not exist"),
    ],
)
def test_malformed_files_of_control_points(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "gcp_list.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_control_points(path, ["0.jpg"])


def test_what_is_written(flight: pycolmap.Reconstruction, tmp_path: Path) -> None:
    model = as_mapped(flight)
    place, moved = georeference(model, measured(flight, 1.0))
    for _ in range(2):  # the second takes the place of the first
        write_georeference(tmp_path / "georeferenced", place, moved, describe(place, 64))
    written = json.loads((tmp_path / "georeferenced" / "georeference.json").read_text())
    assert written["reference"]["latitude"] == 48
    assert len(written["photos"]) == 64
    read = centres(pycolmap.Reconstruction(tmp_path / "georeferenced"))
    matrix = np.array(written["transform"])
    for name, center in centres(model).items():
        assert (matrix @ [*center, 1])[:3] == pytest.approx(read[name], abs=1e-6)
        residual = read[name] - measured(flight, 1.0).xyz[name]
        assert residual == pytest.approx(written["photos"][name]["residual"], abs=1e-6)
