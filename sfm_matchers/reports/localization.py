"""One HTML page about a localization: what became of each query, and what supports its pose."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from sfm_matchers.files.text import write_text
from sfm_matchers.localization.poses import LocalizedQuery, Status, count_by_status
from sfm_matchers.mapping.diagnosis import count
from sfm_matchers.reports.drawing import CAMERA_COLOR, draw_matches, draw_model
from sfm_matchers.reports.model_in_3d import (
    _no_scene,
    _Scene,
    about_up,
    build_scene,
    placed_frusta,
)
from sfm_matchers.reports.page import (
    attempted,
    base64_of,
    fill_page,
    run_html,
    scene_data,
    script_json,
    still_html,
    tiles_html,
    verdict_html,
)
from sfm_matchers.reports.pictures import (
    in_picture,
    jpeg_url,
    orientation_of,
    read_picture,
    resize_to_height,
)

MAX_PICTURES = 60
MAX_LINES = 150
MAX_MAP_CAMERAS = 1000  # drawn in 3D, evenly spread
FAR = 3.0  # times the extent of the map; the first view does not reach to photos beyond
FIGURE_HEIGHT = 400  # pixels: two photos side by side fill the page
MAP_CAMERA_COLOR = (150, 156, 164)  # in the picture of a notebook
KINDS = [  # of cameras in 3D, with their colours in page.css
    {"label": "map", "color": "--quiet"},
    {"label": Status.LOCALIZED.value, "color": "--good"},
    {"label": Status.LOW_CONFIDENCE.value, "color": "--amber"},
]
CLICK_NOTE = (
    "Click a new photo for what supports it; its circle is how far its position may be off "
    "(one standard deviation)."
)


def write_localization_report(
    path: Path,
    image_dir: Path,
    model: pycolmap.Reconstruction,
    results: Sequence[LocalizedQuery],
    summary: Mapping[str, Any] | None = None,
    *,
    has_map_photos: bool = True,
    earth: np.ndarray | None = None,
) -> Path:
    """Write the page, which needs no other file.

    Args:
        path: of the page.
        image_dir: the folder that the names of queries and map photos are relative to.
        model: the map.
        results: of all queries; pictures are drawn for `MAX_PICTURES` of them, evenly spread.
        summary: its ``verdict`` and ``verdict_level`` (good, fair or poor) stand on top.
        has_map_photos: they are there; otherwise queries are not shown beside them.
        earth: axes of a georeferenced map, see `model_in_3d.build_scene`.

    Returns:
        The path.
    """
    path.unlink(missing_ok=True)  # nothing of an older run stays

    def write() -> None:
        orientations = _orientations(model, image_dir) if has_map_photos else {}
        build = partial(build_scene, model, orientations, earth=earth)
        scene = attempted("the map", build, _no_scene())
        page = fill_page(
            "localization.html",
            {
                "subtitle": _subtitle(model, results),
                "verdict": verdict_html(summary or {}),
                "tiles": _tiles(model, results),
                "scene_note": _note(scene, results),
                "click_note": CLICK_NOTE,
                "still": attempted("the still picture", partial(_still, scene, results), ""),
                "without": _without_pose(results),
                "rows": "".join(_row(result) for result in results),
                "figures": _figures(results, image_dir, model) if has_map_photos else "",
                "run": run_html(image_dir),
                "data": script_json(_page_data(scene, results)),
            },
        )
        write_text(path, page)

    attempted("all but the summary", write, None)
    return path


def draw_localized(
    model: pycolmap.Reconstruction,
    queries: Collection[str],
    image_dir: Path,
    earth: np.ndarray | None = None,
) -> np.ndarray:
    """Draw a map with new photos, from the top and obliquely; only these are coloured.

    Args:
        model: both.
        queries: names of the new photos.
        image_dir: the folder that names are relative to; where a photo is there, EXIF tells its way
            up.
        earth: see `write_localization_report`.

    Returns:
        The picture, as of `draw_model`.
    """
    scene = build_scene(model, _orientations(model, image_dir), earth=earth)
    is_new = np.array([name in queries for name in scene.camera_names], dtype=bool)
    colors = np.where(is_new[:, None], CAMERA_COLOR, MAP_CAMERA_COLOR)
    order = np.argsort(is_new, kind="stable")  # new ones on top
    frusta, colors = scene.frusta[order], colors[order]
    return draw_model(scene.points, scene.colors, frusta, camera_colors=colors)


def _orientations(model: pycolmap.Reconstruction, image_dir: Path) -> dict[str, int]:
    """EXIF's orientations of photos, by name."""
    names = [image.name for image in model.images.values()]
    return {name: orientation_of(image_dir / name) for name in names}


