"""One HTML page about a localization: what became of each query, and what supports its pose."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pycolmap

from sfm_matchers.files.text import write_text
from sfm_matchers.localization.poses import LocalizedQuery, Status, count_by_status
from sfm_matchers.reports.drawing import draw_matches
from sfm_matchers.reports.page import attempted
from sfm_matchers.reports.pictures import jpeg_url, read_picture, resize_to_height

MAX_PICTURES = 60
MAX_LINES = 150
FIGURE_HEIGHT = 400  # pixels: two photos side by side fill the page
COLORS = {
    Status.LOCALIZED: "#1a7f37",
    Status.LOW_CONFIDENCE: "#9a6700",
    Status.FALLBACK: "#bc4c00",
    Status.FAILED: "#cf222e",
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; }
table { border-collapse: collapse; } td, th { padding: .2em 1em .2em 0; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 2em 0; } img { max-width: 100%; } figcaption { color: #57606a; }
@media (prefers-color-scheme: dark) { body { background: #0d1117; color: #e6edf3; } }
"""


def write_localization_report(
    path: Path, image_dir: Path, model: pycolmap.Reconstruction, results: Sequence[LocalizedQuery]
) -> Path:
    """Write the page, which needs no other file.

    Args:
        path: of the page.
        image_dir: the folder that the names of queries and map photos are relative to.
        model: the map.
        results: of all queries; pictures are drawn for `MAX_PICTURES` of them, evenly spread.

    Returns:
        The path.
    """
    counts = ", ".join(f"{count} {status}" for status, count in count_by_status(results).items())
    drawn = np.linspace(0, len(results) - 1, min(len(results), MAX_PICTURES)).astype(int)
    figures = [
        attempted(
            f"a picture of {results[index].name}",
            partial(_figure, results[index], image_dir, model),
            "",
        )
        for index in drawn
    ]
    rows = "".join(_row(result) for result in results)
    page = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Localization</title><style>{STYLE}</style>
<h1>Localization of {len(results)} photos</h1>
<p>{counts}. The map has {model.num_reg_images()} photos and {model.num_points3D()} points.</p>
<p>Inliers are matches with points of the map that support the pose; share is theirs of all matches;
position &plusmn; is its standard deviation for errors of a pixel, in the units of the map.</p>
<table><tr><th>photo<th>what became of it<th>inliers<th>share<th>position &plusmn;
<th>focal length<th>intrinsics
{rows}</table>
{"".join(figures)}
</html>
"""
    path.unlink(missing_ok=True)  # nothing of an older run stays
    attempted("all but the summary", partial(write_text, path, page), None)
    return path


def _row(result: LocalizedQuery) -> str:
    reason = f": {html.escape(result.reason)}" if result.reason else ""
    cells = [
        f"<td>{html.escape(result.name)}",
        f'<td style="color: {COLORS[result.status]}">{result.status.value}{reason}',
        f'<td class="number">{result.num_inliers}',
        f'<td class="number">{100 * result.inlier_ratio:.0f} %',
        f'<td class="number">{_uncertainty(result)}',
        f'<td class="number">{_focal_length(result)}',
        f"<td>{html.escape(result.intrinsics)}",
    ]
    return "<tr>" + "".join(cells) + "\n"


def _uncertainty(result: LocalizedQuery) -> str:
    """Standard deviation of the camera's centre, in the units of the map, for errors of a pixel."""
    if result.covariance is None:
        return ""
    return f"{np.sqrt(np.trace(result.covariance[3:, 3:])):.3g}"


def _focal_length(result: LocalizedQuery) -> str:
    return f"{result.camera.mean_focal_length():.0f} px" if result.camera.width > 1 else ""


def _figure(result: LocalizedQuery, image_dir: Path, model: pycolmap.Reconstruction) -> str:
    """The query beside the photo of the map that shares most inliers, or is most similar."""
    supporter = _best_supporter(result, model)
    if supporter is None and result.database_names:
        supporter = model.find_image_with_name(result.database_names[0])
    if supporter is None:
        return ""
    photo0, photo1 = read_picture(image_dir / result.name), read_picture(image_dir / supporter.name)
    if photo0 is None or photo1 is None:
        return ""
    rows, points1 = _shared_points(result, supporter)
    (small0, scale0), (small1, scale1) = (
        resize_to_height(photo, FIGURE_HEIGHT) for photo in (photo0, photo1)
    )
    picture = draw_matches(
        small0,
        small1,
        result.keypoints[rows] * scale0 - 0.5,
        points1 * scale1 - 0.5,
        None,
        MAX_LINES,
    )
    support = f"{len(rows)} of {result.num_inliers} inliers" if len(rows) else "the most similar"
    caption = (
        f"{html.escape(result.name)} ({result.status.value}) and {html.escape(supporter.name)} "
        f"of the map: {support}"
    )
    return f'<figure><img src="{jpeg_url(picture)}" alt=""><figcaption>{caption}</figcaption>'


def _best_supporter(
    result: LocalizedQuery, model: pycolmap.Reconstruction
) -> pycolmap.Image | None:
    counts: Counter[int] = Counter()
    for point_id in result.point_ids[result.inliers] if len(result.point_ids) else ():
        elements = model.points3D[int(point_id)].track.elements
        counts.update({element.image_id for element in elements})
    matched = [
        image_id for image_id in counts if model.images[image_id].name in result.database_names
    ]
    return model.images[max(matched, key=lambda i: (counts[i], -i))] if matched else None


def _shared_points(result: LocalizedQuery, image: pycolmap.Image) -> tuple[np.ndarray, np.ndarray]:
    """Inliers of the query that the photo of the map sees, and where it sees them (N, 2)."""
    seen = {point.point3D_id: point.xy for point in image.get_observation_points2D()}
    rows = [row for row in np.flatnonzero(result.inliers) if int(result.point_ids[row]) in seen]
    points = [seen[int(result.point_ids[row])] for row in rows]
    return np.array(rows, dtype=int), np.array(points, dtype=float).reshape(-1, 2)
