"""A picture of a run, drawn with OpenCV."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

PANEL = (260, 640)  # height and width of one plot in pixels
MARGIN = 45
COLOURS = [(40, 40, 40), (200, 90, 20), (30, 110, 220), (60, 160, 40), (160, 40, 160)]


def draw_curves(
    rows: list[dict[str, float]], validation_rows: list[dict[str, float]], path: Path
) -> None:
    """Draw the loss, and all accuracies of training and validation, over the steps."""
    losses = {name: _series(rows, name, smooth=True) for name in ("loss",)}
    accuracies = {
        name: _series(rows, name, smooth=True) for name in _names(rows) if "accuracy" in name
    }
    accuracies |= {
        f"validation {name}": _series(validation_rows, name)
        for name in _names(validation_rows)
        if "accuracy" in name
    }
    picture = np.vstack([_plot(losses), _plot(accuracies)])
    cv2.imwrite(str(path), picture)


def _names(rows: list[dict[str, float]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _series(
    rows: list[dict[str, float]], name: str, *, smooth: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    points = [(row["step"], row[name]) for row in rows if np.isfinite(row.get(name, np.nan))]
    steps, values = np.asarray(points, dtype=np.float64).reshape(-1, 2).T
    window = max(1, len(values) // 50) if smooth else 1
    if len(values) >= window > 1:
        kernel = np.ones(window) / window
        values = np.convolve(values, kernel, mode="valid")
        steps = steps[window - 1 :]
    return steps, values


def _plot(curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    height, width = PANEL
    picture = np.full((height, width, 3), 255, np.uint8)
    curves = {name: curve for name, curve in curves.items() if len(curve[0])}
    if not curves:
        return picture
    last_step = max(max(steps[-1] for steps, _ in curves.values()), 1)
    low = min(0.0, *(values.min() for _, values in curves.values()), 0.0)
    high = max(*(values.max() for _, values in curves.values()), low + 1e-6)
    cv2.rectangle(picture, (MARGIN, 10), (width - 10, height - 25), (180, 180, 180), 1, cv2.LINE_AA)
    for colour, (name, (steps, values)) in zip(COLOURS * 3, curves.items(), strict=False):
        index = list(curves).index(name)
        x = MARGIN + (width - MARGIN - 10) * steps / last_step
        y = height - 25 - (height - 35) * (values - low) / (high - low)
        line = np.stack([x, y], axis=-1).round().astype(np.int32)
        cv2.polylines(picture, [line], False, colour, 1, cv2.LINE_AA)
        _text(picture, f"{name} {values[-1]:.3g}", (MARGIN + 8, 26 + 15 * index), colour)
    _text(picture, f"{high:.3g}", (2, 20), COLOURS[0])
    _text(picture, f"{low:.3g}", (2, height - 25), COLOURS[0])
    _text(picture, f"{last_step:.0f} steps", (width - 110, height - 8), COLOURS[0])
    return picture


def _text(
    picture: np.ndarray, text: str, position: tuple[int, int], colour: tuple[int, int, int]
) -> None:
    cv2.putText(picture, text, position, cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, 1, cv2.LINE_AA)
