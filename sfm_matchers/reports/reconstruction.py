"""The report of a model: cameras and points in 3D, matches, photos."""

from __future__ import annotations

import html
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from sfm_matchers.files.hdf5 import open_h5
from sfm_matchers.files.pair_lists import Pair
from sfm_matchers.files.text import write_text
from sfm_matchers.mapping.diagnosis import MatchGraph, count, read_match_graph
from sfm_matchers.photos.folders import REPORT_PICTURES
from sfm_matchers.reports.cameras import cameras_html, starting_cameras
from sfm_matchers.reports.drawing import (
    draw_match_graph,
    draw_matches,
    draw_model,
    write_image,
)
from sfm_matchers.reports.histograms import histograms_html
from sfm_matchers.reports.matches import LinesOfPairs, no_lines, read_lines
from sfm_matchers.reports.model_in_3d import (
    _image_statistics,
    _ImageRow,
    _no_scene,
    _Scene,
    _scene_note,
    build_scene,
    model_errors,
)
from sfm_matchers.reports.page import (
    attempted,
    base64_of,
    fill_page,
    run_html,
    scene_data,
    script_json,
    still_html,
    verdict_html,
)
from sfm_matchers.reports.pictures import (
    in_picture,
    jpeg_url,
    orientation_of,
    read_picture,
    resize_to_height,
)
from sfm_matchers.reports.sections import (
    MAX_LINES,
    images_html,
    model_tiles,
    pairs_html,
    subtitle,
    summary_html,
    unregistered_html,
)

logger = logging.getLogger(__name__)

MAX_THUMBNAILS = 300
MAX_MATRIX = 300  # rows of the match graph; more photos are drawn in blocks
MIN_HEIGHT, MAX_HEIGHT = 144, 480  # pixels of a photo on the page
PICTURE_PIXELS = 10_000_000  # of all of them together: about 3 MB
PAIR_HEIGHT = 640  # pixels of either photo of a drawn pair
CLICK_NOTE = "Click a camera for its photo and the photos that it matches."


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
    earth: np.ndarray | None = None,
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
            key, ``seconds`` one of bars. ``verdict`` and its ``verdict_level`` (good, fair, poor)
            stand on top. All other values stand together in one table.
        faults: what is wrong with photos that have no keypoints, from `diagnosis.poor_photos`.
        earth: axes of a georeferenced model, see `model_in_3d.build_scene`.

    Returns:
        The path of ``report.html``.

    Raises:
        InputError: there is no database.
    """
    path = output_dir / "report.html"
    graph = read_match_graph(database_path, pairs, model)
    # Nothing of an older run stays where a part fails.
    for old in (path, *(output_dir / name for name in REPORT_PICTURES)):
        old.unlink(missing_ok=True)

    files = _Files(image_dir, feature_path, match_path)
    write = partial(_write_page, path, graph, model, files, summary, faults, earth)
    attempted("all but the summary", write, None)
    return path


@dataclass(frozen=True)
class _Files:
    image_dir: Path
    feature_path: Path
    match_path: Path


def _write_page(
    path: Path,
    graph: MatchGraph,
    model: pycolmap.Reconstruction | None,
    files: _Files,
    summary: Mapping[str, Any],
    faults: Mapping[str, str] | None,
    earth: np.ndarray | None,
) -> None:
    """Write the pictures beside the page, and the page."""
    image_dir = files.image_dir
    orientations = {name: orientation_of(image_dir / name) for name in graph.names}
    errors = model_errors(model)
    images = _image_statistics(graph, errors)
    build = partial(build_scene, model, orientations, earth=earth)
    scene = attempted("the model", build, _no_scene())
    drawn_pairs = _draw_pairs(graph, image_dir, files.feature_path, files.match_path)
    matrix, block = _match_matrix(graph)
    _write_pictures(path.parent, graph.names[::block], matrix[0], scene, model, drawn_pairs)
    lines = attempted(
        "matches of pairs",
        lambda: read_lines(graph, files.feature_path, _sizes(graph), orientations),
        no_lines(),
    )
    histograms = partial(histograms_html, model, errors)
    parts = {
        "subtitle": html.escape(subtitle(images, model)),
        "verdict": verdict_html(summary),
        "tiles": model_tiles(graph, images, model),
        "scene_note": html.escape(_scene_note(scene, model)),
        "click_note": CLICK_NOTE,
        "still": attempted("the still picture", partial(still_html, scene, scene.frusta), ""),
        "unregistered": unregistered_html(graph, images, faults),
        "histograms": attempted("the histograms", histograms, ""),
        "cameras": attempted("the cameras", partial(cameras_html, model, graph, image_dir), ""),
        "pairs": pairs_html(drawn_pairs),
        "images": images_html(images, _read_thumbnails(image_dir, graph.names)),
        "summary": summary_html(summary) + run_html(image_dir),
        "data": script_json(_page_data(images, scene, matrix, block, lines)),
    }
    write_text(path, fill_page("page.html", parts))


def _page_data(
    images: Sequence[_ImageRow],
    scene: _Scene,
    matrix: np.ndarray,
    block: int,
    lines: LinesOfPairs,
) -> dict[str, Any]:
    """Return what the page's scripts draw."""
    names = [image.name for image in images]
    row_of = {name: row for row, name in enumerate(names)}
    cameras = [row_of[name] for name in scene.camera_names]
    return scene_data(scene, row_of) | {
        "names": names,
        "observations": [images[row].num_observations for row in cameras],
        "path": np.argsort(cameras, kind="stable").tolist(),  # by name
        "matrix": {
            "verified": base64_of(matrix[0], "<i4"),
            "matches": base64_of(matrix[1], "<i4"),
            "rows": len(matrix[0]),
            "block": block,
        },
        "pairs": {
            "pairs": base64_of(lines.pairs, "<i4"),
            "counts": base64_of(lines.counts, "<i4"),
            "lines": base64_of(lines.lines, "<u2"),
        },
    }


