"""Where photos were taken: by EXIF, by a table, and pairs of photos by that."""

from __future__ import annotations

import csv
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags

from sfm_matchers.errors import InputError, listed
from sfm_matchers.files.pair_lists import Pair, unique_pairs
from sfm_matchers.files.text import read_text
from sfm_matchers.geometry.coordinates import (
    LOCAL,
    CoordinateSystem,
    FloatArray,
    Frame,
    local_from_geodetic,
    parse_coordinate_system,
)
from sfm_matchers.photos.images import open_photo

logger = logging.getLogger(__name__)

# Metres of error for a dilution of precision of 1: the usual error of a range to a satellite.
RANGE_ERROR = 3.0

# Drones write what they know into XMP, somewhere in the first segments of the file.
XMP_BYTES = 1 << 18
_XMP_NUMBER = rb"drone-dji:%s\s*(?:=\s*[\"']|>)\s*([+-]?\d+(?:\.\d+)?)"

# Altitudes are less exact than places, and those of two flights may differ by a constant.
ALTITUDE_WEIGHT = 0.5

# Headers of tables, in small letters.
COLUMNS = {
    "name": ("name", "image", "image_name", "imagename", "file", "filename", "photo", "label"),
    "latitude": ("lat", "latitude"),
    "longitude": ("lon", "lng", "long", "longitude"),
    "altitude": ("alt", "altitude", "height", "elevation"),
    "x": ("x", "east", "easting", "e"),
    "y": ("y", "north", "northing", "n"),
    "z": ("z", "up", "u", "alt", "altitude", "height", "elevation"),
    "accuracy": ("accuracy", "sigma", "std"),
}


class GpsFix(NamedTuple):
    """A place by GPS: degrees of WGS84; altitude and accuracy in metres, None if unknown.

    Where nothing says whether it lies north or south, east or west, it counts as north and east.
    """

    latitude: float
    longitude: float
    altitude: float | None = None
    accuracy: float | None = None
    is_signed: bool = True


@dataclass(frozen=True)
class Positions:
    """Where photos were taken.

    Attributes:
        xyz: photo -> (3,) in metres.
        frame: the axes.
        source: where they are from, for the user.
        accuracy: photo -> standard deviation in metres of each coordinate, where it is told.
    """

    xyz: Mapping[str, FloatArray]
    frame: Frame
    source: str
    accuracy: Mapping[str, float] = field(default_factory=dict)


def read_gps_fix(path: Path) -> GpsFix | None:
    """Return where EXIF, or a drone's XMP, says that a photo was taken; None if it does not.

    Raises:
        InputError: it is not a photo.
    """
    with open_photo(path) as photo:
        try:
            gps = dict(photo.getexif().get_ifd(ExifTags.IFD.GPSInfo))
        except Exception:  # garbage can make the reader fail in any way
            gps = {}
    drone = _read_drone_tags(path)
    latitude = _degrees(gps, ExifTags.GPS.GPSLatitude, "S")
    longitude = _degrees(gps, ExifTags.GPS.GPSLongitude, "W")
    is_signed = all(
        _reference(gps, tag)[:1] in tuple(signs)
        for tag, signs in ((ExifTags.GPS.GPSLatitude, "NS"), (ExifTags.GPS.GPSLongitude, "EW"))
    )
    if latitude is None or longitude is None:
        is_signed = True
        latitude, longitude = drone.get("GpsLatitude"), drone.get("GpsLongitude")
    is_void = str(gps.get(ExifTags.GPS.GPSStatus, "A")).strip("\0 ").upper() == "V"
    if latitude is None or longitude is None or is_void or (latitude, longitude) == (0, 0):
        return None
    if abs(latitude) > 90 or abs(longitude) > 180:
        return None
    altitude = _altitude(gps)
    if not altitude:  # or zero, as some drones write for want of better
        altitude = drone.get("AbsoluteAltitude", drone.get("RelativeAltitude", altitude))
    return GpsFix(latitude, longitude, altitude, _accuracy(gps, drone), is_signed)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) else None


def _degrees(gps: Mapping[int, Any], tag: int, negative: str) -> float | None:
    """Degrees of a tag."""
    values = gps.get(tag)
    parts = [_number(part) for part in (values if isinstance(values, tuple) else (values,))]
    if not 1 <= len(parts) <= 3 or any(part is None for part in parts):
        return None
    degrees = sum(part / 60**power for power, part in enumerate(parts) if part is not None)
    return -abs(degrees) if _reference(gps, tag)[:1] == negative else degrees


def _reference(gps: Mapping[int, Any], tag: int) -> str:
    """N, S, E or W, which the next lower tag says of degrees; anything else where it does not."""
    return str(gps.get(tag - 1, "")).strip("\0 ").upper()


