"""What an entry of a file was computed from, and what tells whether a file has changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Opening an SQLite database with pycolmap counts up two numbers of its header.
_SQLITE_MAGIC = b"SQLite format 3\0"
_SQLITE_COUNTERS = (slice(24, 28), slice(92, 96))
_BLOCK_BYTES = 1 << 20


def fingerprint(*parts: Any) -> str:
    """Return a short hash of JSON-like values; equal values give equal fingerprints anywhere."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def content_hash(path: Path) -> str:
    """Return a short hash of a file's content, of what opening does not change in it.

    Raises:
        OSError: it cannot be read.
    """
    return _sha256(path, _without_counters)[:16]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits, as ``sha256sum`` prints it.

    Raises:
        OSError: it cannot be read.
    """
    return _sha256(path)


def _sha256(path: Path, change_first: Callable[[bytes], bytes] = bytes) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        block = change_first(stream.read(_BLOCK_BYTES))
        while block:
            digest.update(block)
            block = stream.read(_BLOCK_BYTES)
    return digest.hexdigest()


def _without_counters(block: bytes) -> bytes:
    if not block.startswith(_SQLITE_MAGIC):
        return block
    head = bytearray(block)
    for counter in _SQLITE_COUNTERS:
        head[counter] = bytes(len(head[counter]))
    return bytes(head)
