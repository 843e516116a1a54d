"""What a run notes for the next one: JSON with a checksum."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from sfm_matchers.files.fingerprints import fingerprint
from sfm_matchers.files.text import write_text

logger = logging.getLogger("sfm_matchers.pipelines")


def write_memory(path: Path, entries: dict[str, Any]) -> None:
    """Write what the next run is to know, as JSON, with a checksum.

    Raises:
        OutputError: it cannot be written.
    """
    entries = json.loads(json.dumps(entries))  # as it is read
    write_text(path, json.dumps({"checksum": fingerprint(entries), "entries": entries}, indent=1))


def read_memory(path: Path) -> dict[str, Any]:
    """What an earlier run noted; nothing if there was none, or if the file is damaged."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = content["entries"]
        if isinstance(entries, dict) and content["checksum"] == fingerprint(entries):
            return entries
    except (ValueError, TypeError, KeyError):
        pass
    logger.warning("%s is damaged, or of another version: what it remembers is done again", path)
    path.unlink(missing_ok=True)
    return {}