def _altitude(gps: Mapping[int, Any]) -> float | None:
    altitude = _number(gps.get(ExifTags.GPS.GPSAltitude))
    below = gps.get(ExifTags.GPS.GPSAltitudeRef)
    # 1 is below the sea, and 3 below the ellipsoid; a byte string or a number.
    is_below = (below[:1] in (b"\1", b"\3")) if isinstance(below, bytes) else below in (1, 3)
    return -abs(altitude) if altitude is not None and is_below else altitude


def _accuracy(gps: Mapping[int, Any], drone: Mapping[str, float]) -> float | None:
    fixed = [drone[tag] for tag in ("RtkStdLon", "RtkStdLat", "RtkStdHgt") if tag in drone]
    if len(fixed) == 3 and min(fixed) > 0:
        return float(np.linalg.norm(fixed) / math.sqrt(3))
    error = _number(gps.get(ExifTags.GPS.GPSHPositioningError))
    if error is not None and error > 0:
        return error
    dilution = _number(gps.get(ExifTags.GPS.GPSDOP))
    return RANGE_ERROR * dilution if dilution is not None and 0 < dilution < 50 else None


def _read_drone_tags(path: Path) -> dict[str, float]:
    """Numbers of DJI's XMP. Old firmware misspells the longitude."""
    with path.open("rb") as file:
        head = file.read(XMP_BYTES)
    if b"drone-dji:" not in head:
        return {}
    spelled = {
        "GpsLatitude": b"GpsLatitude",
        "GpsLongitude": b"GpsLong?t?itude",
        **{
            tag: tag.encode()
            for tag in (
                "AbsoluteAltitude",
                "RelativeAltitude",
                "RtkStdLon",
                "RtkStdLat",
                "RtkStdHgt",
            )
        },
    }
    found = {tag: re.search(_XMP_NUMBER % name, head) for tag, name in spelled.items()}
    return {tag: float(match[1]) for tag, match in found.items() if match}


def read_capture_time(path: Path) -> str | None:
    """Return when EXIF says that a photo was taken, as text that sorts by time.

    Raises:
        InputError: it is not a photo.
    """
    with open_photo(path) as photo:
        try:
            details = photo.getexif().get_ifd(ExifTags.IFD.Exif)
            tags = (ExifTags.Base.DateTimeOriginal, ExifTags.Base.SubsecTimeOriginal)
            time, fraction = (str(details.get(tag) or "").strip("\0 ") for tag in tags)
        except Exception:  # garbage can make the reader fail in any way
            return None
    is_time = re.fullmatch(r"\d{4}:\d\d:\d\d \d\d:\d\d:\d\d", time) and time[:4] != "0000"
    return f"{time}.{fraction}" if is_time else None


def exif_positions(image_dir: Path, names: Iterable[str]) -> Positions:
    """Return where photos were taken, of those that know.

    Photos without an altitude get the median of the others, all the same if none has one.

    Raises:
        InputError: a photo cannot be read.
    """
    found = {name: read_gps_fix(image_dir / name) for name in sorted(names)}
    fixes = {name: fix for name, fix in found.items() if fix is not None}
    known = [fix.altitude for fix in fixes.values() if fix.altitude is not None]
    usual = float(np.median(known)) if known else 0.0
    places = [
        (fix.latitude, fix.longitude, usual if fix.altitude is None else fix.altitude)
        for fix in fixes.values()
    ]
    xyz, frame = local_from_geodetic(places)
    accuracy = {name: fix.accuracy for name, fix in fixes.items() if fix.accuracy is not None}
    source = "GPS in EXIF" if known else "GPS in EXIF, without altitudes"
    if unsigned := [name for name, fix in fixes.items() if not fix.is_signed]:
        source += f" and without N or S, E or W in {len(unsigned)}: taken for north and east"
        logger.warning(
            "GPS in EXIF does not say N or S, E or W: taken for north and east: %s; elsewhere the "
            "model lies on its head: give --georeference FILE, or none",
            listed(unsigned),
        )
    return Positions(dict(zip(fixes, xyz, strict=True)), frame, source, accuracy)


