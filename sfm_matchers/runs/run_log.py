"""``log.txt`` of a folder of results: what was run there, by what, and what was said."""

from __future__ import annotations

import contextlib
import logging
import platform
import shlex
import sys
import time
from dataclasses import fields, is_dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import sfm_matchers

logger = logging.getLogger(__name__)

LIBRARIES = ("torch", "pycolmap", "numpy", "opencv-python-headless", "kornia", "h5py")


class RunLog:
    """Appends a run to a log: date, versions, command line and options; what the package says.

    A log that cannot be written is no reason to stop.
    """

    def __init__(self, path: Path, name: str, options: Any = None) -> None:
        self.path = path
        self.name = name
        self.options = options
        self.end = "stopped"

    def __enter__(self) -> RunLog:
        self._start = time.monotonic()
        self._handler: logging.Handler = logging.NullHandler()
        try:
            self._handler = _Appending(self.path, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            logger.warning("%s is not written: %s", self.path, error.strerror or error)
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._write(self._beginning())
        logging.getLogger("sfm_matchers").addHandler(self._handler)
        return self

    def ended(self, status: int) -> int:
        """Note the status, and return it."""
        self.end = f"ended with status {status}"
        return status

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        logging.getLogger("sfm_matchers").removeHandler(self._handler)
        if isinstance(error, Exception):
            self.end = f"error: {error}"
        self._write(f"{self.end}, after {time.monotonic() - self._start:.1f} s\n")
        self._handler.close()

    def _write(self, text: str) -> None:
        stream = getattr(self._handler, "stream", None)
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.write(text + "\n")
                stream.flush()

    def _beginning(self) -> str:
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        versions = [
            f"sfm-matchers {sfm_matchers.__version__}",
            f"Python {platform.python_version()}",
        ]
        for library in LIBRARIES:
            with contextlib.suppress(metadata.PackageNotFoundError):
                versions.append(f"{library} {metadata.version(library)}")
        lines = [
            f"== {now} {self.name}".rstrip(),
            f"versions: {', '.join(versions)}; {platform.platform()}",
            f"command line: {shlex.join(sys.orig_argv)}",
        ]
        if is_dataclass(self.options):
            values = {item.name: getattr(self.options, item.name) for item in fields(self.options)}
            shown = (
                f"{key}={str(value) if isinstance(value, Path) else value!r}"
                for key, value in values.items()
            )
            lines.append(f"options: {' '.join(shown)}")
        return "\n".join(lines)


class _Appending(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        """Say nothing: the disk may be full, which the run itself finds."""
