"""Where photos were taken, in EXIF and in tables; coordinates on the earth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gps_tags import GPS_IFD, gps_tags
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from sfm_matchers.errors import InputError
from sfm_matchers.geometry.coordinates import (
    WGS84,
    geodetic_from_local,
    local_from_geodetic,
    parse_coordinate_system,
)
from sfm_matchers.pairs.positions import (
    exif_positions,
    positions_from_file,
    read_capture_time,
    read_gps_fix,
    spatial_pairs,
)


def write_photo(path: Path, gps: dict[int, object] | None = None, xmp: bytes = b"") -> Path:
    exif = Image.Exif()
    if gps:
        exif[GPS_IFD] = gps
    Image.new("RGB", (32, 24)).save(path, exif=exif)
    if xmp:
        segment = b"http://ns.adobe.com/xap/1.0/\0" + xmp
        content = path.read_bytes()
        header = b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big")
        path.write_bytes(content[:2] + header + segment + content[2:])
    return path


@pytest.mark.parametrize(
    ("latitude", "longitude", "altitude"),
    [(48.8583, 2.2945, 35.5), (-33.8568, 151.2153, 4.0), (31.5, -35.5, -430.5)],
)
def test_exif_tells_the_place(
    tmp_path: Path, latitude: float, longitude: float, altitude: float
) -> None:
    fix = read_gps_fix(write_photo(tmp_path / "a.jpg", gps_tags(latitude, longitude, altitude)))
    assert fix is not None
    assert fix[:3] == pytest.approx((latitude, longitude, altitude), abs=1e-6)
    assert fix.accuracy is None


def test_places_without_a_hemisphere_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tags = gps_tags(-33.5, 151.25, 4)
    write_photo(tmp_path / "a.jpg", tags)
    assert exif_positions(tmp_path, ["a.jpg"]).source == "GPS in EXIF"
    assert not caplog.text
    write_photo(
        tmp_path / "b.jpg", {tag: value for tag, value in tags.items() if tag not in (1, 3)}
    )
    found = exif_positions(tmp_path, ["a.jpg", "b.jpg"])
    assert "without N or S, E or W in 1: taken for north and east" in found.source
    assert "north and east: b.jpg; elsewhere" in caplog.text
    write_photo(tmp_path / "c.jpg", tags | {1: "South"})
    assert read_gps_fix(tmp_path / "c.jpg") == read_gps_fix(tmp_path / "a.jpg")


def test_exif_tells_the_accuracy(tmp_path: Path) -> None:
    tags = gps_tags(1, 2, 3)
    by_dilution = read_gps_fix(write_photo(tmp_path / "a.jpg", tags | {11: 2.0}))
    by_error = read_gps_fix(write_photo(tmp_path / "b.jpg", tags | {11: 2.0, 31: 4.5}))
    assert by_dilution is not None
    assert by_error is not None
    assert (by_dilution.accuracy, by_error.accuracy) == (6.0, 4.5)


@pytest.mark.parametrize(
    "tags",
    [
        {},
        gps_tags(0, 0, 0),
        gps_tags(48, 11, 500) | {9: "V"},
        {1: "N", 2: (IFDRational(0, 0), 0.0, 0.0), 3: "E", 4: (1.0, 0.0, 0.0)},
        {1: "N", 2: (95.0, 0.0, 0.0), 3: "E", 4: (1.0, 0.0, 0.0)},
    ],
)
def test_photos_without_a_fix_have_no_place(tmp_path: Path, tags: dict[int, object]) -> None:
    assert read_gps_fix(write_photo(tmp_path / "a.jpg", tags)) is None


def test_drones_tell_the_altitude_where_exif_does_not(tmp_path: Path) -> None:
    xmp = (
        b'<rdf:Description drone-dji:AbsoluteAltitude="+412.31" '
        b'drone-dji:RelativeAltitude="+50.20" drone-dji:RtkStdLon="0.01" '
        b'drone-dji:RtkStdLat="0.01" drone-dji:RtkStdHgt="0.02"/>'
    )
    with_both = read_gps_fix(write_photo(tmp_path / "a.jpg", gps_tags(48, 11, 410.0), xmp))
    without = read_gps_fix(write_photo(tmp_path / "b.jpg", gps_tags(48, 11), xmp))
    assert with_both is not None
    assert without is not None
    assert (with_both.altitude, without.altitude) == (410.0, 412.31)
    assert with_both.accuracy == pytest.approx(np.sqrt(0.0006 / 3))


def test_drones_tell_the_place_where_exif_does_not(tmp_path: Path) -> None:
    xmp = (
        b"<drone-dji:GpsLatitude>48.5</drone-dji:GpsLatitude>"
        b"<drone-dji:GpsLongtitude>-11.5</drone-dji:GpsLongtitude>"
        b"<drone-dji:RelativeAltitude>+30.0</drone-dji:RelativeAltitude>"
    )
    found = read_gps_fix(write_photo(tmp_path / "a.jpg", None, xmp))
    assert found == (48.5, -11.5, 30.0, None, True)


def test_times_sort(tmp_path: Path) -> None:
    for name, time in (("a.jpg", "2024:05:01 10:00:09"), ("b.jpg", "2024:05:01 09:59:10")):
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9003] = time
        Image.new("RGB", (8, 8)).save(tmp_path / name, exif=exif)
    times = [read_capture_time(tmp_path / name) for name in ("b.jpg", "a.jpg")]
    assert times == ["2024:05:01 09:59:10.", "2024:05:01 10:00:09."]
    assert read_capture_time(write_photo(tmp_path / "c.jpg")) is None


def test_positions_are_metres_east_north_up_around_the_photos(tmp_path: Path) -> None:
    # A minute of latitude is a nautical mile; of longitude, at 60 degrees, half of one.
    for index, (latitude, longitude) in enumerate([(60, 10), (60 + 1 / 60, 10), (60, 10 + 1 / 60)]):
        write_photo(tmp_path / f"{index}.jpg", gps_tags(latitude, longitude, 100.0 + index))
    write_photo(tmp_path / "no.jpg")
    positions = exif_positions(tmp_path, ["0.jpg", "1.jpg", "2.jpg", "no.jpg"])
    assert sorted(positions.xyz) == ["0.jpg", "1.jpg", "2.jpg"]
    assert positions.frame.system == WGS84
    north = positions.xyz["1.jpg"] - positions.xyz["0.jpg"]
    east = positions.xyz["2.jpg"] - positions.xyz["0.jpg"]
    assert north == pytest.approx([0, 1857, 1], abs=1)
    assert east == pytest.approx([930.5, 0, 2], abs=1)


@given(st.floats(-80, 80), st.floats(-179, 179), st.floats(-1000, 1000), st.floats(-1000, 1000))
def test_local_coordinates_and_back(
    latitude: float, longitude: float, east: float, north: float
) -> None:
    _, frame = local_from_geodetic([], (latitude, longitude, 100.0))
    points = [[east, north, 20.0]]
    local, _ = local_from_geodetic(geodetic_from_local(points, frame), frame.origin)
    assert np.allclose(local, points, atol=1e-6)


def test_coordinates_that_do_not_exist() -> None:
    with pytest.raises(InputError, match="latitude 151"):
        local_from_geodetic([[151.2, -33.8, 0.0]])


@pytest.mark.parametrize(
    ("header", "point", "place"),
    [
        # The Eiffel tower, the CN tower, and its mirror image in the south.
        ("EPSG:32631", (448251.9, 5411943.8, 35.0), (48.8583, 2.2945, 35.0)),
        ("WGS84 UTM 31N", (448251.9, 5411943.8, 35.0), (48.8583, 2.2945, 35.0)),
        ("epsg:25831", (448251.9, 5411943.8, 35.0), (48.8583, 2.2945, 35.0)),
        ("EPSG:32717", (630084.0, 5166562.0, 9.0), (-43.642567, -79.387139, 9.0)),
        ("+proj=utm +zone=17 +south", (630084.0, 5166562.0, 9.0), (-43.642567, -79.387139, 9.0)),
        ("WGS84 UTM 17N", (630084.0, 4833438.0, 9.0), (43.642567, -79.387139, 9.0)),
        ("EPSG:4326", (2.2945, 48.8583, 35.0), (48.8583, 2.2945, 35.0)),
        ("WGS84", (2.2945, 48.8583, 35.0), (48.8583, 2.2945, 35.0)),
        ("+proj=longlat +datum=WGS84", (2.2945, 48.8583, 35.0), (48.8583, 2.2945, 35.0)),
    ],
)  # fmt: skip
def test_known_coordinate_systems(
    header: str, point: tuple[float, ...], place: tuple[float, ...]
) -> None:
    system = parse_coordinate_system(header)
    assert system.is_known
    found = system.to_geodetic([point])
    metres, _ = local_from_geodetic(found, place)
    assert np.abs(metres).max() < 1.5


def test_distances_of_utm_are_metres_on_the_ground() -> None:
    """A grid's metre is 0.9996 m at the middle of its zone."""
    local, frame = parse_coordinate_system("EPSG:32631").to_local(
        [[500000, 5411943, 0], [501000, 5411943, 0]]
    )
    assert np.linalg.norm(local[1] - local[0]) == pytest.approx(1000.4, abs=0.05)
    assert frame.system == WGS84


