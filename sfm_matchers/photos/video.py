"""Photos out of a video: its sharp frames, evenly spaced in what the picture moves.

Frames a second apart are alike where the camera stood, and share nothing where it was turned
quickly; so they are spaced by motion. PyAV decodes, which comes with the extra video.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import logging
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfm_matchers.errors import InputError, MissingExtraError, one_line
from sfm_matchers.files.nearest import nearest_path
from sfm_matchers.machine.progress import progress
from sfm_matchers.machine.threads import num_threads

if TYPE_CHECKING:
    import av

logger = logging.getLogger(__name__)

EXTENSIONS = (".3gp", ".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".webm")
INSTALL = 'pip install "sfm-matchers[video]"'

# Without a number of frames: the picture moves by so much of its longer side from one to the next,
# so that nine tenths of it are in both. Of a long video fewer: 300 are some 5000 pairs by
# `--pairs auto`, a quarter of an hour of COLMAP's matching on two cores. Of one that hardly moves
# some.
STEP = 0.1
MAX_FRAMES, MIN_FRAMES = 300, 20

_LOOKED_AT = 640  # pixels, longer side of the gray frames that sharpness and motion are seen in
_JPEG_QUALITY = 95

# Of the tracking of points.
_MAX_POINTS, _MIN_POINTS = 200, 10
_MIN_SHARE = 0.5  # of the points must be found again
_MAX_RETURN = 1.0  # pixels between a point and where it is when it is followed there and back
_RENEWED = STEP / 2  # motion after which new points are taken


class FrameMeasures(NamedTuple):
    """What is seen in the frames of a video, in their order.

    Attributes:
        seconds: (F,) when each is shown.
        sharpness: (F,) variance of the Laplacian.
        motion: (F,) how far the picture has moved until then, in lengths of its longer side.
    """

    seconds: NDArray[np.float64]
    sharpness: NDArray[np.float64]
    motion: NDArray[np.float64]


def is_video(path: str | Path) -> bool:
    """Return whether a path is, by its extension, that of a video."""
    path = Path(path)
    return path.suffix.lower() in EXTENSIONS and not path.is_dir()


def check_readable(path: str | Path) -> None:
    """Look at what can be said of a video at once.

    Raises:
        MissingExtraError: PyAV is not installed.
        InputError: the file is missing.
    """
    if not Path(path).is_file():
        raise InputError(f"{path} is missing{nearest_path(path)}")
    if importlib.util.find_spec("av") is None:
        raise MissingExtraError(f"{path} is a video: to take photos out of it {INSTALL}")


def write_frames(video: Path, folder: Path, count: int | None = None) -> dict[str, float]:
    """Write the sharp frames of a video, evenly spaced in motion, as upright JPEGs.

    Args:
        video: the file.
        folder: an empty folder.
        count: how many at most; None: one for each `STEP` of motion, up to `MAX_FRAMES`.

    Returns:
        Names of the files, which have the numbers of the frames, and when each is shown, in
        seconds.

    Raises:
        MissingExtraError, InputError: as `check_readable`; it cannot be decoded, or has one frame.
    """
    check_readable(video)
    measures = measure_frames(video)
    travelled = float(measures.motion[-1])
    if count is None:
        count = int(np.clip(round(travelled / STEP), MIN_FRAMES, MAX_FRAMES))
    chosen = choose_frames(measures, count)
    if travelled < 2 * STEP:
        logger.warning(
            "the picture of %s hardly moves: a model needs views from several places", video
        )
    logger.info(
        "Frames: %d of %d in %s (%.0f seconds), the sharpest of each %.2g of the longer side of "
        "motion",
        len(chosen),
        len(measures.motion),
        video,
        measures.seconds[-1],
        travelled / count,
    )
    names = {}
    bar = progress(title="Writing frames", unit="frame", total=len(chosen), stays=False)
    with contextlib.closing(_decoded(video)) as frames, bar:
        for index, frame in enumerate(itertools.islice(frames, chosen[-1] + 1)):
            if index in chosen:
                name = f"frame_{index:06d}.jpg"
                Image.fromarray(_upright(frame)).save(folder / name, quality=_JPEG_QUALITY)
                names[name] = round(float(measures.seconds[index]), 3)
                bar.update()
    return names


def measure_frames(video: Path) -> FrameMeasures:
    """Look at each frame of a video, in a reduced picture of it.

    Of a damaged one the frames before the damage are taken, and this is said.

    Raises:
        InputError: it cannot be decoded, or has one frame.
    """
    meter = MotionMeter()
    found = []
    try:
        for frame in progress(_decoded(video), title="Looking at frames", unit="frame"):
            scale = min(1.0, _LOOKED_AT / max(frame.width, frame.height))
            width, height = (max(1, round(scale * side)) for side in (frame.width, frame.height))
            gray = frame.to_ndarray(format="gray", width=width, height=height)
            sharpness = float(cv2.Laplacian(gray, cv2.CV_32F).var())
            found.append((float(frame.time or 0), sharpness, meter.add(gray)))
    except InputError as error:
        if len(found) < 2:
            raise
        logger.warning("%s; the frames before that are used", error)
    if len(found) < 2:
        raise InputError(f"{video} has {len(found)} frame(s): a model needs several views")
    return FrameMeasures(*np.array(found).T)


class MotionMeter:
    """How far a picture has moved since the first frame, in lengths of its longer side.

    The median way of points that are followed from a frame to later ones, until the picture has
    moved so far that new ones are taken: that of a camera that stands stays zero.
    """

    def __init__(self) -> None:
        self._travelled = 0.0  # until the frame that points are followed from
        self._since = 0.0  # since then
        self._reference = self._previous = np.zeros((0, 0), np.uint8)
        self._points: NDArray[np.float32] = np.zeros((0, 1, 2), np.float32)
        self._found: NDArray[np.float32] = self._points  # where they were in the previous frame

    def add(self, gray: NDArray[np.uint8]) -> float:
        """Look at the next frame (H, W); return the motion until then."""
        if not len(self._points):  # the first frame, or one that shows nothing
            self._follow_from(gray)
        else:
            since = self._motion_to(gray)
            if since is None:
                self._follow_from(self._previous)
                since = self._motion_to(gray)
            if since is None:  # nothing of the previous frame is left: the next place
                self._since = STEP
                self._follow_from(gray)
            else:
                self._since = max(since, self._since)
                if since > _RENEWED:
                    self._follow_from(gray)
        self._previous = gray
        return self._travelled + self._since

    def _follow_from(self, gray: NDArray[np.uint8]) -> None:
        self._travelled, self._since = self._travelled + self._since, 0.0
        self._reference = gray
        corners = cv2.goodFeaturesToTrack(gray, _MAX_POINTS, 0.01, min(gray.shape) / 40)
        too_few = corners is None or len(corners) < _MIN_POINTS
        self._points = np.zeros((0, 1, 2), np.float32) if too_few else np.float32(corners)
        self._found = self._points

    def _motion_to(self, gray: NDArray[np.uint8]) -> float | None:
        """The motion from the reference; None where most points are lost."""
        if not len(self._points):
            return None
        found, is_found = _flow(self._reference, gray, self._points, self._found)
        back, is_back = _flow(gray, self._reference, found, self._points)
        kept = is_found & is_back
        kept &= np.linalg.norm(back - self._points, axis=-1).ravel() < _MAX_RETURN
        if kept.sum() < max(_MIN_POINTS, _MIN_SHARE * len(kept)):
            return None
        self._points, self._found = self._points[kept], found[kept]
        ways = np.linalg.norm(self._found - self._points, axis=-1)
        return float(np.median(ways)) / max(gray.shape)


def _flow(
    image0: NDArray[np.uint8],
    image1: NDArray[np.uint8],
    points: NDArray[np.float32],
    guess: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Where points (N, 1, 2) of an image are in another one, and which are found, (N,)."""
    flags = cv2.OPTFLOW_USE_INITIAL_FLOW
    found, is_found, _ = cv2.calcOpticalFlowPyrLK(image0, image1, points, guess.copy(), flags=flags)
    return np.asarray(found, np.float32), is_found.ravel() == 1


