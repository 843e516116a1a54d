"""Text files, read and written whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from sfm_matchers.errors import InputError
from sfm_matchers.files.replacing import (
    replacing,
    replacing_folder,
)
from sfm_matchers.files.space import writing


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, with or without byte order mark; all line ends become ``\\n``.

    Raises:
        InputError: it is missing, cannot be read, or is not such text.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file in UTF-8") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    with written_whole(path) as temporary:
        # Folders may have names that are not UTF-8, which a report tells.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def written_whole(path: Path, *, lasting: bool = True) -> Iterator[Path]:
    """As `files.replacing`.

    Raises:
        OutputError: it cannot be written.
    """
    with writing(path), replacing(path, lasting=lasting) as temporary:
        yield temporary


@contextlib.contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """As `files.replacing_folder`.

    Raises:
        OutputError: it cannot be written.
    """
    with writing(path), replacing_folder(path) as temporary:
        yield temporary
