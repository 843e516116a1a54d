"""What a run notes for the next one: JSON with a checksum.

A damaged note, or another one in its place, is one that never was: what it told of is made again.
A note that says whose a folder is cannot be made again, so it has a copy.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from sfm_matchers.files.fingerprints import fingerprint
from sfm_matchers.files.replacing import is_taken, make_way
from sfm_matchers.files.text import write_text

logger = logging.getLogger("sfm_matchers.pipelines")


def copy_of(path: Path) -> Path:
    """Return where the copy of a note lies that has one."""
    return path.with_name(f".{path.name}.copy")


def write_memory(path: Path, entries: dict[str, Any], *, twice: bool = False) -> None:
    """Write what the next run is to know, as JSON, with a checksum.

    Args:
        path: of the note.
        entries: JSON-like values.
        twice: write a copy too.

    Raises:
        OutputError: it cannot be written.
    """
    entries = json.loads(json.dumps(entries))  # as it is read
    checksum = fingerprint(path.name, entries)
    text = json.dumps({"note": path.name, "checksum": checksum, "entries": entries}, indent=1)
    for one in (path, copy_of(path))[: 1 + twice]:
        write_text(one, text)


def read_memory(path: Path, *, twice: bool = False) -> dict[str, Any]:
    """What an earlier run noted; nothing if there was none, or if the file is damaged.

    Args:
        path: of the note.
        twice: it was written so. The copy counts where the note is there, but damaged; whoever has
            deleted the note wants none.

    Raises:
        InputError: a folder that is not empty is in its place.
    """
    if not is_taken(path):
        return {}
    if (entries := _intact_entries(path, path.name)) is not None:
        if twice:
            _renew_copy(path, entries)
        return entries
    make_way(path)
    kept = _intact_entries(copy_of(path), path.name) if twice else None
    what = "what it remembers is done again" if kept is None else "its copy takes its place again"
    if path.is_file() or path.is_symlink():
        logger.warning("%s is damaged, or of another version: %s", path, what)
        path.unlink()
    if kept is not None:
        write_memory(path, kept, twice=True)
    return kept or {}


def _renew_copy(path: Path, entries: dict[str, Any]) -> None:
    """Write the copy of a note again where it does not say the same."""
    copy = copy_of(path)
    if _intact_entries(copy, path.name) != entries:
        make_way(copy, is_told=False)
        if copy.exists():
            logger.warning("%s does not say what %s does: it is made again", copy, path.name)
        write_memory(path, entries, twice=True)


def _intact_entries(path: Path, name: str) -> dict[str, Any] | None:
    """What the note `name` says; None if it is not as it was written, cannot be read, or another's.

    Its folder is ours, as nobody could write there else: a note that cannot be read tells nothing.
    """
    if not path.is_file():  # a pipe never ends
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = content["entries"]
        of_what = (name, entries) if "note" in content else (entries,)  # earlier ones: no name
        if isinstance(entries, dict) and content["checksum"] == fingerprint(*of_what):
            return entries
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass
    return None