def positions_from_file(path: Path, names: Sequence[str]) -> Positions:
    """Read where photos were taken from a table.

    A table with a header: ``name,lat,lon,alt`` in degrees and metres, or ``name,x,y,z`` in metres,
    with commas, semicolons or tabs. Or OpenDroneMap's geo.txt: a coordinate system in the first
    line, then ``name x y [z]``, which for EPSG:4326 is ``name longitude latitude altitude``.

    Args:
        path: the file.
        names: the photos; others of the file have no part.

    Raises:
        InputError: it is missing or malformed, or names none of the photos.
    """
    if not path.is_file():
        raise InputError(f"{path} is not a file of positions")
    lines = [line for line in read_text(path).lstrip("\ufeff").splitlines() if line.strip()]
    if not lines:
        raise InputError(f"{path} is empty")
    header = _read_header(lines[0])
    if header is None and len(lines) > 1 and len(lines[1].split()) >= 3:
        system = parse_coordinate_system(lines[0])
        rows = [line.split() for line in lines[1:] if not line.startswith("#")]
        columns = {"name": 0, "x": 1, "y": 2, "z": 3}
        if rows and len(rows[0]) == 3:
            del columns["z"]
    elif header is not None:
        delimiter, columns = header
        rows = [row for row in csv.reader(lines[1:], delimiter=delimiter) if row[0][:1] != "#"]
        system = CoordinateSystem(LOCAL, is_geographic="latitude" in columns)
    else:
        raise InputError(
            f"{path}: the first line has to name the columns: name,lat,lon,alt or name,x,y,z"
        )
    numbers = _read_rows(path, rows, columns, _by_name(names))
    if not numbers:
        raise InputError(f"{path} names no photo of the folder: it begins with {rows[:1]}")
    xyz, frame = system.to_local([row[:3] for row in numbers.values()])
    accuracy = {name: row[3] for name, row in numbers.items() if row[3] > 0}
    return Positions(dict(zip(numbers, xyz, strict=True)), frame, str(path), accuracy)


def _read_header(line: str) -> tuple[str, dict[str, int]] | None:
    """Return the delimiter and the column of each quantity; None if the line is no header."""
    for delimiter in ",;\t":
        words = [word.strip().strip('"').lower() for word in line.lstrip("#").split(delimiter)]
        columns = {
            quantity: next(words.index(word) for word in spellings if word in words)
            for quantity, spellings in COLUMNS.items()
            if any(word in words for word in spellings)
        }
        if "name" in columns and {"latitude", "longitude"} <= columns.keys():
            kept = {"name", "latitude", "longitude", "altitude", "accuracy"}
            return delimiter, {key: columns[key] for key in kept & columns.keys()}
        if {"name", "x", "y", "z"} <= columns.keys():
            return delimiter, columns
    return None


def _by_name(names: Iterable[str]) -> dict[str, str]:
    """Photos by name, and by the last part of it where that is of one photo only."""
    last: dict[str, list[str]] = {}
    for name in names:
        last.setdefault(name.rpartition("/")[2], []).append(name)
    unique = {short: full[0] for short, full in last.items() if len(full) == 1}
    return unique | {name: name for full in last.values() for name in full}


def _read_rows(
    path: Path,
    rows: Iterable[Sequence[str]],
    columns: Mapping[str, int],
    photos: Mapping[str, str],
) -> dict[str, tuple[float, float, float, float]]:
    """Return photo -> x (longitude), y (latitude), z (altitude or 0), accuracy (0 if unknown)."""
    order = ("longitude", "latitude", "altitude") if "latitude" in columns else ("x", "y", "z")
    numbers, unknown = {}, []
    for row in rows:
        try:
            name = row[columns["name"]].strip().replace("\\", "/")
            values = [
                float(row[columns[key]]) if key in columns else 0.0 for key in (*order, "accuracy")
            ]
        except (IndexError, ValueError):
            raise InputError(f"{path}: cannot read the line {' '.join(row)!r}") from None
        if not np.isfinite(values).all():
            raise InputError(f"{path}: the line {' '.join(row)!r} is not finite")
        if name in photos:
            numbers[photos[name]] = (values[0], values[1], values[2], values[3])
        else:
            unknown.append(name)
    if unknown and numbers:
        logger.info("%s: %d photos of it are not there, as %s", path, len(unknown), unknown[0])
    return numbers


def spatial_pairs(
    xyz: Mapping[str, FloatArray], num_matched: int, radius: float = 0.0
) -> list[Pair]:
    """Return each photo with its nearest, each pair once.

    Args:
        xyz: photo -> (3,) in metres.
        num_matched: neighbours of each photo.
        radius: metres; all photos within are neighbours too.
    """
    names = sorted(xyz)
    weights = np.array([1.0, 1.0, ALTITUDE_WEIGHT])
    places = np.array([xyz[name] for name in names]).reshape(-1, 3) * weights
    pairs: list[Pair] = []
    for index, name in enumerate(names):
        distances = np.linalg.norm(places - places[index], axis=1)
        distances[index] = np.inf
        order = np.argsort(distances, kind="stable")
        within = int(np.count_nonzero(distances <= radius)) if radius else 0
        nearest = order[: min(max(num_matched, within), len(names) - 1)]
        pairs += [(name, names[other]) for other in nearest]
    return unique_pairs(pairs)
