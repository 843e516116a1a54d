"""Arrays of numbers from MATLAB's files of version 5, those before 7.3.

A file is a header of 128 bytes and elements, each with a tag that says its type and its length. An
array is an element of elements: flags, sizes, name, numbers; in newer files compressed as a whole.
Lengths and types are checked before they are used: scipy's reader can crash on a damaged file.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sfm_matchers.errors import InputError, one_line

ARRAY, COMPRESSED = 14, 15
NUMBERS = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
NUMERIC_CLASSES = range(6, 16)  # the others are cells, structures, objects, text and sparse arrays
COMPLEX_FLAG = 0x800


def read_mat(path: Path, variable: str) -> np.ndarray | None:
    """Return a real array of a file of version 5, or None if it has no such variable.

    Raises:
        InputError: the file cannot be read, is of another version or damaged, or the variable is
            not an array of real numbers.
    """
    try:
        content = memoryview(path.read_bytes())
        order = {b"IM": "<", b"MI": ">"}[bytes(content[126:128])]
        for kind, data in _elements(content[128:], order):
            if kind == COMPRESSED:
                kind, data = next(_elements(memoryview(zlib.decompress(data)), order))
            if kind == ARRAY:
                flags, sizes, name, *numbers = _elements(data, order)
                if bytes(name[1]) == variable.encode():
                    return _array(flags[1], sizes[1], numbers, order)
    except (OSError, LookupError, ValueError, StopIteration, struct.error, zlib.error) as error:
        raise InputError(f"{path} is not a readable .mat file ({one_line(error)})") from error
    return None


def _elements(content: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Type and data of each element that follows another.

    Raises:
        ValueError: the last one is cut off.
    """
    at = 0
    while at + 8 <= len(content):
        kind, length = struct.unpack_from(f"{order}II", content, at)
        start = at + 8
        end = start + length
        if kind >> 16:  # a short one: its length is in the upper half, its data in the tag
            kind, start, end = kind & 0xFFFF, at + 4, at + 4 + min(4, kind >> 16)
        if end > len(content):
            raise ValueError("it is cut off")
        yield kind, content[start:end]
        at = end if kind == COMPRESSED else -(-end // 8) * 8


def _array(
    flags: memoryview, sizes: memoryview, numbers: list[tuple[int, memoryview]], order: str
) -> np.ndarray:
    (flag,) = struct.unpack_from(f"{order}I", flags)
    if flag & 0xFF not in NUMERIC_CLASSES or flag & COMPLEX_FLAG or len(numbers) != 1:
        raise ValueError("not an array of real numbers")
    shape = np.frombuffer(sizes, f"{order}i4")
    if (shape < 0).any():
        raise ValueError("negative sizes")
    kind, data = numbers[0]
    return np.frombuffer(data, order + NUMBERS[kind]).reshape(shape, order="F")
