"""MambaGlue, JamMa and Efficient LoFTR for COLMAP and hloc.

Example:
    >>> from sfm_matchers import load_matcher, plot_matches, reconstruct
    >>> matches = load_matcher("jamma").match("a.jpg", "b.jpg")  # doctest: +SKIP
    >>> plot_matches("a.jpg", "b.jpg", matches, "matches.png")  # doctest: +SKIP
    >>> reconstruct("photos", "out", matcher="jamma")  # doctest: +SKIP
    SfmResult(all 12 photos are in the model, with a mean error of 0.41 px; out/report.html)

Import this package (or OpenCV) before pycolmap: see the first import.
"""

from __future__ import annotations

import importlib

# pycolmap's wheel exports a zlib of its own. Where no zlib is loaded before it, OpenCV and Pillow
# end up with half of each, and crash or hang on the first PNG.
import zlib  # noqa: F401
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sfm_matchers.errors import SfmMatchersError
    from sfm_matchers.localization.localizer import Localizer
    from sfm_matchers.matchers.listing import MatcherInfo, list_matchers
    from sfm_matchers.matchers.photo_matchers import load_matcher
    from sfm_matchers.matchers.protocols import Matches
    from sfm_matchers.reports.drawing import plot_matches
    from sfm_matchers.runs.localize import localize
    from sfm_matchers.runs.match import extract, match
    from sfm_matchers.runs.options import LocalizeOptions, MatchOptions, SfmOptions
    from sfm_matchers.runs.reconstruct import reconstruct
    from sfm_matchers.runs.results import LocalizeResult, MatchResult, SfmResult

__version__ = "0.1.0"
__all__ = [
    "LocalizeOptions",
    "LocalizeResult",
    "Localizer",
    "MatchOptions",
    "MatchResult",
    "MatcherInfo",
    "Matches",
    "SfmMatchersError",
    "SfmOptions",
    "SfmResult",
    "__version__",
    "extract",
    "list_matchers",
    "load_matcher",
    "localize",
    "match",
    "plot_matches",
    "reconstruct",
]

# Public name -> module, and its name there.
_HOMES = {
    "LocalizeOptions": ("runs.options", "LocalizeOptions"),
    "LocalizeResult": ("runs.results", "LocalizeResult"),
    "Localizer": ("localization.localizer", "Localizer"),
    "MatchOptions": ("runs.options", "MatchOptions"),
    "MatchResult": ("runs.results", "MatchResult"),
    "MatcherInfo": ("matchers.listing", "MatcherInfo"),
    "Matches": ("matchers.protocols", "Matches"),
    "SfmMatchersError": ("errors", "SfmMatchersError"),
    "SfmOptions": ("runs.options", "SfmOptions"),
    "SfmResult": ("runs.results", "SfmResult"),
    "extract": ("runs.match", "extract"),
    "list_matchers": ("matchers.listing", "list_matchers"),
    "load_matcher": ("matchers.photo_matchers", "load_matcher"),
    "localize": ("runs.localize", "localize"),
    "match": ("runs.match", "match"),
    "plot_matches": ("reports.drawing", "plot_matches"),
    "reconstruct": ("runs.reconstruct", "reconstruct"),
}


def __getattr__(name: str) -> Any:
    """Import the public names on first use: torch alone takes a second."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, own_name = _HOMES[name]
    found = getattr(importlib.import_module(f".{module}", __name__), own_name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Return the public names, before they are imported too."""
    return sorted(__all__)
