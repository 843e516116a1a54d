"""Progress of long work: a bar on a terminal, a line each half minute in a log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30


class _Lines:
    """A stream on which each state of a bar becomes a line of its own."""

    def write(self, text: str) -> None:
        if line := text.strip():
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress(
    items: Iterable[Any] | None = None,
    *,
    title: str,
    unit: str,
    total: int | None = None,
    stays: bool = True,
) -> tqdm[Any]:
    """Return a bar over some items, or one to update by hand.

    On a terminal it is tqdm's. Elsewhere it is a line each half minute, and nothing where all is
    done before; in notebooks, where the package's log is quiet, and where there is nothing to do,
    it is nothing.

    Args:
        items: what is gone through; None for a bar to update.
        title: what is done to them.
        unit: what one of them is; of "B", bytes, thousands have short names.
        total: their number where it cannot be asked of them.
        stays: leave the finished bar on the terminal.
    """
    is_quiet = not logging.getLogger("sfm_matchers").isEnabledFor(logging.INFO)
    options: dict[str, Any] = {"unit_scale": unit == "B"}
    options["disable"] = is_quiet or total == 0 or "ipykernel" in sys.modules
    if not sys.stderr.isatty():
        options |= {
            "file": _Lines(),
            "delay": SECONDS_BETWEEN_LINES,
            "mininterval": SECONDS_BETWEEN_LINES,
            "maxinterval": SECONDS_BETWEEN_LINES,
            "ascii": True,
        }
    return tqdm(items, desc=title, unit=unit, total=total, leave=stays, **options)
