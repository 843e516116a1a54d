"""What both reports have in common: one page without other files, and what it says of a run."""

from __future__ import annotations

import base64
import datetime
import html
import importlib.resources
import json
import logging
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pycolmap

import sfm_matchers
from sfm_matchers.errors import one_line
from sfm_matchers.reports.drawing import count_palette, draw_model
from sfm_matchers.reports.model_in_3d import _Scene
from sfm_matchers.reports.pictures import jpeg_url

logger = logging.getLogger(__name__)

OPTION = re.compile(r"--\w+")  # a line must not end within it
LEVELS = ("good", "fair", "poor")  # of a verdict
STILL_HEIGHT = 600  # pixels of the picture of a model where scripts do not run
MAX_ERROR_SHOWN = 99  # percentile of the points' errors, at which the colours end

Value = TypeVar("Value")


def attempted(part: str, make: Callable[[], Value], otherwise: Value) -> Value:
    """Return a part of a report; if it cannot be made, say so and return something else.

    The result of a run must not be lost by what shows it.
    """
    try:
        return make()
    except Exception as error:  # whatever it is
        logger.warning("the report goes without %s: %s", part, one_line(error))
        return otherwise


def fill_page(page: str, parts: Mapping[str, str]) -> str:
    """Return a page with its style and scripts, and `parts` where it names them.

    Args:
        page: file of this folder, such as ``page.html``. ``{{file:NAME}}`` stands for a file.
        parts: HTML by name, for ``{{name}}``.
    """
    whole = re.sub(r"\{\{file:([\w.]+)\}\}", lambda match: _file(match.group(1)), _file(page))
    # One pass, so that braces inside what is filled in stay as they are.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match.group(1)], whole)


def _file(name: str) -> str:
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def script_json(data: Mapping[str, Any]) -> str:
    """Return what a page's script draws, as JSON that cannot end its script element."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def base64_of(array: np.ndarray, dtype: str) -> str:
    """Return an array's bytes of a type, such as ``<f4``, as text."""
    return base64.b64encode(np.ascontiguousarray(array, dtype=dtype).tobytes()).decode()


def scene_data(scene: _Scene, row_of: Mapping[str, int]) -> dict[str, Any]:
    """Return what the 3D view needs; `row_of` a photo's name."""
    errors = np.maximum(scene.errors, 0)
    limit = float(np.percentile(errors, MAX_ERROR_SHOWN)) if len(errors) else 0.0
    shares = np.minimum(errors / limit, 1) if limit > 0 else np.zeros(len(errors))
    return {
        "points": base64_of(scene.points, "<f4"),
        "colors": base64_of(scene.colors, "u1"),
        "errors": base64_of(np.round(255 * shares), "u1"),
        "error_limit": limit,
        "tracks": base64_of(np.minimum(scene.track_lengths, 255), "u1"),
        "frusta": base64_of(scene.frusta, "<f4"),
        "cameras": [row_of[name] for name in scene.camera_names],
        "world": {
            "upright": scene.upright.ravel().tolist(),
            "middle": scene.middle.tolist(),
            "radius": scene.radius,
        },
        "palette": base64_of(count_palette(), "u1"),
    }


def still_html(scene: _Scene, frusta: np.ndarray, colors: np.ndarray | None = None) -> str:
    """Return a picture of a model, for where scripts do not run; "" where it has no cameras.

    Args:
        scene: the model.
        frusta: of its cameras, as `draw_model` takes them.
        colors: of the cameras.
    """
    if not len(frusta):
        return ""
    picture = draw_model(scene.points, scene.colors, frusta, STILL_HEIGHT, colors)
    return (
        f'<figure class=wide><img src="{jpeg_url(picture)}" alt="The model from the top and '
        'obliquely"></figure>'
    )


def number(value: float, digits: int, unit: str = "") -> str:
    """Return a number as text, a dash where it is none."""
    return f"{value:.{digits}f}{unit}" if np.isfinite(value) else "–"


def tiles_html(tiles: Mapping[str, str]) -> str:
    """Return numbers (HTML) by what they count, as tiles."""
    return "".join(
        f"<div><b>{value}</b><span>{label}</span></div>" for label, value in tiles.items()
    )


def verdict_html(summary: Mapping[str, Any]) -> str:
    """Return the box with the judgement on a run; nothing where the summary has none."""
    verdict = summary.get("verdict")
    if not verdict:
        return ""
    level = summary.get("verdict_level")
    kind = level if level in LEVELS else "fair"
    text = OPTION.sub(r'<span class="option">\g<0></span>', html.escape(str(verdict)))
    return f'<p class="verdict {kind}" role="status">{text}</p>'


def run_html(image_dir: Path) -> str:
    """Return the table of when, how and with what a page was made."""
    versions = [f"sfm_matchers {sfm_matchers.__version__}", f"pycolmap {pycolmap.__version__}"]
    if "torch" in sys.modules:
        versions.append(f"torch {sys.modules['torch'].__version__}")
    versions.append(f"Python {sys.version.split()[0]}")
    now = datetime.datetime.now().astimezone()
    facts = {
        "made": f"{now:%Y-%m-%d %H:%M} {now.tzname() or ''}".strip(),
        "photo folder": str(Path(image_dir).absolute()),
        "command": command_line(sys.orig_argv),
        "versions": ", ".join(versions),
    }
    return table_html("about this run", facts)


def command_line(words: Sequence[str]) -> str:
    """Return how a program was called, without the folder of the interpreter or the script."""
    words = list(words)
    if words:
        words[0] = Path(words[0]).name
    if len(words) > 1 and words[1] == sys.argv[0]:
        words[1] = Path(words[1]).name
        if not words[1].endswith(".py"):  # a command that pip has made
            del words[0]
    return shlex.join(words)


def table_html(title: str, table: Mapping[str, Any]) -> str:
    """Return a table of facts; numbers of the one called ``seconds`` get bars."""
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
