"""The table of a model's cameras: what the run began with, and what it found."""

from __future__ import annotations

import html
import math
from collections import defaultdict
from pathlib import Path

import pycolmap

from sfm_matchers.errors import InputError
from sfm_matchers.mapping.diagnosis import MatchGraph
from sfm_matchers.photos.cameras import FILM_DIAGONAL, exif_pixel_size

MAX_CAMERAS = 400  # rows
_SHAPE = ("f", "fx", "fy", "cx", "cy", "w", "h")  # parameters that are no distortion
_HEAD = (
    "Camera",
    "Photos",
    "Size (px)",
    "Model",
    "Focal length (px)",
    "Began with (px)",
    "Focal length (mm)",
    "as on 35 mm film",
    "Principal point off the middle (px)",
    "Distortion",
)


def cameras_html(model: pycolmap.Reconstruction | None, graph: MatchGraph, image_dir: Path) -> str:
    """Return the table of the cameras of a model's photos; those with most photos come first."""
    if model is None:
        return "<p>Without a model nothing is known of the cameras.</p>"
    images = defaultdict(list)
    for image_id in model.reg_image_ids():
        images[model.images[image_id].camera_id].append(model.images[image_id].name)
    priors = starting_cameras(graph)
    ranked = sorted(images, key=lambda camera_id: (-len(images[camera_id]), camera_id))
    lines = []
    for camera_id in ranked[:MAX_CAMERAS]:
        names = sorted(images[camera_id])
        cells = _cells(model.cameras[camera_id], names, priors.get(names[0]), image_dir)
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{text}</th>" for text in _HEAD)
    table = f"<table id=cameras-table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    num_hidden = len(ranked) - len(lines)
    note = f"<p>{num_hidden:,} more cameras are not listed.</p>" if num_hidden else ""
    return f"<div class=scroll>{table}</table></div>{note}"


def starting_cameras(graph: MatchGraph) -> dict[str, pycolmap.Camera]:
    """Return the cameras that mapping began with, by photo."""
    with pycolmap.Database.open(str(graph.database_path)) as database:
        cameras = {camera.camera_id: camera for camera in database.read_all_cameras()}
        images = database.read_all_images()
    return {image.name: cameras[image.camera_id] for image in images}


def _cells(
    camera: pycolmap.Camera, names: list[str], prior: pycolmap.Camera | None, image_dir: Path
) -> list[str]:
    names_of_params = [name.strip() for name in camera.params_info.split(",")]
    values = dict(zip(names_of_params, camera.params.tolist(), strict=True))
    focal = camera.mean_focal_length() if {"f", "fx"} & set(values) else math.nan
    both = "fx" in values and abs(values["fx"] - values["fy"]) >= 0.05
    text = f"{values['fx']:,.1f} × {values['fy']:,.1f}" if both else _number(focal, 1)
    centre = camera.params[list(camera.principal_point_idxs())]  # panoramas have none
    shift = centre - [camera.width / 2, camera.height / 2] if len(centre) else ()
    distortion = [f"{key} {value:+.4g}" for key, value in values.items() if key not in _SHAPE]
    pitch = _pixel_size(image_dir / names[0])
    diagonal = math.hypot(camera.width, camera.height)
    shown = names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"
    return [
        f"{camera.camera_id} <small>{html.escape(shown)}</small>",
        f"{len(names):,}",
        f"{camera.width} × {camera.height}",
        camera.model.name,
        text,
        _prior_text(prior, focal),
        "–" if pitch is None else _number(focal * pitch, 2),
        _number(focal * FILM_DIAGONAL / diagonal, 1, " mm"),
        " ".join(f"{value:+.1f}" for value in shift) or "–",
        html.escape(", ".join(distortion)) or "none",
    ]


def _prior_text(prior: pycolmap.Camera | None, focal: float) -> str:
    if prior is None or not math.isfinite(focal):
        return "–"
    before = prior.mean_focal_length()
    source = "EXIF or given" if prior.has_prior_focal_length else "a guess"
    change = 100 * (focal / before - 1)
    return f"{before:,.1f} <small>{source}, {change:+.1f} %</small>"


def _pixel_size(path: Path) -> float | None:
    try:
        return exif_pixel_size(path)
    except InputError:
        return None


def _number(value: float, digits: int, unit: str = "") -> str:
    return f"{value:,.{digits}f}{unit}" if math.isfinite(value) else "–"
