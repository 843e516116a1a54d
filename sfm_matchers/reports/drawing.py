"""Pictures of keypoints, matches, match graphs and models: arrays in, RGB arrays out, OpenCV only.

Nothing here opens a window. `plot_matches` goes from two photos to a picture.
Keypoints are pixels of the image they are drawn on; (0, 0) is the centre of its top-left pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image

from sfm_matchers.errors import InputError
from sfm_matchers.files.text import written_whole
from sfm_matchers.photos.images import read_image

if TYPE_CHECKING:  # matchers.py needs torch, drawing does not
    from sfm_matchers.matchers.protocols import Matches

# Red to blue over yellow, which stays readable for red-green blindness: confidence 0, 1/2, 1.
_CONFIDENCE_COLORS = np.array([[235, 70, 40], [255, 215, 70], [50, 180, 255]], dtype=np.float64)
_PLAIN_COLOR = (70, 220, 120)
_MARGIN_COLOR = (40, 40, 40)
_GAP = 8  # pixels between two images side by side

_PAPER = (252, 252, 250)
_INK = (60, 64, 70)
_NEVER_MATCHED = (238, 238, 236)
_NOT_VERIFIED = (205, 205, 202)
CAMERA_COLOR = (214, 60, 30)

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_SUBPIXEL_BITS = 4  # OpenCV draws at 1/16 pixel
_SUBPIXEL = 1 << _SUBPIXEL_BITS


def draw_keypoints(
    image: np.ndarray, keypoints: np.ndarray, scores: np.ndarray | None = None, radius: float = 2.5
) -> np.ndarray:
    """Draw keypoints as dots on a copy of an image.

    Args:
        image: (H, W) or (H, W, 3) uint8, gray or RGB.
        keypoints: (N, 2) x and y in pixels.
        scores: (N,) in 0..1, drawn from red (0) over yellow to blue (1); None draws all green.
        radius: of a dot, in pixels.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        InputError: an array has another shape or type.
    """
    canvas = _as_rgb(image)
    keypoints = _as_points(keypoints, "keypoints")
    for point, color in zip(keypoints, _colors_of(scores, len(keypoints)), strict=True):
        _draw_dot(canvas, point, color, radius)
    return canvas


def draw_matches(
    image0: np.ndarray,
    image1: np.ndarray,
    keypoints0: np.ndarray,
    keypoints1: np.ndarray,
    scores: np.ndarray | None = None,
    max_matches: int = 300,
) -> np.ndarray:
    """Draw matches as lines between two images side by side; the images may differ in size.

    Args:
        image0: (H0, W0) or (H0, W0, 3) uint8, gray or RGB.
        image1: (H1, W1) or (H1, W1, 3) uint8, gray or RGB.
        keypoints0: (N, 2) x and y in pixels of image 0.
        keypoints1: (N, 2) x and y in pixels of image 1; row i matches row i of `keypoints0`.
        scores: (N,) in 0..1, drawn from red (0) over yellow to blue (1); None draws all green.
        max_matches: of more matches, an evenly spaced subset is drawn: strong and weak alike, so
            that the picture does not flatter.

    Returns:
        (max(H0, H1), W0 + 8 + W1, 3) uint8 RGB.

    Raises:
        InputError: an array has another shape or type, or the two keypoint arrays differ in length.
    """
    image0, image1 = _as_rgb(image0), _as_rgb(image1)
    keypoints0 = _as_points(keypoints0, "keypoints0")
    keypoints1 = _as_points(keypoints1, "keypoints1")
    if len(keypoints0) != len(keypoints1):
        raise InputError(
            f"matches need as many keypoints0 as keypoints1, got {len(keypoints0)} "
            f"and {len(keypoints1)}"
        )
    canvas, offset = _side_by_side(image0, image1)
    colors = _colors_of(scores, len(keypoints0))
    shown = _evenly_spaced(len(keypoints0), max_matches)
    if scores is not None:  # the most confident are drawn last, on top
        shown = shown[np.argsort(np.asarray(scores)[shown], kind="stable")]

    lines = canvas.copy()
    for row in shown:
        start, end = keypoints0[row], keypoints1[row] + (offset, 0)
        _draw_line(lines, start, end, colors[row])
    canvas = cv2.addWeighted(lines, 0.8, canvas, 0.2, 0)
    for row in shown:
        _draw_dot(canvas, keypoints0[row], colors[row], radius=2)
        _draw_dot(canvas, keypoints1[row] + (offset, 0), colors[row], radius=2)
    return canvas


def plot_matches(
    photo0: str | Path | np.ndarray,
    photo1: str | Path | np.ndarray,
    matches: Matches,
    path: str | Path | None = None,
) -> Image.Image:
    """Draw the matches of two photos, as `draw_matches` does.

    Args:
        photo0: a file, or an RGB array.
        photo1: the same.
        matches: of the two.
        path: also write the picture there.

    Returns:
        The picture, which a notebook shows as it is; ``numpy.asarray`` makes an array of it.

    Raises:
        InputError: a photo cannot be read, or the picture cannot be written as `path` names it.
    """
    image0, image1 = (
        photo if isinstance(photo, np.ndarray) else read_image(Path(photo))
        for photo in (photo0, photo1)
    )
    picture = draw_matches(image0, image1, matches.keypoints0, matches.keypoints1, matches.scores)
    if path is not None:
        write_image(Path(path), picture)
    return Image.fromarray(picture)


def write_image(path: Path, image: np.ndarray) -> Path:
    """Write an (H, W, 3) uint8 RGB image in the format its suffix names, and return the path.

    Raises:
        InputError: OpenCV knows no such format, or not with such sizes.
        OutputError: it cannot be written.
    """
    path = Path(path)
    data = encode_image(image, path.suffix)
    with written_whole(path, lasting=False) as temporary:
        temporary.write_bytes(data)
    return path


def encode_image(image: np.ndarray, suffix: str, quality: int = 95) -> bytes:
    """Return an (H, W, 3) uint8 RGB image as the bytes of a file, e.g. of suffix ``.png``.

    JPEG has the `quality`, 0 to 100.

    Raises:
        InputError: OpenCV knows no such format, or not with such sizes.
    """
    # Not cv2.imwrite: it cannot open paths with non-ASCII letters on Windows.
    try:
        options = [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix in (".jpg", ".jpeg") else []
        is_done, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    except cv2.error as error:
        raise InputError(f"cannot write an image as {suffix!r}: use .png or .jpg") from error
    if not is_done:
        raise InputError(f"cannot write an image of the shape {image.shape} as {suffix!r}")
    return data.tobytes()


def _as_rgb(image: np.ndarray) -> np.ndarray:
    """Return a writable (H, W, 3) copy."""
    image = np.asarray(image)
    if image.dtype != np.uint8:
        raise InputError(f"an image to draw on must be uint8 (0..255), got {image.dtype}")
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    if image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"an image to draw on must be (H, W) or (H, W, 3), got {image.shape}")
    return np.ascontiguousarray(image).copy()


def _as_points(points: np.ndarray, name: str) -> np.ndarray:
    points = np.asarray(points, dtype=np.float64)
    if points.size == 0:
        return points.reshape(0, 2)
    if points.ndim != 2 or points.shape[1] != 2:
        raise InputError(f"{name} must be (N, 2), got {points.shape}")
    return points


def _side_by_side(image0: np.ndarray, image1: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the two images next to each other, and the x at which image 1 starts."""
    (height0, width0), (height1, width1) = image0.shape[:2], image1.shape[:2]
    offset = width0 + _GAP
    canvas = np.full((max(height0, height1), offset + width1, 3), _MARGIN_COLOR, dtype=np.uint8)
    canvas[:height0, :width0] = image0
    canvas[:height1, offset:] = image1
    return canvas, offset


