"""MambaGlue, JamMa and Efficient LoFTR for COLMAP and hloc.

Example:
    >>> from sfm_matchers import load_matcher, plot_matches
    >>> matches = load_matcher("jamma").match("a.jpg", "b.jpg")  # doctest: +SKIP
    >>> plot_matches("a.jpg", "b.jpg", matches, "matches.png")  # doctest: +SKIP

Import this package (or OpenCV) before pycolmap: see the first import.
"""

from __future__ import annotations

import importlib

# pycolmap's wheel exports a zlib of its own. Where no zlib is loaded before it, OpenCV and Pillow
# end up with half of each, and crash or hang on the first PNG.
import zlib  # noqa: F401
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sfm_matchers.matchers.pair_matcher import load_matcher
    from sfm_matchers.matchers.protocols import Matches
    from sfm_matchers.reports.drawing import plot_matches

__version__ = "0.1.0"
__all__ = ["Matches", "__version__", "load_matcher", "plot_matches"]

_HOMES = {
    "Matches": "matchers.protocols",
    "load_matcher": "matchers.pair_matcher",
    "plot_matches": "reports.drawing",
}


def __getattr__(name: str) -> Any:
    """Import the public names on first use: torch alone takes a second."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
