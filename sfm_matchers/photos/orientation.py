"""The tag by which EXIF tells viewers to turn a photo, taken back in files of ours."""

from __future__ import annotations

import contextlib
import struct
import zlib
from pathlib import Path

_ORIENTATION, _AS_STORED = 274, 1
_PNG = b"\x89PNG\r\n\x1a\n"


def show_as_stored(path: Path) -> None:
    """Let EXIF say that a JPEG, PNG or TIFF is upright as its pixels are stored.

    Pixels and other tags stay as they are; so do files without that tag, and other ones. The file
    is a new one, so that its other names keep the tag.

    Raises:
        OSError: it cannot be read or written.
    """
    data = bytearray(path.read_bytes())
    with contextlib.suppress(struct.error, IndexError):  # of what is cut off
        if _clear(data):
            path.unlink()
            path.write_bytes(data)


def _clear(data: bytearray) -> bool:
    """Change the tag of a file's content; return whether there was anything to change."""
    if data[:2] in (b"II", b"MM"):
        return _clear_tag(data, 0)
    if data[:2] == b"\xff\xd8":
        at = 2
        while data[at] == 0xFF and data[at + 1] != 0xDA:  # before the pixels
            if data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
                return _clear_tag(data, at + 10)
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    if data[:8] == _PNG:
        at = 8
        while at < len(data):
            (size,) = struct.unpack_from(">I", data, at)
            if data[at + 4 : at + 8] == b"eXIf":
                changed = _clear_tag(data, at + 8)
                checksum = zlib.crc32(data[at + 4 : at + 8 + size])
                struct.pack_into(">I", data, at + 8 + size, checksum)
                return changed
            at += 12 + size
    return False


def _clear_tag(data: bytearray, start: int) -> bool:
    """Change the tag among those of a TIFF that begins at `start`."""
    order = "<" if data[start : start + 2] == b"II" else ">"
    (offset,) = struct.unpack_from(f"{order}I", data, start + 4)
    (count,) = struct.unpack_from(f"{order}H", data, start + offset)
    for entry in range(start + offset + 2, start + offset + 2 + 12 * count, 12):
        tag, _, _, value = struct.unpack_from(f"{order}HHIH", data, entry)
        if tag == _ORIENTATION and value != _AS_STORED:
            struct.pack_into(f"{order}H", data, entry + 8, _AS_STORED)
            return True
    return False
