"""HEIC photos, as phones take them: pillow-heif reads them, which comes with the extra heic.

Their container says how they are turned, and decoders turn them: they come upright, and what EXIF
says of it does not count.
"""

from __future__ import annotations

import functools
from pathlib import Path

EXTENSIONS = (".heic", ".heif", ".hif")
FORMAT = "HEIF"  # Pillow's name
INSTALL = 'pip install "sfm-matchers[heic]"'

HEAD_BYTES = 12  # what files of this kind begin with: a length, "ftyp", and a brand
_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")


def is_heif(head: bytes) -> bool:
    """Return whether a file that begins so is a HEIC photo."""
    return head[4:8] == b"ftyp" and head[8:12] in _BRANDS


def is_heif_file(path: Path) -> bool:
    """Return whether a file is a HEIC photo, whatever its name.

    Raises:
        OSError: it cannot be read.
    """
    with Path(path).open("rb") as file:
        return is_heif(file.read(HEAD_BYTES))


@functools.cache
def can_read() -> bool:
    """Return whether such photos can be read."""
    try:
        import pillow_heif  # noqa: F401  (takes a tenth of a second: only where it is needed)
    except ImportError:
        return False
    return True


@functools.cache
def register() -> None:
    """Let Pillow read HEIC photos; call it where `can_read`."""
    import pillow_heif

    pillow_heif.register_heif_opener()
