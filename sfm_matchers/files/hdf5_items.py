"""Items of an HDF5 file that lie in that file: what it says of other files is not followed.

An HDF5 file may point at any other one, by links and by the storage of its datasets. Nothing that
this package or hloc writes does, and a file from elsewhere could have any file read, or a pipe that
never answers.
"""

from __future__ import annotations

import math
from typing import Any

import h5py
import numpy as np

from sfm_matchers.errors import InputError

# Of one dataset. Half a million descriptors of 128 numbers fit.
MAX_NUMBERS = 1 << 26


def find_item(file: h5py.File, name: str) -> h5py.Dataset | h5py.Group | None:
    """Return a group or dataset, None if there is none of this name.

    Raises:
        InputError: it is reached by a link to another name or another file, or is a dataset that
            is stored in other files, or is too large.
    """
    path = b""
    for part in name.encode("utf-8", "surrogatepass").split(b"/"):
        if not part:
            continue
        path = path + b"/" + part if path else part
        if not file.id.links.exists(path):
            return None
        _check_link(file, path, file.id.links.get_info(path))
    item = file[path] if path else file
    if isinstance(item, h5py.Dataset):
        _check_dataset(file, path, item.id)
    return item if isinstance(item, h5py.Dataset | h5py.Group) else None


def dataset_names(file: h5py.File) -> list[str]:
    """Return the names of all datasets of a file.

    Raises:
        InputError: as `find_item`, for any item of the file.
    """
    links: list[tuple[bytes, Any]] = []
    datasets: list[bytes] = []

    # h5py's callbacks must not raise; what they return ends the visit.
    def visit_link(path: bytes, info: Any) -> bool | None:
        if info.type == h5py.h5l.TYPE_HARD:
            return None
        links.append((path, info))
        return True

    def visit_object(path: bytes, info: Any) -> None:
        if info.type == h5py.h5o.TYPE_DATASET:
            datasets.append(path)

    file.id.links.visit(visit_link, info=True)
    for path, info in links:
        _check_link(file, path, info)
    h5py.h5o.visit(file.id, visit_object, info=True)
    for path in datasets:
        _check_dataset(file, path, h5py.h5d.open(file.id, path))
    return [path.decode("utf-8", "surrogateescape") for path in datasets]


def _check_link(file: h5py.File, path: bytes, info: Any) -> None:
    if info.type != h5py.h5l.TYPE_HARD:
        name = path.decode("utf-8", "replace")
        raise InputError(
            f"{file.filename}: /{name} is a link: refused, copy the data into the file"
        )


def _check_dataset(file: h5py.File, path: bytes, dataset: h5py.h5d.DatasetID) -> None:
    layout = dataset.get_create_plist()
    fault = None
    if layout.get_layout() == h5py.h5d.VIRTUAL or layout.get_external_count():
        fault = "is stored in other files: refused, copy the data into the file"
    elif (count := math.prod(dataset.shape or ())) > MAX_NUMBERS:
        fault = f"holds {count} numbers; {MAX_NUMBERS} at most are read"
    if fault is not None:
        raise InputError(f"{file.filename}: /{path.decode('utf-8', 'replace')} {fault}")


def read_dataset(file: h5py.File, name: str) -> np.ndarray | None:
    """Return a dataset, None if there is none of this name, or a group, or it is empty.

    Raises:
        InputError: as `find_item`.
    """
    item = find_item(file, name)
    if not isinstance(item, h5py.Dataset) or item.shape is None:
        return None
    return np.asarray(item[()])
