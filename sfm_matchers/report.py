"""The report of a reconstruction: one HTML file that needs nothing else, and four pictures.

`write_report` reads what the steps before it left on disk (database, features, matches) and the
model, and says what became of every photo and every pair. The page is made from
``report_template.html``; the 3D view in it is drawn by the page's own script.
"""

from __future__ import annotations

import base64
import html
import importlib.resources
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import pycolmap

from sfm_matchers.diagnosis import MatchGraph, count, likely_reason, read_match_graph
from sfm_matchers.errors import InputError, one_line
from sfm_matchers.images import REPORT_PICTURES, read_image
from sfm_matchers.mapping import point_positions, reprojection_errors
from sfm_matchers.storage import Pair, find_pair, open_h5, read_keypoints, read_matches, write_text
from sfm_matchers.visualization import (
    count_palette,
    draw_match_graph,
    draw_matches,
    draw_model,
    encode_image,
    robust_bounds,
    write_image,
)

logger = logging.getLogger(__name__)

MAX_POINTS = 60_000  # points in the 3D view
MAX_THUMBNAILS = 300
MAX_MATRIX = 256  # rows of the match graph; more photos are drawn in blocks
THUMBNAIL_HEIGHT = 72  # pixels
PAIR_HEIGHT = 640  # pixels of either photo of a drawn pair
MAX_LINES = 200  # matches in a drawn pair
MAX_ASPECT = 6  # of a picture of a photo; wider ones are drawn less high

Value = TypeVar("Value")


def write_report(
    output_dir: Path,
    model: pycolmap.Reconstruction | None,
    image_dir: Path,
    pairs: Sequence[Pair],
    feature_path: Path,
    match_path: Path,
    database_path: Path,
    summary: Mapping[str, Any],
    faults: Mapping[str, str] | None = None,
) -> Path:
    """Write ``report.html`` and its pictures into a folder, replacing older ones.

    The pictures are ``model.png`` (with a model), ``match_graph.png``, ``strongest_pair.png`` and
    ``weakest_pair.png`` (with verified pairs).

    Args:
        output_dir: where to write; it is created.
        model: the reconstruction, or None if none came about: the report then says why.
        image_dir: the photos; one that cannot be read is left without picture.
        pairs: the pairs that were to be matched.
        feature_path: feature file (HDF5) with the keypoints the database was filled with.
        match_path: match file (HDF5), read for the confidence of the matches that are drawn.
        database_path: COLMAP database with the verified matches.
        summary: what else to show. A value that is itself a mapping becomes a table named by its
            key, such as ``{"settings": {"matcher": "jamma"}}``; the table ``seconds`` is drawn as
            bars. All other values stand together in one table.
        faults: what is wrong with photos that have no keypoints, from `diagnosis.poor_photos`.

    Returns:
        The path of ``report.html``.

    Raises:
        InputError: there is no database.
    """
    output_dir = Path(output_dir)
    path = output_dir / "report.html"
    graph = read_match_graph(Path(database_path), pairs, model)
    # Nothing of an older run stays where a part fails.
    for old in (path, *(output_dir / name for name in REPORT_PICTURES)):
        old.unlink(missing_ok=True)

    def write() -> None:
        images = _image_statistics(graph, model)
        scene = attempted("the model", partial(_build_scene, model, graph), _no_scene())
        drawn_pairs = _draw_pairs(graph, Path(image_dir), Path(feature_path), Path(match_path))
        matrix, block = _match_matrix(graph)
        _write_pictures(output_dir, graph.names[::block], matrix[0], scene, model, drawn_pairs)
        page = _fill_template(
            {
                "subtitle": html.escape(_subtitle(images, model)),
                "tiles": _tiles_html(graph, images, model),
                "summary": _summary_html(summary),
                "scene_note": html.escape(_scene_note(scene, model)),
                "unregistered": _unregistered_html(graph, images, faults),
                "pairs": _pairs_html(drawn_pairs),
                "images": _images_html(images, _read_thumbnails(Path(image_dir), graph.names)),
                "data": _script_data(graph.names, scene, matrix, block),
            }
        )
        write_text(path, page)

    attempted("all but the summary", write, None)
    return path


def attempted(part: str, make: Callable[[], Value], otherwise: Value) -> Value:
    """Return a part of a report; if it cannot be made, say so and return something else.

    The result of a run must not be lost by what shows it.
    """
    try:
        return make()
    except Exception as error:  # whatever it is
        logger.warning("the report goes without %s: %s", part, one_line(error))
        return otherwise


