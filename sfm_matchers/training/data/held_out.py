"""Which photographs are kept for validation."""

from __future__ import annotations

import zlib

HELD_OUT_SHARE = 10  # one photograph in ten


def is_held_out(name: str) -> bool:
    """Tell whether a photograph is kept for validation, by a hash of its file name alone.

    The choice depends neither on which other photographs lie in the folder nor on which of the
    folders above them a run is given, so a later run never trains on what an earlier one held out.
    """
    return zlib.crc32(name.rpartition("/")[2].encode()) % HELD_OUT_SHARE == 0
