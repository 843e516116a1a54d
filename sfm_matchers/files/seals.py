"""Checksums of what a file of entries holds."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sfm_matchers.errors import InputError
from sfm_matchers.files.entries import copy_entries
from sfm_matchers.files.fingerprints import content_hash
from sfm_matchers.files.hdf5 import open_h5
from sfm_matchers.files.text import write_text

logger = logging.getLogger(__name__)


#
# Every entry has a checksum of its datasets. To read all of them takes long where there are
# hundreds of thousands, so a small file beside, the seal, has the hash of the file whose entries
# were found intact; it also says that all of them were made by this program, and can be made again.


def _seal_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256")


def _seal(path: Path) -> None:
    write_text(_seal_path(path), content_hash(path))


def _is_sealed(path: Path) -> bool:
    seal = _seal_path(path)
    try:
        return seal.exists() and seal.read_bytes() == content_hash(path).encode()
    except OSError:  # a file that cannot be read is looked into, as a damaged one
        return False


def _checksum(name: str, source: str | None, arrays: Mapping[str, Any]) -> str:
    """Return a hash of an entry: its name, what it was computed from, its datasets."""
    digest = hashlib.sha256(repr((name, source)).encode())
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        digest.update(repr((key, array.dtype.str, np.shape(arrays[key]))).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def _read_fingerprints(path: Path) -> dict[str, str | None]:
    """Return the name of each entry of a file, and what it was computed from.

    Raises:
        InputError: the file is damaged.
    """
    with open_h5(path) as file:
        return {name: file.fingerprint(name) for name in file.names()}


def _sound_entries(path: Path, *, is_ours: bool) -> tuple[dict[str, str | None], int]:
    """The same of the entries that are as they were written, and the number of the others.

    Args:
        path: the file.
        is_ours: this program has made all of it. Otherwise entries without checksum are of other
            tools, or of earlier versions, and are taken as they are.

    Raises:
        InputError: the file cannot be read, or an entry of another tool cannot.
    """
    sound: dict[str, str | None] = {}
    num_damaged = 0
    with open_h5(path) as file:
        for name in file.names():
            source, checksum = None, None
            try:
                source, checksum = file.fingerprint(name), file.checksum(name)
                arrays = file.group(name)
            except InputError:
                if not is_ours and checksum is None:
                    raise
                checksum, arrays = "", {}
            if (checksum is None and not is_ours) or checksum == _checksum(name, source, arrays):
                sound[name] = source
            else:
                num_damaged += 1
    return sound, num_damaged


def tell_changed(path: Path) -> None:
    """Warn of entries that are not as they were written, for whoever reads a file and not makes it.

    Raises:
        InputError: the file cannot be read.
    """
    if _is_sealed(path):
        return
    sound, num_changed = _sound_entries(path, is_ours=False)
    if num_changed:
        logger.warning(
            "%s is not as it was written: %d of %d entries have changed; if no other tool "
            "did that, make it again",
            path,
            num_changed,
            num_changed + len(sound),
        )


def _intact_entries(path: Path) -> dict[str, str | None]:
    """Return the entries of a file, and what each was computed from.

    A file that is not as it was written is written again, without its damaged entries.

    Raises:
        InputError: the file cannot be read, and this program cannot make it again.
    """
    if _is_sealed(path):
        return _read_fingerprints(path)
    is_ours = _seal_path(path).exists()
    is_changed = is_ours and _seal_path(path).stat().st_size > 0
    try:
        sound, num_damaged = _sound_entries(path, is_ours=is_ours)
    except InputError as error:
        if not is_ours:
            raise
        logger.warning("%s; all it held is made again", error)
        path.unlink()
        return {}
    if num_damaged or is_changed:
        told = f"{num_damaged} of {num_damaged + len(sound)} entries are damaged and made again"
        if not num_damaged:
            told = f"what its {len(sound)} entries hold is whole, and kept"
        logger.warning("%s is not as it was written: %s", path, told)
        copy_entries(dict.fromkeys(sound, path), path)
    if None not in sound.values():
        _seal(path)
    return sound