def test_other_grids_are_taken_for_metres() -> None:
    system = parse_coordinate_system("EPSG:2056")
    assert not system.is_known
    local, frame = system.to_local([[2600000.0, 1200000.0, 500], [2600010.0, 1200000.0, 500]])
    assert np.ptp(local, axis=0).tolist() == [10, 0, 0]
    assert frame.system == "EPSG:2056"
    assert np.add(local, frame.origin)[0].tolist() == [2600000.0, 1200000.0, 500]


@pytest.mark.parametrize("header", ["", "544256.7 5320919.9 5", "WGS84 UTM 99N"])
def test_no_coordinate_system(header: str) -> None:
    with pytest.raises(InputError):
        parse_coordinate_system(header)


@pytest.mark.parametrize(
    "text",
    [
        "name,lat,lon,alt\na.jpg,60,10,100\nsub/b.jpg,60.01,10,110\n",
        "\ufeffImage;Longitude;Latitude;Altitude\na.jpg;10;60;100\nb.jpg;10;60.01;110\n",
        "EPSG:4326\na.jpg 10 60 100 0 0 0\nb.jpg 10 60.01 110\nc.jpg 1 1 1\n",
    ],
)
def test_tables_of_places(tmp_path: Path, text: str) -> None:
    path = tmp_path / "places.csv"
    path.write_text(text, encoding="utf-8")
    positions = positions_from_file(path, ["a.jpg", "sub/b.jpg"])
    assert sorted(positions.xyz) == ["a.jpg", "sub/b.jpg"]
    assert positions.frame.system == WGS84
    difference = positions.xyz["sub/b.jpg"] - positions.xyz["a.jpg"]
    assert difference == pytest.approx([0, 1114.2, 9.9], abs=0.2)


