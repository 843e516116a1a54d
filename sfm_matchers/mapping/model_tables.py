"""COLMAP's binary tables of a model, looked through before pycolmap reads them.

pycolmap believes what a table says: of a damaged count it allocates gigabytes, and a reference to
what is not there ends the process at some later time.
"""

from __future__ import annotations

import contextlib
import mmap
import struct
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pycolmap

from sfm_matchers.errors import InputError

TABLES = ("cameras", "images", "points3D")

_NO_POINT = np.uint64(2**64 - 1)
_MAX_ID = 2**31 - 2  # of an image: COLMAP makes one number of a pair of them
_MAX_NAME = 4096  # bytes
_MAX_NUMBER = 1e15  # of cameras, poses and places: a flipped bit makes larger ones
_CAMERA = 0  # the kind of sensor
_POINT2D = np.dtype([("xy", "<f8", 2), ("point", "<u8")])
_POINT = struct.Struct("<Q3d3BdQ")  # id, place, colour, error, length of the track that follows
_ELEMENT = np.dtype([("image", "<u4"), ("index", "<u4")])


class Counts(NamedTuple):
    """How many of each a model has."""

    cameras: int
    images: int
    points: int


def counts_of(model: pycolmap.Reconstruction) -> Counts:
    """Return the counts of a model in memory, as its tables have them."""
    return Counts(model.num_cameras(), model.num_reg_images(), model.num_points3D())


def has_tables(folder: Path) -> bool:
    """True if a folder holds a binary model."""
    return all((folder / f"{name}.bin").is_file() for name in TABLES)


def check_tables(folder: Path) -> Counts:
    """Look through the binary tables of a model; 1.5 s for a million points.

    Raises:
        InputError: a table is cut off, holds what cannot be, or refers to what is not there.
    """
    with _open(folder / "cameras.bin") as table:
        cameras = _check_cameras(table)
    with _open(folder / "images.bin") as images_table:
        images = _read_images(images_table, cameras)
        with _open(folder / "points3D.bin") as table:
            point_ids = _check_points(table, images)
        _check_seen_points(images_table, images, point_ids)
    rigs: dict[int, set[tuple[int, int]]] | None = None
    if (folder / "rigs.bin").is_file():
        with _open(folder / "rigs.bin") as table:
            rigs = _read_rigs(table, cameras)
        if not (folder / "frames.bin").is_file():
            raise InputError(f"{folder / 'rigs.bin'} is there, but no file frames.bin beside it")
    if (folder / "frames.bin").is_file():
        with _open(folder / "frames.bin") as table:
            _check_frames(table, rigs or {}, images)
    return Counts(len(cameras), len(images), len(point_ids))


class _Table:
    """A file that is read from its beginning to its end."""

    def __init__(self, path: Path, data: mmap.mmap | bytes) -> None:
        self.path = path
        self.data = data
        self.at = 0

    def take(self, layout: str) -> tuple[Any, ...]:
        """Read numbers, little-endian."""
        start = self.skip(struct.calcsize("<" + layout))
        return struct.unpack_from("<" + layout, self.data, start)

    def skip(self, num_bytes: int) -> int:
        """Pass over so many bytes; return where they begin."""
        start, self.at = self.at, self.at + num_bytes
        if self.at > len(self.data):
            raise self.fault("is cut off")
        return start

    def count(self, least_bytes: int) -> int:
        """Read how many things follow, of so many bytes each at least."""
        (count,) = self.take("Q")
        if count * least_bytes > len(self.data) - self.at:
            raise self.fault(f"is cut off or damaged: it says that {count} entries follow")
        return int(count)

    def name(self) -> str:
        """Read a text that ends with a zero."""
        end = self.data.find(b"\0", self.at, self.at + _MAX_NAME)
        if end < 0:
            raise self.fault("is damaged: a name has no end")
        start, self.at = self.at, end + 1
        try:
            return self.data[start:end].decode()
        except UnicodeDecodeError as error:
            raise self.fault("is damaged, or its names are not in UTF-8") from error

    def fault(self, what: str) -> InputError:
        return InputError(f"{self.path} {what}")