def _write_pictures(
    output_dir: Path,
    names: Sequence[str],
    inliers: np.ndarray,
    scene: _Scene,
    model: pycolmap.Reconstruction | None,
    drawn_pairs: Mapping[str, tuple[str, np.ndarray]],
) -> None:
    def write(name: str) -> None:
        if name == "match_graph.png":
            write_image(output_dir / name, draw_match_graph(inliers, names))
        elif name == "model.png" and model is not None:
            picture = draw_model(scene.points, scene.colors, scene.frusta)
            write_image(output_dir / name, picture)
        elif (label := name.removesuffix("_pair.png")) in drawn_pairs:
            write_image(output_dir / name, drawn_pairs[label][1])

    for name in REPORT_PICTURES:
        attempted(name, partial(write, name), None)


# ---------------------------------------------------------------------------------------------
# What the database and the model know


@dataclass(frozen=True)
class _ImageRow:
    name: str
    registered: bool
    num_keypoints: int
    num_observations: int  # keypoints that see a 3D point
    mean_error: float  # pixels; NaN without observations


@dataclass(frozen=True)
class _Scene:
    """The model for drawing: z up, y away from the viewer, most of it within 1 of the origin."""

    points: np.ndarray  # (N, 3)
    colors: np.ndarray  # (N, 3) uint8 RGB
    frusta: np.ndarray  # (C, 5, 3): centre and the four image corners of each camera
    camera_images: list[int]  # image of each camera
    num_points_total: int


def _image_statistics(graph: MatchGraph, model: pycolmap.Reconstruction | None) -> list[_ImageRow]:
    errors = {} if model is None else reprojection_errors(model)
    rows = []
    for name, num_keypoints in zip(graph.names, graph.num_keypoints.tolist(), strict=True):
        own = errors.get(name, np.zeros(0))
        mean_error = float(own.mean()) if len(own) else float("nan")
        rows.append(_ImageRow(name, name in errors, num_keypoints, len(own), mean_error))
    return rows


# ---------------------------------------------------------------------------------------------
# The model for drawing


def _no_scene() -> _Scene:
    none = np.zeros((0, 3))
    return _Scene(none, none.astype(np.uint8), np.zeros((0, 5, 3)), [], 0)


def _build_scene(model: pycolmap.Reconstruction | None, graph: MatchGraph) -> _Scene:
    if model is None:
        return _no_scene()
    point_ids = sorted(model.points3D)
    kept = np.linspace(0, len(point_ids) - 1, min(len(point_ids), MAX_POINTS)).astype(np.int64)
    chosen = [point_ids[index] for index in kept.tolist()]
    points = point_positions(model, chosen)
    colors = np.array([model.points3D[i].color for i in chosen], dtype=np.uint8).reshape(-1, 3)

    row_of = {name: row for row, name in enumerate(graph.names)}
    images = [model.images[image_id] for image_id in sorted(model.reg_image_ids())]
    world_from_cam = np.array([image.cam_from_world().inverse().matrix() for image in images])
    world_from_cam = world_from_cam.reshape(-1, 3, 4)
    rotations, centers = world_from_cam[:, :, :3], world_from_cam[:, :, 3]

    upright = _upright_rotation(points, rotations, centers)
    low, high = robust_bounds(points @ upright.T, centers @ upright.T)
    middle, radius = (low + high) / 2, max(float(np.linalg.norm(high - low)) / 2, 1e-12)
    frusta = _frusta(model, images) * 0.25 * radius / np.sqrt(max(len(images), 9))
    frusta = np.einsum("cij,ckj->cki", rotations, frusta) + centers[:, None]
    return _Scene(
        points=(points @ upright.T - middle) / radius,
        colors=colors,
        frusta=(frusta @ upright.T - middle) / radius,
        camera_images=[row_of[image.name] for image in images],
        num_points_total=len(point_ids),
    )


def _frusta(model: pycolmap.Reconstruction, images: Sequence[pycolmap.Image]) -> np.ndarray:
    """Return centre and image corners (C, 5, 3) in the camera frame, at depth 1."""
    frusta = np.zeros((len(images), 5, 3))
    for frustum, image in zip(frusta, images, strict=True):
        camera = model.cameras[image.camera_id]
        # Wide fisheye and spherical cameras have no such pyramid: theirs is drawn at 90 degrees.
        focal = max(camera.mean_focal_length(), max(camera.width, camera.height) / 2)
        x, y = camera.width / 2 / focal, camera.height / 2 / focal
        frustum[1:] = [(-x, -y, 1), (x, -y, 1), (x, y, 1), (-x, y, 1)]
    return frusta