def test_tables_of_metres(tmp_path: Path) -> None:
    path = tmp_path / "places.csv"
    path.write_text("name,x,y,z,accuracy\na.jpg,1,2,3,0.02\nb.jpg,4,5,6,0.05\n")
    positions = positions_from_file(path, ["a.jpg", "b.jpg"])
    assert positions.xyz["b.jpg"].tolist() == [4, 5, 6]
    assert positions.accuracy == {"a.jpg": 0.02, "b.jpg": 0.05}
    assert positions.frame.origin == (0, 0, 0)


def test_tables_without_altitudes(tmp_path: Path) -> None:
    path = tmp_path / "geo.txt"
    path.write_text("EPSG:4326\na.jpg 10 60\nb.jpg 10 60.01\n")
    positions = positions_from_file(path, ["a.jpg", "b.jpg"])
    assert positions.xyz["b.jpg"] - positions.xyz["a.jpg"] == pytest.approx([0, 1114.2, 0], abs=0.2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("a.jpg,1,2,3\n", "name the columns"),
        ("name,x,y,z\na.jpg,1,2\n", "cannot read the line"),
        ("name,x,y,z\na.jpg,1,2,nan\n", "not finite"),
        ("name,x,y,z\nother.jpg,1,2,3\n", "names no photo"),
        ("name,lat,lon\na.jpg,151,2\n", "do not exist"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "places.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        positions_from_file(path, ["a.jpg"])


def test_each_photo_with_its_nearest() -> None:
    xyz = {f"{i}": np.array([10.0 * i, 0, 0]) for i in range(6)}
    assert spatial_pairs(xyz, 1) == [("0", "1"), ("2", "1"), ("3", "2"), ("4", "3"), ("5", "4")]
    within = spatial_pairs(xyz, 1, radius=20.5)
    assert len(within) == 5 + 4
    assert len(spatial_pairs(xyz, 100)) == 15
