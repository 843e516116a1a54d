"""What an entry of a file was computed from, and what tells whether a file has changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

# Opening an SQLite database with pycolmap counts up two numbers of its header.
_SQLITE_MAGIC = b"SQLite format 3\0"
_SQLITE_COUNTERS = (slice(24, 28), slice(92, 96))


def fingerprint(*parts: Any) -> str:
    """Return a short hash of JSON-like values; equal values give equal fingerprints anywhere."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def content_hash(path: Path) -> str:
    """Return a short hash of a file's content, of what opening does not change in it.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        block = stream.read(1 << 20)
        if block.startswith(_SQLITE_MAGIC):
            head = bytearray(block)
            for counter in _SQLITE_COUNTERS:
                head[counter] = bytes(len(head[counter]))
            block = bytes(head)
        while block:
            digest.update(block)
            block = stream.read(1 << 20)
    return digest.hexdigest()[:16]
