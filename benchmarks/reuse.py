"""Pairs per second with photos encoded once for all their pairs, against once for each pair.

    python -m benchmarks.reuse

All pairs of rendered photos are matched by each detector-free matcher, both ways in turns, pair by
pair, in one process and one at a time; both must find the same. Seconds are CPU seconds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import detector_free
from sfm_matchers.pairs.policies import exhaustive_pairs
from sfm_matchers.photos.images import read_image
from sfm_matchers.synthetic import Camera, make_scene, write_photos


def measure(matcher_name: str, photos: dict[str, np.ndarray]) -> str:
    """Return a row of the table."""
    matcher = detector_free.load(matcher_name)
    pairs = exhaustive_pairs(sorted(photos))
    matcher.match_encoded(*(matcher.encode(photos[name]) for name in pairs[0]))  # warms up
    start = time.process_time()
    encoded = {name: matcher.encode(photo) for name, photo in photos.items()}
    once = time.process_time() - start
    each = 0.0
    for name0, name1 in pairs:
        start = time.process_time()
        reused = matcher.match_encoded(encoded[name0], encoded[name1])
        middle = time.process_time()
        again = matcher.match_encoded(*(matcher.encode(photos[n]) for n in (name0, name1)))
        once, each = once + middle - start, each + time.process_time() - middle
        assert len(reused.scores) == len(again.scores)
    count = len(pairs)
    return (
        f"| {matcher_name} | {count} | {count / each:.2f} | {count / once:.2f} | "
        f"{each / once:.2f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--matchers", nargs="+", default=["jamma", "eloftr"])
    parser.add_argument("--photos", type=int, default=20, help="default: 20")
    parser.add_argument("--width", type=int, default=320, help="pixels, of 4:3 (default: 320)")
    options = parser.parse_args()
    print("| matcher | pairs | per second, encoded for each | encoded once | ratio |", flush=True)
    with tempfile.TemporaryDirectory() as name:
        scene = make_scene(3, kind="room", texture_size=384)
        camera = Camera.from_field_of_view(options.width, options.width * 3 // 4)
        write_photos(Path(name), scene, options.photos, 1, camera=camera)
        folder = Path(name) / "images"
        photos = {path.name: read_image(path) for path in sorted(folder.iterdir())}
    for matcher in options.matchers:
        print(measure(matcher, photos), flush=True)


if __name__ == "__main__":
    main()
