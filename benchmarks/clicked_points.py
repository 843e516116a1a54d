"""Matchers on pairs whose truth is points clicked by hand: changes of light, season and sensor.

    python -m benchmarks.clicked_points WXBS --matchers sift jamma

The folder is laid out as the WxBS data set: KIND/PLACE with photos 01 and 02 and corrs.txt, lines
`x0 y0 x1 y1` in pixels. A fundamental matrix is estimated from the matches (MAGSAC++, 1 px); a pair
is solved if at least half of the clicked points have a Sampson distance of at most 3 px. mAA is the
share of points within 1, 2, .. 20 px, averaged, of all pairs. CPU seconds hold all but loading.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import cv2
import numpy as np

from sfm_matchers.geometry.epipolar import sampson_distance
from sfm_matchers.geometry.robust_estimation import estimate_robustly
from sfm_matchers.matchers.photo_matchers import load_matcher
from sfm_matchers.matchers.protocols import Matches
from sfm_matchers.photos.images import read_image

INLIER_THRESHOLD = 1.0  # pixels
SOLVED_WITHIN = 3.0  # pixels
MAA_THRESHOLDS = np.arange(1, 21)  # pixels
LEAST_MATCHES = 8


def distances_of_clicked(matches: Matches, clicked: np.ndarray) -> np.ndarray:
    """For each of (N, 4) clicked points the Sampson distance to what the matches agree on."""
    nothing = np.full(len(clicked), np.inf)
    if len(matches) < LEAST_MATCHES:
        return nothing
    points0, points1 = np.float64(matches.keypoints0), np.float64(matches.keypoints1)
    found, _ = estimate_robustly(
        lambda method: cv2.findFundamentalMat(
            points0, points1, method, INLIER_THRESHOLD, confidence=0.99999, maxIters=10_000
        )
    )
    if found is None or found.shape != (3, 3):
        return nothing
    return sampson_distance(clicked[:, :2], clicked[:, 2:], found)


def photos_of(place: Path) -> list[Path]:
    """The photos of a place, of which one or both may be missing."""
    return [next(place.glob(f"{stem}.[jp][pn]g"), place / stem) for stem in ("01", "02")]


def complete(places: list[Path]) -> list[Path]:
    """The places that have both photos; the others are named."""
    found = []
    for place in places:
        missing = [photo.name for photo in photos_of(place) if not photo.is_file()]
        for name in missing:
            print(f"{place.parent.name}/{place.name}: no photo {name}, left out")
        if not missing:
            found.append(place)
    return found


def measure(name: str, weights: str, places: list[Path]) -> None:
    """Print a line for each pair, and one for all."""
    matcher = load_matcher(name, weights)
    solved, shares, counts = [], [], []
    start = time.process_time()
    for place in places:
        matches = matcher.match(*map(read_image, photos_of(place)))
        distances = distances_of_clicked(matches, np.loadtxt(place / "corrs.txt"))
        median = np.median(distances)
        solved.append(median <= SOLVED_WITHIN)
        shares.append(np.mean(distances[:, None] <= MAA_THRESHOLDS))
        counts.append(len(matches))
        label = f"{place.parent.name}/{place.name}"
        print(f"{name:18} {label:28} {median:8.1f} px, {len(matches)} matches")
    seconds = (time.process_time() - start) / len(places)
    print(
        f"{name:18} {sum(solved)} of {len(places)} solved, mAA {100 * np.mean(shares):.1f} %, "
        f"{np.mean(counts):.0f} matches and {seconds:.1f} CPU s a pair",
        flush=True,
    )


def main() -> None:
    """Measure each matcher."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of KIND/PLACE/corrs.txt")
    parser.add_argument("--matchers", nargs="+", default=["sift", "aliked+mambaglue", "jamma"])
    parser.add_argument("--weights", default="bundled", help="bundled, official or a file")
    parser.add_argument("--kinds", nargs="+", default=["*"], help="folders (default: all)")
    options = parser.parse_args()
    found = sorted(
        path.parent for kind in options.kinds for path in options.folder.glob(f"{kind}/*/corrs.txt")
    )
    places = complete(found)
    if not places:
        parser.error(f"{options.folder} has no KIND/PLACE with photos 01 and 02 and corrs.txt")
    for name in options.matchers:
        measure(name, options.weights, places)


if __name__ == "__main__":
    main()
