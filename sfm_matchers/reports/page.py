"""The parts of a report's page, as HTML."""

from __future__ import annotations

import base64
import html
import importlib.resources
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pycolmap

from sfm_matchers.mapping.diagnosis import MatchGraph, count, likely_reason
from sfm_matchers.reports.drawing import (
    count_palette,
)
from sfm_matchers.reports.model_in_3d import _ImageRow, _Scene
from sfm_matchers.reports.pictures import jpeg_url

MAX_LINES = 200  # matches in a drawn pair

Value = TypeVar("Value")


def _fill_template(parts: Mapping[str, str]) -> str:
    template = importlib.resources.files(__package__).joinpath("page.html")
    text = template.read_text(encoding="utf-8")
    # One pass, so that braces inside what is filled in stay as they are.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match.group(1)], text)


def _script_data(names: Sequence[str], scene: _Scene, matrix: np.ndarray, block: int) -> str:
    """Return what the page's script draws, as JSON that cannot end its script element."""
    data = {
        "names": names,
        "points": _base64(scene.points.astype("<f4")),
        "colors": _base64(scene.colors),
        "frusta": _base64(scene.frusta.astype("<f4")),
        "cameras": scene.camera_images,
        "matrix": {
            "verified": _base64(matrix[0].astype("<i4")),
            "matches": _base64(matrix[1].astype("<i4")),
            "rows": len(matrix[0]),
            "block": block,
        },
        "palette": _base64(count_palette()),
    }
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _number(value: float, digits: int, unit: str = "") -> str:
    return f"{value:.{digits}f}{unit}" if np.isfinite(value) else "–"


def _subtitle(images: Sequence[_ImageRow], model: pycolmap.Reconstruction | None) -> str:
    if model is None:
        return f"No model could be built from {count(len(images), 'photo')}."
    registered = sum(image.registered for image in images)
    return f"{registered:,} of {count(len(images), 'photo')} registered."


def _tiles_html(
    graph: MatchGraph, images: Sequence[_ImageRow], model: pycolmap.Reconstruction | None
) -> str:
    registered = sum(image.registered for image in images)
    tiles = {"photos registered": f"{registered:,} <small>of {len(images):,}</small>"}
    if model is not None:
        tiles |= {
            "3D points": f"{model.num_points3D():,}",
            "observations": f"{model.compute_num_observations():,}",
            "mean track length": _number(model.compute_mean_track_length(), 2),
            "mean reprojection error": _number(
                model.compute_mean_reprojection_error(), 3, " <small>px</small>"
            ),
        }
    verified = int((graph.verified > 0).sum())
    tiles["pairs verified"] = f"{verified:,} <small>of {len(graph.edges):,}</small>"
    return "".join(
        f"<div><b>{value}</b><span>{label}</span></div>" for label, value in tiles.items()
    )


def _summary_html(summary: Mapping[str, Any]) -> str:
    tables = {key: value for key, value in summary.items() if isinstance(value, Mapping)}
    loose = {key: value for key, value in summary.items() if key not in tables}
    if loose:
        tables = {"run": loose} | tables
    return "".join(_table_html(title, table) for title, table in tables.items() if table)


def _table_html(title: str, table: Mapping[str, Any]) -> str:
    longest = max(table.values()) if title == "seconds" else None
    lines = []
    for key, value in table.items():
        cell = html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))
        if longest is not None:
            share = 100 * value / longest if longest > 0 else 0
            cell = f'{value:,.1f} <i class="bar" style="width:{share:.1f}%"></i>'
        lines.append(f"<tr><th scope=row>{html.escape(str(key))}</th><td>{cell}</td></tr>")
    caption = html.escape(title[:1].upper() + title[1:])
    return f"<table class=facts><caption>{caption}</caption>{''.join(lines)}</table>"


def _unregistered_html(
    graph: MatchGraph, images: Sequence[_ImageRow], faults: Mapping[str, str] | None
) -> str:
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
    return f"<div class=scroll><table>{body}</table></div>"


def _pairs_html(drawn_pairs: Mapping[str, tuple[str, np.ndarray]]) -> str:
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


def _images_html(images: Sequence[_ImageRow], thumbnails: Mapping[int, str]) -> str:
    lines = []
    for row, image in enumerate(images):
        name = html.escape(image.name)
        thumbnail = f'<img src="{thumbnails[row]}" alt="">' if row in thumbnails else ""
        badge = "<b class=yes>yes</b>" if image.registered else "<b class=no>no</b>"
        lines.append(
            f'<tr data-image="{row}"><td>{thumbnail}</td><td>{name}</td><td>{badge}</td>'
            f"<td>{image.num_keypoints:,}</td><td>{image.num_observations:,}</td>"
            f"<td>{_number(image.mean_error, 3)}</td></tr>"
        )
    return "".join(lines)
