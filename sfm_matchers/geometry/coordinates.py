"""Coordinates on the earth, and metres east, north and up around a place.

Latitudes and longitudes are degrees of WGS84, altitudes and all other coordinates metres. The
geodetic frames of continents (ETRS89, NAD83) are taken for WGS84: they differ by less than 2 m, and
alike for all points of a place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pycolmap
from numpy.typing import ArrayLike, NDArray

from sfm_matchers.errors import InputError

FloatArray = NDArray[np.float64]

WGS84 = "WGS84"
LOCAL = "local"

GEOGRAPHIC_CODES = (4326, 4979, 4258, 4937, 4269)
# EPSG codes of UTM zones: base, first and last zone, whether they are of the northern hemisphere.
UTM_CODES = (
    (32600, 1, 60, True),
    (32700, 1, 60, False),
    (25800, 28, 38, True),  # ETRS89
    (26900, 1, 23, True),  # NAD83
)

# Metres: coordinates beyond are counted from an origin near the points, lest viewers that hold
# single-precision numbers see them jump by millimetres.
LARGE = 1e4

_ELLIPSOID = pycolmap.GPSTransform(pycolmap.GPSTransformEllipsoid.WGS84)


class Frame(NamedTuple):
    """Axes in metres: x east, y north, z up where the system is `WGS84`.

    Attributes:
        system: `WGS84`; else the axes are those of this system, moved to the origin.
        origin: latitude, longitude and altitude of the place that is (0, 0, 0); of other systems
            its coordinates.
    """

    system: str
    origin: tuple[float, float, float]


@dataclass(frozen=True)
class CoordinateSystem:
    """How the coordinates of a file are meant.

    Attributes:
        name: as the file says.
        is_geographic: they are longitude, latitude and altitude.
        utm_zone: number of the zone if they are UTM's east, north and altitude, else 0.
        is_north: the zone's hemisphere.
    """

    name: str
    is_geographic: bool = False
    utm_zone: int = 0
    is_north: bool = True

    @property
    def is_known(self) -> bool:
        """True if there is a way from here to latitude and longitude."""
        return self.is_geographic or self.utm_zone > 0

    def to_geodetic(self, points: ArrayLike) -> FloatArray:
        """Return latitude, longitude and altitude (N, 3) of points (N, 3): x (east), y, z."""
        points = np.asarray(points, np.float64).reshape(-1, 3)
        if self.is_geographic:
            return points[:, [1, 0, 2]]
        return np.asarray(_ELLIPSOID.utm_to_ellipsoid(points, self.utm_zone, self.is_north))

    def to_local(self, points: ArrayLike) -> tuple[FloatArray, Frame]:
        """Return points (N, 3) in metres around them, and the frame that they are in.

        Raises:
            InputError: they are not on the earth.
        """
        points = np.asarray(points, np.float64).reshape(-1, 3)
        if self.is_known:
            return local_from_geodetic(self.to_geodetic(points))
        origin = np.zeros(3)
        if len(points) and np.abs(points).max() > LARGE:
            origin = np.round(np.median(points, axis=0))
        return points - origin, Frame(self.name, _triple(origin))


def parse_coordinate_system(text: str) -> CoordinateSystem:
    """Understand the first line of OpenDroneMap's files, such as ``EPSG:32632``.

    Also ``WGS84``, ``WGS84 UTM 32N`` and ``+proj=utm +zone=32 +south``. Systems that it does not
    know count as metres east, north and up: true in the metric grids of most countries.

    Raises:
        InputError: the line is none, but a point or empty.
    """
    name = " ".join(text.lstrip("\ufeff").split())
    if not re.search(r"[A-Za-z]", name) or re.match(r"[-+]?[\d.]+ ", name):
        raise InputError(
            f"{name[:60]!r} is no coordinate system: the first line has to be one, such as "
            "EPSG:4326, EPSG:32632 or WGS84 UTM 32N"
        )
    if code := re.search(r"epsg:+(\d+)", name, re.IGNORECASE):
        return _of_epsg_code(name, int(code[1]))
    if "+proj=" in name:
        zone = re.search(r"\+zone=(\d+)", name)
        if "+proj=utm" in name and zone:
            return _utm(name, int(zone[1]), "+south" not in name)
        return CoordinateSystem(
            name, is_geographic=bool(re.search(r"\+proj=(longlat|latlong)", name))
        )
    if utm := re.search(r"\bUTM\s*(?:zone\s*)?(\d{1,2})\s*([NS])\b", name, re.IGNORECASE):
        return _utm(name, int(utm[1]), utm[2].upper() == "N")
    is_geographic = re.fullmatch(r"WGS[ _]?(19)?84", name, re.IGNORECASE) is not None
    return CoordinateSystem(name, is_geographic=is_geographic)


def _of_epsg_code(name: str, code: int) -> CoordinateSystem:
    if code in GEOGRAPHIC_CODES:
        return CoordinateSystem(name, is_geographic=True)
    for base, first, last, is_north in UTM_CODES:
        if base + first <= code <= base + last:
            return CoordinateSystem(name, utm_zone=code - base, is_north=is_north)
    return CoordinateSystem(name)


def _utm(name: str, zone: int, is_north: bool) -> CoordinateSystem:
    if not 1 <= zone <= 60:
        raise InputError(f"{name!r}: UTM has the zones 1 to 60")
    return CoordinateSystem(name, utm_zone=zone, is_north=is_north)


def local_from_geodetic(
    lat_lon_alt: ArrayLike, origin: ArrayLike | None = None
) -> tuple[FloatArray, Frame]:
    """Return metres east, north and up (N, 3) of places, and the frame.

    Args:
        lat_lon_alt: (N, 3).
        origin: latitude, longitude and altitude that become zero; the places' median if None.

    Raises:
        InputError: a latitude or longitude that does not exist.
    """
    places = np.asarray(lat_lon_alt, np.float64).reshape(-1, 3)
    if not np.isfinite(places).all() or (np.abs(places) > [90, 360, np.inf]).any():
        wrong = places[~(np.abs(places) <= [90, 360, np.inf]).all(axis=1)][0]
        raise InputError(
            f"latitude {wrong[0]:g}, longitude {wrong[1]:g} do not exist: are the columns in the "
            "order of the coordinate system (x = longitude, y = latitude)?"
        )
    if origin is None:
        origin = np.median(places, axis=0) if len(places) else np.zeros(3)
    frame = Frame(WGS84, _triple(np.asarray(origin)))
    return np.asarray(_ELLIPSOID.ellipsoid_to_enu(places, *frame.origin)).reshape(-1, 3), frame


def geodetic_from_local(points: ArrayLike, frame: Frame) -> FloatArray:
    """Return latitude, longitude and altitude (N, 3) of points (N, 3) of a frame of `WGS84`."""
    points = np.asarray(points, np.float64).reshape(-1, 3)
    return np.asarray(_ELLIPSOID.enu_to_ellipsoid(points, *frame.origin)).reshape(-1, 3)


def _triple(values: FloatArray) -> tuple[float, float, float]:
    x, y, z = values.tolist()
    return x, y, z