def _colors_of(scores: np.ndarray | None, count: int) -> np.ndarray:
    """Return (count, 3) RGB colours of confidences in 0..1."""
    if scores is None:
        return np.tile(np.array(_PLAIN_COLOR, dtype=np.float64), (count, 1))
    scores = np.nan_to_num(np.asarray(scores, dtype=np.float64).reshape(-1))
    if len(scores) != count:
        raise InputError(f"{count} points need as many scores, got {len(scores)}")
    stops = np.linspace(0, 1, len(_CONFIDENCE_COLORS))
    channels = [np.interp(scores, stops, channel) for channel in _CONFIDENCE_COLORS.T]
    return np.stack(channels, axis=1)


def _evenly_spaced(count: int, limit: int) -> np.ndarray:
    """Return at most `limit` of the indices 0..count-1, evenly spaced."""
    if count <= limit:
        return np.arange(count)
    return np.linspace(0, count - 1, limit).astype(np.int64)


def _draw_line(canvas: np.ndarray, start: np.ndarray, end: np.ndarray, color: np.ndarray) -> None:
    cv2.line(canvas, _fixed(start), _fixed(end), _bytes(color), 1, cv2.LINE_AA, _SUBPIXEL_BITS)


def _draw_dot(canvas: np.ndarray, point: np.ndarray, color: np.ndarray, radius: float) -> None:
    fixed_radius = round(radius * _SUBPIXEL)
    center = _fixed(point)
    # A dark rim keeps the dot visible on a background of its own colour.
    rim = fixed_radius + _SUBPIXEL
    cv2.circle(canvas, center, rim, (20, 20, 20), -1, cv2.LINE_AA, _SUBPIXEL_BITS)
    cv2.circle(canvas, center, fixed_radius, _bytes(color), -1, cv2.LINE_AA, _SUBPIXEL_BITS)


