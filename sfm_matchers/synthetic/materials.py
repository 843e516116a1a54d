"""Procedures that paint surfaces: walls, pavings, wood, leaves, prints, house fronts.

A material draws (height, width) pixels at `density` pixels per metre and returns RGB, float32 in
0..255, or RGBA where the material has holes (alpha 0). Rows run downwards on walls. All chance
comes from the generator that it is given, so every surface has a texture of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from sfm_matchers.synthetic.arrays import Colour, FloatArray

Material = Callable[[np.random.Generator, int, int, float], FloatArray]
Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, half-open


def noise(
    rng: np.random.Generator,
    height: int,
    width: int,
    cell: float | tuple[float, float],
    octaves: int = 7,
) -> NDArray[np.float32]:
    """Fractal noise (height, width), mean 0, deviation 1.

    `cell`, one number or (rows, columns), is the size in pixels of the largest blobs; each octave
    halves it and is 0.6 times as strong.
    """
    rows, columns = cell if isinstance(cell, tuple) else (cell, cell)
    total: NDArray[np.float32] = np.zeros((2, 2), np.float32)
    for octave in range(octaves):
        shape = int(np.ceil(height / max(rows, 1))) + 1, int(np.ceil(width / max(columns, 1))) + 1
        total = _enlarge(total, *shape)
        total += 0.6**octave * rng.standard_normal(shape, dtype=np.float32)
        rows, columns = rows / 2, columns / 2
        if max(rows, columns) < 1:
            break
    total = _enlarge(total, height, width)
    return (total - total.mean()) / (total.std() + 1e-6)


def _enlarge(values: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    enlarged = cv2.resize(values, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(enlarged, np.float32)


def _pick(rng: np.random.Generator, palette: Sequence[Colour], spread: float = 0.1) -> FloatArray:
    """One colour (3,) of the palette, somewhat brighter or darker and a little shifted."""
    colour = np.array(palette[int(rng.integers(len(palette)))])
    return colour * rng.normal(1, spread) * rng.normal(1, 0.3 * spread, 3)


def _ink(rng: np.random.Generator, low: float = 40, high: float = 230) -> FloatArray:
    """Any colour (3,), mostly muted."""
    grey = rng.uniform(low, high)
    return (grey * (1 + rng.normal(0, 0.18, 3))).clip(10, 250)


def _canvas(height: int, width: int, colour: FloatArray | float) -> FloatArray:
    return np.full((height, width, 3), colour, np.float32)


def _weather(
    rgb: FloatArray, rng: np.random.Generator, density: float, *, upright: bool = True
) -> FloatArray:
    """Add stains and grain, and to walls streaks of rain and dirt at the foot."""
    height, width = rgb.shape[:2]
    shade = 1 + 0.10 * noise(rng, height, width, 1.5 * density)
    shade += 0.05 * rng.standard_normal((height, width), dtype=np.float32)
    if upright:
        shade += 0.05 * noise(rng, height, width, (2.0 * density, 0.1 * density), octaves=4)
        shade -= 0.15 * np.linspace(-1, 1, height, dtype=np.float32)[:, None] ** 6
    return rgb * shade[..., None]


def _cracks(rgb: FloatArray, rng: np.random.Generator, count: int, density: float) -> None:
    """Draw dark random walks, in place."""
    height, width = rgb.shape[:2]
    for _ in range(count):
        steps = rng.normal(0, 0.12 * density, (int(rng.integers(6, 25)), 2))
        steps += rng.normal(0, 0.12 * density, 2)
        points = rng.uniform(0, (width, height)) + np.cumsum(steps, axis=0)
        shade = float(rng.uniform(30, 90))
        cv2.polylines(rgb, [points.astype(np.int32)], False, (shade,) * 3, 1, cv2.LINE_AA)


def _write(
    rgb: FloatArray, rng: np.random.Generator, corner: tuple[float, float], size: float, count: int
) -> None:
    """Draw `count` letters of an invented script, `size` pixels high, from `corner` (x, y) on."""
    colour = _ink(rng, 20, 80) if rgb.mean() > 110 else _ink(rng, 180, 245)
    thickness = max(1, round(size / 9))
    for letter in range(count):
        nodes = rng.integers(0, (3, 4), (int(rng.integers(4, 7)), 2)) * [0.3, 0.33]
        points = (np.array(corner) + size * (nodes + [0.85 * letter, 0])).astype(np.int32)
        closed = bool(rng.random() < 0.2)
        cv2.polylines(rgb, [points], closed, colour.tolist(), thickness, cv2.LINE_AA)


def _courses(
    rng: np.random.Generator, height: int, width: int, row: float, length: float
) -> tuple[NDArray[np.int32], FloatArray]:
    """Lay stones in courses `row` high, each about `length` long (pixels), with uneven joints.

    Returns the index of the stone, int32 (H, W), and the distance to its joint in pixels, (H, W).
    """
    labels = np.empty((height, width), np.int32)
    distance = np.empty((height, width), np.float32)
    x, top, first = np.arange(width), 0.0, 0
    while top < height:
        bottom = top + row * rng.uniform(0.85, 1.15)
        cuts = np.cumsum(length * rng.uniform(0.6, 1.4, int(2 * width / length) + 6))
        cuts -= length * rng.uniform(1.5, 2.5)  # the first two joints lie left of the picture
        stone = np.searchsorted(cuts, x).clip(1, len(cuts) - 1)
        across = np.minimum(x - cuts[stone - 1], cuts[stone] - x)
        y = np.arange(int(np.ceil(top)), min(int(np.ceil(bottom)), height))
        labels[y] = first + stone
        distance[y] = np.minimum(np.minimum(y - top, bottom - y)[:, None], across)
        first += len(cuts)
        top = bottom
    return labels, distance


def _cells(
    rng: np.random.Generator, height: int, width: int, size: float
) -> tuple[NDArray[np.int32], FloatArray]:
    """Lay irregular stones about `size` pixels wide; returns what `_courses` returns."""
    elsewhere = np.ones((height, width), np.uint8)
    y, x = np.mgrid[0 : height + size : size, 0 : width + size : size]
    y, x = (axis + rng.uniform(-0.4, 0.4, axis.shape) * size for axis in (y, x))
    elsewhere[y.clip(0, height - 1).astype(int), x.clip(0, width - 1).astype(int)] = 0
    _, labels = cv2.distanceTransformWithLabels(
        elsewhere, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    inside = np.ones((height, width), np.uint8)
    inside[:, 1:] &= labels[:, 1:] == labels[:, :-1]
    inside[1:] &= labels[1:] == labels[:-1]
    distance = cv2.distanceTransform(inside, cv2.DIST_L2, 3)
    return np.asarray(labels, np.int32), np.asarray(distance, np.float32)


def _colour_stones(
    rng: np.random.Generator,
    stones: tuple[NDArray[np.int32], FloatArray],
    palette: Sequence[Colour],
    joint: float,
    density: float,
    contrast: float = 0.15,
) -> FloatArray:
    """Paint laid stones: each its own shade, darker edges, joints `joint` pixels wide."""
    labels, distance = stones
    height, width = labels.shape
    count = int(labels.max()) + 1
    mixed = np.array([_pick(rng, palette) for _ in range(32)], np.float32)
    shades = mixed[rng.integers(0, len(mixed), count)]
    shades *= rng.normal(1, contrast, (count, 1)).astype(np.float32)
    rgb = shades[labels]
    shade = 1 + 0.08 * noise(rng, height, width, 0.12 * density)
    shade *= 0.75 + 0.25 * np.clip(distance / (3 * joint), 0, 1)
    rgb *= shade[..., None]
    rgb[distance < joint] = _pick(rng, palette[:1]) * rng.uniform(0.45, 0.75)
    return rgb


_BRICKS = [(150, 88, 68), (165, 105, 82), (130, 80, 68), (172, 122, 96), (112, 78, 68)]
_STONES = [(165, 158, 145), (185, 175, 155), (142, 138, 132), (155, 142, 122)]
_WOODS = [(140, 104, 72), (120, 90, 62), (160, 126, 92), (104, 80, 60), (128, 112, 92)]
_METALS = [(50, 55, 60), (90, 64, 50), (62, 82, 75), (120, 122, 120)]
_PAINTS = [(205, 190, 160), (188, 152, 126), (170, 175, 172), (215, 207, 192), (192, 170, 118)]


def plaster(rng: np.random.Generator, height: int, width: int, density: float) -> FloatArray:
    """Painted plaster with cracks and places where the coat has come off."""
    rgb = _canvas(height, width, _pick(rng, _PAINTS))
    peeled = noise(rng, height, width, 0.8 * density)
    edge = rng.uniform(1.4, 2.2)
    rgb[peeled > edge] = _pick(rng, [(150, 132, 115), (128, 94, 76), (185, 180, 170)])
    rgb[np.abs(peeled - edge) < 0.05] *= 0.7
    _cracks(rgb, rng, int(height * width / density**2 / 4) + 1, density)
    return _weather(rgb, rng, density)


def bricks(rng: np.random.Generator, height: int, width: int, density: float) -> FloatArray:
    """Uneven bricks, some of them replaced."""
    stones = _courses(rng, height, width, 0.1 * density, 0.32 * density)
    rgb = _colour_stones(rng, stones, _BRICKS, max(0.6, 0.008 * density), density, 0.18)
    return _weather(rgb, rng, density)


def ashlar(rng: np.random.Generator, height: int, width: int, density: float) -> FloatArray:
    """Courses of cut stone."""
    stones = _courses(rng, height, width, 0.35 * density, 0.7 * density)
    rgb = _colour_stones(rng, stones, _STONES, max(0.6, 0.01 * density), density)
    return _weather(rgb, rng, density)


def cobbles(rng: np.random.Generator, height: int, width: int, density: float) -> FloatArray:
    """Cobblestones or flagstones, whichever the size says."""
    stones = _cells(rng, height, width, rng.uniform(0.18, 0.6) * density)
    rgb = _colour_stones(rng, stones, _STONES, max(0.8, 0.015 * density), density, 0.2)
    return _weather(rgb, rng, density, upright=False)


def slabs(rng: np.random.Generator, height: int, width: int, density: float) -> FloatArray:
    """A pavement of rectangular slabs."""
    stones = _courses(rng, height, width, 0.4 * density, 0.6 * density)
    rgb = _colour_stones(rng, stones, _STONES, max(0.6, 0.01 * density), density)
    _cracks(rgb, rng, int(height * width / density**2 / 3) + 1, density)
    return _weather(rgb, rng, density, upright=False)


def asphalt(rng: np.random.Generator, height: int, width: int, density: float) -> FloatArray:
    """Asphalt with mended patches, pebbles, dead leaves and cracks."""
    ground = _pick(rng, [(95, 95, 98), (120, 115, 108), (140, 132, 118)])
    rgb = _canvas(height, width, ground)
    area = height * width / density**2
    for _ in range(int(area / 6) + 1):
        size = (rng.uniform(0.2, 1.6, 2) * density).tolist()
        patch = (rng.uniform(0, (width, height)).tolist(), size, float(rng.uniform(0, 180)))
        shade = (ground * rng.uniform(0.7, 1.4)).tolist()
        cv2.fillPoly(rgb, [cv2.boxPoints(patch).astype(np.int32)], shade, cv2.LINE_AA)
    for centre in rng.integers(0, (width, height), (int(area * 25), 2)).tolist():
        axes = (rng.uniform(0.005, 0.05, 2) * density + 1).astype(int).tolist()
        litter = _pick(
            rng, [(150, 145, 135), (70, 66, 60), (150, 110, 60), (190, 185, 175)]
        ).tolist()
        cv2.ellipse(rgb, centre, axes, rng.uniform(0, 180), 0, 360, litter, -1, cv2.LINE_AA)
    _cracks(rgb, rng, int(area) + 1, density)
    rgb *= 1 + 0.08 * noise(rng, height, width, 0.1 * density)[..., None]
    return _weather(rgb, rng, density, upright=False)


def grass(rng: np.random.Generator, height: int, width: int, density: float) -> FloatArray:
    """Short grass with bare earth and flowers."""
    rgb = _canvas(height, width, _pick(rng, [(92, 102, 58), (108, 112, 66), (82, 92, 58)]))
    rgb *= 1 + 0.25 * noise(rng, height, width, 0.15 * density)[..., None]
    rgb[noise(rng, height, width, 1.2 * density) > 1.1] *= [1.25, 1.0, 1.2]
    for flower in rng.integers(0, (width, height), (int(10 * height * width / density**2), 2)):
        petals = _ink(rng, 150, 240).tolist()
        cv2.circle(rgb, flower.tolist(), max(1, round(0.02 * density)), petals, -1, cv2.LINE_AA)
    return _weather(rgb, rng, density, upright=False)


def roof_tiles(rng: np.random.Generator, height: int, width: int, density: float) -> FloatArray:
    """Roof tiles or slates with lichen."""
    stones = _courses(rng, height, width, 0.28 * density, 0.22 * density)
    palette = (_BRICKS, [(95, 95, 102), (82, 85, 92), (108, 104, 102)])[int(rng.integers(2))]
    rgb = _colour_stones(rng, stones, palette, max(0.8, 0.02 * density), density, 0.2)
    rgb[noise(rng, height, width, 0.6 * density) > 1.6] *= [0.85, 0.95, 0.7]
    return _weather(rgb, rng, density)


def planks(rng: np.random.Generator, height: int, width: int, density: float) -> FloatArray:
    """Boards with grain and nails, some marked with a stencil."""
    boards = _courses(rng, height, width, rng.uniform(0.1, 0.2) * density, 1.3 * density)
    rgb = _colour_stones(rng, boards, _WOODS, max(0.6, 0.006 * density), density, 0.12)
    rgb *= 1 + 0.12 * noise(rng, height, width, (0.04 * density, 0.8 * density))[..., None]
    for nail in rng.integers(0, (width, height), (int(12 * height * width / density**2), 2)):
        cv2.circle(rgb, nail.tolist(), max(1, round(0.01 * density)), (45.0, 40.0, 35.0), -1)
    if rng.random() < 0.6:
        corner = 0.1 * width, rng.uniform(0.2, 0.6) * height
        _write(rgb, rng, corner, min(0.2 * min(height, width), 0.25 * density), 4)
    return _weather(rgb, rng, density, upright=False)


def _leaves(rgb: FloatArray, rng: np.random.Generator, box: Box, size: float) -> None:
    """Cover a box with leaves `size` pixels long, in place, the dark ones below."""
    x0, y0, x1, y1 = box
    count = int(7 * (x1 - x0) * (y1 - y0) / size**2) + 1
    hue = _pick(rng, [(78, 100, 48), (96, 108, 58), (66, 86, 56), (110, 106, 58)])
    shades = np.linspace(0.25, 1.3, count)[:, None] * rng.normal(1, 0.15, (count, 1)) * hue
    shades *= rng.normal(1, 0.06, (count, 3))
    centres = np.column_stack([rng.integers(x0, x1, count), rng.integers(y0, y1, count)]).tolist()
    axes = np.maximum(1, rng.uniform(0.25, 0.5, (count, 2)) * [size, 0.55 * size]).astype(int)
    angles = rng.uniform(0, 360, count).tolist()
    leaves = zip(centres, axes.tolist(), angles, shades.clip(5, 250), strict=True)
    for centre, axis, angle, shade in leaves:
        cv2.ellipse(rgb, centre, axis, angle, 0, 360, shade.tolist(), -1, cv2.LINE_AA)
        if size > 12:
            turn = np.radians(angle)
            tip = np.array(centre) + axis[0] * np.array([np.cos(turn), np.sin(turn)])
            cv2.line(rgb, centre, tip.astype(int).tolist(), (0.8 * shade).tolist(), 1, cv2.LINE_AA)


def foliage(rng: np.random.Generator, height: int, width: int, density: float) -> FloatArray:
    """A hedge: leaves over leaves, in lighter and darker clumps."""
    rgb = _canvas(height, width, 25.0)
    _leaves(rgb, rng, (0, 0, width, height), max(4.0, rng.uniform(0.07, 0.12) * density))
    return rgb * (1 + 0.2 * noise(rng, height, width, 0.5 * density, octaves=3))[..., None]


def tree_crown(rng: np.random.Generator, height: int, width: int, density: float) -> FloatArray:
    """Leaves with a ragged outline, RGBA."""
    rgb = foliage(rng, height, width, density)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    ragged = np.hypot(x, y) + 0.16 * noise(rng, height, width, 0.5 * density)
    return np.dstack([rgb, 255 * (ragged < 0.75)]).astype(np.float32)


def railing(rng: np.random.Generator, height: int, width: int, density: float) -> FloatArray:
    """Bars at uneven distances with rings between them, RGBA."""
    alpha = np.zeros((height, width), np.uint8)
    bar = max(1, round(0.03 * density))
    cv2.rectangle(alpha, (0, 0), (width - 1, height - 1), 255, 2 * bar)
    steps = rng.uniform(0.1, 0.25, int(10 * width / density) + 1) * density
    for x in np.cumsum(steps).astype(int).tolist():
        cv2.line(alpha, (x, 0), (x, height), 255, bar)
        if rng.random() < 0.5:
            radius = max(2, int(rng.uniform(0.03, 0.1) * density))
            cv2.circle(alpha, (x, int(rng.uniform(0.2, 0.8) * height)), radius, 255, bar)
    iron = _canvas(height, width, _pick(rng, _METALS))
    return np.dstack([_weather(iron, rng, density), alpha.astype(np.float32)])


def painting(rng: np.random.Generator, height: int, width: int, density: float) -> FloatArray:
    """A landscape: hills behind hills, and things that stand there."""
    rgb = np.linspace(_ink(rng, 120, 230), _ink(rng, 120, 230), height)[:, None].repeat(width, 1)
    y = np.arange(height)[:, None]
    for level in np.linspace(0.3, 0.9, 4):
        ridge = (level + 0.06 * noise(rng, 1, width, (1.0, width / 3))) * height
        hill = _ink(rng, 40, 190) * (0.7 + 0.5 * y / height)[..., None]
        rgb = np.where((y > ridge)[..., None], hill, rgb)
    rgb = np.ascontiguousarray(rgb, np.float32)
    for _ in range(int(rng.integers(4, 14))):
        centre = rng.integers(0, (width, height)).tolist()
        axes = (rng.uniform(0.02, 0.12, 2) * min(width, height) + 1).astype(int).tolist()
        angle = rng.uniform(0, 180)
        cv2.ellipse(rgb, centre, axes, angle, 0, 360, _ink(rng).tolist(), -1, cv2.LINE_AA)
    strokes = noise(rng, height, width, (0.02 * width + 1, 0.1 * width + 1))
    rgb *= 1 + 0.1 * strokes[..., None]
    cv2.rectangle(rgb, (0, 0), (width - 1, height - 1), _ink(rng).tolist(), max(1, width // 40))
    return rgb


def poster(rng: np.random.Generator, height: int, width: int, density: float) -> FloatArray:
    """A printed sheet: a picture, a headline, lines of smaller letters."""
    rgb = _canvas(height, width, _ink(rng, 60, 240))
    share = rng.uniform(0.3, 0.6)
    picture = painting(rng, max(1, int(share * height)), width, density)
    above = rng.random() < 0.5
    top = 0 if above else height - picture.shape[0]
    rgb[top : top + picture.shape[0]] = picture
    y = (0.05 + (share if above else 0)) * height
    end = y + (0.9 - share) * height
    size = 0.13 * min(width, height)
    while y + size < end and size >= 4:
        letters = max(1, int(rng.uniform(0.5, 0.95) * width / size))
        _write(rgb, rng, (0.08 * width, y), size, letters)
        y += 1.4 * size
        size = max(0.55 * size, 0.04 * height)
    return rgb * (1 + 0.04 * noise(rng, height, width, 0.3 * density))[..., None]


def rug(rng: np.random.Generator, height: int, width: int, density: float) -> FloatArray:
    """Woven cloth: a border and scattered figures."""
    rgb = _canvas(height, width, _ink(rng, 50, 150))
    side = min(height, width)
    for inset in np.sort(rng.uniform(0, 0.2, 5) * side).astype(int).tolist():
        end = width - inset, height - inset
        cv2.rectangle(rgb, (inset, inset), end, _ink(rng, 50, 200).tolist(), -1)
    inks = [_ink(rng, 40, 200) for _ in range(5)]
    for _ in range(int(40 * height * width / density**2)):
        centre = rng.uniform((0.2 * width, 0.2 * height), (0.8 * width, 0.8 * height))
        corners = centre + rng.normal(0, min(0.07 * density, 0.1 * side), (5, 2))
        figure = cv2.convexHull(corners.astype(np.int32))
        cv2.fillPoly(rgb, [figure], inks[int(rng.integers(5))].tolist(), cv2.LINE_AA)
    rgb *= 1 + 0.1 * noise(rng, height, width, (0.01 * density, 0.03 * density))[..., None]
    return _weather(rgb, rng, density, upright=False)


def books(rng: np.random.Generator, height: int, width: int, density: float) -> FloatArray:
    """Shelves of books of all colours and sizes, with titles on their backs."""
    rgb = _canvas(height, width, 30.0)
    shelves = max(1, round(height / density / 0.36))
    pitch = height / shelves
    board = _pick(rng, _WOODS).tolist()
    for floor in pitch * np.arange(1, shelves + 1):
        x = 0.0
        while x < width:
            thickness = max(2.0, rng.uniform(0.015, 0.06) * density)
            top = int(floor - pitch * rng.uniform(0.55, 0.88))
            if rng.random() < 0.93:
                back = rgb[top : int(floor), int(x) : int(x + thickness) - 1]
                back[:] = _ink(rng, 35, 190)
                for start in (rng.uniform(0.05, 0.9, int(rng.integers(1, 5))) * len(back)).astype(
                    int
                ):
                    back[start : start + 1 + int(rng.uniform(0, 0.2) * len(back))] = _ink(rng)
            x += thickness
        cv2.line(rgb, (0, int(floor) - 2), (width, int(floor) - 2), board, 5)
    return _weather(rgb, rng, density)


def facade(rng: np.random.Generator, height: int, width: int, density: float) -> FloatArray:
    """The front of a house: windows at uneven places, doors, shops, pipes, writing, ivy."""
    wall = (plaster, bricks, ashlar)[int(rng.integers(3))](rng, height, width, density)
    wall = np.ascontiguousarray(wall, np.float32)
    floors = max(1, round(height / density / 3))
    for floor in range(floors):
        base = height * (floor + 1) / floors
        x = rng.uniform(0.4, 1.0) * density
        while x + 1.3 * density < width:
            w = min(rng.uniform(0.7, 1.5) * density, width - x - 0.4 * density)
            h = rng.uniform(1.1, 1.8) * density
            y = max(base - h - rng.uniform(0.5, 0.9) * density, 0.2 * density)
            if floor < floors - 1:
                _window(wall, rng, (int(x), int(y), int(x + w), int(y + h)), density)
            else:
                top = max(base - 2.2 * density, 0.6 * density)
                _ground_floor(wall, rng, (int(x), int(top), int(x + w), height), density)
            x += w + rng.uniform(0.5, 1.5) * density
    for x in rng.integers(0, width, int(rng.integers(0, 3))).tolist():
        pipe = _pick(rng, _METALS).tolist()
        cv2.line(wall, (x, 0), (x, height), pipe, max(2, int(0.08 * density)))
    if rng.random() < 0.5:
        spot = rng.uniform(0, 0.6) * width, height - rng.uniform(1.0, 1.8) * density
        _write(wall, rng, spot, rng.uniform(0.3, 0.8) * density, int(rng.integers(3, 7)))
    if rng.random() < 0.4:
        left, top = int(rng.uniform(0, 0.8) * width), int(rng.uniform(0.3, 0.7) * height)
        _leaves(wall, rng, (left, top, left + int(0.2 * width), height), max(4.0, 0.12 * density))
    return wall


def _window(wall: FloatArray, rng: np.random.Generator, box: Box, density: float) -> None:
    """Draw a window: frame, panes, bars, perhaps a curtain and shutters, a sill and its shadow."""
    x0, y0, x1, y1 = box
    height, width = y1 - y0, x1 - x0
    edge = max(1, round(0.06 * density))
    frame = _pick(rng, [(225, 220, 210), (110, 84, 66), (74, 90, 82), (62, 66, 74)]).tolist()
    stone = (wall[y0, x0] * 1.2).clip(0, 255).tolist()
    cv2.rectangle(wall, (x0 - 2 * edge, y0 - 2 * edge), (x1 + 2 * edge, y1 + 3 * edge), stone, -1)
    cv2.rectangle(wall, (x0 - edge, y0 - edge), (x1 + edge, y1 + edge), frame, -1)
    glass = np.linspace((105, 112, 122), (42, 46, 52), height)[:, None].repeat(width, axis=1)
    wall[y0:y1, x0:x1] = glass * (1 + 0.25 * noise(rng, height, width, 0.8 * density))[..., None]
    curtain = int(rng.uniform(-0.3, 0.45) * width)
    if curtain > 0:
        folds = 1 + 0.2 * noise(rng, 1, curtain, (1.0, 0.1 * density))
        cloth = _pick(rng, [(200, 195, 185), (168, 124, 106), (124, 132, 150)])
        wall[y0:y1, x0 : x0 + curtain] = cloth * folds[..., None]
    for x in np.linspace(x0, x1, int(rng.integers(2, 5)))[1:-1].astype(int).tolist():
        cv2.line(wall, (x, y0), (x, y1), frame, edge)
    for y in (y0 + rng.uniform(0.2, 0.8, int(rng.integers(0, 3))) * height).astype(int).tolist():
        cv2.line(wall, (x0, y), (x1, y), frame, max(1, edge // 2))
    wall[y1 + 3 * edge : y1 + 5 * edge, max(x0 - edge, 0) : x1 + edge] *= 0.6
    if rng.random() < 0.5:
        paint = _pick(rng, [(76, 95, 84), (108, 66, 56), (86, 98, 114), (135, 122, 100)])
        for x in (x0 - 2 * edge - width // 2, x1 + 2 * edge):
            _shutter(wall, rng, (x, y0 - edge, x + width // 2, y1 + edge), paint)


def _shutter(wall: FloatArray, rng: np.random.Generator, box: Box, paint: FloatArray) -> None:
    """Draw one slatted shutter."""
    x0, y0, x1, y1 = box
    cv2.rectangle(wall, (x0, y0), (x1, y1), paint.tolist(), -1)
    y = float(y0)
    while y < y1:
        cv2.line(wall, (x0 + 1, int(y)), (x1 - 1, int(y)), (paint * 0.6).tolist(), 1)
        y += rng.uniform(0.03, 0.06) * (y1 - y0) + 1


def _ground_floor(wall: FloatArray, rng: np.random.Generator, box: Box, density: float) -> None:
    """Draw a door, a shop window with its sign, or posters on the wall."""
    x0, y0, x1, y1 = box
    choice = rng.integers(3)
    if choice == 0:
        wall[y0:y1, x0:x1] = planks(rng, x1 - x0, y1 - y0, density).transpose(1, 0, 2)
        frame = _pick(rng, _WOODS) * 0.6
        cv2.rectangle(wall, (x0, y0), (x1, y1), frame.tolist(), max(2, int(0.06 * density)))
    elif choice == 1:
        _window(wall, rng, (x0, y0, x1, y1 - int(0.5 * density)), density)
        sign = poster(rng, int(0.4 * density), x1 - x0, density)
        wall[y0 - len(sign) : y0, x0:x1] = sign
    else:
        for x in range(x0, x1 - int(0.3 * density), int(0.5 * density)):
            width, height = (rng.uniform(0.35, 0.48) * density * np.array([1, 1.5])).astype(int)
            y = int(rng.uniform(y0, y1 - height))
            sheet = poster(rng, int(height), int(width), density)
            wall[y : y + height, x : x + width] = sheet[:, : wall.shape[1] - x]
