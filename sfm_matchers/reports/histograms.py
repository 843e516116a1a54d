"""Histograms as SVG, which need no script."""

from __future__ import annotations

import html
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pycolmap

from sfm_matchers.reports.model_in_3d import track_lengths

WIDTH, HEIGHT, BELOW, ABOVE = 420, 150, 34, 18  # units of the drawing
NUM_BINS = 24
MAX_TRACK_LENGTH = 24  # a bar of its own; longer ones share the last


def histograms_html(model: pycolmap.Reconstruction | None, errors: Mapping[str, np.ndarray]) -> str:
    """Return histograms of a model's reprojection errors and track lengths.

    Args:
        model: or None.
        errors: of its observations in pixels, by photo.
    """
    if model is None or not model.num_points3D():
        return "<p>There is no model to measure.</p>"
    own = np.concatenate([np.zeros(0), *errors.values()])
    return _errors(own) + _track_lengths(track_lengths(model.points3D.values()))


def _errors(errors: np.ndarray) -> str:
    if not len(errors):
        return ""
    end = _round_up(max(float(np.percentile(errors, 99)), 1e-3))
    edges = np.linspace(0, end, NUM_BINS + 1)
    counts = np.histogram(np.minimum(errors, end), edges)[0]
    labels = [f"{a:.3g} to {b:.3g} px" for a, b in itertools.pairwise(edges)]
    labels[-1] = f"{edges[-2]:.3g} px and more"
    ticks = [(share, f"{share * end:.3g}") for share in (0, 0.25, 0.5, 0.75)]
    ticks.append((1.0, f"{end:.3g} px"))
    note = (
        f"Half of the observations lie within {np.median(errors):.3g} px, "
        f"nine of ten within {np.percentile(errors, 90):.3g} px."
    )
    return _figure("Reprojection errors", note, counts, labels, ticks, "observations")


def _track_lengths(lengths: np.ndarray) -> str:
    last = int(min(max(lengths.max(), 2), MAX_TRACK_LENGTH))
    clipped = np.clip(lengths, 2, last)
    counts = np.bincount(clipped, minlength=last + 1)[2:]
    more = lengths.max() > last
    labels = [f"{length} photos" for length in range(2, last + 1)]
    labels[-1] += " and more" if more else ""
    step = 1 if last <= 12 else 2 if last <= 18 else 4
    named = [*range(2, last - step // 2, step), last]
    ticks = [
        ((length - 1.5) / (last - 1), f"{length}{'+' if more and length == last else ''}")
        for length in named
    ]
    share = 100 * float((lengths >= 3).mean())
    note = (
        f"{share:.0f} % of the points are seen in three photos or more, the one with the longest "
        f"track in {lengths.max():,}."
    )
    return _figure("Track lengths", note, counts, labels, ticks, "points")


def _round_up(value: float) -> float:
    """Return the next of 1, 1.5, 2, 3, 4, 5, 6, 8, 10 times a power of ten."""
    power = 10 ** np.floor(np.log10(value))
    steps = np.array([1, 1.5, 2, 3, 4, 5, 6, 8, 10])
    return float(power * steps[np.searchsorted(steps, value / power - 1e-9)])


def _figure(
    title: str,
    note: str,
    counts: np.ndarray,
    labels: Sequence[str],
    ticks: Sequence[tuple[float, str]],
    noun: str,
) -> str:
    """Draw counts as bars.

    Args:
        title: above the bars.
        note: below them.
        counts: of the bars.
        labels: of each, shown where one points at it.
        ticks: below the bars: place as a share of the width, text.
        noun: of what is counted.
    """
    room = HEIGHT - BELOW - ABOVE
    step, most = WIDTH / len(counts), max(int(counts.max()), 1)
    bars = []
    for index, (number, label) in enumerate(zip(counts.tolist(), labels, strict=True)):
        high = room * number / most
        place = f'x="{index * step + 0.5:.2f}" width="{step - 1:.2f}"'
        text = html.escape(f"{label}: {number:,} {noun}")
        bars.append(
            f'<g><rect class="hit" {place} y="{ABOVE}" height="{room}"/>'
            f'<rect {place} y="{ABOVE + room - high:.2f}" height="{high:.2f}"/>'
            f"<title>{text}</title></g>"
        )
    axis = []
    for share, text in ticks:
        at_end = share > 0.97  # a text around it would be cut
        share, anchor = (1, "end") if at_end else (share, "start" if share == 0 else "middle")
        axis.append(
            f'<text x="{share * WIDTH:.1f}" y="{HEIGHT - BELOW + 16}" text-anchor="{anchor}">'
            f"{html.escape(text)}</text>"
        )
    return (
        f"<figure class=histogram><h3>{html.escape(title)}</h3>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">'
        f'<text x="0" y="10">most in a bar: {most:,} {noun}</text>{"".join(bars)}'
        f'<path d="M0 {ABOVE + room}H{WIDTH}"/>{"".join(axis)}</svg>'
        f"<figcaption>{html.escape(note)}</figcaption></figure>"
    )
