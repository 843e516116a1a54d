"""What runs return, as Python and notebooks show it."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from sfm_matchers.files.pair_lists import Pair
from sfm_matchers.localization.poses import LocalizedQuery, Status, count_by_status
from sfm_matchers.reports.localization import draw_localized
from sfm_matchers.reports.pictures import jpeg_url, read_picture, resize_to_height
from sfm_matchers.runs.verdict import Level, Verdict
from sfm_matchers.runs.workspace import Workspace

COLORS: dict[Level, str] = {"good": "#2e7d32", "fair": "#b26a00", "poor": "#b3261e"}
IMAGE_DIR = "names of photos are relative to"  # among the files of a localization
PICTURE_HEIGHT = 360  # pixels: notebooks stay small
_TILE = "display:inline-block;margin:0 1.5em .6em 0;vertical-align:top"


@dataclass(repr=False)
class MatchResult:
    """Matches of a folder of photos.

    Attributes:
        pairs: that were matched.
        features: feature file (HDF5), as hloc has it.
        matches: match file (HDF5), as hloc has it.
        pair_list: the pairs as text, two names a line.
    """

    pairs: list[Pair]
    features: Path
    matches: Path
    pair_list: Path

    def __repr__(self) -> str:
        """Return the number of pairs, and where they are."""
        return f"MatchResult({len(self.pairs)} pairs, {str(self.matches)!r})"


@dataclass(repr=False)
class SfmResult:
    """What came out.

    Attributes:
        models: COLMAP models, the largest first; empty if there is none.
        summary: what the command line prints, by line.
        report: the HTML report.
    """

    models: list[pycolmap.Reconstruction]
    summary: dict[str, Any]
    report: Path

    @property
    def model(self) -> pycolmap.Reconstruction | None:
        """The largest model; None if there is none."""
        return self.models[0] if self.models else None

    @property
    def verdict(self) -> Verdict:
        """How good it is, and what to try next."""
        return Verdict(self.summary["verdict_level"], self.summary["verdict"])

    def __repr__(self) -> str:
        """Return the verdict, and where the report is."""
        return f"SfmResult({self.summary['verdict']}; {self.report})"

    def _repr_html_(self) -> str:
        names = ("registered images", "points", "mean track length", "mean reprojection error")
        tiles = {name: self.summary[name] for name in names if name in self.summary}
        path = Workspace(self.report.parent).model_picture
        picture = read_picture(path) if path.is_file() else None
        return _page(self.verdict, tiles, picture)


@dataclass(repr=False)
class LocalizeResult:
    """What came out.

    Attributes:
        queries: all of them.
        model: the map with those that have a pose.
        files: what it is -> where it is.
        seconds: of the steps.
        verdict: how good it is, and what to try next.
        earth: (3, 3) east, north and up, a row each, in the map's world; None: unknown.
    """

    queries: list[LocalizedQuery]
    model: pycolmap.Reconstruction
    files: dict[str, Path]
    seconds: dict[str, float]
    verdict: Verdict
    earth: np.ndarray | None = None

    def __repr__(self) -> str:
        """Return the verdict, and where the report is."""
        return f"LocalizeResult({self.verdict.text}; {self.files['report']})"

    def _repr_html_(self) -> str:
        found = [query for query in self.queries if query.status is Status.LOCALIZED]
        counts = count_by_status(self.queries)
        tiles = {status: str(number) for status, number in counts.items() if number}
        tiles |= {Status.LOCALIZED.value: f"{len(found)} of {len(self.queries)}"}
        picture = None
        if found:
            inliers = np.median([query.num_inliers for query in found])
            tiles["inliers of a localized photo (median)"] = f"{inliers:,.0f}"
            names = {query.name for query in found}
            picture = draw_localized(self.model, names, self.files[IMAGE_DIR], self.earth)
        return _page(self.verdict, tiles, picture)


@dataclass
class BenchmarkResult:
    """What came out of a benchmark of localization.

    Attributes:
        queries: all of them, without matches.
        files: what it is -> where it is.
        seconds: of the steps.
        verdict: how good it is, and what to try next.
    """

    queries: list[LocalizedQuery]
    files: dict[str, Path]
    seconds: dict[str, float]
    verdict: Verdict


def _page(verdict: Verdict, tiles: Mapping[str, Any], picture: np.ndarray | None) -> str:
    """A verdict, numbers and a picture (H, W, 3), as HTML without scripts."""
    parts = [
        f'<p style="border-left:.4em solid {COLORS[verdict.level]};padding:.3em .8em">'
        f"{html.escape(verdict.text)}</p>"
    ]
    parts += [
        f'<div style="{_TILE}"><b>{html.escape(str(value))}</b><br>{html.escape(name)}</div>'
        for name, value in tiles.items()
    ]
    if picture is not None:
        url = jpeg_url(resize_to_height(picture, PICTURE_HEIGHT)[0])
        parts.append(f'<p><img alt="the model" style="max-width:100%" src="{url}"></p>')
    return "".join(parts)