def _upright_rotation(points: np.ndarray, rotations: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Return the rotation (3, 3) from the model's arbitrary world to z up, y away from the viewer.

    Gravity is unknown. Photographers hold the camera upright, so up is the mean of the cameras'
    up axes where these agree; otherwise (photos straight down from the air) it is the direction in
    which the points spread least, towards the cameras. The viewer looks along the mean viewing
    direction where one exists, otherwise across the widest spread of the points.

    Args:
        points: (N, 3).
        rotations: (C, 3, 3) from camera to world.
        centers: (C, 3).
    """
    positions = points if len(points) >= 3 else np.concatenate([points, centers])
    if len(positions) == 0:
        return np.eye(3)
    offsets = positions - np.median(positions, axis=0)
    distance = np.linalg.norm(offsets, axis=1)
    offsets = offsets[distance <= np.percentile(distance, 90)]
    _, axes = np.linalg.eigh(offsets.T @ offsets)  # columns, least spread first

    up = -rotations[:, :, 1].mean(axis=0) if len(rotations) else np.zeros(3)
    if np.linalg.norm(up) < 0.5:
        side = (centers - np.median(positions, axis=0)).mean(axis=0) if len(centers) else axes[:, 0]
        up = axes[:, 0] if side @ axes[:, 0] >= 0 else -axes[:, 0]
    up = up / np.linalg.norm(up)

    away = _perpendicular(rotations[:, :, 2].mean(axis=0), up) if len(rotations) else np.zeros(3)
    if np.linalg.norm(away) < 0.5:
        away = np.cross(up, _perpendicular(axes[:, 2], up))
    if np.linalg.norm(away) < 1e-6:  # the points spread along the vertical only
        away = _perpendicular(axes[:, 1], up)
    away = away / np.linalg.norm(away)
    return np.stack([np.cross(away, up), away, up])


def _perpendicular(vector: np.ndarray, axis: np.ndarray) -> np.ndarray:
    return vector - (vector @ axis) * axis


def _scene_note(scene: _Scene, model: pycolmap.Reconstruction | None) -> str:
    if model is None:
        return "No model was built, so there is nothing to show in 3D."
    shown, total = len(scene.points), scene.num_points_total
    share = f"{shown:,} points" if shown == total else f"{shown:,} of {total:,} points"
    return f"{share}, {count(len(scene.frusta), 'camera')}. Up is estimated."


# ---------------------------------------------------------------------------------------------
# Match graph


def _match_matrix(graph: MatchGraph) -> tuple[np.ndarray, int]:
    """Return the match graph as a symmetric matrix of at most MAX_MATRIX rows.

    Returns:
        (2, M, M) int: verified matches and matches before verification, -1 for pairs that were
        never matched; and the number of consecutive images in each row. Of the pairs that share a
        cell the largest count is kept.
    """
    block = max(1, -(-len(graph.names) // MAX_MATRIX))
    rows = -(-len(graph.names) // block)
    matrix = np.full((2, rows, rows), -1, dtype=np.int64)
    cells = graph.edges // block
    for layer, counts in zip(matrix, (graph.verified, graph.matches), strict=True):
        np.maximum.at(layer, (cells[:, 0], cells[:, 1]), counts)
        np.maximum(layer, layer.T, out=layer)
    return matrix, block


def _draw_pairs(
    graph: MatchGraph, image_dir: Path, feature_path: Path, match_path: Path
) -> dict[str, tuple[str, np.ndarray]]:
    """Draw the pair with the most and the one with the fewest verified matches.

    Returns:
        ``strongest`` and ``weakest`` -> (caption, picture); without verified pairs nothing, with
        one of them only the strongest.
    """
    ranked = np.flatnonzero(graph.verified > 0)
    ranked = ranked[np.argsort(graph.verified[ranked], kind="stable")]
    chosen = {"strongest": ranked[-1:], "weakest": ranked[:1] if len(ranked) > 1 else ranked[:0]}
    drawn = {}
    for label, edges in chosen.items():
        for edge in edges.tolist():
            name0, name1 = (graph.names[row] for row in graph.edges[edge])
            draw = partial(_draw_pair, graph, name0, name1, image_dir, feature_path, match_path)
            picture = attempted(f"the {label} pair", draw, None)
            if picture is not None:
                matches = count(int(graph.verified[edge]), "verified match", "verified matches")
                drawn[label] = (
                    f"{label.capitalize()} pair: {name0} and {name1}, {matches}",
                    picture,
                )
    return drawn


def _draw_pair(
    graph: MatchGraph,
    name0: str,
    name1: str,
    image_dir: Path,
    feature_path: Path,
    match_path: Path,
) -> np.ndarray | None:
    """Draw the verified matches of a pair; None if a photo cannot be read."""
    photo0, photo1 = read_picture(image_dir / name0), read_picture(image_dir / name1)
    if photo0 is None or photo1 is None:
        return None
    with pycolmap.Database.open(str(graph.database_path)) as database:
        geometry = database.read_two_view_geometry(graph.image_ids[name0], graph.image_ids[name1])
    inliers = geometry.inlier_matches.astype(np.int64)
    with open_h5(feature_path) as features:
        keypoints0 = read_keypoints(features, name0)[inliers[:, 0]]
        keypoints1 = read_keypoints(features, name1)[inliers[:, 1]]
    scores = _inlier_scores(match_path, name0, name1, inliers)
    (small0, scale0), (small1, scale1) = (
        resize_to_height(photo, PAIR_HEIGHT) for photo in (photo0, photo1)
    )
    keypoints0 = (keypoints0 + 0.5) * scale0 - 0.5
    keypoints1 = (keypoints1 + 0.5) * scale1 - 0.5
    return draw_matches(small0, small1, keypoints0, keypoints1, scores, MAX_LINES)


def _inlier_scores(
    match_path: Path, name0: str, name1: str, inliers: np.ndarray
) -> np.ndarray | None:
    """Return the confidence (N,) of verified matches (N, 2); None if the file lacks one of them."""
    with open_h5(match_path) as file:
        if find_pair(file, name0, name1) is None:
            return None
        matches, scores = read_matches(file, name0, name1)
    score_of = dict(zip(map(tuple, matches.tolist()), scores.tolist(), strict=True))
    found = [score_of.get(match) for match in map(tuple, inliers.tolist())]
    return None if None in found else np.array(found)


# ---------------------------------------------------------------------------------------------
# Photos


def read_picture(path: Path, least_side: int | None = None) -> np.ndarray | None:
    """Return a photo (H, W, 3) as `read_image`; None and a warning where it cannot be read."""
    try:
        return read_image(path, least_side=least_side)
    except InputError as error:
        logger.warning("the report goes without a picture: %s", error)
        return None


def resize_to_height(image: np.ndarray, height: int) -> tuple[np.ndarray, float]:
    """Return a photo of that height, less where it is very wide, and the scale."""
    scale = min(height / image.shape[0], MAX_ASPECT * height / image.shape[1])
    size = [max(1, round(side * scale)) for side in (image.shape[1], image.shape[0])]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA), scale


def _read_thumbnails(image_dir: Path, names: Sequence[str]) -> dict[int, str]:
    """Return JPEG data URLs of at most MAX_THUMBNAILS images, spread evenly, by row."""
    rows = np.linspace(0, len(names) - 1, min(len(names), MAX_THUMBNAILS)).astype(int).tolist()

    def read_thumbnail(row: int) -> str | None:
        height = 2 * THUMBNAIL_HEIGHT  # on the page it is half of that: for screens of high density
        photo = read_picture(image_dir / names[row], height)
        return None if photo is None else jpeg_url(resize_to_height(photo, height)[0])

    def try_thumbnail(row: int) -> str | None:
        return attempted(f"a picture of {names[row]}", partial(read_thumbnail, row), None)

    with ThreadPoolExecutor() as executor:
        thumbnails = zip(rows, executor.map(try_thumbnail, rows), strict=True)
        return {row: thumbnail for row, thumbnail in thumbnails if thumbnail is not None}


def jpeg_url(image: np.ndarray) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(encode_image(image, ".jpg")).decode()


# ---------------------------------------------------------------------------------------------
# The page


def _fill_template(parts: Mapping[str, str]) -> str:
    template = importlib.resources.files(__package__).joinpath("report_template.html")
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
