"""GPS tags of EXIF, written into photos."""

from __future__ import annotations

GPS_IFD = 0x8825


def degrees_minutes_seconds(value: float) -> tuple[float, float, float]:
    minutes, seconds = divmod(abs(value) * 3600, 60)
    degrees, minutes = divmod(minutes, 60)
    return degrees, minutes, round(seconds, 6)


def gps_tags(latitude: float, longitude: float, altitude: float | None = None) -> dict[int, object]:
    tags: dict[int, object] = {
        1: "S" if latitude < 0 else "N",
        2: degrees_minutes_seconds(latitude),
        3: "W" if longitude < 0 else "E",
        4: degrees_minutes_seconds(longitude),
    }
    if altitude is not None:
        tags |= {5: b"\1" if altitude < 0 else b"\0", 6: abs(altitude)}
    return tags
