"""What an entry of a file was computed from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import h5py

from sfm_matchers.errors import InputError
from sfm_matchers.files.hdf5 import naming_damage
from sfm_matchers.files.hdf5_items import find_item
from sfm_matchers.files.replacing import (
    content_hash,
)


def read_fingerprint(file: h5py.File, name: str) -> str | None:
    """Return what an image or a pair was computed from; None if another tool has written it.

    Raises:
        InputError: the file has no such group, or is damaged there.
    """
    with naming_damage(file.filename, name):
        item = find_item(file, name)
        if item is None:
            raise InputError(f"{file.filename} holds nothing for {name!r}")
        found = item.attrs.get("fingerprint")
    return None if found is None else str(found)


def fingerprint(*parts: Any) -> str:
    """Return a short hash of JSON-like values; equal values give equal fingerprints anywhere."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_fingerprint(path: Path) -> str:
    """Return a short hash of a file's content."""
    return content_hash(path)
