"""The report of a model: cameras and points in 3D, matches, photos."""

from __future__ import annotations

import html
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from sfm_matchers.errors import one_line
from sfm_matchers.files.hdf5 import find_pair, open_h5, read_keypoints, read_matches
from sfm_matchers.files.pair_lists import Pair
from sfm_matchers.files.text import write_text
from sfm_matchers.mapping.diagnosis import MatchGraph, count, read_match_graph
from sfm_matchers.photos.folders import REPORT_PICTURES
from sfm_matchers.reports.drawing import (
    draw_match_graph,
    draw_matches,
    draw_model,
    write_image,
)
from sfm_matchers.reports.model_in_3d import (
    _build_scene,
    _image_statistics,
    _no_scene,
    _Scene,
    _scene_note,
)
from sfm_matchers.reports.page import (
    MAX_LINES,
    Value,
    _fill_template,
    _images_html,
    _pairs_html,
    _script_data,
    _subtitle,
    _summary_html,
    _tiles_html,
    _unregistered_html,
)
from sfm_matchers.reports.pictures import jpeg_url, read_picture, resize_to_height

logger = logging.getLogger(__name__)

MAX_THUMBNAILS = 300
MAX_MATRIX = 256  # rows of the match graph; more photos are drawn in blocks
THUMBNAIL_HEIGHT = 72  # pixels
PAIR_HEIGHT = 640  # pixels of either photo of a drawn pair


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
            key, ``seconds`` one of bars. All other values stand together in one table.
        faults: what is wrong with photos that have no keypoints, from `diagnosis.poor_photos`.

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

    def write() -> None:
        images = _image_statistics(graph, model)
        scene = attempted("the model", partial(_build_scene, model, graph), _no_scene())
        drawn_pairs = _draw_pairs(graph, image_dir, feature_path, match_path)
        matrix, block = _match_matrix(graph)
        _write_pictures(output_dir, graph.names[::block], matrix[0], scene, model, drawn_pairs)
        parts = {
            "subtitle": html.escape(_subtitle(images, model)),
            "tiles": _tiles_html(graph, images, model),
            "summary": _summary_html(summary),
            "scene_note": html.escape(_scene_note(scene, model)),
            "unregistered": _unregistered_html(graph, images, faults),
            "pairs": _pairs_html(drawn_pairs),
            "images": _images_html(images, _read_thumbnails(image_dir, graph.names)),
            "data": _script_data(graph.names, scene, matrix, block),
        }
        write_text(path, _fill_template(parts))

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