@contextlib.contextmanager
def _open(path: Path) -> Iterator[_Table]:
    """Open a table; at the end of the block all of it must have been read."""
    try:
        with path.open("rb") as file:
            is_empty = not path.stat().st_size
            # Not closed by hand: arrays that an error keeps alive may look into it.
            data = b"" if is_empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        table = _Table(path, data)
        yield table
        if table.at != len(data):
            raise table.fault("is damaged: more follows than it says")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


class _Params(NamedTuple):
    """The parameters of a camera model: how many, and which are focal lengths."""

    number: int
    focal_lengths: list[int]


@cache
def _params() -> dict[int, _Params]:
    """Those of each camera model, by its number."""
    found = {}
    for model in pycolmap.CameraModelId.__members__.values():
        if model.value >= 0:
            camera = pycolmap.Camera.create_from_model_id(1, model, 1.0, 1, 1)
            found[int(model.value)] = _Params(len(camera.params), list(camera.focal_length_idxs()))
    return found


def _is_measured(values: Sequence[float] | np.ndarray) -> bool:
    return bool((np.abs(values) < _MAX_NUMBER).all())  # which no NaN is


def _check_cameras(table: _Table) -> set[int]:
    """Return the ids of the cameras."""
    ids: set[int] = set()
    for _ in range(table.count(24)):
        camera_id, model, width, height = table.take("IiQQ")
        if model not in _params():
            raise table.fault(f"is damaged, or of a newer COLMAP: camera model {model} is unknown")
        number, focal_lengths = _params()[model]
        values = table.take(f"{number}d")
        can_be = 0 < width < 2**31 and 0 < height < 2**31 and _is_measured(values)
        if not (can_be and all(values[index] > 0 for index in focal_lengths)):
            raise table.fault(f"is damaged: camera {camera_id} cannot be")
        if camera_id in ids:
            raise table.fault(f"is damaged: it has two cameras {camera_id}")
        ids.add(camera_id)
    return ids


def _read_images(table: _Table, cameras: set[int]) -> dict[int, tuple[int, int]]:
    """Return where the keypoints of each image begin in the table, and their number."""
    images: dict[int, tuple[int, int]] = {}
    names: set[str] = set()
    for _ in range(table.count(73)):
        image_id, *pose, camera_id = table.take("I7dI")
        name = table.name()
        count = table.count(_POINT2D.itemsize)
        if image_id in images or not 0 < image_id <= _MAX_ID:
            raise table.fault(f"is damaged: image id {image_id} occurs twice, or cannot be")
        if name in names:
            raise table.fault(f"has two images of the name {name!r}")
        if camera_id not in cameras:
            raise table.fault(f"is damaged: camera {camera_id} of {name!r} does not exist")
        if not (_is_measured(pose) and any(pose[:4])):
            raise table.fault(f"is damaged: the pose of {name!r} is none")
        images[image_id] = (table.skip(count * _POINT2D.itemsize), count)
        names.add(name)
    return images


def _check_points(table: _Table, images: dict[int, tuple[int, int]]) -> np.ndarray:
    """Return the ids (N,) of the points, sorted."""
    starts, lengths = _place_points(table)
    data = np.frombuffer(table.data, np.uint8)
    layout = np.dtype([("id", "<u8"), ("xyz", "<f8", 3), ("color", "u1", 3), ("error", "<f8")])
    heads = _gather(data, starts, layout)
    elements = _gather(data, _each(starts + _POINT.size, lengths, _ELEMENT.itemsize), _ELEMENT)
    ids = np.sort(heads["id"])
    if (ids[1:] == ids[:-1]).any() or (ids == _NO_POINT).any():
        raise table.fault("is damaged: a point's id occurs twice, or cannot be")
    if not _is_measured(heads["xyz"]):
        raise table.fault("is damaged: points are nowhere")
    known = np.array(sorted(images), np.int64)
    counts = np.array([images[image_id][1] for image_id in known.tolist()], np.int64)
    rows = np.searchsorted(known, elements["image"]).clip(0, max(len(known) - 1, 0))
    if len(elements) and not (
        len(known)
        and (known[rows] == elements["image"]).all()
        and (elements["index"] < counts[rows]).all()
    ):
        raise table.fault("is damaged: points are seen by keypoints that do not exist")
    return ids


