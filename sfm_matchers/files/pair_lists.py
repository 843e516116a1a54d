"""Pairs of photos, and the text files that list them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from sfm_matchers.errors import InputError
from sfm_matchers.files.names import check_name, name_fault
from sfm_matchers.files.nearest import nearest_path
from sfm_matchers.files.text import read_text, write_text

Pair = tuple[str, str]


def name_faults(names: Iterable[str]) -> dict[str, str]:
    """Return the names of photos that files of pairs or matches cannot hold, and why."""
    faults: dict[str, str] = {}
    owners: dict[str, str] = {}
    for name in sorted(set(names)):
        owner = owners.setdefault(name.replace("/", "-"), name)
        fault = name_fault(name)
        if fault is not None:
            faults[name] = fault
        elif owner != name:
            faults[name] = (
                f"the name is the same as {owner!r} in a match file, where '/' is written as '-'"
            )
    return faults


def check_pair_file(path: str | Path) -> None:
    """Raise InputError if there is no such file."""
    if not Path(path).is_file():
        raise InputError(f"{path} is not a file of pairs{nearest_path(path)}")


def read_pairs(path: Path, known_names: Iterable[str] | None = None) -> list[Pair]:
    """Read a file with one ``name0 name1`` a line; blank lines and ``#`` comments are skipped.

    Args:
        path: the pairs file.
        known_names: names of the photos. A line that is two of them is that pair, whatever they
            contain. They are needed only for names that contain spaces or begin with ``#``.

    Raises:
        InputError: the file is missing or is not text, or a line is not two names, or is two known
            ones in several ways, or one cannot be that of a photo; the message gives the file and
            the line number.
    """
    known = set(known_names or ())
    pairs = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        words = line.split()
        fitting = _known_pairs(line, known) or _known_pairs(line.strip(), known)
        if not fitting and (not words or words[0].startswith("#")):
            continue
        if not fitting and len(words) == 2:
            fitting = [(words[0], words[1])]
        if len(fitting) != 1:
            raise InputError(
                f"{path}, line {number}: expected two image names, found {line.strip()!r} (names "
                "with spaces must be those of photos, and fit in one way only)"
            )
        for name in fitting[0]:
            check_name(name, f"{path}, line {number}")
        pairs += fitting
    return pairs


def _known_pairs(line: str, known: set[str]) -> list[Pair]:
    """Return all ways to split a line at a space into two known names."""
    splits = [(line[:at], line[at + 1 :]) for at, letter in enumerate(line) if letter == " "]
    return [pair for pair in splits if known.issuperset(pair)]


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """Write one ``name0 name1`` a line, as hloc does.

    Names may contain spaces: `read_pairs` understands them, hloc does not.

    Raises:
        InputError: a name that `read_pairs` would refuse.
    """
    for name in sorted({name for pair in pairs for name in pair}):
        check_name(name, path)
    write_text(path, "\n".join(f"{name0} {name1}" for name0, name1 in pairs))


def names_to_pair(name0: str, name1: str, separator: str = "/") -> str:
    """Return the group of a pair in a match file: ``/`` inside a name becomes ``-``."""
    return separator.join((name0.replace("/", "-"), name1.replace("/", "-")))


def unique_pairs(pairs: Iterable[Pair]) -> list[Pair]:
    """Drop self pairs and repeated pairs, in either direction; the first direction stays.

    Raises:
        InputError: a name that a match file cannot hold beside the others, see `name_faults`.
    """
    kept: dict[frozenset[str], Pair] = {}
    for name0, name1 in pairs:
        if name0 != name1:
            kept.setdefault(frozenset((name0, name1)), (name0, name1))
    faults = name_faults(name for pair in kept.values() for name in pair)
    if faults:
        name, fault = next(iter(faults.items()))
        raise InputError(f"{name!r}: {fault}: rename it")
    return list(kept.values())
