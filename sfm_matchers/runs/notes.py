"""What a run notes for the next one: what it has done, and from what."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfm_matchers.files.fingerprints import fingerprint
from sfm_matchers.files.replacing import content_hash, files_below
from sfm_matchers.files.text import write_text

logger = logging.getLogger("sfm_matchers.pipelines")


@dataclass
class Steps:
    """The steps of one run: their seconds, and what the finished ones were computed from.

    A note says what a step was computed from, and the hash of each file that it made. It goes
    before its files are replaced, and comes back when they are complete, so that it never tells
    of others.
    """

    path: Path
    seconds: dict[str, float] = field(default_factory=dict)

    def timed(self, name: str, step: Callable[[], Any]) -> Any:
        """Run a step and note its seconds; those of one name add up."""
        start = time.monotonic()
        result = step()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start
        return result

    def is_done(self, name: str, source: str) -> bool:
        """True if a finished step was computed from `source` and its files are as it made them.

        If it must be done again this says why, and forgets the note.
        """
        note = read_memory(self.path).get(name)
        if note is None:
            return False
        if note["source"] != source:
            logger.info("%s: photos, matches or settings have changed, it is made again", name)
        elif (changed := self._changed_file(note)) is not None:
            logger.warning("%s is missing or damaged: %s is made again", changed, name)
        else:
            return True
        self.forget(name)
        return False

    def set_done(self, name: str, source: str, *results: Path) -> None:
        """Note what a finished step was computed from, and the files and folders it has made."""
        folder = self.path.parent
        files = [file for result in results for file in files_below(result)]
        note = {
            "source": source,
            "results": [result.relative_to(folder).as_posix() for result in results],
            "files": {file.relative_to(folder).as_posix(): content_hash(file) for file in files},
        }
        write_memory(self.path, {**read_memory(self.path), name: note})

    def forget(self, *names: str) -> None:
        """Delete the notes of steps whose results are about to be replaced."""
        notes = read_memory(self.path)
        kept = {name: note for name, note in notes.items() if name not in names}
        if kept != notes:
            write_memory(self.path, kept)

    def _changed_file(self, note: dict[str, Any]) -> Path | None:
        folder = self.path.parent
        for name in note["results"]:
            if not (folder / name).exists():
                return folder / name
        for name, known in note["files"].items():
            try:
                if content_hash(folder / name) != known:
                    return folder / name
            except OSError:
                return folder / name
        return None


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
