"""Items of an HDF5 file that lie in that file: what it says of other files is not followed.

An HDF5 file may point at any other one, by links and by the storage of its datasets. Nothing that
this package or hloc writes does, and a file from elsewhere could have any file read, or a pipe that
never answers.
"""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np

from .errors import InputError

# Bytes of one dataset. That of a million keypoints with 256 numbers of half precision each fits.
MAX_BYTES = 1 << 29


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
        check_dataset(item)
    return item if isinstance(item, h5py.Dataset | h5py.Group) else None


def check_links(file: h5py.File) -> None:
    """Raise InputError if a file has a link to another name or another file, anywhere."""

    def visit(path: bytes, info: Any) -> bytes | None:  # h5py's callbacks must not raise
        return None if info.type == h5py.h5l.TYPE_HARD else path

    path = file.id.links.visit(visit, info=True)
    if path is not None:
        _check_link(file, path, file.id.links.get_info(path))


def _check_link(file: h5py.File, path: bytes, info: Any) -> None:
    if info.type != h5py.h5l.TYPE_HARD:
        name = path.decode("utf-8", "replace")
        raise InputError(
            f"{file.filename}: /{name} is a link: refused, copy the data into the file"
        )


def check_dataset(dataset: h5py.Dataset) -> None:
    """Raise InputError if a dataset is stored in other files, or is too large for one photo."""
    where = f"{dataset.file.filename}: {dataset.name}"
    if dataset.is_virtual or dataset.external:
        raise InputError(f"{where} is stored in other files: refused, copy the data into the file")
    if dataset.shape is not None and dataset.nbytes > MAX_BYTES:
        raise InputError(
            f"{where} has {dataset.nbytes >> 20} MiB, and {MAX_BYTES >> 20} at most are read"
        )


def read_dataset(file: h5py.File, name: str) -> np.ndarray | None:
    """Return a dataset, None if there is none of this name, or a group, or it is empty.

    Raises:
        InputError: as `find_item`.
    """
    item = find_item(file, name)
    if not isinstance(item, h5py.Dataset) or item.shape is None:
        return None
    return np.asarray(item[()])
