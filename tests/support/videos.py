"""Small videos, written by PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def write_video(path: Path, pictures: Sequence[NDArray[np.uint8]], *, rotation: int = 0) -> None:
    """Write RGB pictures (H, W, 3) as a video of 10 frames a second.

    Args:
        path: ``.mp4`` or the like.
        pictures: of one size, with even sides.
        rotation: degrees, counter-clockwise, by which players turn it.
    """
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 20_000_000
        if rotation:
            stream.set_display_rotation(rotation)
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