def _fixed(point: np.ndarray) -> tuple[int, int]:
    # OpenCV wants 32-bit integers; what lies far outside the image is clipped by it anyway.
    x, y = np.clip(np.round(np.asarray(point) * _SUBPIXEL), -(2**26), 2**26)
    return int(x), int(y)


def _bytes(color: Sequence[float] | np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (round(float(channel)) for channel in color)
    return red, green, blue


def count_palette(steps: int = 256) -> np.ndarray:
    """Return the (steps, 3) uint8 RGB colours of inlier counts, few to many."""
    ramp = np.linspace(0, 255, steps).astype(np.uint8).reshape(-1, 1)
    bgr = cv2.applyColorMap(ramp, cv2.COLORMAP_VIRIDIS)
    return bgr[:, 0, ::-1].copy()


def draw_match_graph(inliers: np.ndarray, names: Sequence[str], size: int = 900) -> np.ndarray:
    """Draw a matrix of inlier counts; colours follow the logarithm of the count.

    Args:
        inliers: (N, N) int, symmetric; -1 for pairs that were never matched, 0 for pairs that
            were matched but not verified.
        names: of the N rows; written beside them up to 40 rows (OpenCV's font knows ASCII only).
        size: of the matrix, in pixels (about: cells are whole pixels).

    Returns:
        (H, W, 3) uint8 RGB.
    """
    count = len(inliers)
    cell = max(1, size // max(count, 1)) if count > 12 else 64
    cells = np.kron(_color_cells(inliers), np.ones((cell, cell, 1), dtype=np.uint8))
    if cell >= 8:  # grid lines
        cells[::cell], cells[:, ::cell] = _PAPER, _PAPER
    labels = [f"{_ascii(name)[-24:]}  {row}" for row, name in enumerate(names, start=1)]
    if count > 40:
        labels = []
    left = 24 + max((_text_width(label) for label in labels), default=0)
    top, bar = 56, 90
    height = max(top + len(cells) + 24, 240)
    canvas = np.full((height, left + len(cells) + bar + 24, 3), _PAPER, dtype=np.uint8)
    canvas[top : top + len(cells), left : left + len(cells)] = cells
    _write(canvas, "verified matches of each pair", (24, 24))
    for row, label in enumerate(labels):
        middle = row * cell + cell // 2
        _write(canvas, label, (left - 8 - _text_width(label), top + middle + 5))
        number = str(row + 1)
        _write(canvas, number, (left + middle - _text_width(number) // 2, top - 8))
    _draw_color_bar(canvas, left + len(cells) + 24, top, int(inliers.max(initial=0)))
    return canvas


def _color_cells(inliers: np.ndarray) -> np.ndarray:
    """Return (N, N, 3) uint8 RGB."""
    palette = count_palette()
    largest = np.log(max(int(inliers.max(initial=0)), 2))
    level = np.log(np.maximum(inliers, 1)) / largest
    cells = palette[np.round(level * (len(palette) - 1)).astype(np.int64)]
    cells[inliers == 0] = _NOT_VERIFIED
    cells[inliers < 0] = _NEVER_MATCHED
    return cells


def _draw_color_bar(canvas: np.ndarray, left: int, top: int, largest: int) -> None:
    """Draw the legend: the colours of the counts 1, 10, 100, ... and of the largest."""
    height, width = 160, 16
    if largest > 0:
        ramp = count_palette(height)[::-1]
        canvas[top : top + height, left : left + width] = ramp[:, None]
        decades = [10**power for power in range(6) if 10**power < 0.6 * largest]
        for value in [*decades, largest]:
            level = np.log(value) / np.log(max(largest, 2))
            y = top + round((1 - level) * (height - 1))
            _write(canvas, str(value), (left + width + 6, y + 5))


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode()


def _text_width(text: str) -> int:
    return int(cv2.getTextSize(text, _FONT, 0.45, 1)[0][0])


def _write(canvas: np.ndarray, text: str, origin: tuple[int, int]) -> None:
    cv2.putText(canvas, text, origin, _FONT, 0.45, _INK, 1, cv2.LINE_AA)


def draw_model(
    points: np.ndarray,
    colors: np.ndarray,
    frusta: np.ndarray,
    size: int = 900,
    camera_colors: np.ndarray | None = None,
) -> np.ndarray:
    """Draw a model from the top and obliquely, side by side, without perspective.

    The views are scaled to the bulk of the points and to the cameras, so that a few points far
    out do not shrink the rest to a spot.

    Args:
        points: (N, 3), z up, y away from the viewer.
        colors: (N, 3) uint8 RGB.
        frusta: (C, 5, 3): centre and the four image corners of each camera.
        size: of each of the two views, in pixels.
        camera_colors: (C, 3) RGB of the cameras; None draws all in one colour.

    Returns:
        (size, 2 * size, 3) uint8 RGB.
    """
    views = []
    for label, azimuth, elevation in (("top view", 0.0, 90.0), ("oblique view", 25.0, 30.0)):
        rotation = _view_rotation(azimuth, elevation)
        turned = frusta @ rotation.T
        view = _draw_view(points @ rotation.T, colors, turned, size, camera_colors)
        _write(view, label, (24, 32))
        views.append(view)
    return np.concatenate(views, axis=1)


def _view_rotation(azimuth: float, elevation: float) -> np.ndarray:
    """Return the rows right, down and away of a view of a z-up world; angles in degrees."""
    a, e = np.radians([azimuth, elevation])
    right = [np.cos(a), np.sin(a), 0]
    away = [-np.sin(a) * np.cos(e), np.cos(a) * np.cos(e), -np.sin(e)]
    return np.stack([right, np.cross(away, right), away])


def _draw_view(
    points: np.ndarray,
    colors: np.ndarray,
    frusta: np.ndarray,
    size: int,
    camera_colors: np.ndarray | None,
) -> np.ndarray:
    """Draw what `_view_rotation` has turned: x right, y down, z away."""
    low, high = robust_bounds(points[:, :2], frusta[:, 0, :2])
    scale = 0.88 * size / max(float((high - low).max()), 1e-9)
    origin = size / 2 - scale * (low + high) / 2

    # Points are drawn twice as large and averaged down, which smooths their edges.
    canvas = np.full((2 * size, 2 * size, 3), _PAPER, dtype=np.uint8)
    order = np.argsort(-points[:, 2], kind="stable")
    pixels = np.floor(2 * (points[order, :2] * scale + origin)).astype(np.int64)
    width = 6 if len(points) < 10_000 else 4
    offsets = [(x, y) for y in range(width) for x in range(width)]
    spread = (pixels[:, None] + np.array(offsets)).reshape(-1, 2)
    inside = ((spread >= 0) & (spread < 2 * size)).all(axis=1)
    x, y = spread[inside].T
    canvas[y, x] = np.repeat(colors[order], len(offsets), axis=0)[inside]
    view = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)

    if camera_colors is None:
        camera_colors = np.tile(CAMERA_COLOR, (len(frusta), 1))
    for (apex, *corners), color in zip(
        frusta[:, :, :2] * scale + origin, camera_colors, strict=True
    ):
        for corner, following in zip(corners, corners[1:] + corners[:1], strict=True):
            _draw_line(view, apex, corner, color)
            _draw_line(view, corner, following, color)
    return view


def robust_bounds(points: np.ndarray, centers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and upper bound (D,) of the bulk of the points and of the cameras.

    Cameras ten times as far out as their median are not waited for.
    """
    chosen = []
    if len(points):
        chosen.append(np.percentile(points, (1, 99), axis=0))
    if len(centers):
        distance = np.linalg.norm(centers - np.median(centers, axis=0), axis=1)
        chosen.append(centers[distance <= 10 * max(np.median(distance), 1e-9)])
    bulk = np.concatenate([*chosen, np.zeros((0, points.shape[1]))])
    if len(bulk) == 0:
        return np.full(points.shape[1], -0.5), np.full(points.shape[1], 0.5)
    return bulk.min(axis=0), bulk.max(axis=0)