def _subtitle(model: pycolmap.Reconstruction, results: Sequence[LocalizedQuery]) -> str:
    counts = ", ".join(f"{number} {status}" for status, number in count_by_status(results).items())
    return (
        f"{count(len(results), 'new photo')}: {counts}. The map has "
        f"{count(model.num_reg_images(), 'photo')} and {count(model.num_points3D(), 'point')}."
    )


def _tiles(model: pycolmap.Reconstruction, results: Sequence[LocalizedQuery]) -> str:
    tiles = {status: f"{number:,}" for status, number in count_by_status(results).items()}
    tiles[Status.LOCALIZED.value] += f" <small>of {len(results):,}</small>"
    inliers = [result.num_inliers for result in results if result.status == Status.LOCALIZED]
    if inliers:
        tiles["inliers of a localized photo (median)"] = f"{np.median(inliers):,.0f}"
    return tiles_html(tiles)


def _note(scene: _Scene, results: Sequence[LocalizedQuery]) -> str:
    drawn = len(_drawn(results))
    num_hidden = len(results) - drawn
    note = f"{count(drawn, 'new photo')} in the map. {about_up(scene)}"
    if num_hidden:
        note += f" {num_hidden:,} without a pose of their own are not drawn."
    if len(scene.camera_names) > MAX_MAP_CAMERAS:
        note += f" Of the map's cameras {MAX_MAP_CAMERAS:,} are drawn."
    return note


def _drawn(results: Sequence[LocalizedQuery]) -> list[LocalizedQuery]:
    """Queries with a pose of their own: not those for which a photo of the map stands in."""
    own = (Status.LOCALIZED, Status.LOW_CONFIDENCE)
    return [
        result for result in results if result.status in own and result.cam_from_world is not None
    ]


def _page_data(scene: _Scene, results: Sequence[LocalizedQuery]) -> dict[str, Any]:
    """Return what the page's scripts draw: cameras of the map, then those of queries."""
    number = len(scene.camera_names)
    kept = np.linspace(0, number - 1, min(number, MAX_MAP_CAMERAS)).astype(int)
    drawn = _drawn(results)
    own, far = _query_frusta(scene, drawn)
    order = np.argsort(far, kind="stable").tolist()  # those in view come first
    drawn, frusta = [drawn[i] for i in order], np.concatenate([scene.frusta[kept], own[order]])
    labels = [kind["label"] for kind in KINDS]
    map_names = [scene.camera_names[index] for index in kept.tolist()]
    row_of = {name: row for row, name in enumerate(scene.camera_names)}
    rows = {id(result): row for row, result in enumerate(results)}
    # Queries come first among the names, so that a figure's row is that of its query.
    shown = scene_data(scene, row_of) | {
        "frusta": base64_of(frusta, "<f4"),
        "names": [result.name for result in results] + map_names,
        "cameras": [*range(len(results), len(results) + len(kept))]
        + [rows[id(result)] for result in drawn],
    }
    return shown | {
        "num_in_view": len(kept) + int((far < FAR).sum()),
        "path": (len(kept) + np.argsort(order)).tolist(),  # as in the list of photos
        "notes": [_outcome(result) for result in results] + ["a photo of the map"] * len(kept),
        "kinds": KINDS,
        "kind_of": [0] * len(kept) + [labels.index(result.status.value) for result in drawn],
        "sigmas": [0.0] * len(kept) + [_sigma(result) / scene.radius for result in drawn],
    }


def _still(scene: _Scene, results: Sequence[LocalizedQuery]) -> str:
    """The map and the photos in it, of which only these are coloured."""
    own, far = _query_frusta(scene, _drawn(results))
    own = own[far < FAR]
    colors = [MAP_CAMERA_COLOR] * len(scene.frusta) + [CAMERA_COLOR] * len(own)
    return still_html(scene, np.concatenate([scene.frusta, own]), np.array(colors))


