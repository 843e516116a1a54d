"""Names of photos: which of them may become a path below a folder.

A name comes from a file that anybody may have written: a feature file, a list, a model. It is
looked at once, where that file is read.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

from sfm_matchers.errors import InputError

_SEPARATORS = re.compile(r"[/\\]")
_DRIVE = re.compile(r"[A-Za-z]:")


def in_natural_order(names: Iterable[str]) -> list[str]:
    """Return names sorted such that numbers in them count as numbers.

    >>> in_natural_order(["img10.jpg", "img2.jpg", "img02.jpg"])
    ['img02.jpg', 'img2.jpg', 'img10.jpg']
    """
    return sorted(names, key=_natural_key)


def _natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Texts and numbers by turns, numbers first; names that differ in zeros only, as texts."""
    parts = re.findall(r"\d+|\D+", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts], name


def name_fault(name: str) -> str | None:
    r"""Return why a name cannot be that of a photo below a folder; None if it can.

    >>> name_fault("../../pictures/a.jpg")
    "the name leads out of its folder by '..'"
    >>> name_fault("day/a.jpg")
    """
    if "\n" in name or "\r" in name:
        return "the name contains a line break"
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        return "the name is not valid UTF-8"
    if any(unicodedata.category(letter) == "Cc" for letter in name):
        return "the name contains a control character"
    if not name or _SEPARATORS.match(name) or _DRIVE.match(name):
        return "the name is not relative to a folder"
    if ".." in _SEPARATORS.split(name):
        return "the name leads out of its folder by '..'"
    return None


def check_name(name: str, where: object) -> str:
    """Return a name that may become a path; `where` it was read is told with the others.

    Raises:
        InputError: see `name_fault`.
    """
    fault = name_fault(name)
    if fault is not None:
        raise InputError(f"{where}: {name!r}: {fault}: rename it")
    return name


def checked_names(names: Iterable[str], where: object) -> Iterator[str]:
    """Yield names that `check_name` lets pass."""
    return (check_name(name, where) for name in names)
