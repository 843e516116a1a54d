"""The errors this package raises on purpose: one line each, saying what is wrong and what to do."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path


class SfmMatchersError(Exception):
    """Base class of every error raised on purpose."""


class InputError(SfmMatchersError, ValueError):
    """A file, a folder, an option or an array given by the user cannot be used."""


@contextlib.contextmanager
def about(path: str | Path) -> Iterator[None]:
    """Let what is wrong with input inside the ``with`` block begin with the name of its file.

    >>> with about("sparse/0"):
    ...     raise InputError("the model has no points")
    Traceback (most recent call last):
    sfm_matchers.errors.InputError: sparse/0: the model has no points
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


class MissingExtraError(SfmMatchersError, ImportError):
    """An optional library is needed; the message names the extra that installs it."""


class WeightsError(SfmMatchersError, RuntimeError):
    """A checkpoint is missing, damaged, or belongs to another network."""


class OutputError(SfmMatchersError, OSError):
    """A result cannot be written: the disk is full, or the folder must not be written to."""


class NotEnoughMemoryError(SfmMatchersError, MemoryError):
    """The memory of this machine, or of its GPU, does not suffice."""


class PhotoChangedError(InputError):
    """Photos have vanished or changed while a run was working; all others are done."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        """Name the photos: name -> reason."""
        first, *others = sorted(reasons)
        more = f", and {len(others)} more" if others else ""
        super().__init__(f"{reasons[first]}{more}; run the command again, it goes on")


def one_line(error: BaseException | str) -> str:
    """Return what another library's error says, in one line; the name of its kind if it is silent.

    Messages of libraries run over pages: of 200 letters the rest is left out; so is where in its
    source COLMAP says it happened.

    >>> one_line("[reconstruction.cc:995] there is\\n no model")
    'there is no model'
    """
    text = re.sub(r"^\[[\w.]+:\d+\] ", "", " ".join(str(error).split()))
    return printable(text[:200]) or type(error).__name__


def printable(text: str) -> str:
    r"""Return a text with control characters, which could move a cursor, as their codes.

    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


EMPTY_PATH = "an empty path: is a variable empty? The folder you are in is ."


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that was probably meant, in letters of any case; None if none is near.

    >>> nearest("Exhuastive", ["exhaustive", "sequential"])
    'exhaustive'
    >>> nearest("seq", ["exhaustive", "sequential"])
    'sequential'
    """
    names = {one.lower(): one for one in known}
    begun = [one for one in names if one.startswith(name.lower())]
    near = difflib.get_close_matches(name.lower(), sorted(names), 1)
    return names[begun[0]] if len(begun) == 1 else names[near[0]] if near else None


def listed(names: Iterable[str]) -> str:
    """Return the first four names, and how many more there are."""
    names = list(names)
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown}, ... {len(names) - 4} more"