def _place_points(table: _Table) -> tuple[np.ndarray, np.ndarray]:
    """Return where each point (N,) begins, and the length of its track."""
    starts, lengths = [], []
    total = table.count(_POINT.size)
    at, last = table.at, len(table.data)
    for _ in range(total):
        end = at + _POINT.size
        if end > last:
            raise table.fault("is cut off")
        length = _POINT.unpack_from(table.data, at)[-1]
        starts.append(at)
        lengths.append(length)
        at = end + length * _ELEMENT.itemsize
        if at > last:
            raise table.fault(f"is cut off or damaged: it says that {length} entries follow")
    table.at = at
    return np.array(starts, np.int64), np.array(lengths, np.int64)


def _each(starts: np.ndarray, lengths: np.ndarray, step: int) -> np.ndarray:
    """Where the elements of runs begin: run i has `lengths[i]` of them from `starts[i]` on."""
    ends = np.cumsum(lengths)
    places = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)
    return np.repeat(starts, lengths) + step * places


def _gather(data: np.ndarray, starts: np.ndarray, layout: np.dtype) -> np.ndarray:
    """Read a record at each place; at most 64 MB of indices at once."""
    records = np.zeros(len(starts), layout)
    for first in range(0, len(starts), 1 << 17):
        some = starts[first : first + (1 << 17)]
        chosen = data[some[:, None] + np.arange(layout.itemsize)]
        records[first : first + len(some)] = np.ascontiguousarray(chosen).view(layout)[:, 0]
    return records


def _check_seen_points(
    table: _Table, images: dict[int, tuple[int, int]], point_ids: np.ndarray
) -> None:
    """Keypoints must have a place, and be of points that exist, or of none."""
    for start, count in images.values():
        if not count:
            continue
        keypoints = np.frombuffer(table.data, _POINT2D, count, start)
        if not _is_measured(keypoints["xy"]):
            raise table.fault("is damaged: keypoints are nowhere")
        seen = keypoints["point"][keypoints["point"] != _NO_POINT]
        rows = np.searchsorted(point_ids, seen).clip(0, max(len(point_ids) - 1, 0))
        if len(seen) and not (len(point_ids) and (point_ids[rows] == seen).all()):
            raise table.fault("is damaged: keypoints are of points that do not exist")


def _read_rigs(table: _Table, cameras: set[int]) -> dict[int, set[tuple[int, int]]]:
    """Return the sensors (kind, id) of each rig."""
    rigs: dict[int, set[tuple[int, int]]] = {}
    for _ in range(table.count(8)):
        rig_id, num_sensors = table.take("II")
        sensors: set[tuple[int, int]] = set()
        for number in range(num_sensors):
            sensor = table.take("iI")
            if number and table.take("B")[0] and not _is_measured(table.take("7d")):
                raise table.fault(f"is damaged: the poses of rig {rig_id} are none")
            if sensor[0] == _CAMERA and sensor[1] not in cameras:
                raise table.fault(f"is damaged: camera {sensor[1]} does not exist")
            sensors.add((int(sensor[0]), int(sensor[1])))
        if rig_id in rigs:
            raise table.fault(f"is damaged: it has two rigs {rig_id}")
        rigs[rig_id] = sensors
    return rigs


def _check_frames(
    table: _Table, rigs: dict[int, set[tuple[int, int]]], images: dict[int, tuple[int, int]]
) -> None:
    """Every image must be of one frame, and every frame of a rig."""
    frames: set[int] = set()
    found: set[int] = set()
    for _ in range(table.count(68)):
        frame_id, rig_id, *pose, num_data = table.take("II7dI")
        if frame_id in frames or rig_id not in rigs or not _is_measured(pose):
            raise table.fault(f"is damaged: frame {frame_id} cannot be")
        frames.add(frame_id)
        for _ in range(num_data):
            kind, sensor_id, data_id = table.take("iIQ")
            if (kind, sensor_id) not in rigs[rig_id]:
                raise table.fault(f"is damaged: frame {frame_id} is of another rig")
            if kind == _CAMERA and data_id in images:
                if data_id in found:
                    raise table.fault(f"is damaged: image {data_id} is of two frames")
                found.add(data_id)
    if len(found) != len(images):
        raise table.fault("is damaged: it does not have the frames of all images")
