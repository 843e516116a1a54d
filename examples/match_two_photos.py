"""Match two photos and draw the matches.

python examples/match_two_photos.py a.jpg b.jpg matches.png --matcher sift
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sfm_matchers import load_matcher, plot_matches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photo0", type=Path)
    parser.add_argument("photo1", type=Path)
    parser.add_argument("picture", type=Path, help="where the drawing is written")
    parser.add_argument("--matcher", default="sift")
    parser.add_argument("--weights", default="bundled", help="bundled, official or a file")
    args = parser.parse_args()

    matcher = load_matcher(args.matcher, weights=args.weights)
    matches = matcher.match(args.photo0, args.photo1)
    print(f"{len(matches)} matches; the first: {matches.keypoints0[:1]} {matches.keypoints1[:1]}")
    plot_matches(args.photo0, args.photo1, matches, args.picture)


if __name__ == "__main__":
    main()