def _query_frusta(scene: _Scene, drawn: Sequence[LocalizedQuery]) -> tuple[np.ndarray, np.ndarray]:
    """Return the frusta of photos, and how far each is from the middle of the map."""
    poses = [result.cam_from_world for result in drawn]
    world_from_cam = np.array([pose.inverse().matrix() for pose in poses if pose is not None])
    world_from_cam = world_from_cam.reshape(-1, 3, 4)
    size = 0.25 * scene.radius / np.sqrt(max(len(scene.frusta), 9))
    cameras = [result.camera for result in drawn]
    frusta = placed_frusta(cameras, world_from_cam[:, :, :3], world_from_cam[:, :, 3], size)
    shown = scene.shown(frusta)
    return shown, np.linalg.norm(shown[:, 0], axis=1)


def _without_pose(results: Sequence[LocalizedQuery]) -> str:
    missing = [result for result in results if result.status in (Status.FALLBACK, Status.FAILED)]
    if not missing:
        return "<p>Every photo has a pose of its own.</p>"
    rows = "".join(
        f"<tr><td>{html.escape(result.name)}</td>"
        f"<td class={_css_class(result)}>{result.status.value}</td>"
        f"<td>{html.escape(result.reason)}</td></tr>"
        for result in missing
    )
    head = "<tr><th>Photo</th><th>What became of it</th><th>Reason</th></tr>"
    note = "<p>Fallback: none; the log notes that of the most similar photo of the map.</p>"
    table = f"<table class=reasons><thead>{head}</thead><tbody>{rows}</tbody></table>"
    return f"{note}<div class=scroll>{table}</div>"


def _outcome(result: LocalizedQuery) -> str:
    """What became of a query, in one line."""
    reason = f": {result.reason}" if result.reason else ""
    share = f"{result.num_inliers:,} inliers, {100 * result.inlier_ratio:.0f} % of the matches"
    return f"{result.status.value}{reason}; {share}"


def _css_class(result: LocalizedQuery) -> str:
    return result.status.value.replace(" ", "-")


def _row(result: LocalizedQuery) -> str:
    reason = f": {html.escape(result.reason)}" if result.reason else ""
    cells = [
        f"<td>{html.escape(result.name)}",
        f'<td class="{_css_class(result)}">{result.status.value}{reason}',
        f'<td class="number">{result.num_inliers}',
        f'<td class="number">{100 * result.inlier_ratio:.0f}&nbsp;%',
        f'<td class="number">{_uncertainty(result)}',
        f'<td class="number">{_focal_length(result)}',
        f"<td>{html.escape(result.intrinsics)}",
    ]
    return "<tr>" + "".join(cells) + "\n"


def _sigma(result: LocalizedQuery) -> float:
    """Standard deviation of the camera's centre, in the units of the map, for errors of a pixel."""
    if result.covariance is None:
        return 0.0
    return float(np.sqrt(np.trace(result.covariance[3:, 3:])))


def _uncertainty(result: LocalizedQuery) -> str:
    return "" if result.covariance is None else f"{_sigma(result):.3g}"


def _focal_length(result: LocalizedQuery) -> str:
    return f"{result.camera.mean_focal_length():.0f} px" if result.camera.width > 1 else ""


def _figures(
    results: Sequence[LocalizedQuery], image_dir: Path, model: pycolmap.Reconstruction
) -> str:
    drawn = np.linspace(0, len(results) - 1, min(len(results), MAX_PICTURES)).astype(int)
    figures = []
    for row in drawn.tolist():
        draw = partial(_figure, row, results[row], image_dir, model)
        figures.append(attempted(f"a picture of {results[row].name}", draw, ""))
    if not any(figures):
        return ""
    some = f"<p>{len(drawn):,} of {len(results):,} photos, evenly spread.</p>"
    return (
        "<h2>Photos beside what supports them best</h2>"
        f"{some if len(drawn) < len(results) else ''}"
        f'<div class="wide many">{"".join(figures)}</div>'
    )


def _figure(
    row: int, result: LocalizedQuery, image_dir: Path, model: pycolmap.Reconstruction
) -> str:
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
        in_picture(result.keypoints[rows], image_dir / result.name, photo0, scale0),
        in_picture(points1, image_dir / supporter.name, photo1, scale1),
        None,
        MAX_LINES,
    )
    support = f"{len(rows)} of {result.num_inliers} inliers" if len(rows) else "the most similar"
    caption = (
        f"{html.escape(result.name)} ({result.status.value}) and {html.escape(supporter.name)} "
        f"of the map: {support}"
    )
    return (
        f'<figure data-image="{row}"><img src="{jpeg_url(picture)}" alt="">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


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
