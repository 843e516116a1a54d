"""A folder of photos to a COLMAP model, from Python.

python examples/photos_to_model.py PHOTOS OUT
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sfm_matchers import reconstruct


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("outputs", type=Path)
    args = parser.parse_args()

    result = reconstruct(args.photos, args.outputs, matcher="sift")
    print(result.verdict.text)
    if result.model is None:
        raise SystemExit(f"no model; {result.report} says why")
    for image in result.model.images.values():
        print(image.name, image.cam_from_world())
    print(f"{result.model.num_points3D()} points; look at {result.report}")


if __name__ == "__main__":
    main()
