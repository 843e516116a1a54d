"""Entries of HDF5 files, copied."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import h5py

from sfm_matchers.errors import InputError
from sfm_matchers.files.hdf5 import Hdf5File, open_h5
from sfm_matchers.files.space import check_space, is_of_full_disk
from sfm_matchers.files.text import written_whole


def copy_entries(files: Mapping[str, Path], output: Path) -> None:
    """Write a file of entries (name -> the file that holds it), in the order of their names.

    Raises:
        InputError: a file is damaged.
        OutputError: the new one cannot be written.
    """
    check_space(output, sum(path.stat().st_size for path in set(files.values())))
    with (
        written_whole(output) as temporary,
        contextlib.ExitStack() as stack,
        h5py.File(str(temporary), "w") as merged,
    ):
        opened: dict[Path, Hdf5File] = {}
        for name in sorted(files):
            source = files[name]
            if source not in opened:
                if len(opened) >= 64:
                    stack.pop_all().close()
                    opened.clear()
                opened[source] = stack.enter_context(open_h5(source))
            parent = merged.require_group(name.rpartition("/")[0] or "/")
            _copy_entry(opened[source], name, parent, output.parent)


def _copy_entry(source: Hdf5File, name: str, parent: h5py.Group, folder: Path) -> None:
    """Raise InputError if the source is damaged, OSError if the target cannot be written."""
    try:
        source.copy_to(name, parent)
    except InputError as error:
        if is_of_full_disk(error, folder):
            raise OSError(str(error)) from error
        raise