def choose_frames(measures: FrameMeasures, count: int) -> list[int]:
    """Return the numbers of at most `count` frames: of equal stretches of motion the sharpest one.

    It is looked for in the middle half of the stretch, so that neighbours are between half and one
    and a half stretches apart.
    """
    motion = measures.motion + 1e-6 * np.arange(len(measures.motion))  # evenly where none is
    ends = np.linspace(motion[0], motion[-1], count + 1)
    chosen = set()
    for low, high in itertools.pairwise(ends):
        middle, reach = (low + high) / 2, (high - low) / 4
        inside = np.flatnonzero(np.abs(motion - middle) <= reach)
        if not len(inside):
            inside = np.array([np.abs(motion - middle).argmin()])
        chosen.add(int(inside[measures.sharpness[inside].argmax()]))
    return sorted(chosen)


def _decoded(video: Path) -> Generator[av.VideoFrame, None, None]:
    """Yield the frames of a video.

    Raises:
        InputError: it cannot be decoded, perhaps from some frame on.
    """
    import av

    try:
        with av.open(str(video)) as container:
            if not container.streams.video:
                raise InputError(f"{video} has sound, and no pictures")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = num_threads()
            yield from container.decode(stream)
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"{video} cannot be decoded: {one_line(error)}") from error


def _upright(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """The picture of a frame as players show it, RGB."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