def _sizes(graph: MatchGraph) -> dict[str, tuple[int, int]]:
    cameras = starting_cameras(graph)
    return {name: (camera.width, camera.height) for name, camera in cameras.items()}


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
        keypoints0 = features.keypoints(name0)[inliers[:, 0]]
        keypoints1 = features.keypoints(name1)[inliers[:, 1]]
    scores = _inlier_scores(match_path, name0, name1, inliers)
    (small0, scale0), (small1, scale1) = (
        resize_to_height(photo, PAIR_HEIGHT) for photo in (photo0, photo1)
    )
    keypoints0 = in_picture(keypoints0 + 0.5, image_dir / name0, photo0, scale0)
    keypoints1 = in_picture(keypoints1 + 0.5, image_dir / name1, photo1, scale1)
    return draw_matches(small0, small1, keypoints0, keypoints1, scores, MAX_LINES)


def _inlier_scores(
    match_path: Path, name0: str, name1: str, inliers: np.ndarray
) -> np.ndarray | None:
    """Return the confidence (N,) of verified matches (N, 2); None if the file lacks one of them."""
    with open_h5(match_path) as file:
        if file.find_pair(name0, name1) is None:
            return None
        matches, scores = file.matches(name0, name1)
    score_of = dict(zip(map(tuple, matches.tolist()), scores.tolist(), strict=True))
    found = [score_of.get(match) for match in map(tuple, inliers.tolist())]
    return None if None in found else np.array(found)


def _read_thumbnails(image_dir: Path, names: Sequence[str]) -> dict[int, str]:
    """Return JPEG data URLs of at most MAX_THUMBNAILS images, spread evenly, by row."""
    number = min(len(names), MAX_THUMBNAILS)
    rows = np.linspace(0, len(names) - 1, number).astype(int).tolist()
    usual = np.sqrt(PICTURE_PIXELS / max(number, 1) / 1.5)  # of photos half as wide again as high
    height = int(np.clip(usual, MIN_HEIGHT, MAX_HEIGHT))

    def read_thumbnail(row: int) -> str | None:
        photo = read_picture(image_dir / names[row], height)
        return None if photo is None else jpeg_url(resize_to_height(photo, height)[0])

    def try_thumbnail(row: int) -> str | None:
        return attempted(f"a picture of {names[row]}", partial(read_thumbnail, row), None)

    with ThreadPoolExecutor() as executor:
        thumbnails = zip(rows, executor.map(try_thumbnail, rows), strict=True)
        return {row: thumbnail for row, thumbnail in thumbnails if thumbnail is not None}
