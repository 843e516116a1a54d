"""The parts of the page about a model, as HTML."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pycolmap

from sfm_matchers.mapping.diagnosis import MatchGraph, count, likely_reason
from sfm_matchers.reports.model_in_3d import _ImageRow
from sfm_matchers.reports.page import number, table_html, tiles_html
from sfm_matchers.reports.pictures import jpeg_url

MAX_LINES = 200  # matches in a drawn pair


def subtitle(images: Sequence[_ImageRow], model: pycolmap.Reconstruction | None) -> str:
    """Return how many photos are in the model."""
    if model is None:
        return f"No model could be built from {count(len(images), 'photo')}."
    registered = sum(image.registered for image in images)
    return f"{registered:,} of {count(len(images), 'photo')} registered."


def model_tiles(
    graph: MatchGraph, images: Sequence[_ImageRow], model: pycolmap.Reconstruction | None
) -> str:
    """Return the numbers of a run."""
    registered = sum(image.registered for image in images)
    tiles = {"photos registered": f"{registered:,} <small>of {len(images):,}</small>"}
    if model is not None:
        tiles |= {
            "3D points": f"{model.num_points3D():,}",
            "observations": f"{model.compute_num_observations():,}",
            "mean track length": number(model.compute_mean_track_length(), 2),
            "mean reprojection error": number(
                model.compute_mean_reprojection_error(), 3, " <small>px</small>"
            ),
        }
    verified = int((graph.verified > 0).sum())
    tiles["pairs verified"] = f"{verified:,} <small>of {len(graph.edges):,}</small>"
    return tiles_html(tiles)


def summary_html(summary: Mapping[str, Any]) -> str:
    """Return the tables of a summary, without its verdict."""
    shown = {key: value for key, value in summary.items() if not key.startswith("verdict")}
    tables = {key: value for key, value in shown.items() if isinstance(value, Mapping)}
    loose = {key: value for key, value in shown.items() if key not in tables}
    if loose:
        tables = {"run": loose} | tables
    return "".join(table_html(title, table) for title, table in tables.items() if table)


def unregistered_html(
    graph: MatchGraph, images: Sequence[_ImageRow], faults: Mapping[str, str] | None
) -> str:
    """Return the photos that are not in the model, with the likely reason of each."""
    registered = np.array([image.registered for image in images], dtype=bool)
    missing = np.flatnonzero(~registered).tolist()
    if not missing:
        return "<p>Every photo is registered.</p>"
    lines = [
        f"<tr><td>{html.escape(images[image].name)}</td>"
        f"<td>{html.escape(likely_reason(image, graph, registered, faults))}</td></tr>"
        for image in missing
    ]
    head = "<tr><th>Photo</th><th>Likely reason</th></tr>"
    body = f"<thead>{head}</thead><tbody>{''.join(lines)}</tbody>"
    return f"<div class=scroll><table class=reasons>{body}</table></div>"


def pairs_html(drawn_pairs: Mapping[str, tuple[str, np.ndarray]]) -> str:
    """Return the drawn pairs, each a caption and a picture."""
    if not drawn_pairs:
        return "<p>No pair with verified matches can be shown.</p>"
    note = (
        f"<p>Each line is a verified match, of which at most {MAX_LINES} are drawn; red is low "
        "confidence, blue is high, green is unknown.</p>"
    )
    return note + "".join(
        f'<figure><img src="{jpeg_url(picture)}" alt=""><figcaption>{html.escape(caption)}'
        "</figcaption></figure>"
        for caption, picture in drawn_pairs.values()
    )


def images_html(images: Sequence[_ImageRow], thumbnails: Mapping[int, str]) -> str:
    """Return the rows of the table of photos."""
    lines = []
    for row, image in enumerate(images):
        name = html.escape(image.name)
        thumbnail = f'<img src="{thumbnails[row]}" alt="">' if row in thumbnails else ""
        badge = "<b class=yes>yes</b>" if image.registered else "<b class=no>no</b>"
        lines.append(
            f'<tr data-image="{row}"><td>{thumbnail}</td><td>{name}</td><td>{badge}</td>'
            f"<td>{image.num_keypoints:,}</td><td>{image.num_observations:,}</td>"
            f"<td>{number(image.mean_error, 3)}</td></tr>"
        )
    return "".join(lines)
